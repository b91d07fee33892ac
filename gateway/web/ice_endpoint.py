"""`GET /ice/v1`: the handshake of an ICE, from the headers to the 101 or the refusal."""

from __future__ import annotations

import asyncio
import random

import structlog
from aiohttp import web

from client.protocol import RefusalCode
from gateway.core.problems import Problem, refusal
from gateway.node.node import Node
from gateway.node.session import Session
from gateway.node.verdict import Admitted, Handshake, Refused
from gateway.runtime.fd_limits import is_among_the_last
from gateway.runtime.settings import Settings
from gateway.web.client_address import client_address
from gateway.web.handshake import bad_handshake, local_urls
from gateway.web.load_shedding import LoadShedding
from gateway.web.metrics import Metrics
from gateway.web.responses import problem_response
from gateway.web.upgrade import HandedOver, Upgrade, hand_over
from gateway.web.websocket import Limits, WebSocket

_log = structlog.get_logger()


class IceEndpoint:
    """Admits or refuses the handshake of an ICE."""

    def __init__(
        self,
        settings: Settings,
        node: Node,
        metrics: Metrics,
        load_shedding: LoadShedding,
        limits: Limits,
    ) -> None:
        self._node = node
        self._metrics = metrics
        self._load_shedding = load_shedding
        self._trusted = settings.server_trusted_proxies
        self._max_connections = settings.ice_max_connections
        self._max_handshakes = settings.ice_max_handshakes
        self._limits = limits
        self.handshakes = 0
        """The number of handshakes in progress."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """`admit` for a handshake that aiohttp parsed."""
        return await self.admit(Upgrade.of(request)) or HandedOver()

    async def admit(self, upgrade: Upgrade) -> web.Response | None:
        """Admit (None) or refuse, always before the 101. See `connection.UpgradeHandler`."""
        started = asyncio.get_running_loop().time()
        address = client_address(upgrade, self._trusted)
        connection = f"{random.getrandbits(64):016x}"
        self.handshakes += 1
        try:
            refused = await self._admit(upgrade, address, connection)
        finally:
            self.handshakes -= 1
        if refused is not None:
            return self._refused(refused, address, connection)
        self._metrics.admission_seconds.observe(asyncio.get_running_loop().time() - started)
        return None

    async def _admit(self, upgrade: Upgrade, address: str, connection: str) -> Refused | None:
        fault = bad_handshake(upgrade) or self._node.drain_refusal()
        if fault is None and self.handshakes > self._max_handshakes:
            fault = _overloaded()
        if fault is not None:
            return Refused(fault)
        handshake = Handshake(
            tuple(upgrade.headers.getall("Authorization", ())),
            tuple(upgrade.headers.getall("DPoP", ())),
            address,
            local_urls(upgrade),
        )

        def open_session(admitted: Admitted) -> Session | Refused | None:
            name = admitted.ice.ice_name
            refused = self._node.drain_refusal()
            if refused is not None:
                return Refused(refused, name)
            if upgrade.is_gone:
                _log.info("client gone", ice=name, address=address, connection=connection)
                return None
            refused = self._too_many(upgrade, name)
            if refused is not None:
                return Refused(refused, name)
            session = self._node.session(admitted, connection, address)
            session.transport = transport = WebSocket(session, self._limits)
            hand_over(upgrade, transport, session.welcome(self._node.heartbeat.interval))
            return session

        outcome = await self._node.admit(handshake, open_session)
        return outcome if isinstance(outcome, Refused) else None

    def _too_many(self, upgrade: Upgrade, name: str) -> Problem | None:
        if name in self._node.hub:  # it replaces the ICE's older session
            return None
        if len(self._node.hub) >= self._max_connections:
            return _overloaded()
        # Close a connection that is not a session to make room; refuse the ICE if there is none.
        if is_among_the_last(upgrade.handle) and not self._load_shedding.shed():
            return _overloaded("The gateway has hardly any file handles left")
        return None

    def _refused(self, verdict: Refused, address: str, connection: str) -> web.Response:
        problem = verdict.problem
        self._metrics.refusals.labels(problem.code).inc()
        # While the store is unavailable each ICE retries every few seconds; the fault itself is logged once.
        log = _log.debug if problem.code == RefusalCode.STORE_UNAVAILABLE else _log.info
        log(
            "refused",
            code=problem.code,
            ice=verdict.ice_name,
            address=address,
            connection=connection,
        )
        return problem_response(problem)


def _overloaded(detail: str | None = None) -> Problem:
    wait = random.randint(1, 10)  # noqa: S311 - spreads load
    return refusal(RefusalCode.OVERLOADED, detail=detail, retry_after=wait)
