"""Records which ICEs are connected and how their connections ended, in groups, with a short delay.

Nothing waits for these writes. A write that fails is tried again. Refusals of one ICE are counted
together, so that no client can flood the table.

Tested in tests/contract/test_presence.py.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import msgspec
import structlog
from msgspec.structs import replace

from client.protocol import CloseCode
from gateway.core.duplicates import Copy
from gateway.core.times import Clock, to_text
from gateway.node import duplicates
from gateway.node.session import Session
from gateway.runtime.eventloop import wait_at_most
from gateway.store import sessions
from gateway.store.engine import Engine, StoreUnavailable, Transaction
from gateway.store.instances import Greeting
from gateway.store.sessions import Connection, ConnectionEvent, Opened

_LINES: Final = 128
"""Log lines that are written before other tasks have their turn."""

_log = structlog.get_logger()


class ConnectionChange(msgspec.Struct, frozen=True, gc=False):
    """The connection that an ICE has now, or None."""

    ice_name: str
    connection: Connection | None


News = ConnectionChange | ConnectionEvent
"""What subscribers receive; a `ConnectionEvent` is a refusal with its total count."""


class _SessionEvent(msgspec.Struct, frozen=True, gc=False):
    """A session began, or ended with a close code."""

    session: Session
    code: int | None
    at: datetime

    def connection_event(self) -> ConnectionEvent:
        """The row to write."""
        session, at = self.session, self.at
        kind, code = ("admitted", None) if self.code is None else ("closed", str(self.code))
        retry_after = session.retry_after if self.code == CloseCode.RESTART else None
        return ConnectionEvent(
            session.ice_name, kind, code, session.address, at, at, retry_after=retry_after
        )


@dataclass(slots=True)
class _Batch:
    """What has happened since the last write; sessions become rows when they are written."""

    opened: dict[str, Session] = field(default_factory=dict)
    greeted: dict[str, Session] = field(default_factory=dict)
    greetings: list[Greeting] = field(default_factory=list)
    closed: set[str] = field(default_factory=set)
    session_events: list[_SessionEvent] = field(default_factory=list)
    refused: dict[tuple[str, str, str], ConnectionEvent] = field(default_factory=dict)
    news: dict[str, Session | None] = field(default_factory=dict)

    def newest(self) -> dict[str, Session]:
        """The newest session of each ICE that was admitted or spoke, whether or not it has ended."""
        admitted = [event.session for event in self.session_events if event.code is None]
        found: dict[str, Session] = {}
        for session in (*admitted, *self.greeted.values()):
            known = found.get(session.ice_name)
            # `opened` decides on SQLite, where there are no readings.
            if known is None or (session.reading, session.opened) >= (known.reading, known.opened):
                found[session.ice_name] = session
        return found

    def __bool__(self) -> bool:
        return bool(self.greeted or self.closed or self.session_events or self.refused)


@dataclass(frozen=True, slots=True)
class Pace:
    """How often presence is written, in seconds, and how much may wait for that."""

    retry: float = 0.5
    confirm_every: float = 10.0
    """15 are promised, and a write may need a second try."""
    pause: float = 0.1
    """Between two writes: admins see connections soon enough, and a storm is a few commits."""
    max_events: int = 20_000
    """Kept at most while the store is away; beyond that the oldest are dropped."""


_USUAL: Final = Pace()


class Presence:
    """Collects changes during one write for the next one, and logs them at the same time.

    A handshake only adds to the collection, which keeps admissions quick.
    """

    def __init__(
        self,
        engine: Engine,
        node: str,
        clock: Clock,
        count_duplicates: Callable[[int], None] = lambda _: None,
        pace: Pace = _USUAL,
    ) -> None:
        self._engine = engine
        self._node = node
        self._clock = clock
        self._count_duplicates = count_duplicates
        self._pace = pace
        self._batch = _Batch()
        self._unlogged: deque[_SessionEvent] = deque()
        self._confirmed = datetime.min.replace(tzinfo=UTC)
        self._wake = asyncio.Event()
        self._subscribers: set[Callable[[News], None]] = set()

    async def start(self) -> None:
        """Delete the sessions that an earlier run of this node left behind."""
        await self._engine.write(lambda transaction: sessions.clear(transaction, self._node))

    def subscribe(self, listener: Callable[[News], None]) -> Callable[[], None]:
        """Call `listener` with news once they are written; returns a function that removes it."""
        self._subscribers.add(listener)
        return lambda: self._subscribers.discard(listener)

    def publish(self, news: News) -> None:
        """Pass on news that this node or another one has written."""
        for listener in tuple(self._subscribers):
            listener(news)

    def opened(self, session: Session) -> None:
        """A session began."""
        self._batch.opened[session.id] = session
        self._batch.news[session.ice_name] = session
        self._note(session, None)

    def greeted(self, session: Session, instance: str | None = None) -> None:
        """A session said hello, and may have named the instance of its client; or it said what it accepts now."""
        if instance is not None:
            copy = Copy(instance, session.address, session.hello.hostname)
            self._batch.greetings.append(
                Greeting(session.ice_name, session.generation, session.reading, self._now(), copy)
            )
            del self._batch.greetings[: -self._pace.max_events]
        if session.id not in self._batch.opened:
            self._batch.greeted[session.id] = session
        self._batch.news[session.ice_name] = session
        self._wake.set()

    def closed(self, session: Session, code: int, *, superseded: bool) -> None:
        """A session ended; if it was superseded, the ICE is still connected."""
        # A session that was never written need not be deleted. Its hello is kept: it is what is last known.
        if self._batch.opened.pop(session.id, None) is None:
            self._batch.closed.add(session.id)
        if not superseded:
            self._batch.news[session.ice_name] = None
        self._note(session, code)

    def refused(self, ice_name: str, code: str, address: str) -> None:
        """An ICE with a genuine token was refused."""
        now = self._clock()
        key = (ice_name, code, address)
        known = self._batch.refused.get(key)
        if known is not None:
            self._batch.refused[key] = replace(known, at=now, count=known.count + 1)
        elif len(self._batch.refused) < self._pace.max_events:
            self._batch.refused[key] = ConnectionEvent(ice_name, "refused", code, address, now, now)
        self._wake.set()

    def _note(self, session: Session, code: int | None) -> None:
        event = _SessionEvent(session, code, self._now())
        session_events = self._batch.session_events
        session_events.append(event)
        if len(session_events) > self._pace.max_events:
            del session_events[0]
        self._unlogged.append(event)
        self._wake.set()

    def _now(self) -> datetime:
        """The present; while the clock is set back, the last confirmation, which admins have seen."""
        return max(self._clock(), self._confirmed)

    async def run(self) -> None:
        """Write changes, and confirm the open sessions periodically, until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self._pace.confirm_every
        while True:
            await wait_at_most(self._wake, due - loop.time())
            self._wake.clear()
            confirm = loop.time() >= due
            if await self.flush(confirm=confirm):
                if confirm:
                    due = loop.time() + self._pace.confirm_every
                # SQLite's lock is not fair: other processes that write to the file need this gap.
                await asyncio.sleep(self._pace.pause)
            else:
                await asyncio.sleep(self._pace.retry)
                self._wake.set()

    async def flush(self, *, confirm: bool = False) -> bool:
        """Write what was collected; returns False, and keeps it, if the store is unavailable.

        `confirm` also records that all other sessions are open at this moment. It does so in the same
        transaction: a session that ended earlier must not be shown as seen later.
        """
        await self._log_sessions()
        batch, self._batch = self._batch, _Batch()
        if confirm:
            # Set before the commit: admins may see it before this node knows that it is committed.
            self._confirmed = self._now()
        elif not batch:
            return True
        confirmed = self._confirmed
        opened = {name: self._row(session) for name, session in batch.opened.items()}
        newest = [
            opened.get(session.id) or self._row(session) for session in batch.newest().values()
        ]
        greeted = [self._connection(session) for session in batch.greeted.values()]
        connection_events = [event.connection_event() for event in batch.session_events]
        if batch.refused:
            connection_events = sorted(
                [*connection_events, *batch.refused.values()], key=lambda one: one.at
            )
        changes = [
            ConnectionChange(ice_name, None if session is None else self._connection(session))
            for ice_name, session in batch.news.items()
        ]

        async def unit(transaction: Transaction) -> tuple[list[ConnectionEvent], int]:
            if confirm:
                await sessions.confirm(transaction, self._node, confirmed)
            refused = await sessions.record(
                transaction,
                list(opened.values()),
                greeted,
                list(batch.closed),
                connection_events,
                newest=newest,
            )
            return refused, await duplicates.record(transaction, batch.greetings)

        try:
            refused, found = await self._engine.write(unit)
        except StoreUnavailable:
            self._batch = _merged(batch, self._batch, self._pace.max_events)
            return False
        except Exception:  # noqa: BLE001 - the gateway works without presence
            _log.exception("presence lost")
            return True
        self._count_duplicates(found)
        # One of several nodes publishes the refusals of all nodes from the table (`Membership`).
        for news in (*changes, *(() if self._engine.shared else refused)):
            self.publish(news)
        return True

    async def _log_sessions(self) -> None:
        """Log the sessions that began and ended, each line with its time."""
        log = _log.bind()  # the unbound logger would bind itself again for each line
        for number in range(1, len(self._unlogged) + 1):
            if not number % _LINES:
                await asyncio.sleep(0)  # if cancelled here, the next call logs the rest
            if not self._unlogged:
                return
            event = self._unlogged.popleft()
            session, code = event.session, event.code
            at = to_text(event.at)
            if code is None:
                log.info(
                    "admitted",
                    ice=session.ice_name,
                    generation=session.generation,
                    address=session.address,
                    connection=session.id,
                    timestamp=at,
                )
            else:
                log.info(
                    "closed", ice=session.ice_name, code=code, connection=session.id, timestamp=at
                )

    def _row(self, session: Session) -> Opened:
        connection = self._connection(session)
        return Opened(session.ice_name, session.generation, connection, session.reading)

    def _connection(self, session: Session) -> Connection:
        hello = session.hello
        return Connection(
            session.id,
            self._node,
            session.since,
            session.address,
            hello.version,
            hello.platform,
            hello.hostname,
            session.accepts,
        )


def _merged(older: _Batch, newer: _Batch, max_events: int) -> _Batch:
    """The batch to write after the write of `older` has failed; `newer` was collected since."""
    opened = {**older.opened, **newer.opened}
    closed = older.closed | newer.closed
    greeted = {**older.greeted, **newer.greeted}
    for session in newer.closed:
        if opened.pop(session, None) is not None:
            closed.discard(session)
    for session in opened:
        greeted.pop(session, None)
    refused = dict(older.refused)
    for key, connection_event in newer.refused.items():
        known = refused.get(key)
        if known is not None:
            count = known.count + connection_event.count
            refused[key] = replace(known, at=connection_event.at, count=count)
        elif len(refused) < max_events:
            refused[key] = connection_event
    session_events = [*older.session_events, *newer.session_events][-max_events:]
    greetings = [*older.greetings, *newer.greetings][-max_events:]
    news = {**older.news, **newer.news}
    return _Batch(opened, greeted, greetings, closed, session_events, refused, news)
