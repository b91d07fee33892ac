"""Asks a gateway for an ICE of this machine's own, with the secret of an enrolment key.

    outcome = await Enroller("https://gateway.example", secret).run()

The key pair is stored before the first request, and the gateway knows the machine by it: a client that was killed,
or whose answer was lost, asks again and gets a new token. The secret is never stored. Source: docs/protocol.md.

Tested in tests/client/test_client_enrolment.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from aiohttp import hdrs

from client import platform, protocol
from client.backoff import Backoff, ClosedByUs, Refused, Stopped
from client.credentials import EnrolmentSecret, NotAToken, Token, proof
from client.environment import Environment
from client.errors import one_line
from client.events import Event, log_event
from client.gateway_client import GatewayClient
from client.gateway_session import GatewaySession, bounded_body
from client.identity import Applicant, Enrolment, same_gateway
from client.protocol import EnrolmentCode, RefusalCode
from client.text import encodable

_MAX_HOSTNAME: Final = 253
_MAX_PLATFORM: Final = 128
_ANSWERS: Final = (HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.ACCEPTED)
_NOWHERE: Final = ("http-404", "http-405")
_ABSENT: Final = "There is no enrolment at this address: the gateway is older than enrolment, or the URL is wrong."
_ASK_ANEW: Final = frozenset({EnrolmentCode.NOT_FOUND, RefusalCode.KEY_MISMATCH})
"""Refusals of a poll after which the client asks for an ICE again: the gateway knows no such enrolment of its."""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """This ICE has a token; `ice_name` is None if it had one before and was never admitted."""

    ice_name: str | None


Outcome = Enrolled | Stopped | ClosedByUs


class _Wanted(msgspec.Struct, omit_defaults=True):
    """Body of the request."""

    hostname: str
    platform: str
    ice_name: str | None = None
    provisionedto: str | None = None


class _Waiting(msgspec.Struct):
    """Body of 202. The id becomes part of a URL."""

    enrolment: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]{1,64}$")]
    retry_after: float


class _Granted(msgspec.Struct):
    """Body of 200 and 201."""

    ice_name: str
    token: str


class Enroller(GatewayClient):
    """Gets a token for a state folder that has none yet. `IceClient` then registers with it.

    Args:
        gateway_url: the gateway's base URL, `https://host[:port][/prefix]`.
        secret: the secret of an enrolment key.
        name: the name of the ICE; by default that of an unfinished enrolment, otherwise the gateway makes one.
        user: the user of the ICE, where the enrolment key lets the machine choose; by default as for `name`.
        state_dir, ca_file, insecure, options, observe, environment: as for `IceClient`.

    Raises:
        endpoint.BadAddress: `gateway_url` is not a valid URL, or plain http without `insecure`.
        endpoint.BadCertificateFile: `ca_file` cannot be used.
    """

    def __init__(
        self,
        gateway_url: str,
        secret: EnrolmentSecret,
        *,
        name: str | None = None,
        user: str | None = None,
        state_dir: Path | str | None = None,
        ca_file: Path | str | None = None,
        insecure: bool = False,
        options: Sequence[str] = (),
        observe: Callable[[Event], None] = log_event,
        environment: Environment | None = None,
    ) -> None:
        super().__init__(
            gateway_url,
            state_dir=state_dir,
            ca_file=ca_file,
            insecure=insecure,
            options=options,
            observe=observe,
            environment=environment,
        )
        self._secret = secret
        self._name = name and encodable(name)
        self._user = user and encodable(user)
        self._url = self._gateway + protocol.ENROLMENTS
        self._request = ("POST", self._url)
        """Method and URL of the request that is sent."""
        self._shown: str | None = None
        """The id of the waiting enrolment that the observer knows of."""
        self._backoff = Backoff(self._environment)
        self._task: asyncio.Task[Outcome] | None = None

    async def run(self) -> Outcome:
        """Ask, wait for an approval where one is needed, and store the token.

        Raises `credentials.IdentityProblem` if the state folder cannot be used.
        """
        applicant = Applicant(self._folder, self._gateway)
        try:
            if applicant.has_token:
                self._emit(Event("enrolled", "this ICE already has a token"))
                return Enrolled(applicant.state.ice_name)
            enrolment = self._unfinished(applicant.state.enrolment)
            self._begin(applicant, home=self._gateway, enrolment=enrolment)
            task = self._task = asyncio.create_task(self._run(applicant))
            if self._stop_requested:
                task.cancel()
            try:
                await asyncio.wait({task})
            finally:
                task.cancel()
                await asyncio.wait({task})
            return ClosedByUs() if task.cancelled() else task.result()
        finally:
            applicant.close()

    def stop(self) -> None:
        """Give up at once; `run` returns `ClosedByUs`, and the next start goes on."""
        self._stop_requested = True
        if self._task is not None:
            self._task.cancel()

    def _unfinished(self, stored: Enrolment | None) -> Enrolment:
        """The stored enrolment to go on with, or a new one."""
        if (
            stored is not None
            and same_gateway(stored.gateway, self._gateway)
            and self._name in (None, stored.ice_name)
            and self._user in (None, stored.user)
        ):
            return stored
        return Enrolment(gateway=self._gateway, ice_name=self._name, user=self._user)

    async def _run(self, applicant: Applicant) -> Outcome:
        env = self._environment

        def credentials() -> tuple[str, str]:
            method, url = self._request
            made = proof(
                applicant.key, url, self._secret, now=env.now(), htm=method, nonce=self._nonce
            )
            return f"Bearer {self._secret.reveal()}", made

        session = GatewaySession(
            self._endpoint,
            self._ca_file,
            credentials,
            expected=_ANSWERS,
            now=env.now,
            waits=env.waits,
        )
        async with session:
            while isinstance(verdict := await self._attempt(applicant, session), float):
                if verdict:
                    await env.sleep(verdict)
        return verdict

    async def _attempt(self, applicant: Applicant, session: GatewaySession) -> float | Outcome:
        """One request; returns seconds to wait, or the final outcome."""
        enrolment = applicant.state.enrolment or self._unfinished(None)
        answer = await self._ask(session, enrolment)
        # As for a handshake, only the next proof carries the nonce.
        self._nonce = answer.nonce if isinstance(answer, Refused) else None
        match answer:
            case Refused():
                return self._turned_down(answer, enrolment)
            case _Waiting():
                return self._wait(answer, enrolment, applicant)
        try:
            token = Token(answer.token)
        except NotAToken:
            return self._turned_down(_not_a_gateway(), enrolment)
        applicant.store_token(token)
        name = one_line(answer.ice_name)
        self._save(enrolment=None, ice_name=name, code=None, sentence=None, next=None)
        self._emit(Event("enrolled", f"enrolled as {name}"))
        return Enrolled(name)

    async def _ask(
        self, session: GatewaySession, enrolment: Enrolment
    ) -> _Waiting | _Granted | Refused:
        body = None
        if enrolment.id is None:
            self._emit(Event("enrolling", f"enrolling at {self._url}"))
            wanted = _Wanted(
                one_line(platform.hostname())[:_MAX_HOSTNAME],
                one_line(platform.describe())[:_MAX_PLATFORM],
                enrolment.ice_name,
                enrolment.user,
            )
            self._request, body = ("POST", self._url), msgspec.json.encode(wanted)
        else:
            self._request = ("GET", f"{self._url}/{enrolment.id}")

        async def request(**how: Any) -> tuple[int, bytes]:
            headers = {} if body is None else {hdrs.CONTENT_TYPE: "application/json"}
            async with session.http.request(
                *self._request, data=body, headers=headers, allow_redirects=False, **how
            ) as response:
                return response.status, await bounded_body(response)

        answer = await session.send(request)
        if isinstance(answer, Refused):
            return replace(answer, sentence=_ABSENT) if answer.code in _NOWHERE else answer
        status, data = answer
        try:
            if status == HTTPStatus.ACCEPTED:
                return msgspec.json.decode(data, type=_Waiting)
            return msgspec.json.decode(data, type=_Granted)
        except (ValueError, RecursionError):
            return _not_a_gateway()

    def _turned_down(self, refused: Refused, enrolment: Enrolment) -> float | Stopped:
        if enrolment.id is not None and refused.code in _ASK_ANEW:
            self._save(enrolment=msgspec.structs.replace(enrolment, id=None, since=None))
            refused = replace(refused, retry=True)
        verdict = self._backoff.refused(refused, was_admitted=False)
        if isinstance(verdict, Stopped):
            self._save(enrolment=None)
        # Each poll of a machine whose clock is wrong needs a nonce.
        if verdict or enrolment.id is None:
            self._refused(refused, verdict)
        return verdict

    def _wait(self, waiting: _Waiting, enrolment: Enrolment, applicant: Applicant) -> float:
        since = enrolment.since if enrolment.id == waiting.enrolment else None
        wait = self._backoff.waiting(waiting.retry_after)
        self._save(
            enrolment=msgspec.structs.replace(
                enrolment, id=waiting.enrolment, since=since or self._timestamp()
            ),
            code=None,
            sentence=None,
            next=self._timestamp(wait),
        )
        if self._shown != waiting.enrolment:
            self._shown = waiting.enrolment
            sentence = (
                f"waits for an admin to approve enrolment {waiting.enrolment} of the key"
                f" {applicant.key.thumbprint()}"
            )
            self._emit(Event("waiting", sentence))
        return wait


def _not_a_gateway() -> Refused:
    return Refused("not-a-gateway", "The answer is not one of a gateway: check the URL.")
