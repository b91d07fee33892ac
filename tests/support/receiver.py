"""A receiver of webhooks on loopback that verifies what it gets, and can be told to misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web
from standardwebhooks import Webhook as Verifier

from gateway.core.times import Clock, utc_now
from tests.support.ice import PATIENCE


class Receiver:
    """Keeps the messages that it took, in order, and the ids of all that came."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.url = ""
        self.secret = ""
        self.answers: list[int] = []
        """What it answers next; 204 once there are none."""
        self.down = False
        """It answers 503."""
        self.hangs = False
        """It answers never."""
        self.taken: list[tuple[str, dict[str, Any]]] = []
        self.came: list[str] = []
        self._changed = asyncio.Condition()

    @property
    def types(self) -> list[str]:
        return [body["type"] for _, body in self.taken]

    @property
    def once(self) -> list[dict[str, Any]]:
        """The bodies of what it took, without repetitions: a message comes at least once."""
        first: dict[str, dict[str, Any]] = {}
        for message, body in self.taken:
            first.setdefault(message, body)
        return list(first.values())

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        message = request.headers["webhook-id"]
        if self.secret:
            self._verify(message, body, request)
        async with self._changed:
            self.came.append(message)
            self._changed.notify_all()
        if self.hangs:
            await asyncio.Event().wait()
        status = 503 if self.down else self.answers.pop(0) if self.answers else 204
        if status in range(200, 300):
            async with self._changed:
                self.taken.append((message, json.loads(body)))
                self._changed.notify_all()
        if status in range(300, 400):
            return web.Response(status=status, headers={"Location": self.url + "/elsewhere"})
        return web.Response(status=status, body=b"" if status == 204 else b"x" * 100_000)

    def _verify(self, message: str, body: bytes, request: web.Request) -> None:
        """As the library of the standard does, but by the gateway's clock, which tests move."""
        at = datetime.fromtimestamp(int(request.headers["webhook-timestamp"]), UTC)
        assert abs(at - self.clock()) < timedelta(minutes=5)
        signature = Verifier(self.secret).sign(message, at, body.decode())
        assert request.headers["webhook-signature"] == signature

    async def until(self, holds: Any) -> None:
        """Wait until `holds(self)`."""
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(lambda: holds(self))

    async def until_taken(self, *types: str) -> None:
        """Wait until it has taken messages of these types, and no others."""
        await self.until(lambda one: len(one.taken) >= len(types))
        assert self.types == list(types)


@contextlib.asynccontextmanager
async def receiving(clock: Clock = utc_now, port: int = 0) -> AsyncIterator[Receiver]:
    """A receiver on loopback."""
    receiver = Receiver(clock)
    app = web.Application()
    app.router.add_post("/{path:.*}", receiver.handle)
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=0.05)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]
    receiver.url = f"http://127.0.0.1:{port}"
    try:
        yield receiver
    finally:
        await runner.cleanup()
