"""`GET /ice/v1`: the handshake of an ICE, from the headers to the 101, and its session's end."""

from __future__ import annotations

import asyncio
import binascii
import random
from base64 import b64decode
from dataclasses import replace
from functools import lru_cache
from typing import Final

import msgspec
import structlog
from aiohttp import web

from client.protocol import CLOSINGS, PATH, SUBPROTOCOL, Progress, RequestId, RetryAfter
from gateway.core.ice import IceType
from gateway.core.problems import Problem, refusal
from gateway.core.times import Clock
from gateway.node.admission import Admission, Admitted, Candidate, Handshake, Refused
from gateway.node.dispatcher import Dispatcher
from gateway.node.heartbeat import Heartbeat
from gateway.node.hub import Hub, Pending
from gateway.node.lease import Lease
from gateway.node.presence import Presence
from gateway.node.session import FinishReport, Session
from gateway.runtime.fd_limits import is_among_the_last
from gateway.web.load_shedding import LoadShedding
from gateway.web.metrics import Metrics
from gateway.web.responses import Networks, client_address, problem_response
from gateway.web.upgrade import HandedOver, Upgrade, hand_over
from gateway.web.websocket import CLOSE_TIMEOUT, WebSocket

SPREAD: Final = 200
"""Sessions that come back within one second after a drain."""
_KEY_BYTES: Final = 16  # RFC 6455 section 4.1
_PRIVATE: Final = 3000  # RFC 6455 section 7.4.2

_log = structlog.get_logger()


