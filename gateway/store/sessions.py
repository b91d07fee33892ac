"""SQL of presence: the open sessions, and the outcome of each ICE's recent connections.

This is no audit log: it is not chained, it has a limit, and a crash may lose its last moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import astuple, replace

from gateway.core.consent import Accepts, accepts_from_text, accepts_to_text
from gateway.core.search import session_text
from gateway.core.times import from_text, to_text
from gateway.core.version_key import version_key
from gateway.store.engine import (
    Fetch,
    Row,
    Transaction,
    as_json,
    damaged,
    is_in,
    rows_of,
)
from gateway.store.last_seen import stored

KEPT: Final = 50
"""Maximum outcomes stored for each ICE."""
_FACTS: Final = ("version", "platform", "hostname", "accepts")
"""What the ICE says of itself."""
_CONNECTION: Final = ("session", "node", "since", "address", *_FACTS)
_EVENT_COLUMNS: Final = "ice_name, kind, code, address, first, at, count, retry_after"
_UNSEARCHED: Final = (
    *("last_opened", "last_address"),
    *("last_version", "last_platform", "last_hostname"),
)
_SEARCHED: Final = ("version_key", "session_text")
_KNOWN: Final = (*_UNSEARCHED, *_SEARCHED)
"""What an ICE keeps of its newest session."""
_GIVEN: Final = rows_of(1, "name", "at", "#gen", "accepts", f"~{_KNOWN[0]}", *_KNOWN[1:])
# Another node may have written a newer session before.
_IS_NEWEST: Final = "ice_tokens.last_opened <= given.last_opened"
_UPDATE: Final = (
    "UPDATE ice_tokens SET node = (SELECT s.node FROM ice_sessions s"
    # One of an older generation is dropped already, or about to be.
    " WHERE s.ice_name = ice_tokens.ice_name AND s.generation = ice_tokens.generation"
    " ORDER BY s.number DESC LIMIT 1),"
    # Another node's clock may be behind.
    " lastseen = CASE WHEN coalesce(ice_tokens.lastseen, '') < given.at"
    " THEN given.at ELSE ice_tokens.lastseen END,"
    # Until its hello, what an earlier session of the same generation said counts.
    f" accepts = CASE WHEN {_IS_NEWEST} AND ice_tokens.generation = given.gen"
    " THEN coalesce(given.accepts, ice_tokens.accepts) ELSE ice_tokens.accepts END, "
)
# SQLite rewrites an index if a statement sets one of its columns, even to the same value. So an ICE is
# updated by one statement, and what is searched, which few sessions change, is set only where it differs.
_UPDATE_ALL: Final = (
    _UPDATE
    + ", ".join(f"{name} = given.{name}" for name in _KNOWN)
    + f" FROM {_GIVEN} WHERE ice_tokens.ice_name = given.name AND {_IS_NEWEST}"
    " AND (coalesce(ice_tokens.version_key, '') <> coalesce(given.version_key, '')"
    " OR ice_tokens.session_text <> given.session_text) RETURNING ice_name"
)
_UPDATE_UNSEARCHED: Final = (
    _UPDATE
    + ", ".join(
        f"{name} = CASE WHEN {_IS_NEWEST} THEN given.{name} ELSE ice_tokens.{name} END"
        for name in _UNSEARCHED
    )
    + f" FROM {_GIVEN} WHERE ice_tokens.ice_name = given.name"
)
_FACTS_OF: Final = ", ".join(f"{name} = {{0}}.{name}" for name in _FACTS)
CONNECTION_COLUMNS: Final = ", ".join(f"s.{name}" for name in _CONNECTION)


class Connection(msgspec.Struct, frozen=True, gc=False):
    """An open session without secrets; the ICE itself reported the last four fields.

    `accepts` is UNSET until the ICE says what others may send.
    """

    session: str
    node: str
    since: datetime
    address: str
    version: str | None = None
    platform: str | None = None
    hostname: str | None = None
    accepts: Accepts | UnsetType = UNSET


def connection_from_row(row: Row) -> Connection | None:
    """A row of `CONNECTION_COLUMNS`; None if there is no session. Raises `StoreUnavailable` for a damaged one."""
    session, node, since, address, version, platform, hostname, said = row
    if session is None:
        return None
    accepts = accepts_in(said, f"the session {session}")
    return Connection(
        session, node, from_text(since), address, version, platform, hostname, accepts
    )


def accepts_in(text: str | None, what: str) -> Accepts | UnsetType:
    """What a row stores. Raises `StoreUnavailable` for a damaged row, which the error calls `what`."""
    try:
        return accepts_from_text(text)
    except msgspec.DecodeError as error:
        raise damaged(what, error) from error


class ConnectionEvent(msgspec.Struct, frozen=True, gc=False):
    """The outcome of a connection: `kind` is admitted, refused or closed; `code` says why.

    Equal refusals are one row with a `count`, from `first` to `at`. `retry_after` are the seconds after which
    the ICE was told to reconnect.
    """

    ice_name: str
    kind: str
    code: str | None
    address: str
    first: datetime
    at: datetime
    count: int = 1
    retry_after: float | None = None


class Opened(msgspec.Struct, frozen=True, gc=False):
    """A session that began; `reading` is the number of the query that read its ICE."""

    ice_name: str
    generation: int
    connection: Connection
    reading: float = 0.0


async def clear(transaction: Transaction, node: str) -> None:
    """Delete the sessions of a node that has just started or ended, and so has none."""
    await _clear(transaction, "s.node = $1", node)


async def clear_all(transaction: Transaction, but: str = "") -> None:
    """Delete all sessions except those of the nodes whose names the SQL `but` selects."""
    await _clear(transaction, f"s.node NOT IN ({but})" if but else "TRUE")


async def _clear(transaction: Transaction, which: str, *params: object) -> None:
    """Delete what dead nodes have left: rows `s` for whose node the SQL `which` holds."""
    await transaction.run(stored(which), *params)
    gone = await transaction.fetch(
        f"DELETE FROM ice_sessions AS s WHERE {which} RETURNING ice_name", *params
    )
    await transaction.run(f"DELETE FROM ice_confirmed AS s WHERE {which}", *params)
    await _update_ices(transaction, dict.fromkeys(name for (name,) in gone))


async def confirm(transaction: Transaction, node: str, at: datetime) -> None:
    """Store that a node holds its sessions at `at`, which is not earlier than its last call."""
    await transaction.run(
        "INSERT INTO ice_confirmed (node, at) VALUES ($1, $2)"
        " ON CONFLICT (node) DO UPDATE SET at = excluded.at",
        node,
        to_text(at),
    )


async def record(
    transaction: Transaction,
    opened: Sequence[Opened],
    greeted: Sequence[Connection],
    closed: Sequence[str],
    connection_events: Sequence[ConnectionEvent],
    *,
    newest: Sequence[Opened] = (),
) -> list[ConnectionEvent]:
    """Write the changes: sessions opened, hellos received, ids of sessions closed, outcomes.

    `newest` are the newest sessions of the ICEs concerned, which may have ended.

    Returns the refusals among the outcomes, with the counts of earlier equal ones added.
    """
    if opened:
        columns = ", ".join((*_CONNECTION, "ice_name", "generation", "opened"))
        given = rows_of(1, *_CONNECTION, "ice_name", "#generation", "~opened")
        await transaction.run(
            f"INSERT INTO ice_sessions ({columns}) SELECT {columns} FROM {given} WHERE true"
            # The row is there already if the last attempt was committed without our knowledge.
            f" ON CONFLICT (session) DO UPDATE SET {_FACTS_OF.format('excluded')}",
            as_json(
                [
                    (*_row(one.connection), one.ice_name, one.generation, one.reading)
                    for one in opened
                ]
            ),
        )
    if greeted:
        await transaction.run(
            f"UPDATE ice_sessions SET {_FACTS_OF.format('given')} FROM {rows_of(1, *_CONNECTION)}"
            " WHERE ice_sessions.session = given.session",
            as_json([_row(connection) for connection in greeted]),
        )
    gone: list[Row] = []
    if closed:
        gone = await transaction.fetch(
            f"DELETE FROM ice_sessions WHERE {is_in('session', 1)} RETURNING ice_name",
            as_json(closed),
        )
    changed: dict[str, str | None] = dict.fromkeys(one.ice_name for one in opened)
    changed |= dict.fromkeys(name for (name,) in gone)
    refused: list[ConnectionEvent] = []
    if connection_events:
        refused = await _record_connection_events(transaction, connection_events)
        changed |= _last_seen(connection_events)
    await _update_ices(transaction, changed, newest, refused)
    return refused


def _row(connection: Connection) -> tuple[str | None, ...]:
    # Not `columns_of`, which makes some 15 calls more for each admission.
    session, node, since, *others, accepts = astuple(connection)
    said = None if accepts is UNSET else accepts_to_text(accepts)
    return (session, node, to_text(since), *others, said)


def _last_seen(connection_events: Sequence[ConnectionEvent]) -> dict[str, str | None]:
    """When each ICE was last known to be connected; a refusal says nothing of that."""
    last: dict[str, datetime] = {}
    for one in connection_events:
        if one.kind != "refused":
            last[one.ice_name] = max(one.at, last.get(one.ice_name, one.at))
    return {name: to_text(at) for name, at in last.items()}


async def _update_ices(
    transaction: Transaction,
    changed: dict[str, str | None],
    newest: Sequence[Opened] = (),
    refused: Sequence[ConnectionEvent] = (),
) -> None:
    """Keep with each ICE the node of its newest session, and what is known beyond a session's end.

    Call it after all changes of `ice_sessions`.

    Args:
        transaction: which writes them.
        changed: the ICEs whose sessions changed, and when each was seen, if it was.
        newest: the newest sessions of the ICEs concerned.
        refused: refusals with a genuine token.
    """
    known = {session.ice_name: session for session in newest}
    names = sorted({*changed, *known, *(one.ice_name for one in refused)})
    if not names:
        return
    # Locked before the sessions are read: of two nodes that change one ICE the later sees what the other did.
    await transaction.lock(
        f"SELECT 1 FROM ice_tokens WHERE {is_in('ice_name', 1)} ORDER BY lower(ice_name)",
        as_json(names),
    )
    if refused:
        await transaction.run(
            f"UPDATE ice_tokens SET refusedon = given.at FROM {rows_of(1, 'name', 'at')}"
            " WHERE ice_tokens.ice_name = given.name AND coalesce(refusedon, '') < given.at",
            as_json([(one.ice_name, to_text(one.at)) for one in refused]),
        )
    rows = {
        name: (name, changed.get(name), *_known(known.get(name)))
        for name in names
        if name in changed or name in known
    }
    if known:
        for (name,) in await transaction.fetch(
            _UPDATE_ALL, as_json([rows[name] for name in known])
        ):
            del rows[name]
    if rows:
        await transaction.run(_UPDATE_UNSEARCHED, as_json(list(rows.values())))


def _known(session: Opened | None) -> tuple[str | float | None, ...]:
    """Generation, `accepts` and the columns `_KNOWN` of an ICE whose newest session this is."""
    if session is None:
        return (None,) * (2 + len(_KNOWN))
    one = session.connection
    return (
        session.generation,
        None if one.accepts is UNSET else accepts_to_text(one.accepts),
        session.reading,
        *(one.address, one.version, one.platform, one.hostname),
        version_key(one.version),
        session_text(one.address, one.hostname),
    )


async def _record_connection_events(
    transaction: Transaction, connection_events: Sequence[ConnectionEvent]
) -> list[ConnectionEvent]:
    new: list[tuple[str | float | None, ...]] = []
    refused: list[ConnectionEvent] = []
    for happened in connection_events:
        ice_name, kind, code, address, first, at, count, retry_after = astuple(happened)
        if kind == "refused":
            # An equal refusal is counted in one row, which becomes the newest. Otherwise an ICE that tries
            # for days would push out all other outcomes.
            known = await transaction.fetch(
                "DELETE FROM ice_connections WHERE ice_name = $1 AND kind = $2 AND code = $3"
                " AND address = $4 RETURNING first, count",
                ice_name,
                kind,
                code,
                address,
            )
            first = min([first, *(from_text(text) for text, _ in known)])
            count += sum(number for _, number in known)
            refused.append(replace(happened, first=first, count=count))
        at_text = to_text(at)
        first_text = at_text if first is at else to_text(first)
        new.append((ice_name, kind, code, address, at_text, count, first_text, retry_after))
    columns = "ice_name, kind, code, address, at, count, first, retry_after"
    given = rows_of(
        1, "ice_name", "kind", "code", "address", "at", "#count", "first", "~retry_after"
    )
    await transaction.run(
        f"INSERT INTO ice_connections ({columns}) SELECT {columns} FROM {given}",
        as_json(new),
    )
    # By `id`, not by `at`: after a clock was set back, new rows would look old.
    await transaction.run(
        "DELETE FROM ice_connections WHERE id IN (SELECT old.id FROM"
        " (SELECT name, (SELECT id FROM ice_connections WHERE ice_name = name"
        "   ORDER BY id DESC LIMIT 1 OFFSET $2) AS last"
        f" FROM {rows_of(1, 'name')}) AS bound"
        " JOIN ice_connections AS old ON old.ice_name = bound.name AND old.id <= bound.last)",
        as_json([(name,) for name in {one.ice_name for one in connection_events}]),
        KEPT,
    )
    return refused


async def newest(fetch: Fetch) -> int:
    """The number of the newest outcome, 0 if there is none."""
    [(number,)] = await fetch("SELECT coalesce(max(id), 0) FROM ice_connections")
    return int(number)


async def news(
    fetch: Fetch, after: int, limit: int
) -> tuple[int, dict[str, Connection | None], list[ConnectionEvent]]:
    """The last number written after `after`; the connections that changed; the refusals.

    A connection is shown as it is now, which may be newer than its number; it is None if the ICE is not connected.
    """
    rows = await fetch(
        f"SELECT id, {_EVENT_COLUMNS} FROM ice_connections WHERE id > $1 ORDER BY id LIMIT $2",
        after,
        limit,
    )
    if not rows:
        return after, {}, []
    happened = [_connection_event(row[1:]) for row in rows]
    refused = [one for one in happened if one.kind == "refused"]
    found: dict[str, Connection | None] = {
        one.ice_name: None for one in happened if one.kind != "refused"
    }
    open_ones = await fetch(
        f"SELECT s.ice_name, {CONNECTION_COLUMNS} FROM ice_sessions s"
        f" WHERE {is_in('s.ice_name', 1)} ORDER BY s.opened, s.number",
        as_json(list(found)),
    )
    found.update({name: connection_from_row(tuple(row)) for name, *row in open_ones})
    return rows[-1][0], found, refused


async def events_of(fetch: Fetch, ice_name: str) -> list[ConnectionEvent]:
    """The last `KEPT` outcomes of exactly this ICE, newest first."""
    rows = await fetch(
        f"SELECT {_EVENT_COLUMNS} FROM ice_connections WHERE ice_name = $1 ORDER BY id DESC LIMIT $2",
        ice_name,
        KEPT,
    )
    return [_connection_event(row) for row in rows]


def _connection_event(row: Row) -> ConnectionEvent:
    name, kind, code, address, first, at, *others = row
    return ConnectionEvent(name, kind, code, address, from_text(first), from_text(at), *others)
