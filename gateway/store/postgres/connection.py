"""Connections to PostgreSQL: to the primary alone, bounded in time, made anew after they broke."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final

import asyncpg
import msgspec
from asyncpg.connect_utils import SessionAttribute

from gateway.runtime.database_url import each_host
from gateway.runtime.sockets import give_up_silent_peer
from gateway.store.engine import Fetch, Row, StoreLocked, StoreUnavailable, T

PATIENCE: Final = 10.0
"""Seconds to connect, and for a query to be answered; then its connection is given up."""

VANISHED: Final = 20
"""Seconds after which either end gives up a peer that does not answer: less than the lease of a node."""
_IDLE: Final = 10
_INTERVAL: Final = 5
"""Seconds until the first keep-alive probe of an idle connection, and between two of them."""
_PROBES: Final = (VANISHED - _IDLE) // _INTERVAL

_SETTINGS: Final = {
    # What a peer that vanished holds, the locks of its name among them, is given back.
    "tcp_keepalives_idle": str(_IDLE),
    "tcp_keepalives_interval": str(_INTERVAL),
    "tcp_keepalives_count": str(_PROBES),
    "tcp_user_timeout": str(VANISHED * 1000),
    # A node that was stopped within a transaction must not hold its rows for longer.
    "idle_in_transaction_session_timeout": "5s",
    "lock_timeout": "5s",
    "default_transaction_isolation": "read committed",
    "standard_conforming_strings": "on",
    "TimeZone": "UTC",
    # Short queries alone: to compile them costs more than it saves.
    "jit": "off",
}
_SET: Final = "SELECT set_config(key, value, false) FROM json_each_text($1)"

_OURS: Final = (
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.SyntaxOrAccessError,
    asyncpg.DataError,
    asyncpg.exceptions.DataError,
)
"""A broken rule or a mistake of ours is not the database's fault."""
_LOST: Final = (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
_BROKEN: Final = (*_LOST, TimeoutError, asyncio.CancelledError)
"""After these nothing more goes over a connection."""
IN_THE_WAY: Final = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
_BUSY: Final = (*IN_THE_WAY, asyncpg.LockNotAvailableError)
_READ_ONLY: Final = "25006"
_OPERATOR_INTERVENTION: Final = "57P"
"""Class of SQLSTATE of a server that is shutting down, starting up, or recovering."""

Connect = Callable[[], Awaitable[asyncpg.Connection]]


class _Connection(asyncpg.Connection):
    """One that ends when its peer does not answer any more."""

    __slots__ = ()

    def __init__(self, protocol: Any, transport: asyncio.Transport, *others: Any) -> None:
        super().__init__(protocol, transport, *others)
        give_up_silent_peer(
            transport.get_extra_info("socket"), idle=_IDLE, interval=_INTERVAL, within=VANISHED
        )


async def connect(url: str, patience: float = PATIENCE) -> asyncpg.Connection:
    """A connection to the primary among the hosts of `url`.

    `patience` is how many seconds a statement may take, at either end. Raises what asyncpg raises,
    and OSError.
    """
    connection = await _dial(url, patience)
    try:
        # Not at the start of the connection: a proxy would refuse them there, or leave them out.
        settings = _SETTINGS | {"statement_timeout": f"{patience * 1000:.0f}ms"}
        await connection.execute(_SET, msgspec.json.encode(settings).decode())
        # A change is durable before it is acknowledged; a stricter setting of the server's stays.
        await connection.execute(
            "SELECT set_config('synchronous_commit', 'on', false)"
            " WHERE current_setting('synchronous_commit') IN ('off', 'local')"
        )
    except BaseException:
        connection.terminate()
        raise
    return connection


async def _dial(url: str, patience: float) -> asyncpg.Connection:
    """Dial all hosts at once: one that is silent must not use up the time of the others."""
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
        # What a server said tells more than a silence.
        raise next((one for one in errors if isinstance(one, asyncpg.PostgresError)), errors[0])
    return chosen.result()


def _terminate(dialled: asyncio.Task[asyncpg.Connection]) -> None:
    if not dialled.cancelled() and dialled.exception() is None:
        dialled.result().terminate()


class DatabaseLink:
    """One connection, made anew after it broke; a query at a time.

    `suspect` is called when the server said that it is no primary any more, or is going down: the
    other connections may be to a server like that, too.
    """

    def __init__(
        self, make: Connect, name: str, suspect: Callable[[], None], patience: float = PATIENCE
    ) -> None:
        self._make = make
        self._name = name
        self._suspect = suspect
        self._patience = patience
        self._connection: asyncpg.Connection | None = None
        self.lock = asyncio.Lock()
        self.stale = False
        """Whether to dial anew before the next query."""
        self.condemned: str | None = None
        """Why nothing goes over it any more."""

    async def connected(self) -> asyncpg.Connection:
        """The connection; who holds `turn` has it alone. Raises `StoreUnavailable`."""
        if self.condemned is not None:
            raise StoreUnavailable(self.condemned)
        if self.stale:
            self.drop()
        if self._connection is None or self._connection.is_closed():
            self._connection = await self.run(self._make())
        return self._connection

    async def run(self, answer: Awaitable[T]) -> T:
        """Wait for what was asked; lets only `StoreUnavailable` and broken rules out."""
        with self._faults():
            try:
                async with asyncio.timeout(self._patience):
                    return await answer
            except _BROKEN:
                # It may still be going on there; nobody waits for it.
                self.drop()
                raise
            except asyncpg.PostgresError as error:
                if _is_no_primary(error):
                    self.drop()
                    self._suspect()
                raise

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
        except (asyncpg.PostgresError, *_LOST) as error:
            raise self._unavailable(str(error) or type(error).__name__) from error

    def _sentence(self, reason: str) -> str:
        return f"the database {self._name} cannot be used: {reason}"

    def _unavailable(self, reason: str) -> StoreUnavailable:
        return StoreUnavailable(self._sentence(reason))

    def drop(self) -> None:
        """Give the connection up."""
        self.stale = False
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def close(self) -> None:
        """End it, once the query in hand is done."""
        async with self.lock:
            if self._connection is not None:
                with contextlib.suppress(Exception):
                    await self._connection.close(timeout=1.0)
            self.drop()


def _is_no_primary(error: asyncpg.PostgresError) -> bool:
    state = error.sqlstate or ""
    return state == _READ_ONLY or state.startswith(_OPERATOR_INTERVENTION)


def without_nul(param: object) -> object:
    """What a query is given: no text here holds a NUL, and to ask for one is no reason for an error."""
    return param.replace("\0", "\ufffd") if isinstance(param, str) and "\0" in param else param


def rows(records: Sequence[asyncpg.Record]) -> list[Row]:
    """What a query has found, as tuples."""
    return [tuple(record) for record in records]


def fetch_on(connection: asyncpg.Connection) -> Fetch:
    """`Engine.fetch` on a connection of its own."""

    async def fetch(sql: str, *params: object) -> list[Row]:
        return rows(await connection.fetch(sql, *params))

    return fetch