class IceEndpoint:
    """Admits ICEs to the hub, and hears of their sessions' hellos and ends."""

    def __init__(
        self,
        *,
        admission: Admission,
        hub: Hub[Session],
        heartbeat: Heartbeat,
        presence: Presence,
        dispatch: Dispatcher,
        lease: Lease,
        metrics: Metrics,
        clock: Clock,
        trusted_proxies: Networks,
        max_connections: int,
        max_handshakes: int,
        load_shedding: LoadShedding,
    ) -> None:
        self._admission = admission
        self._hub = hub
        self._heartbeat = heartbeat
        self._presence = presence
        self._dispatch = dispatch
        self._lease = lease
        self._metrics = metrics
        self._sessions = {one: metrics.sessions.labels(one) for one in IceType}
        self._admissions = {one: metrics.admissions.labels(one) for one in IceType}
        self._clock = clock
        self._trusted = trusted_proxies
        self._max_connections = max_connections
        self._max_handshakes = max_handshakes
        self.load_shedding = load_shedding
        """Shared with the listener, whose connections give way."""
        self._handshakes = 0
        self._closing: set[asyncio.Future[None]] = set()
        self.draining = False
        """Whether the gateway is stopping and admits nobody."""
        self.paused = False
        """Whether an admin wants it to admit nobody."""
        """Set when that changes."""

    # --- the handshake -------------------------------------------------------------------------------

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """`admit`, for a handshake that aiohttp has made a request of."""
        return await self.admit(Upgrade.of(request)) or HandedOver()

    async def admit(self, upgrade: Upgrade) -> web.Response | None:
        """Admit (None) or refuse; every refusal comes before the 101. See `connection.Gate`."""
        started = asyncio.get_running_loop().time()
        address = client_address(upgrade, self._trusted)
        connection = f"{random.getrandbits(64):016x}"
        self._handshakes += 1
        try:
            refused = await self._admit(upgrade, address, connection)
        finally:
            self._handshakes -= 1
        if refused is not None:
            return self._refused(refused, address, connection)
        self._metrics.admission_seconds.observe(asyncio.get_running_loop().time() - started)
        return None

    async def _admit(self, upgrade: Upgrade, address: str, connection: str) -> Refused | None:
        fault = bad_handshake(upgrade) or self._turned_away()
        if fault is not None:
            return Refused(fault)
        candidate = await self._admission.screen(
            Handshake(
                tuple(upgrade.headers.getall("Authorization", ())),
                tuple(upgrade.headers.getall("DPoP", ())),
                address,
                _local_urls(upgrade),
            )
        )
        if isinstance(candidate, Refused):
            return candidate
        pending = self._hub.expect(candidate.token.ice_name, candidate.token.generation)
        try:
            return await self._decide(upgrade, candidate, pending, connection)
        finally:
            self._hub.forget(pending)

    async def _decide(
        self, upgrade: Upgrade, candidate: Candidate, pending: Pending, connection: str
    ) -> Refused | None:
        again = False
        while True:
            pending.outdated = False
            verdict = await self._admission.decide(candidate, again=again)
            again = True
            if isinstance(verdict, Refused):
                return verdict
            # From here to the bytes of the 101 there is no await: what is true now stays true.
            if self._admission.holds(verdict) and not self._hub.overtaken(pending):
                break
        name = pending.ice_name
        if self.draining or self.paused:
            return Refused(_draining(), name)
        if upgrade.is_gone:
            _log.info("client gone", ice=name, address=candidate.address, connection=connection)
            return None
        if name not in self._hub:
            if len(self._hub) >= self._max_connections:
                return Refused(_overloaded(), name)
            # A connection that is no session makes room; without one the ICE is refused.
            if is_among_the_last(upgrade.handle) and not self.load_shedding.shed():
                return Refused(_overloaded("Nearly all of its file handles are in use"), name)
        self._open(upgrade, verdict, candidate, pending, connection)
        return None

    def _open(
        self,
        upgrade: Upgrade,
        admitted: Admitted,
        candidate: Candidate,
        pending: Pending,
        connection: str,
    ) -> None:
        session = Session(
            admitted.ice,
            session_id=connection,
            seq=admitted.seq,
            address=candidate.address,
            since=self._clock(),
            observer=self,
            reading=admitted.reading,
        )
        session.wire = WebSocket(session)
        hand_over(upgrade, session.wire, session.welcome(self._heartbeat.interval))
        self._hub.promote(pending, session)
        self._heartbeat.schedule(session)
        self._presence.opened(session)
        self._dispatch.opened(session)
        ice_type = admitted.ice.ice_type
        self._sessions[ice_type].inc()
        self._admissions[ice_type].inc()

    def _turned_away(self) -> Problem | None:
        if self.draining or self.paused:
            return _draining()
        if self._handshakes > self._max_handshakes:
            return _overloaded()
        return None

    def _refused(self, verdict: Refused, address: str, connection: str) -> web.Response:
        problem = verdict.problem
        self._metrics.refusals.labels(problem.code).inc()
        if verdict.ice_name is not None:
            self._presence.refused(verdict.ice_name, problem.code, address)
        # While the store is away each ICE comes again every few seconds; the fault is said once.
        log = _log.debug if problem.code == "store-unavailable" else _log.info
        log(
            "refused",
            code=problem.code,
            ice=verdict.ice_name,
            address=address,
            connection=connection,
        )
        return problem_response(problem)

    # --- what sessions tell ----------------------------------------------------------------------------

    def may_act(self) -> bool:
        """See `session.Observer`."""
        if self._lease.valid:
            return True
        self.abandon()
        return False

    def greeted(self, session: Session) -> None:
        """See `session.Observer`."""
        self._presence.greeted(session)
        self._dispatch.greeted(session)

    def answered(self, session: Session, operation_id: str, refused: bytes | None) -> None:
        """See `session.Observer`."""
        self._dispatch.answered(session, operation_id, refused)

    def progressed(self, session: Session, progress: Progress) -> None:
        """See `session.Observer`."""
        self._dispatch.progressed(session, progress)

    def finished(self, session: Session, request: RequestId, finish: FinishReport) -> None:
        """See `session.Observer`."""
        self._dispatch.finished(session, request, finish)

    def ended(self, session: Session, code: int) -> None:
        """See `session.Observer`."""
        self._hub.remove(session)
        self._dispatch.closed(session)
        self._presence.closed(session, code, superseded=session.ice_name in self._hub)
        self._sessions[session.ice.ice_type].dec()
        # A peer may choose among two thousand codes of its own: they are one series.
        private = code >= _PRIVATE and code not in CLOSINGS
        self._metrics.closures.labels("other" if private else str(code)).inc()
        lost = session.wire.lost
        if not lost.done():
            self._closing.add(lost)
            lost.add_done_callback(self._closing.discard)

    def abandon(self) -> None:
        """Close every session with 1012 and a time of its own to return."""
        sessions = list(self._hub)
        random.shuffle(sessions)
        spread = max(1.0, len(sessions) / SPREAD)
        for number, session in enumerate(sessions):
            retry_after = round(1 + spread * number / len(sessions), 4)
            session.close(1012, msgspec.json.encode(RetryAfter(retry_after)).decode())

    def pause(self, paused: bool) -> None:  # noqa: FBT001 - a callback's argument
        """Admit nobody and close every session, or go on, as an admin wants it."""
        self.paused = paused
        if paused:
            self.abandon()

    async def drain(self) -> None:
        """Admit nobody any more, and close every session."""
        self.draining = True
        self.abandon()
        if self._closing:
            await asyncio.wait(set(self._closing), timeout=CLOSE_TIMEOUT + 1)


