"""SQL of `ice_nodes`: the gateways that serve the database, their leases, and the last event each has acted on.

Used only if several gateways serve it. Each times the leases of the others by its own clock
(`gateway.node.lease.Peers`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

import msgspec

from gateway.store import sessions
from gateway.store.engine import (
    LEASE_CLOCK,
    Fetch,
    Row,
    Transaction,
    as_json,
    columns_of,
    is_in,
    places,
    rows_of,
)

DROPS_KEPT: Final = 60.0
"""Seconds for which the drops of a node are stored."""
_COLUMNS: Final = "instance, name, version, keys, url, since, seen_seq, draining, lease"
_GIVEN: Final = tuple(name for name in _COLUMNS.split(", ") if name != "draining")
"""The columns that a node gives when it joins."""


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A row of `ice_nodes`.

    `lease` is the number of seconds after a renewal for which the node may act. A peer that has seen no renewal
    for so long sets `gone`. `connected` is the number of sessions of the node in the table.
    """

    instance: str
    name: str
    version: str
    keys: str
    url: str
    since: datetime
    seen_seq: int
    draining: bool
    lease: float
    renewals: int = 0
    gone: bool = False
    connected: int = 0

    @property
    def state(self) -> str:
        """`serves`, `drained`, or `gone` if it ended without a clean stop."""
        if self.gone:
            return "gone"
        return "drained" if self.draining else "serves"


_FIELDS: Final = tuple(NodeRecord.__dataclass_fields__)


class Renewal(NamedTuple):
    """How often a node has renewed its lease, and how many seconds the lease lasts."""

    instance: str
    renewals: int
    lease: float


class Snapshot(NamedTuple):
    """The newest session and the transactions at one moment, by PostgreSQL's numbers, which grow.

    `transaction` is newer than every one that had a number by then, `oldest` is the oldest that had not ended.
    `server` is when this server started: a standby that takes over has another time.
    """

    server: str
    newest: int
    transaction: int
    oldest: int


