"""A gateway of a cluster in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from tests.support.relay import Relay
from tests.support.served import environment

PATIENCE = 30.0


class Node:
    """One node of `database`, whose key file lies in `folder`; ICEs reach it at `public`.

    `program` are the arguments of Python that serve. `settings` by their name in the environment.
    """

    relay: Relay
    """Its way to the database, where that can be cut."""

    def __init__(
        self,
        folder: Path,
        name: str,
        database: str,
        public: str,
        program: tuple[str, ...] = ("gateway", "serve"),
        **settings: str,
    ) -> None:
        self.folder = folder
        self.name = name
        self.url = ""
        self._program = program
        self._environment = environment(
            ICE_GATEWAY_DATABASE__URL=database,
            ICE_GATEWAY_TOKENS__KEY_FILE=str(folder / "keys.json"),
            ICE_GATEWAY_SERVER__PUBLIC_URL=public,
            ICE_GATEWAY_NODE__NAME=name,
            **{
                f"ICE_GATEWAY_{key}": value
                for key, value in {
                    "SERVER__PORT": "0",
                    "METRICS__LISTEN": "",
                    **settings,
                }.items()
            },
        )
        self._process: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    @property
    def status(self) -> str:
        """Whether its process runs, in words."""
        if self._process is None:
            return "not started"
        ended = self._process.returncode
        return "runs" if ended is None else f"ended with status {ended}"

    async def start(self) -> None:
        """Start it; returns when it serves."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", *self._program),
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = (await self._process.stdout.readline()).decode()
        if " serves " not in line:
            raise RuntimeError(
                f"{self.name} did not start: {line!r} {self.log.read_text()[-2000:]}"
            )
        self.url = line.split(" serves ")[1].split()[0]

    @property
    def log(self) -> Path:
        """Where it logs to."""
        return self.folder / f"{self.name}.log"

    def signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end; the exit status, 0 where it was never started."""
        if self._process is None:
            return 0
        async with asyncio.timeout(PATIENCE):
            await self._process.communicate()
        return self._process.returncode or 0


@contextlib.asynccontextmanager
async def running(nodes: Sequence[Node]) -> AsyncIterator[None]:
    """Start nodes, the first before the others, since it makes what they share; in the end they are killed."""
    try:
        await nodes[0].start()
        await asyncio.gather(*(node.start() for node in nodes[1:]))
        yield
    finally:
        for node in nodes:
            node.signal(signal.SIGKILL)
        for node in nodes:
            await node.ended()


async def run_command(folder: Path, database: str, *arguments: str, **settings: str) -> str:
    """Run a command on the database; what it prints. It must be done. `settings` as those of `Node`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *arguments, "--database", database),
        env=environment(
            ICE_GATEWAY_TOKENS__KEY_FILE=str(folder / "keys.json"),
            **{f"ICE_GATEWAY_{key}": value for key, value in settings.items()},
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{arguments} failed: {errors.decode()}")
    return output.decode().strip()


async def api_token(folder: Path, database: str) -> str:
    """Add an admin; their API token."""
    await run_command(folder, database, "users", "add", "root", "--role", "admin", "--no-password")
    return await run_command(
        folder, database, "api-tokens", "create", "--user", "root", "--name", "tests"
    )
