"""A receiver of webhooks that sees whether the log comes whole and in order, whatever becomes of the nodes that send."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator

from aiohttp import web
from standardwebhooks import Webhook as Verifier

_REFUSED = 0.02
"""The share of messages that it does not take at first."""


class LogReceiver:
    """Follows a log from the first event that comes on.

    `violations` are gaps and events that came for the first time after a later one. Repetitions are allowed; those that
    came after later events are counted in `late`: a node that was taken for dead sent them.
    """

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._verifier: Verifier | None = None
        self.url = ""
        self.first = self.last = 0
        self.repeated = self.late = self.refused = 0
        self.logs: set[str] = set()
        self.violations: list[str] = []
        self._moved = asyncio.Condition()

    def trust(self, secret: str) -> None:
        """Verify messages with the webhook's secret; before that none is taken."""
        self._verifier = Verifier(secret)

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        if self._verifier is None or self._chance.random() < _REFUSED:
            self.refused += 1
            return web.Response(status=503)
        self._verifier.verify(body, dict(request.headers))
        message = request.headers["webhook-id"]
        if message.startswith("notice-"):
            self.violations.append(f"a notice that nothing is known of: {body!r}")
            return web.Response(status=204)
        log, _, number = message.rpartition("-")
        seq = json.loads(body)["data"]["seq"]
        if str(seq) != number:
            self.violations.append(f"the message {message} has event {seq}")
        self.logs.add(log)
        await self._take(seq)
        return web.Response(status=204)

    async def _take(self, seq: int) -> None:
        async with self._moved:
            if not self.last:
                self.first = self.last = seq
            elif seq == self.last + 1:
                self.last = seq
            elif seq == self.last:
                self.repeated += 1
            elif self.first <= seq < self.last:
                self.late += 1
            else:
                self.violations.append(f"event {seq} came after event {self.last}")
                self.last = max(seq, self.last)
            self._moved.notify_all()

    async def caught_up(self, seq: int, seconds: float) -> None:
        """Wait until event `seq` has come; one that does not is a violation."""
        try:
            async with asyncio.timeout(seconds), self._moved:
                await self._moved.wait_for(lambda: self.last >= seq)
        except TimeoutError:
            self.violations.append(f"event {seq} was to come, the last one was {self.last}")
        if len(self.logs) != 1:
            self.violations.append(f"there is one log, and it had the ids {self.logs}")

    def figures(self) -> str:
        """What came, in a line."""
        return (
            f"the webhook got events {self.first} to {self.last}; {self.refused} it did not take at first,"
            f" {self.repeated} came again, {self.late} of them late; {len(self.violations)} violations"
        )


@contextlib.asynccontextmanager
async def log_receiver(chance: random.Random) -> AsyncIterator[LogReceiver]:
    """A receiver on loopback."""
    receiver = LogReceiver(chance)
    app = web.Application()
    app.router.add_post("/", receiver.handle)
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    receiver.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/"
    try:
        yield receiver
    finally:
        await runner.cleanup()
