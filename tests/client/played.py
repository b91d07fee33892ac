"""Handlers of a module, without a client: what they report and log is kept."""

import contextlib
import os
import uuid
from pathlib import Path

from client.operations import Operation


class Registry:
    """What a module's `register` is given for an ICE."""

    def __init__(self):
        self.handlers = {}

    def operation(self, kind):
        return lambda handler: self.handlers.setdefault(kind, handler)


def a_name():
    """A client ends whatever works for an operation of this name, in whichever test that runs."""
    return uuid.uuid4().hex


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that has ended and waits for its parent is not alive.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


class Played:
    """Runs operations by the handlers that `register` adds for these settings."""

    def __init__(self, register, settings):
        ice = Registry()
        register(ice, settings)
        self._handlers = ice.handlers
        self.kinds = set(ice.handlers)
        self.reports, self._logged = [], []

    @property
    def output(self):
        return "".join(self._logged)

    async def __call__(self, params, kind="execute"):
        operation = Operation(id=a_name(), kind=kind, params=params, log=self._log)
        return await self._handlers[kind](operation, self._report)

    async def _report(self, fraction=None, message=None, *, data=None):
        self.reports.append((fraction, message))

    async def _log(self, text):
        self._logged.append(text)
