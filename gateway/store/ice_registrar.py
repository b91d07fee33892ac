"""Stores the registrations of admissions, many in one statement.

Tested in tests/contract/test_ice_registrar.py.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from gateway.core.audit_event import Event
from gateway.core.ice import Ice
from gateway.store import ices
from gateway.store.engine import AppendedEvent, Engine, StoreUnavailable

_MAX_BATCH: Final = 512
"""Registrations in one statement at most."""


class _Request(msgspec.Struct, gc=False):
    """A caller waits until `new` has replaced `old`."""

    old: Ice
    new: Ice
    event: Event
    future: asyncio.Future[AppendedEvent | None]


class IceRegistrar:
    """Stores registrations. Those that arrive while a write runs share the next one.

    A statement for each would be a thread switch (SQLite) or a round trip (PostgreSQL), which costs more than
    the rest of a registration.
    """

    def __init__(self, engine: Engine, *, max_batch: int = _MAX_BATCH) -> None:
        self._engine = engine
        self._max_batch = max_batch
        self._waiting: list[_Request] = []
        self._running: asyncio.Task[None] | None = None

    async def register(self, old: Ice, new: Ice, event: Event) -> AppendedEvent | None:
        """Put the registered ICE in place of the old one, with its event, durably; None if the old one is stale.

        If the caller is cancelled, it is done all the same. Raises `StoreUnavailable`.
        """
        future: asyncio.Future[AppendedEvent | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Request(old, new, event, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name="registrations")
        return await asyncio.shield(future)

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._store(self._take())
        finally:
            self._running = None

    def _take(self) -> list[_Request]:
        """The next batch, with one request of each ICE."""
        batch: dict[str, _Request] = {}
        later = []
        for one in self._waiting:
            if one.old.ice_name in batch or len(batch) == self._max_batch:
                later.append(one)
            else:
                batch[one.old.ice_name] = one
        self._waiting = later
        return list(batch.values())

    async def _store(self, batch: list[_Request]) -> None:
        changes = [(one.old, one.new, one.event) for one in batch]
        try:
            logged = await self._engine.write(
                lambda transaction: ices.replace(transaction, changes)
            )
        except StoreUnavailable as error:
            for one in batch:
                _fail(one, error)
        except Exception:  # noqa: BLE001 - what one request causes must not fail the others
            await asyncio.gather(*map(self._store_alone, batch))
        else:
            for one, appended in zip(batch, logged, strict=True):
                one.future.set_result(appended)
            self._outdate({one.old.ice_name for one in batch})

    def _outdate(self, names: set[str]) -> None:
        """Answer the requests of ICEs that were just registered; in a batch they would fail all others."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if one.old.ice_name in names:
                one.future.set_result(None)
            else:
                self._waiting.append(one)

    async def _store_alone(self, one: _Request) -> None:
        try:
            appended = await self._engine.write(
                lambda transaction: ices.swap(transaction, one.old, one.new, one.event)
            )
        except Exception as error:  # noqa: BLE001 - handed to the caller
            _fail(one, error)
        else:
            one.future.set_result(appended)


def _fail(one: _Request, error: Exception) -> None:
    one.future.set_exception(error)
    one.future.exception()  # the caller may have been cancelled
