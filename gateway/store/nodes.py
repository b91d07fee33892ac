"""SQL of `ice_nodes`: who serves the database, until when, and what each has acted on.

Only where several gateways do. Leases are judged by the database's clock alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec

from gateway.store import sessions
from gateway.store.engine import Fetch, Row, Transaction, as_json, many, rows_of
from gateway.times import from_text, to_text

DROPS_KEPT: Final = 60.0
"""Seconds for which it is told what a node has dropped."""
_COLUMNS: Final = "instance, name, version, keys, url, since, lease_until, seen_seq, draining"


@dataclass(frozen=True, slots=True)
class Node:
    """A row of `ice_nodes`; `left` is how many seconds its lease has left, negative where it ran out.

    `connected` is how many ICEs it holds, as far as that has been written.
    """

    instance: str
    name: str
    version: str
    keys: str
    url: str
    since: datetime
    seen_seq: int
    draining: bool
    left: float
    connected: int = 0

    @property
    def state(self) -> str:
        """Whether it `serves`, is `drained`, or is `gone` without having said so."""
        if self.left <= 0:
            return "gone"
        return "drained" if self.draining else "serves"


class Dropped(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A session that `node` has dropped because of event `seq`."""

    session: str
    seq: int
    node: str
    ice_name: str
    code: int


# --- in a transaction ----------------------------------------------------------------------------


async def alive(transaction: Transaction) -> list[Node]:
    """The nodes whose lease has not run out, after the others were forgotten."""
    await transaction.run("DELETE FROM ice_nodes WHERE lease_until < lease_clock()")
    return [_node(row) for row in await transaction.hold(_LISTING)]


async def join(transaction: Transaction, node: Node) -> float:
    """Add a node, whose lease begins now; the lease clock."""
    rows = await transaction.fetch(
        f"INSERT INTO ice_nodes ({_COLUMNS}, lease)"
        " VALUES ($1, $2, $3, $4, $5, $6, lease_clock() + $7, $8, 0, $7) RETURNING lease_clock()",
        node.instance,
        node.name,
        node.version,
        node.keys,
        node.url,
        to_text(node.since),
        node.left,
        node.seen_seq,
    )
    return float(rows[0][0])


async def renew(
    transaction: Transaction,
    instance: str,
    *,
    seen_seq: int,
    keys: str,
    lease: float,
    dropped: Sequence[Dropped],
) -> tuple[bool, float] | None:
    """Renew a lease and say what was acted on.

    Whether the node is to drain, and the lease clock; None where it is forgotten.
    """
    rows = await transaction.fetch(
        "UPDATE ice_nodes SET lease_until = lease_clock() + $1, seen_seq = $2, keys = $3,"
        " renewals = renewals + 1"
        " WHERE instance = $4 RETURNING draining, lease_clock()",
        lease,
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
            " SELECT session, seq, node, ice_name, code, lease_clock()"
            f" FROM {rows_of(1, *columns)} WHERE true ON CONFLICT DO NOTHING",
            as_json(dropped),
        )
    [(draining, clock)] = rows
    return bool(draining), clock


async def leave(transaction: Transaction, instance: str) -> None:
    """Take a node out that holds no session any more."""
    await transaction.run("DELETE FROM ice_nodes WHERE instance = $1", instance)


async def forget_all(transaction: Transaction) -> None:
    """Begin anew, where it is known that nobody serves the database."""
    for table in ("ice_nodes", "ice_drops"):
        await transaction.run(f"DELETE FROM {table}")
    await sessions.clear_all(transaction)


async def set_draining(transaction: Transaction, name: str, *, draining: bool) -> int:
    """Let a node drain, or resume; how many of this name did not do so already."""
    return await transaction.run(
        "UPDATE ice_nodes SET draining = $1 WHERE name = $2 AND lease_until > lease_clock()"
        " AND draining <> $1",
        int(draining),
        name,
    )


async def sweep(transaction: Transaction) -> None:
    """Forget what nodes have left behind whose lease has run out, and what nobody asks for any more."""
    await sessions.clear_all(
        transaction, but="SELECT name FROM ice_nodes WHERE lease_until > lease_clock()"
    )
    await transaction.run(
        "DELETE FROM ice_nodes WHERE lease_until < lease_clock() AND EXISTS (SELECT 1 FROM ice_nodes n"
        " WHERE n.name = ice_nodes.name AND n.lease_until > ice_nodes.lease_until)"
    )
    await transaction.run("DELETE FROM ice_drops WHERE at < lease_clock() - $1", DROPS_KEPT)
    await transaction.run("DELETE FROM ice_proofs WHERE until < lease_clock()")


# --- reading -------------------------------------------------------------------------------------

_LISTING: Final = (
    "SELECT instance, name, version, keys, url, since, seen_seq, draining,"
    " lease_until - lease_clock(),"
    " (SELECT count(*) FROM ice_sessions s WHERE s.node = ice_nodes.name)"
    " FROM ice_nodes ORDER BY name, instance"
)


class Nodes:
    """Reads the table."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    async def all(self) -> list[Node]:
        """Every node that has not ended properly, by name; those whose lease has run out, too."""
        return [_node(row) for row in await self._fetch(_LISTING)]

    async def behind(self, seq: int, but: str) -> list[str]:
        """The names of the nodes that have not yet acted on event `seq`, and may still act otherwise.

        `but` is an instance that is not asked for.
        """
        rows = await self._fetch(
            "SELECT name FROM ice_nodes WHERE seen_seq < $1 AND lease_until > lease_clock()"
            " AND instance <> $2 ORDER BY name",
            seq,
            but,
        )
        return [name for (name,) in rows]

    async def dropped(self, seqs: Sequence[int], but: str) -> list[Dropped]:
        """What other nodes than `but` have dropped because of these events."""
        rows = await self._fetch(
            "SELECT session, seq, node, ice_name, code FROM ice_drops"
            f" WHERE {many('CAST(seq AS TEXT)', 1)} AND node <> $2 ORDER BY seq",
            as_json([str(seq) for seq in seqs]),
            but,
        )
        return [Dropped(*row) for row in rows]

    async def superseded(self, name: str) -> list[tuple[str, str]]:
        """ICE and session of each session here that has a later one elsewhere."""
        rows = await self._fetch(
            "SELECT mine.ice_name, mine.session FROM ice_sessions mine WHERE mine.node = $1"
            " AND EXISTS (SELECT 1 FROM ice_sessions other WHERE other.ice_name = mine.ice_name"
            " AND other.node <> $1 AND other.opened > mine.opened)",
            name,
        )
        return [(ice_name, session) for ice_name, session in rows]


def _node(row: Row) -> Node:
    instance, name, version, keys, url, since, seen_seq, draining, left, connected = row
    return Node(
        *(instance, name, version, keys, url),
        since=from_text(since),
        seen_seq=seen_seq,
        draining=bool(draining),
        left=left,
        connected=connected,
    )
