"""A TCP relay in a thread of its own: a load balancer before several gateways, or a line that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
from collections.abc import Iterator

Address = tuple[str, int]


class Relay:
    """Passes each connection on to the next of `targets` that accepts it. `cut` stands still, as a network does."""

    def __init__(self, *targets: Address) -> None:
        self.targets = list(targets)
        self.address: Address = ("", 0)
        self._turn = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://{self.address[0]}:{self.address[1]}"

    def start(self) -> None:
        self._thread.start()
        self._do(self._listen())

    def stop(self) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Let nothing through, and nobody know."""
        self._loop.call_soon_threadsafe(self._resumed.clear)

    def mend(self) -> None:
        """Let everything through that has waited."""
        self._loop.call_soon_threadsafe(self._resumed.set)

    def forget(self) -> None:
        """Let nothing more through of what is connected, and nobody know; who connects now gets through."""
        self._loop.call_soon_threadsafe(self._forget)

    def _forget(self) -> None:
        self._resumed.clear()
        self._resumed = asyncio.Event()
        self._resumed.set()

    def _do(self, work) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._socket.setblocking(False)
        self.address = self._socket.getsockname()[:2]
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        # asyncio's server leaves a connection open that it accepts while it is closed.
        accepted, _ = self._socket.accept()
        task = self._loop.create_task(self._take(accepted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()
        await asyncio.sleep(0)  # what was accepted last has begun, and closes what it has
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take(self, accepted: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=accepted)
        resumed = self._resumed
        try:
            await resumed.wait()
            there = await self._dial()
            if there is not None:
                other_reader, other_writer = there
                with contextlib.closing(other_writer):
                    try:
                        await asyncio.gather(
                            self._pass(reader, other_writer, resumed),
                            self._pass(other_reader, writer, resumed),
                        )
                    except OSError:
                        await resumed.wait()  # the other side does not hear of an end either
        except (OSError, asyncio.CancelledError):
            pass  # a side has gone, or the relay ends
        finally:
            writer.close()

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for _ in self.targets:
            target = self.targets[next(self._turn) % len(self.targets)]
            with contextlib.suppress(OSError):
                return await asyncio.open_connection(*target)
        return None

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, resumed: asyncio.Event
    ) -> None:
        while data := await reader.read(65536):
            await resumed.wait()
            writer.write(data)
            await writer.drain()
        await resumed.wait()
        if writer.can_write_eof():
            writer.write_eof()


@contextlib.contextmanager
def relaying(*targets: Address) -> Iterator[Relay]:
    relay = Relay(*targets)
    relay.start()
    try:
        yield relay
    finally:
        relay.stop()
