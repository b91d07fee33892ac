"""The gateway's session layer alone: whoever comes is connected, and every message comes back.

    python -m tests.bench.echo --port N [--host ADDRESS] [--welcome]

Text comes back on any path, with or without the subprotocol `ice.v1`, so that conformance suites can be
pointed at it; binary is refused with 1003, as by the gateway. Nothing is checked but the handshake by
RFC 6455: by what it is quicker than the gateway, that is the price of the checks.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable

from aiohttp import web

from client.protocol import SUBPROTOCOL, CloseCode, Welcome, notification
from gateway.runtime import eventloop
from gateway.web.handshake import bad_upgrade, offers
from gateway.web.responses import problem_response
from gateway.web.server import Runner
from gateway.web.upgrade import HandedOver, Upgrade, hand_over
from gateway.web.websocket import WebSocket

_WELCOME = Welcome(
    ice_name="bench-000000",
    ice_type="ci-cd",
    provisionedto=None,
    status="registered",
    generation=1,
    session="0123456789abcdef",
    operations=["remote-execute", "schedule"],
    heartbeat=30.0,
    server="echo",
)


class Echo:
    """A receiver that sends back what it gets."""

    def __init__(self, wire: Callable[[Echo], WebSocket] = WebSocket) -> None:
        self.wire = wire(self)

    def received(self, text: str) -> None:
        self.wire.send(text.encode())

    def overflowed(self) -> None:
        self.wire.close(CloseCode.SLOW_CONSUMER)

    def closed(self, code: int) -> None:
        """Nobody holds it."""


async def start(host: str, port: int, *, welcome: bool, echo: Callable[[], Echo] = Echo) -> Runner:
    """Listen, with a new `echo` for each connection."""
    first = notification("ice.welcome", _WELCOME) if welcome else None

    async def connect(upgrade: Upgrade) -> web.Response | None:
        fault = bad_upgrade(upgrade)
        if fault is not None:
            return problem_response(fault)
        if not upgrade.is_gone:
            subprotocol = SUBPROTOCOL if offers(upgrade, SUBPROTOCOL) else None
            hand_over(upgrade, echo().wire, first, subprotocol)
        return None

    async def handle(request: web.Request) -> web.StreamResponse:
        return await connect(Upgrade.of(request)) or HandedOver()

    app = web.Application()
    app.router.add_get("/{path:.*}", handle)
    runner = Runner(app, shutdown_timeout=1.0, upgrades=lambda _: connect)
    await runner.listen(host, port)
    return runner


async def serve(host: str, port: int, *, welcome: bool) -> None:
    runner = await start(host, port, welcome=welcome)
    eventloop.freeze_heap()
    print("ready", *runner.addresses[0][:2], flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--welcome", action="store_true", help="send a first message, as a gateway")
    options = parser.parse_args()
    eventloop.run(serve(options.host, options.port, welcome=options.welcome))


if __name__ == "__main__":
    main()
