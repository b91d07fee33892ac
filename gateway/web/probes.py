"""`/healthz`: the process is alive. `/readyz`: it admits ICEs, or why it does not.

Tested in tests/gateway/web/test_ice_endpoint.py and tests/gateway/node/test_session.py.
"""

from __future__ import annotations

from aiohttp import web

from gateway.core.problems import problem
from gateway.node.node import Node, NodeState
from gateway.web.responses import json_response, problem_response


class Probes:
    """Answers both for a node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def alive(self, _: web.Request) -> web.Response:
        """200 as long as the process can answer."""
        return json_response({"status": "alive"})

    async def ready(self, _: web.Request) -> web.Response:
        """200 while ICEs are admitted, otherwise 503 with the reason; `faults` lists every fault."""
        if self._node.state is NodeState.DRAINING:
            return problem_response(problem("unavailable", "the gateway is stopping"))
        faults = self._node.health.faults()
        reason = self._node.health.reason
        if reason is not None:
            return problem_response(problem("unavailable", reason, faults=faults))
        return json_response({"status": "ready", **({"faults": faults} if faults else {})})