def _draining() -> Problem:
    return refusal("draining", retry_after=random.randint(1, 5))  # noqa: S311 - spreads load


def _overloaded(detail: str | None = None) -> Problem:
    wait = random.randint(1, 10)  # noqa: S311 - spreads load
    return refusal("overloaded", detail=detail, retry_after=wait)


def bad_handshake(upgrade: Upgrade) -> Problem | None:
    """What is wrong with an ICE's handshake, if anything."""
    fault = bad_upgrade(upgrade)
    if fault is None and not offers(upgrade, SUBPROTOCOL):
        return _bad(f"Sec-WebSocket-Protocol must offer {SUBPROTOCOL}")
    return fault


def offers(upgrade: Upgrade, subprotocol: str) -> bool:
    """Whether the client speaks this subprotocol."""
    offered = ",".join(upgrade.headers.getall("Sec-WebSocket-Protocol", ())).split(",")
    return subprotocol in (name.strip() for name in offered)


def bad_upgrade(upgrade: Upgrade) -> Problem | None:
    """What is wrong with a handshake by RFC 6455 section 4.2.1, if anything."""
    upgrades = _tokens(upgrade, "Upgrade")
    if not upgrades:
        # RFC 9110 section 15.5.22: a 426 names the protocol.
        return replace(
            _bad("There was no upgrade at all"),
            status=426,
            headers={"Upgrade": "websocket", "Connection": "Upgrade"},
        )
    if "websocket" not in upgrades or "upgrade" not in _tokens(upgrade, "Connection"):
        return _bad("Upgrade must be websocket, and Connection must name Upgrade")
    if upgrade.version < (1, 1):
        return _bad("HTTP/1.1 is needed")
    if _only(upgrade, "Sec-WebSocket-Version") != "13":
        # Section 4.4: the answer names the version that is spoken.
        return replace(
            _bad("Sec-WebSocket-Version must be 13"), headers={"Sec-WebSocket-Version": "13"}
        )
    if not _is_key(_only(upgrade, "Sec-WebSocket-Key")):
        return _bad("Sec-WebSocket-Key must be 16 bytes in base64")
    return None


def _bad(detail: str) -> Problem:
    return refusal("bad-handshake", detail=detail)


def _tokens(upgrade: Upgrade, name: str) -> set[str]:
    """The parts of a list header, in lower case."""
    values = ",".join(upgrade.headers.getall(name, ())).split(",")
    return {value.strip().lower() for value in values if value.strip()}


def _only(upgrade: Upgrade, name: str) -> str:
    """The value of a header that must not appear twice (RFC 6455 section 11.3); empty if it does."""
    values = upgrade.headers.getall(name, ())
    return values[0].strip() if len(values) == 1 else ""


def _is_key(text: str) -> bool:
    try:
        return len(b64decode(text, validate=True)) == _KEY_BYTES
    except (ValueError, binascii.Error):
        return False


def _local_urls(upgrade: Upgrade) -> tuple[str, ...]:
    """The URLs that name the socket's own address; the Host header is never believed."""
    local = upgrade.local
    return () if local is None else _urls(*local, "https" if upgrade.secure else "http")


@lru_cache(64)
def _urls(host: str, port: int, scheme: str) -> tuple[str, ...]:
    address = f"[{host}]" if ":" in host else host
    return tuple(f"{scheme}://{name}:{port}{PATH}" for name in (address, "localhost"))
