"""Whether a worker listens: one that is drained leaves the port to the others, while one of them serves.

Otherwise it would go on getting its share of what comes, and refuse it.
"""

from __future__ import annotations

import asyncio

import structlog

from gateway.endpoint import Endpoint
from gateway.listener import Runner
from gateway.sockets import Share
from gateway.store.engine import StoreUnavailable
from gateway.store.nodes import Nodes
from gateway.tls import Tls

_RETRY = 0.5
_log = structlog.get_logger()


class Doors:
    """Those of the node `name`, which listens on `share` by now."""

    def __init__(
        self,
        runner: Runner,
        share: Share,
        tls: Tls | None,
        *,
        endpoint: Endpoint,
        nodes: Nodes,
        name: str,
    ) -> None:
        self._runner = runner
        self._share = share
        self._tls = tls
        self._endpoint = endpoint
        self._nodes = nodes
        self._name = name
        self._open = True

    async def run(self) -> None:
        """Open and close them until cancelled."""
        while True:
            await self._endpoint.turned.wait()
            self._endpoint.turned.clear()
            try:
                await self._turn()
            except (OSError, StoreUnavailable) as error:
                _log.warning("the port is not turned", reason=str(error))
                await asyncio.sleep(_RETRY)
                self._endpoint.turned.set()

    async def _turn(self) -> None:
        if self._endpoint.paused and self._open:
            others = [node for node in await self._nodes.all() if node.name != self._name]
            if any(node.state == "serves" for node in others):
                self._open = False
                await self._runner.close()
        elif not self._endpoint.paused and not self._open:
            context = None if self._tls is None else self._tls.context
            await self._runner.listen_on(self._share.take(), context)
            self._open = True
