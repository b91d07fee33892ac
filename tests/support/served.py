"""`ice-gateway serve` as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
import threading
import urllib.request

from click.testing import CliRunner

from gateway.cli import main
from gateway.cli.common import open_context
from gateway.core.ice import IceType
from gateway.runtime.setting_sources import load
from tests.support.forks import environment
from tests.support.ice import PROCESS_PATIENCE, Ice


def command(*args):
    return [sys.executable, "-m", "gateway", *args]


class Output:
    """Lines of a stream as a thread reads them; all of them are kept."""

    def __init__(self, stream):
        self.lines = []
        self._ended = False
        self._stream = stream
        self._more = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        with self._stream:
            for line in self._stream:
                with self._more:
                    self.lines.append(line)
                    self._more.notify_all()
        with self._more:
            self._ended = True
            self._more.notify_all()

    def expect(self, pattern):
        """Wait for a line, at the longest until the stream ends; returns the first match."""

        def found():
            return next(filter(None, (re.search(pattern, line) for line in self.lines)), None)

        with self._more:
            self._more.wait_for(lambda: found() or self._ended, PROCESS_PATIENCE)
            match = found()
        assert match, f"no line like {pattern!r} in {self.lines}"
        return match

    def end(self):
        """Wait for the end of the stream; returns all of it."""
        self._thread.join(PROCESS_PATIENCE)
        return "".join(self.lines)


class Served:
    """A gateway in a process of its own."""

    def __init__(self, folder, *args, **env):
        self.path = folder / "ice.db"
        self.settings = load(None, {}, {"database.url": f"sqlite:///{self.path}"})
        options = ("--port", "0", "--database", self.settings.database_url, *args)
        self.process = subprocess.Popen(
            command("serve", *options),
            env=environment(**env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.out, self.err = Output(self.process.stdout), Output(self.process.stderr)
        self.line = self.out.expect(r"^ice-gateway (\S+) serves (\S+) on (.+)$")
        self.url = self.line[2]
        self.secrets = []
        self.ices = []

    def get(self, path, context=None):
        with urllib.request.urlopen(self.url + path, context=context) as answer:  # noqa: S310
            return answer.status

    async def provision(self, name, tls=None):
        async with open_context(self.settings) as opened:
            issued = await opened.services.provisioning.provision(
                opened.actor, name, IceType.CI_CD, None
            )
        self.secrets.append(issued.token.reveal())
        self.ices.append(Ice(self.url, issued.token.reveal(), tls=tls))
        return self.ices[-1]

    async def run(self, *args):
        """Run a command in this process, on the database; its stdout. It must be done."""
        options = (*args, "--database", self.settings.database_url)
        done = await asyncio.to_thread(CliRunner(catch_exceptions=False).invoke, main, options)
        assert (done.exit_code, done.stderr) == (0, ""), f"{args} gave {done.exit_code}: {done}"
        return done.stdout

    def stop(self, number=signal.SIGTERM):
        """Send a signal; returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(PROCESS_PATIENCE)


@contextlib.contextmanager
def serving(folder, *args, **env):
    served = Served(folder, *args, **env)
    try:
        yield served
    finally:
        served.process.kill()
        served.process.wait(PROCESS_PATIENCE)
        served.out.end()
        served.err.end()
