"""The release before this one, built from git: its gateway, its client, and databases that it has written."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support.harness import Api
from tests.support.ice import PATIENCE
from tests.support.served import Output

ROOT = Path(__file__).parents[2]
OLD = "64ba25583c5e"
"""The commit of the release before."""
AGENT = """
import asyncio, sys
from client.agent import IceClient

async def execute(operation, report):
    await report(0.5, "half way")
    if "hang" in operation.params:
        await asyncio.Event().wait()
    return {"echo": operation.params}

async def main(url, state, token):
    handlers = {"remote-execute": execute}
    async with IceClient(url, state_dir=state, token=token or None, handlers=handlers) as ice:
        welcome = await ice.connected()
        print("admitted as", welcome.ice_name, flush=True)
        print("ended:", await ice.wait(), flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


class Release:
    """A checkout whose commands are run as processes; they import nothing of another checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def popen(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("ICE_")}
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.folder,
            env={**kept, "PYTHONPATH": str(self.folder), **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **more: str) -> str:
        """What `ice-gateway` prints; it must succeed."""
        with self.popen("-m", "gateway", *arguments, **more) as process:
            out, err = process.communicate(timeout=6 * PATIENCE)
        assert process.returncode == 0, f"{arguments} gave {process.returncode}: {err}"
        return out.strip()

    @contextlib.contextmanager
    def agent(self, url: str, state: Path, token: str = ""):
        """An ICE with this release's client; yields the lines that it prints."""
        process = self.popen("-c", AGENT, url, str(state), token)
        errors = Output(process.stderr)
        try:
            yield Output(process.stdout)
        finally:
            process.kill()
            process.wait(PATIENCE)
            errors.end()

    @contextlib.contextmanager
    def serving(self, database: str, name: str = "old", **more: str):
        """This release's gateway on a database; yields it."""
        gateway = Serving(self, database, name, **more)
        try:
            yield gateway
        finally:
            gateway.stop()


class Serving:
    """A gateway of a release, in a process of its own."""

    def __init__(self, release: Release, database: str, name: str, **more: str) -> None:
        options = ("--port", "0", "--database", database)
        named = {"ICE_GATEWAY_NODE__NAME": name, "ICE_GATEWAY_METRICS__LISTEN": "", **more}
        self.process = release.popen("-m", "gateway", "serve", *options, **named)
        self.out, self.err = Output(self.process.stdout), Output(self.process.stderr)
        try:
            self.url = self.out.expect(r"^ice-gateway \S+ serves (\S+) on ")[1]
        except AssertionError:
            self.process.kill()
            self.process.wait(PATIENCE)
            self.out.end()
            raise AssertionError(f"it did not start: {self.err.end()}") from None

    def api(self, session, token: str) -> Api:
        return Api(session, self.url, token)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(2 * PATIENCE)
        self.out.end()
        self.err.end()
        return status


def unpack(folder: Path) -> Release:
    """The release before, unpacked into `folder`. Raises `LookupError` if this checkout has no history."""
    packed = subprocess.run(
        ["git", "archive", OLD],  # noqa: S607 - whichever there is
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if packed.returncode:
        raise LookupError(f"this checkout has no history: {packed.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as tree:
        tree.extractall(folder, filter="data")
    return Release(folder)


@pytest.fixture(scope="session")
def old(tmp_path_factory) -> Release:
    """The release before."""
    try:
        return unpack(tmp_path_factory.mktemp("old"))
    except LookupError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def new() -> Release:
    """This one."""
    return Release(ROOT)
