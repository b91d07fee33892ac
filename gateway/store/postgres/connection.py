"""Connections to the primary of PostgreSQL, with timeouts, made again after they broke.

Tested in tests/contract/test_postgres_connection.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
import msgspec
from asyncpg.connect_utils import SessionAttribute

from gateway.core.text import printable_line
from gateway.runtime.database_url import each_host
from gateway.runtime.sockets import give_up_silent_peer
from gateway.store.engine import Fetch, Row, StoreLocked, StoreUnavailable, T

PATIENCE: Final = 10.0
"""Seconds to connect, and for a query; then the connection is dropped."""
NEWS_PATIENCE: Final = 3.0
"""Seconds for a query of the log follower: while it waits, this node does not see changes of others."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How many seconds an engine waits."""

    patience: float = PATIENCE
    news_patience: float = NEWS_PATIENCE
    look_every: float = 1.0
    """Between two reads of the end of the log, in case a notification is lost."""
    take_over: float = 2.0
    """For the server to notice that a gateway was killed."""
    look_again: float = 0.5
    """Between two checks of a node of our name that may have vanished."""


USUAL_TIMING: Final = Timing()

VANISHED: Final = 20
"""Seconds after which either end drops a silent peer: less than the lease of a node."""
_IDLE: Final = 10
_INTERVAL: Final = 5
"""Seconds until the first keep-alive probe of an idle connection, and between two of them."""
_PROBES: Final = (VANISHED - _IDLE) // _INTERVAL

_SETTINGS: Final = {
    # The server frees the locks of a peer that vanished, such as the lock of its name.
    "tcp_keepalives_idle": str(_IDLE),
    "tcp_keepalives_interval": str(_INTERVAL),
    "tcp_keepalives_count": str(_PROBES),
    "tcp_user_timeout": str(VANISHED * 1000),
    # A node that stops within a transaction must not lock its rows for longer.
    "idle_in_transaction_session_timeout": "5s",
    "lock_timeout": "5s",
    "default_transaction_isolation": "read committed",
    "standard_conforming_strings": "on",
    "TimeZone": "UTC",
    # All queries are short: compiling them costs more than it saves.
    "jit": "off",
    # The rows are cached: by the default it would sort half of a table rather than read an index in order.
    "random_page_cost": "1.1",
    # A listing takes no second core from the admissions, and is as fast without.
    "max_parallel_workers_per_gather": "0",
}
_SET: Final = "SELECT set_config(key, value, false) FROM json_each_text($1)"

