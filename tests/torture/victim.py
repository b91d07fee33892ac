"""A gateway that dies by SIGKILL at a statement of an action, in a process forked from a warm one.

It is the real gateway on real sockets and a real file. Only where it dies is added: an SQLite trace
on the writer's connection, which is called as each statement begins.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.app import Gateway, run_gateway
from gateway.node.admission import Admission
from gateway.runtime.logs import configure
from gateway.services.bulk_actions import BulkActions
from gateway.services.provisioning import Provisioning
from gateway.store import events
from gateway.store.sqlite.engine import SqliteWriter, _finished, _SqliteTransaction
from tests.support.harness import settings_for

ACTIONS = ("provision", "reprovision", "register", "reregister", "deregister", "disconnect", "bulk")
COMMITTED = "committed, told to nobody"
"""The place behind the last statement of an action's transaction."""


@dataclass(frozen=True)
class Aim:
    """Die as a statement of `action` begins: where `place` is reached for the `nth` time.

    With a `delay`, so many seconds later.
    """

    action: str
    place: str
    nth: int = 1
    delay: float = 0.0


def run(folder: Path, aim: Aim | None, mutation: str | None, notes: Any) -> None:
    """The process: notes its URL, and what it was about when it died."""
    configure("json", "error")
    asyncio.run(_run(folder, aim, mutation, notes))


async def _run(folder: Path, aim: Aim | None, mutation: str | None, notes: Any) -> None:
    if mutation is not None:
        MUTATIONS[mutation]()
    async with run_gateway(settings_for(folder)) as gateway:
        if aim is not None:
            await _doom(gateway, aim, notes)
        notes.send(gateway.url)
        await asyncio.Event().wait()


class _Doom:
    """Follows the statements of an action, and kills the process at one of them."""

    def __init__(self, aim: Aim, notes: Any) -> None:
        self._aim = aim
        self._notes = notes
        self._places: list[str] | None = None  # of the action; None while it is not written
        self._within = False
        self._last = ""

    def wrap(self, writer: SqliteWriter) -> None:
        """See what is written for which action. Units that wait are grouped into one transaction."""
        write, write_group, commit = writer.write, writer._write_group, writer._commit

        async def labelled(unit: Any) -> Any:
            action = _acting.get()
            if action != self._aim.action:
                return await write(unit)

            async def aimed(transaction: Any) -> Any:
                self._within = True
                try:
                    return await unit(transaction)
                finally:
                    self._within = False

            aimed.aimed_at = True  # type: ignore[attr-defined]
            return await write(aimed)

        async def grouped(group: Any) -> Any:
            if any(hasattr(unit, "aimed_at") for unit, _ in group):
                self._places = []
            try:
                return await write_group(group)
            finally:
                self._places = None

        def committed() -> None:
            commit()
            if self._places is not None:
                self._reach(COMMITTED)

        number = events.number

        async def numbered(transaction: Any) -> Any:
            before, self._within = self._within, True
            try:
                return await number(transaction)
            finally:
                self._within = before

        events.number = numbered
        writer.write, writer._write_group = labelled, grouped  # type: ignore[method-assign]
        writer._commit = committed  # type: ignore[method-assign]

    def traced(self, statement: str) -> None:
        """A statement of the writer's connection begins."""
        # Whatever else is in the same transaction is another's.
        if self._places is not None and (self._within or statement.startswith(("BEGIN", "COMMIT"))):
            self._reach(_place(statement, again=statement == self._last))
            self._last = statement

    def _reach(self, place: str) -> None:
        assert self._places is not None
        self._places.append(place)
        if place == self._aim.place and self._places.count(place) == self._aim.nth:
            self._notes.send(self._places)
            if self._aim.delay:
                threading.Thread(target=kill_itself, args=(self._aim.delay,)).start()
            else:
                kill_itself(0.0)


def _place(statement: str, *, again: bool) -> str:
    """A statement without its values. SQLite says it once more as its trigger begins."""
    words = re.match(r"BEGIN|COMMIT|SELECT.* FROM \w+|INSERT INTO \w+|UPDATE \w+", statement)
    place = re.sub(r"SELECT.* FROM", "SELECT FROM", words[0]) if words else statement
    return f"trigger of {place}" if again else place


_acting: contextvars.ContextVar[str | None] = contextvars.ContextVar("action", default=None)


async def _doom(gateway: Gateway, aim: Aim, notes: Any) -> None:
    for action in ACTIONS:
        if action == "register":
            _label(Admission, "_register", action)
        elif action == "bulk":
            _label(BulkActions, "act", action)
        else:
            _label(Provisioning, action, action)
    doom = _Doom(aim, notes)
    doom.wrap(gateway.engine._writes)
    await gateway.engine._writer.set_trace_callback(doom.traced)


def _label(owner: type, name: str, action: str) -> None:
    original = getattr(owner, name)

    async def labelled(*args: Any, **kwargs: Any) -> Any:
        token = _acting.set(action)
        try:
            return await original(*args, **kwargs)
        finally:
            _acting.reset(token)

    setattr(owner, name, labelled)


def kill_itself(delay: float) -> None:
    """End this process by SIGKILL after so many seconds."""
    until = time.perf_counter() + delay
    while time.perf_counter() < until:
        pass  # to sleep would be too coarse
    os.kill(os.getpid(), signal.SIGKILL)


# --- faults that the torture has to find ---------------------------------------------------------


def _answer_before_the_commit() -> None:
    async def early(self: SqliteWriter, group: Any) -> bool:
        def do() -> list[Any]:
            transaction = _SqliteTransaction(self._sqlite)
            results = [_finished(unit(transaction)) for unit, _ in group]
            _finished(events.number(transaction))
            return results

        for (_, future), result in zip(group, await self._in_thread(do), strict=True):
            future.set_result(result)
        await asyncio.sleep(0.5)  # meanwhile those who asked are told
        await self._in_thread(self._commit)
        self._committed()
        return True

    SqliteWriter._write_group = early  # type: ignore[method-assign]


def _event_in_another_transaction() -> None:
    number = events.number

    async def apart(transaction: Any) -> None:
        await transaction.run("COMMIT")
        await transaction.run("BEGIN IMMEDIATE")
        await number(transaction)

    events.number = apart


def _each_of_a_bulk_alone() -> None:
    from gateway.store import ices  # noqa: PLC0415 - changed in this process alone

    replace = ices.replace

    async def alone(transaction: Any, changes: Any) -> Any:
        entries = []
        for change in changes:
            entries += await replace(transaction, [change])
            await events.number(transaction)
            transaction.appended.clear()
            await transaction.run("COMMIT")
            await transaction.run("BEGIN IMMEDIATE")
        return entries

    ices.replace = alone


MUTATIONS: dict[str, Callable[[], None]] = {
    "answer-before-the-commit": _answer_before_the_commit,
    "event-in-another-transaction": _event_in_another_transaction,
    "each-of-a-bulk-alone": _each_of_a_bulk_alone,
}
