"""The engine for several gateways on one database: PostgreSQL by asyncpg, a connection for each use.

The next query makes a broken connection again. Between two round trips a transaction locks only the rows that it
changes. The lock of the log, which every transaction needs, is taken by the function `ice_log` in the round trip that
commits (see `migrations`).

Tested in tests/contract/test_postgres.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Final

import asyncpg

from gateway.runtime.database_url import shown
from gateway.store.engine import (
    AppendedEvent,
    OutcomeUnknown,
    Row,
    StoreLocked,
    StoreRefusedForNow,
    StoreUnavailable,
    T,
    Tell,
    Transaction,
    Unit,
    log,
)
from gateway.store.events import hashed_part
from gateway.store.group_commit import Writer
from gateway.store.postgres.connection import (
    IN_THE_WAY,
    USUAL_TIMING,
    Connect,
    DatabaseLink,
    Timing,
    connect,
    rows,
    without_nul,
)
from gateway.store.postgres.migrate import SERVE, is_served, set_up

READS: Final = 4
"""Reads at once; see `sqlite.READS`."""
_ATTEMPTS: Final = 5
"""Attempts for a transaction that conflicts with another."""
_NAMES: Final = 1_003
"""The class of the advisory locks of nodes; a lock is for one name."""
_ENDING: Final = 2000
"""Milliseconds to wait for a terminated backend to end."""
_NOT_JOINED: Final = 30.0
"""Seconds for which a gateway may hold its name before it has joined the nodes."""
_HOLDERS: Final = (
    "FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    f" AND classid = {_NAMES} AND objid = (hashtext($1)::bigint & 4294967295)::oid"
)
_UNKNOWN: Final = "it is not known whether the last change was made: look before you try again"

_SAME: Final = "UPDATE ice_schema SET version = version"
"""Writes an unchanged value."""


class PostgresEngine:
    """An open database. Make one with `open_postgres`."""

    shared = True

    def __init__(self, url: str, *, node: str | None, timing: Timing) -> None:
        self.name = shown(url)
        self._node = node
        self._timing = timing
        self.changed = asyncio.Event()
        self._news = True
        self._looked = 0.0
        self._seq: int | None = None
        self._held: asyncpg.Record | None = None
        """The backend that holds or held our name."""
        self._readers = asyncio.LifoQueue[DatabaseLink]()
        self.links: list[DatabaseLink] = []
        """All its connections; of a gateway, the last two write and notify."""

        make = functools.partial(connect, url)

        async def make_watcher() -> asyncpg.Connection:
            return await self._make_listening(await make())

        for _ in range(READS if node is not None else 1):
            self._readers.put_nowait(self._link(make))
        self._lookups = self._link(make)
        self._watcher = self._link(make_watcher, timing.news_patience)
        self._writes = PostgresWriter(self._link(make), self._committed)
        self._notifier = self._link(make)
        self._notifying: asyncio.Task[None] | None = None
        self._unannounced = False
        self._mute = False

    def _link(self, make: Connect, patience: float | None = None) -> DatabaseLink:
        link = DatabaseLink(make, self.name, self._reconnect, patience or self._timing.patience)
        self.links.append(link)
        return link

    def _reconnect(self, silent_since: float) -> None:
        """Have the links connect again to which the server has answered nothing since then, in the loop's time."""
        for link in self.links:
            if link.heard < silent_since:
                link.stale = True

    async def start(self, tell: Tell) -> None:
        """Take the name of the node, for a gateway. Raises `StoreRefused`, `StoreUnavailable`."""
        if self._node is not None:
            before, lease = await self._renewals_of_name()
            until = asyncio.get_running_loop().time() + lease
            try:
                async with self._watcher.lock:
                    await self._watcher.connected()
            except StoreRefusedForNow:
                tell(f"the node {self._node} may have vanished: waiting for at most {lease:.0f} s")
                await self._displace(before, until)
                async with self._watcher.lock:
                    await self._watcher.connected()

    async def _displace(self, before: list[Row], until: float) -> None:
        """Take the name from a gateway that has vanished.

        It has vanished when it has not renewed its lease for the time of the lease, by our clock.
        """
        watched = False
        while not watched:
            await asyncio.sleep(self._timing.look_again)
            watched = asyncio.get_running_loop().time() >= until
            if not await self.fetch(f"SELECT 1 {_HOLDERS}", self._node):
                return
            if (await self._renewals_of_name())[0] != before:
                raise self._taken()
        await self.fetch(f"SELECT pg_terminate_backend(pid, {_ENDING}) {_HOLDERS}", self._node)

    async def _renewals_of_name(self) -> tuple[list[Row], float]:
        """Rows that change when a node of our name renews its lease, and the seconds that the lease lasts."""
        found = await self.fetch(
            "SELECT instance, renewals, lease FROM ice_nodes WHERE name = $1 ORDER BY instance",
            self._node,
        )
        return found, max((lease for *_, lease in found), default=_NOT_JOINED)

    async def _make_listening(self, connection: asyncpg.Connection) -> asyncpg.Connection:
        """Prepare the connection that is notified of commits and holds the name of the node."""
        try:
            await self._lock_name(connection)
            await connection.add_listener("ice_events", self._hear)
        except BaseException:
            connection.terminate()
            raise
        connection.add_termination_listener(self._hear)
        self._news = True
        return connection

    async def _lock_name(self, connection: asyncpg.Connection) -> None:
        """Lock the name against a second node, and the database against a command that needs it alone."""
        if self._held is not None:
            # End our own old backend: only we know that its connection is broken.
            await connection.execute(
                f"SELECT pg_terminate_backend(pid, {_ENDING}) FROM pg_stat_activity"
                " WHERE pid = $1 AND backend_start = $2",
                *self._held,
            )
        until = asyncio.get_running_loop().time() + self._timing.take_over
        while not await connection.fetchval(
            "SELECT pg_try_advisory_lock_shared($1) AND pg_try_advisory_lock($2, hashtext($3))",
            SERVE,
            _NAMES,
            self._node,
        ):
            if asyncio.get_running_loop().time() >= until:
                raise self._taken()
            await asyncio.sleep(0.05)
        self._held = await connection.fetchrow(
            "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
        )

    def _taken(self) -> StoreRefusedForNow | StoreUnavailable:
        error = StoreRefusedForNow if self._held is None else StoreUnavailable
        return error(
            f"another gateway serves {self.name} as the node {self._node} already: stop it, or set"
            " node.name to another name"
        )

    def _committed(self) -> None:
        self.changed.set()
        self._unannounced = True
        if self._notifying is None:
            self._notifying = asyncio.create_task(self._notify(), name="store notifier")

    async def _notify(self) -> None:
        """Notify the other processes, after the commit: a lost notification only delays them."""
        try:
            while self._unannounced:
                self._unannounced = False
                try:
                    await self._notifier.fetch("SELECT pg_notify('ice_events', '')", ())
                    self._mute = False
                except StoreUnavailable as error:
                    if not self._mute:
                        log(f"changes reach the other nodes late: no notification is sent: {error}")
                    self._mute = True
        finally:
            self._notifying = None

    def _hear(self, *_: object) -> None:
        """A commit was notified, or the listening connection has ended."""
        self._news = True
        self.changed.set()

    async def fetch(self, sql: str, *params: object) -> list[Row]:
        """See `Engine.fetch`."""
        reader = await self._readers.get()
        try:
            return await reader.fetch(sql, params)
        finally:
            self._readers.put_nowait(reader)

    async def look_up(self, sql: str, *params: object) -> list[Row]:
        """See `Engine.look_up`."""
        return await self._lookups.fetch(sql, params)

    async def follow(self, sql: str, *params: object) -> list[Row]:
        """See `Engine.follow`."""
        return await self._watcher.fetch(sql, params)

    def gather(self, key: str, columns: Iterable[str]) -> str:
        """See `Engine.gather`."""
        each = ", ".join(f"'{name}', {name}" for name in columns)
        return f"json_object_agg({key}, json_build_object({each}))::text"

    async def has_changed(self) -> bool:
        """See `Engine.has_changed`. It relies on notifications, and reads the end of the log now and then."""
        now = asyncio.get_running_loop().time()
        if not self._news and now - self._looked < self._timing.look_every:
            return False
        self._news = False
        [(seq,)] = await self._watcher.fetch("SELECT seq FROM ice_head", ())
        self._looked = now
        known, self._seq = self._seq, seq
        return bool(seq != known)

    async def write(self, unit: Unit[T]) -> T:
        """See `Engine.write`."""
        return await self._writes.write(unit)

    @property
    def fault(self) -> str | None:
        """See `Engine.fault`."""
        return self._watcher.condemned or self._writes.fault

    async def try_out(self) -> None:
        """See `Engine.try_out`."""
        with contextlib.suppress(StoreUnavailable):
            await self.write(_change_nothing)

    async def is_served(self) -> bool:
        """See `Engine.is_served`."""
        return await is_served(self.fetch)

    def condemn(self, reason: str) -> None:
        """See `Engine.condemn`."""
        for link in self.links:
            link.condemned = link.condemned or reason

    async def close(self) -> None:
        """See `Engine.close`."""
        await self._writes.finish()
        if self._notifying is not None:
            await asyncio.wait([self._notifying], timeout=1.0)
            if self._notifying is not None:
                self._notifying.cancel()
        self.condemn(f"the database {self.name} is being closed")
        await asyncio.gather(*(link.close() for link in self.links))


