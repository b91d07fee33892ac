"""`/ice/v1/enrolments`: a machine asks for an ICE of its own and for what became of its request.

Requests are refused in the order of docs/protocol.md: what needs no database first.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Annotated, Final

import msgspec
import structlog
from aiohttp import web

from client.protocol import (
    ENROLMENTS,
    MAX_DEPTH,
    PATH,
    EnrolmentCode,
    JsonTooComplex,
    RefusalCode,
    check_json,
)
from gateway.core.accounts import MAX_USER_NAME
from gateway.core.enrolment import MAX_HOSTNAME, MAX_PLATFORM, Wanted
from gateway.core.enrolment_request import Answer, Bearer, Enrolled, NotGenuine, Waiting
from gateway.core.json_input import NotJson, check_syntax, shape_fault
from gateway.core.problems import Problem, quoted, refusal
from gateway.node.admission import unavailable
from gateway.node.enrolment import EnrolmentScreen
from gateway.node.node import Node
from gateway.node.verdict import Handshake
from gateway.runtime.settings import Settings
from gateway.services.enrolment import EnrolmentService
from gateway.store.engine import StoreUnavailable
from gateway.web.client_address import client_address
from gateway.web.handshake import local_urls
from gateway.web.metrics import Metrics
from gateway.web.responses import answer_errors, json_response, problem_response, read_body
from gateway.web.upgrade import Upgrade

MAX_BODY: Final = 8 * 1024
"""Maximum bytes of a request's body."""
_SUFFIX: Final = ENROLMENTS.removeprefix(PATH)
_log = structlog.get_logger()


class _Body(msgspec.Struct):
    """Body of POST; members that are not known are ignored, as in the messages of an ICE."""

    hostname: Annotated[str, msgspec.Meta(max_length=MAX_HOSTNAME)]
    platform: Annotated[str, msgspec.Meta(max_length=MAX_PLATFORM)]
    ice_name: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    provisionedto: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_USER_NAME)] | None = (
        None
    )


class EnrolmentEndpoint:
    """Answers machines that enrol."""

    def __init__(
        self, settings: Settings, node: Node, service: EnrolmentService, metrics: Metrics
    ) -> None:
        self._node = node
        self._screen: EnrolmentScreen = node.enrolments
        self._service = service
        self._metrics = metrics
        self._trusted = settings.server_trusted_proxies
        self._max = settings.ice_max_handshakes
        self._running = 0

    def routes(self, prefix: str) -> list[web.RouteDef]:
        """The routes below a path."""
        one = f"{prefix}{ENROLMENTS}/{{id:[0-9a-f]{{1,64}}}}"
        return [
            web.post(prefix + ENROLMENTS, self._handler(self._request)),
            web.get(one, self._handler(self._poll), allow_head=False),
        ]

    def _handler(
        self, answer: Callable[[web.Request, str], Awaitable[web.Response | Problem]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            address = client_address(request, self._trusted)
            self._running += 1
            try:
                outcome = await answer(request, address)
            except StoreUnavailable as error:
                _log.debug("store unavailable", reason=str(error), path=request.rel_url.raw_path)
                outcome = unavailable(None).problem
            finally:
                self._running -= 1
            if not isinstance(outcome, Problem):
                return outcome
            self._metrics.refused_enrolments.labels(outcome.code).inc()
            _log.info("enrolment refused", code=outcome.code, address=address)
            return problem_response(outcome)

        async def answered(request: web.Request) -> web.StreamResponse:
            return await answer_errors(request, handle)

        return answered

    async def _bearer(self, request: web.Request, address: str, suffix: str) -> Bearer | Problem:
        """Check all that needs no database."""
        refused = self._node.drain_refusal()
        if refused is None and self._running > self._max:
            wait = random.randint(1, 10)  # noqa: S311 - spreads load
            refused = refusal(RefusalCode.OVERLOADED, retry_after=wait)
        if refused is not None:
            return refused
        headers = Handshake(
            tuple(request.headers.getall("Authorization", ())),
            tuple(request.headers.getall("DPoP", ())),
            address,
            local_urls(Upgrade.of(request)),
        )
        machine = await self._screen.check(headers, request.method, suffix)
        if isinstance(machine, Problem):
            return machine
        return Bearer(
            machine.key_id, machine.secret.digest(), machine.thumbprint, address, machine.proof
        )

    async def _request(self, request: web.Request, address: str) -> web.Response | Problem:
        bearer = await self._bearer(request, address, _SUFFIX)
        if isinstance(bearer, Problem):
            return bearer
        wanted = _wanted(await read_body(request, MAX_BODY))
        return self._response(await self._service.request(bearer, wanted), address, made=201)

    async def _poll(self, request: web.Request, address: str) -> web.Response | Problem:
        enrolment = request.match_info["id"]
        bearer = await self._bearer(request, address, f"{_SUFFIX}/{enrolment}")
        if isinstance(bearer, Problem):
            return bearer
        return self._response(await self._service.poll(bearer, enrolment), address, made=200)

    def _response(self, answer: Answer, address: str, *, made: int) -> web.Response | Problem:
        match answer:
            case Enrolled(name, token):
                self._metrics.enrolments.inc()
                _log.info("enrolled", ice=name, address=address)
                return json_response({"ice_name": name, "token": token.reveal()}, status=made)
            case Waiting(enrolment, retry_after):
                return json_response(
                    {"enrolment": enrolment, "retry_after": retry_after},
                    status=202,
                    headers={"Retry-After": str(retry_after)},
                )
            case NotGenuine():
                return self._screen.refuse_secret(address)
        return answer


def _wanted(body: bytes) -> Wanted | Problem:
    """What a machine asks for."""
    try:
        check_syntax(body)
        check_json(body, MAX_DEPTH)
    except NotJson:
        return refusal(EnrolmentCode.MALFORMED_JSON)
    except JsonTooComplex as error:
        return _invalid("body", str(error))
    try:
        asked = msgspec.json.decode(body, type=_Body)
    except msgspec.ValidationError as error:
        return _invalid(*shape_fault(error))
    for field in ("hostname", "platform", "provisionedto"):
        if not (getattr(asked, field) or "").isprintable():
            return _invalid(field, "must have printable characters alone")
    return Wanted(asked.hostname, asked.platform, asked.ice_name, asked.provisionedto)


def _invalid(field: str, reason: str) -> Problem:
    return refusal(EnrolmentCode.INVALID, detail=f"{field}: {quoted(reason)}", field=field)