class Dropped(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A session that `node` dropped because of event `seq`."""

    session: str
    seq: int
    node: str
    ice_name: str
    code: int


# --- in a transaction ----------------------------------------------------------------------------


async def alive(transaction: Transaction) -> list[NodeRecord]:
    """Delete the nodes that are gone, and return the others, locked until the transaction ends."""
    await transaction.run("DELETE FROM ice_nodes WHERE gone = 1")
    return await hold(transaction)


async def hold(transaction: Transaction) -> list[NodeRecord]:
    """All nodes, locked until the transaction ends."""
    return [_node(row) for row in await transaction.hold(_LISTING)]


async def join(transaction: Transaction, node: NodeRecord) -> None:
    """Add a node; its lease begins now."""
    await transaction.run(
        f"INSERT INTO ice_nodes ({', '.join(_GIVEN)}, draining) VALUES ({places(len(_GIVEN))}, 0)",
        *columns_of(node, _GIVEN),
    )


async def renew(
    transaction: Transaction, instance: str, *, seen_seq: int, keys: str, dropped: Sequence[Dropped]
) -> bool | None:
    """Renew a lease, and store the last event acted on and the sessions dropped.

    Returns whether the node must drain; None if a peer has marked it as gone.
    """
    rows = await transaction.fetch(
        "UPDATE ice_nodes SET renewals = renewals + 1, seen_seq = $1, keys = $2"
        " WHERE instance = $3 AND gone = 0 RETURNING draining",
        seen_seq,
        keys,
        instance,
    )
    if not rows:
        return None
    if dropped:
        columns = ("session", "#seq", "node", "ice_name", "#code")
        await transaction.run(
            "INSERT INTO ice_drops (session, seq, node, ice_name, code, at)"
            f" SELECT session, seq, node, ice_name, code, {LEASE_CLOCK}"
            f" FROM {rows_of(1, *columns)} WHERE true ON CONFLICT DO NOTHING",
            as_json(dropped),
        )
    return bool(rows[0][0])


async def leave(transaction: Transaction, instance: str) -> None:
    """Delete a node that holds no session any more."""
    await transaction.run("DELETE FROM ice_nodes WHERE instance = $1", instance)


async def forget_all(transaction: Transaction) -> None:
    """Delete nodes, drops and sessions; only while no gateway serves the database."""
    await transaction.run("DELETE FROM ice_nodes")
    await transaction.run("DELETE FROM ice_drops")
    await sessions.clear_all(transaction)


async def set_draining(transaction: Transaction, name: str, *, draining: bool) -> None:
    """Tell a node to drain or to resume."""
    await transaction.run(
        "UPDATE ice_nodes SET draining = $1 WHERE name = $2 AND gone = 0", int(draining), name
    )


async def sweep(
    transaction: Transaction, vanished: Sequence[Renewal] = (), *, all_sessions: bool = True
) -> None:
    """Delete what `vanished` nodes have left, and drops and proofs that have expired.

    A node that has renewed its lease since it was judged stays. With `all_sessions` those of nodes that are gone
    already are found, too; that reads the whole table.
    """
    if vanished:
        await transaction.run(
            f"UPDATE ice_nodes SET gone = 1 FROM {rows_of(1, 'instance', '#renewals', '~lease')}"
            " WHERE ice_nodes.instance = given.instance AND ice_nodes.renewals = given.renewals",
            as_json(vanished),
        )
    if vanished or all_sessions:
        await sessions.clear_all(transaction, but="SELECT name FROM ice_nodes WHERE gone = 0")
    await transaction.run(
        "DELETE FROM ice_nodes WHERE gone = 1"
        " AND EXISTS (SELECT 1 FROM ice_nodes n WHERE n.name = ice_nodes.name AND n.gone = 0)"
    )
    await transaction.run(f"DELETE FROM ice_drops WHERE at < {LEASE_CLOCK} - $1", DROPS_KEPT)
    await transaction.run(f"DELETE FROM ice_proofs WHERE until < {LEASE_CLOCK}")


# --- reading -------------------------------------------------------------------------------------

_LISTING: Final = (
    f"SELECT {_COLUMNS}, renewals, gone,"
    " (SELECT count(*) FROM ice_sessions s WHERE s.node = ice_nodes.name)"
    " FROM ice_nodes ORDER BY name, instance"
)


class Nodes:
    """Reads the table."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    async def all(self) -> list[NodeRecord]:
        """Every node that has not left, by name, including those that are gone; none for an SQLite file."""
        return [_node(row) for row in await self._fetch(_LISTING)]

    async def renewals(self, but: str) -> list[Renewal]:
        """The renewals of each node that is not gone, except the instance `but`."""
        rows = await self._fetch(
            "SELECT instance, renewals, lease FROM ice_nodes WHERE gone = 0 AND instance <> $1", but
        )
        return [Renewal(*row) for row in rows]

    async def clock(self, at_least: float) -> float:
        """The lease clock, after advancing it to `at_least`."""
        [(now,)] = await self._fetch("SELECT lease_clock($1)", at_least)
        return float(now)

    async def behind(self, seq: int, but: str) -> list[str]:
        """The names of the nodes that have not yet acted on event `seq`, except the instance `but`."""
        rows = await self._fetch(
            "SELECT name FROM ice_nodes WHERE seen_seq < $1 AND gone = 0 AND instance <> $2"
            " ORDER BY name",
            seq,
            but,
        )
        return [name for (name,) in rows]

    async def dropped(self, seqs: Sequence[int], but: str) -> list[Dropped]:
        """The sessions that nodes other than `but` dropped because of these events."""
        rows = await self._fetch(
            "SELECT session, seq, node, ice_name, code FROM ice_drops"
            f" WHERE {is_in('CAST(seq AS TEXT)', 1)} AND node <> $2 ORDER BY seq",
            as_json([str(seq) for seq in seqs]),
            but,
        )
        return [Dropped(*row) for row in rows]

    async def snapshot(self) -> Snapshot:
        """How far sessions and transactions are. Long transactions of other databases of the server count, too."""
        # Not `pg_snapshot_xmax`, which is older than a transaction that has not ended may be.
        [row] = await self._fetch(
            "SELECT CAST(pg_postmaster_start_time() AS text),"
            " (SELECT coalesce(max(number), 0) FROM ice_sessions),"
            " CAST(CAST(pg_current_xact_id() AS text) AS bigint),"
            " CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint)"
        )
        return Snapshot(*row)

    async def superseded(self, name: str, among: Collection[str]) -> list[tuple[str, str]]:
        """ICE and id of each session of node `name` whose ICE, one of `among`, has a later session on another node."""
        return await self._superseded(name, is_in("ice_name", 2), as_json(list(among)))

    async def superseded_since(self, name: str, after: int) -> list[tuple[str, str]]:
        """As `superseded`, of the ICEs that have a session with a number beyond `after`."""
        # An array is made once; a plan for a subquery, made while the table was empty, would read it for each session.
        since = "ice_name = ANY(ARRAY(SELECT ice_name FROM ice_sessions WHERE number > $2))"
        return await self._superseded(name, since, after)

    async def _superseded(self, name: str, which: str, value: object) -> list[tuple[str, str]]:
        # No join: its plan, made while the table was empty, would compare each session with each.
        rows = await self._fetch(
            "SELECT ice_name, session FROM (SELECT ice_name, session, node, opened,"
            " max(opened) FILTER (WHERE node <> $1) OVER (PARTITION BY ice_name) AS elsewhere"
            f" FROM ice_sessions WHERE {which}) AS s WHERE node = $1 AND opened < elsewhere",
            name,
            value,
        )
        return [(ice_name, session) for ice_name, session in rows]


def _node(row: Row) -> NodeRecord:
    # Not strictly, since the columns of the two booleans are integers.
    return msgspec.convert(dict(zip(_FIELDS, row, strict=True)), NodeRecord, strict=False)