_OURS: Final = (
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.SyntaxOrAccessError,
    asyncpg.DataError,
    asyncpg.exceptions.DataError,
)
"""A violated constraint or a bug of ours is no fault of the database."""
LOST: Final = (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""The connection has ended, or cannot be made."""
_BROKEN: Final = (*LOST, TimeoutError, asyncio.CancelledError)
"""After these errors a connection is not used again."""
IN_THE_WAY: Final = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
_BUSY: Final = (*IN_THE_WAY, asyncpg.LockNotAvailableError)
_READ_ONLY: Final = "25006"
_OPERATOR_INTERVENTION: Final = "57P"
"""Class of SQLSTATE of a server that shuts down, starts or recovers."""

Connect = Callable[[], Awaitable[asyncpg.Connection]]


class _Connection(asyncpg.Connection):
    """A connection that ends when its peer is silent."""

    __slots__ = ()

    def __init__(self, protocol: Any, transport: asyncio.Transport, *others: Any) -> None:
        super().__init__(protocol, transport, *others)
        give_up_silent_peer(
            transport.get_extra_info("socket"), idle=_IDLE, interval=_INTERVAL, within=VANISHED
        )


async def connect(url: str, patience: float = PATIENCE) -> asyncpg.Connection:
    """A connection to the primary among the hosts of `url`.

    `patience` is the timeout of a statement in seconds, on either end. Raises the errors of asyncpg, and OSError.
    """
    connection = await _dial(url, patience)
    try:
        # Not when connecting: a proxy would refuse or ignore them there.
        settings = _SETTINGS | {"statement_timeout": f"{patience * 1000:.0f}ms"}
        await connection.execute(_SET, msgspec.json.encode(settings).decode())
        # A change is durable before it is acknowledged; a stricter setting of the server has priority.
        await connection.execute(
            "SELECT set_config('synchronous_commit', 'on', false)"
            " WHERE current_setting('synchronous_commit') IN ('off', 'local')"
        )
    except BaseException:
        connection.terminate()
        raise
    return connection


async def _dial(url: str, patience: float) -> asyncpg.Connection:
    """Connect to all hosts at once, so that a silent one does not use up the time of the others."""
    dialled = [
        asyncio.create_task(
            asyncpg.connect(
                one,
                server_settings={"application_name": "ice-gateway"},
                target_session_attrs=SessionAttribute.primary,
                timeout=PATIENCE,
                command_timeout=patience,
                connection_class=_Connection,
            )
        )
        for one in each_host(url)
    ]
    waiting, chosen = set(dialled), None
    try:
        while waiting and chosen is None:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            chosen = next((one for one in done if one.exception() is None), None)
    finally:
        for one in dialled:
            if one is not chosen:
                one.cancel()
                one.add_done_callback(_terminate)
    if chosen is None:
        errors = [one.exception() or RuntimeError() for one in dialled]
        # The error of a server says more than a timeout.
        raise next((one for one in errors if isinstance(one, asyncpg.PostgresError)), errors[0])
    return chosen.result()


def _terminate(dialled: asyncio.Task[asyncpg.Connection]) -> None:
    if not dialled.cancelled() and dialled.exception() is None:
        dialled.result().terminate()


class DatabaseLink:
    """A connection that is made again after it broke; it runs one query at a time.

    It calls `reconnect` when the server reports that it is no longer the primary, or shuts down: other connections
    may lead to the same server. It also does so when there was no answer in time, with the time at which it began to
    wait: a firewall that forgot this connection has forgotten those that have been as silent since.
    """

    def __init__(
        self,
        make: Connect,
        name: str,
        reconnect: Callable[[float], None],
        patience: float,
    ) -> None:
        self._make = make
        self._name = name
        self._reconnect = reconnect
        self._patience = patience
        self._connection: asyncpg.Connection | None = None
        self.lock = asyncio.Lock()
        self.stale = False
        """Whether to connect again before the next query."""
        self.heard = -math.inf
        """When the server last answered, in the loop's time."""
        self.condemned: str | None = None
        """Why it must not be used any more."""

    async def connected(self) -> asyncpg.Connection:
        """The connection, for a caller that holds `lock`. Raises `StoreUnavailable`."""
        if self.condemned is not None:
            raise StoreUnavailable(self.condemned)
        if self.stale:
            self.drop()
        if self._connection is None or self._connection.is_closed():
            self._connection = await self.run(self._make())
        return self._connection

    async def run(self, answer: Awaitable[T]) -> T:
        """Await an answer of the server; errors become `StoreUnavailable`, except violated constraints."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        with self._faults():
            try:
                async with asyncio.timeout(self._patience):
                    result = await answer
            except _BROKEN as error:
                if isinstance(error, TimeoutError):
                    self._reconnect(began)
                # The statement may still run on the server.
                self.drop()
                raise
            except asyncpg.PostgresError as error:
                if _is_no_primary(error):
                    self.drop()
                    self._reconnect(math.inf)
                raise
            self.heard = loop.time()
            return result

    async def fetch(self, sql: str, params: Sequence[object]) -> list[Row]:
        """The rows of a query."""
        async with self.lock:
            connection = await self.connected()
            return rows(await self.run(connection.fetch(sql, *map(without_nul, params))))

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except asyncpg.InsufficientPrivilegeError as error:
            raise self._unavailable(f"{error}; grant it to the user of database.url") from error
        except _OURS as error:
            if isinstance(error.__cause__, UnicodeEncodeError):
                raise error.__cause__ from error  # as SQLite does
            raise
        except _BUSY as error:
            raise StoreLocked(self._sentence(str(error))) from error
        except TimeoutError as error:
            raise self._unavailable(f"no answer for {self._patience:.0f} s") from error
        except asyncpg.TargetServerAttributeNotMatched as error:
            raise self._unavailable("it is a read-only replica now") from error
        except (asyncpg.PostgresError, *LOST) as error:
            raise self._unavailable(str(error) or type(error).__name__) from error

    def _sentence(self, reason: str) -> str:
        return f"the database {self._name} cannot be used: {printable_line(reason)}"

    def _unavailable(self, reason: str) -> StoreUnavailable:
        return StoreUnavailable(self._sentence(reason))

    def drop(self) -> None:
        """Drop the connection."""
        self.stale = False
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def close(self) -> None:
        """Close it once the running query is done."""
        async with self.lock:
            if self._connection is not None:
                with contextlib.suppress(Exception):
                    await self._connection.close(timeout=1.0)
            self.drop()


def _is_no_primary(error: asyncpg.PostgresError) -> bool:
    state = error.sqlstate or ""
    return state == _READ_ONLY or state.startswith(_OPERATOR_INTERVENTION)


def without_nul(param: object) -> object:
    """A parameter that PostgreSQL accepts: no stored text holds a NUL, so a query for one must find nothing."""
    return param.replace("\0", "\ufffd") if isinstance(param, str) and "\0" in param else param


def rows(records: Sequence[asyncpg.Record]) -> list[Row]:
    """The rows of a query as tuples."""
    return [tuple(record) for record in records]


def fetch_on(connection: asyncpg.Connection) -> Fetch:
    """A `fetch` that reads on `connection`."""

    async def fetch(sql: str, *params: object) -> list[Row]:
        return rows(await connection.fetch(sql, *params))

    return fetch