# --- writing -----------------------------------------------------------------------------------


class PostgresWriter(Writer):
    """The one writer of this node; other nodes write at the same time."""

    def __init__(self, link: DatabaseLink, committed: Callable[[], None]) -> None:
        super().__init__(committed)
        self._link = link

    async def transact(self, units: list[Unit[Any]]) -> list[Any]:
        """See `Writer.transact`."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return await self._transact(units)
            except asyncpg.UniqueViolationError:
                continue  # another transaction made that row after this one had looked for it
            except StoreLocked as error:
                if not isinstance(error.__cause__, IN_THE_WAY):
                    raise
        return await self._transact(units)

    async def _transact(self, units: list[Unit[Any]]) -> list[Any]:
        link = self._link
        async with link.lock:
            connection = await link.connected()
            await link.run(connection.execute("BEGIN"))
            transaction = _PostgresTransaction(link, connection)
            try:
                results = [await unit(transaction) for unit in units]
            except BaseException:
                await _roll_back(link, connection)
                raise
            try:
                await link.run(_commit(connection, transaction.appended))
            except BaseException as error:
                if isinstance(error, StoreUnavailable) and not _rolled_back(error):
                    raise OutcomeUnknown(f"{error}; {_UNKNOWN}") from error
                await _roll_back(link, connection)
                raise
            try:
                await link.run(_number(connection, transaction.appended))
            except StoreUnavailable as error:
                raise OutcomeUnknown(f"{error}; {_UNKNOWN}") from error
            return results

    async def commit_fault(self) -> str | None:
        """See `Writer.commit_fault`."""
        try:
            async with self._link.lock:
                connection = await self._link.connected()
                await self._link.run(connection.execute(_SAME))
        except StoreUnavailable as error:
            return str(error)
        return None


async def _change_nothing(transaction: Transaction) -> None:
    await transaction.run(_SAME)


async def _roll_back(link: DatabaseLink, connection: asyncpg.Connection) -> None:
    if not connection.is_closed():
        with contextlib.suppress(StoreUnavailable):
            await link.run(connection.execute("ROLLBACK"))


async def _commit(connection: asyncpg.Connection, appended: Sequence[AppendedEvent]) -> None:
    if not appended:
        done = await connection.execute("COMMIT")
    else:
        # One message: the server takes and releases the lock of the log without waiting for us.
        events = ", ".join(_literal(hashed_part(one.event)) for one in appended)
        done = await connection.execute(f"SELECT ice_log(ARRAY[{events}]); COMMIT")
    if done != "COMMIT":
        # A statement failed, and its unit ignored that.
        raise RuntimeError(f"the transaction was not committed: {done}")


def _rolled_back(error: StoreUnavailable) -> bool:
    """Whether the server answered the commit with an error, and so has rolled back."""
    cause = error.__cause__
    return isinstance(cause, asyncpg.PostgresError) and cause.severity_en == "ERROR"


async def _number(connection: asyncpg.Connection, appended: Sequence[AppendedEvent]) -> None:
    """Set the numbers of the logged events after their commit."""
    if appended:
        last = await connection.fetchval("SELECT current_setting('ice.seq')::bigint")
        for number, one in enumerate(reversed(appended)):
            one.seq = last - number


def _literal(text: str) -> str:
    """A string constant (`connect` sets standard_conforming_strings)."""
    return "'" + text.replace("'", "''") + "'"


class _PostgresTransaction:
    def __init__(self, link: DatabaseLink, connection: asyncpg.Connection) -> None:
        self._link = link
        self._connection = connection
        self.appended: list[AppendedEvent] = []

    async def fetch(self, sql: str, *params: object) -> list[Row]:
        return rows(await self._link.run(self._connection.fetch(sql, *map(without_nul, params))))

    async def hold(self, sql: str, *params: object) -> list[Row]:
        return await self.fetch(f"{sql} FOR NO KEY UPDATE", *params)

    async def lock(self, sql: str, *params: object) -> None:
        await self.hold(sql, *params)

    async def run(self, sql: str, *params: object) -> int:
        done = await self._link.run(self._connection.execute(sql, *params))
        count = done.rpartition(" ")[2]  # such as UPDATE 3 or INSERT 0 3
        return int(count) if count.isdigit() else 0


# --- opening -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def open_postgres(
    url: str,
    *,
    node: str | None = None,
    create: bool = True,
    tell: Tell = log,
    timing: Timing = USUAL_TIMING,
) -> AsyncIterator[PostgresEngine]:
    """Open the database of `url`, making or migrating its tables if necessary.

    Args:
        url: `postgresql://user@host:port/name`.
        node: the unique name of the gateway that opens it; a command passes none.
        create: whether missing tables are made.
        tell: called with a sentence for the operator.
        timing: how long it waits.

    Raises:
        StoreRefused: it cannot be used as it is; the text says what to change.
        StoreUnavailable: it cannot be reached or used now.
    """
    await set_up(url, create=create, tell=tell)
    engine = PostgresEngine(url, node=node, timing=timing)
    try:
        await engine.start(tell)
        if node is not None and await engine.fetch("SELECT current_setting('fsync')") != [("on",)]:
            tell(f"{engine.name} runs with fsync=off: a power cut may undo what it said was done")
        yield engine
    finally:
        await engine.close()
