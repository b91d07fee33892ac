"""Every table of the schema, and what the commands do with its rows.

`tests/contract/test_tables.py` compares this list with the schema of both engines, so a new table needs a row here.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from gateway.core.times import from_text_or_none
from gateway.store.engine import Fetch


class Forgotten(enum.Enum):
    """What deletes rows of a table."""

    NEVER = enum.auto()
    PRUNE = enum.auto()
    """`ice-gateway audit prune`."""
    RETENTION = enum.auto()
    """A setting or a constant bounds their number or their age."""
    EXPIRY = enum.auto()
    """They expire after a while: a later write deletes them."""
    END = enum.auto()
    """Their subject ends: a login, a session, a node, a pool, a schedule, a wait for a confirmation."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table, by default one of lasting rows.

    Attributes:
        name: its name on both engines.
        key: its primary key. A move reads the rows in this order.
        moved: whether `migrate-store` moves its rows to PostgreSQL.
        numbered: whether PostgreSQL generates the key.
        copied: whether a copy of the file (`backup`, or the one before a migration) keeps its rows.
        reviewed: whether `restore --confirm` compares its rows with those of the database it replaced.
        forgotten: what deletes its rows.
        counted: what `doctor` calls its rows; empty if it does not count them.
        since: the first schema that has it, of those that `doctor` and `restore` still read.
    """

    name: str
    key: str
    moved: bool = True
    numbered: bool = False
    copied: bool = True
    reviewed: bool = False
    forgotten: Forgotten = Forgotten.NEVER
    counted: str = ""
    since: int = 0


ENROLMENT_SCHEMA: Final = 17
"""The first schema with the tables of enrolment."""
WORK_SCHEMA: Final = 20
"""The first schema with pools, schedules and logs of operations."""
SSO_SCHEMA: Final = 22
"""The first schema with users of an issuer."""
WEBHOOK_SCHEMA: Final = 23
"""The first schema with webhooks."""
TABLES: Final = (
    Table("users", "name", reviewed=True),
    Table("ice_tokens", "ice_name", reviewed=True, counted="ICEs"),
    Table("api_tokens", "id", reviewed=True),
    Table("logins", "token_hash", copied=False, forgotten=Forgotten.END),
    Table("ice_events", "seq", forgotten=Forgotten.PRUNE, counted="events"),
    Table("ice_connections", "id", numbered=True, forgotten=Forgotten.RETENTION),
    Table("ice_pools", "name", reviewed=True, forgotten=Forgotten.END, since=WORK_SCHEMA),
    Table("ice_operations", "number", numbered=True, forgotten=Forgotten.RETENTION),
    Table(
        *("ice_operation_logs", "number"),
        numbered=True,
        forgotten=Forgotten.RETENTION,
        since=WORK_SCHEMA,
    ),
    Table(
        *("ice_schedules", "id"),
        reviewed=True,
        forgotten=Forgotten.END,
        counted="schedules",
        since=WORK_SCHEMA,
    ),
    Table(
        *("ice_schedule_occurrences", "number"),
        numbered=True,
        forgotten=Forgotten.RETENTION,
        since=WORK_SCHEMA,
    ),
    Table(
        *("enrolment_keys", "id"),
        reviewed=True,
        counted="enrolment keys",
        since=ENROLMENT_SCHEMA,
    ),
    Table("enrolments", "id", forgotten=Forgotten.EXPIRY, since=ENROLMENT_SCHEMA),
    Table("webhook_sender", "number", since=WEBHOOK_SCHEMA),
    Table(
        *("webhooks", "id"),
        reviewed=True,
        forgotten=Forgotten.END,
        counted="webhooks",
        since=WEBHOOK_SCHEMA,
    ),
    *(
        Table(name, "number", numbered=True, forgotten=Forgotten.RETENTION, since=WEBHOOK_SCHEMA)
        for name in ("webhook_deliveries", "webhook_set_aside", "webhook_notices")
    ),
    Table("ice_away", "ice_name", forgotten=Forgotten.END, since=WEBHOOK_SCHEMA),
    Table("restored", "id", forgotten=Forgotten.END),
    # No gateway runs during a move or a restore, so no session, node or used proof outlives it.
    Table(
        "ice_sessions", "number", moved=False, numbered=True, copied=False, forgotten=Forgotten.END
    ),
    # Bounded by the ICEs: a row each, of bounded size.
    Table("ice_instances", "ice_name", moved=False, copied=False),
    Table("ice_confirmed", "node", moved=False, copied=False, forgotten=Forgotten.END),
    Table("ice_nodes", "instance", moved=False, copied=False, forgotten=Forgotten.END),
    Table("ice_drops", "session", moved=False, copied=False, forgotten=Forgotten.EXPIRY),
    Table("ice_proofs", "digest", moved=False, copied=False, forgotten=Forgotten.EXPIRY),
    Table(
        *("sso_used", "digest"),
        moved=False,
        copied=False,
        forgotten=Forgotten.EXPIRY,
        since=SSO_SCHEMA,
    ),
)
"""The tables; none refers to a later one."""

MOVED: Final = tuple(table for table in TABLES if table.moved)
"""In the order in which `migrate-store` moves them."""
NOT_COPIED: Final = tuple(table.name for table in reversed(TABLES) if not table.copied)
"""In an order in which they can be emptied."""
COUNTED: Final = {table.name: table.counted for table in TABLES if table.counted}


@dataclass(frozen=True, slots=True)
class Contents:
    """What `doctor` says about a database: rows of each counted table, and the time of the newest event."""

    rows: dict[str, int]
    last: datetime | None


async def contents(fetch: Fetch, schema: int) -> Contents:
    """Count the rows of the tables in `COUNTED` that a database of `schema` has.

    Raises `ValueError` for a damaged time.
    """
    names = [table.name for table in TABLES if table.counted and table.since <= schema]
    counts = ", ".join(f"(SELECT count(*) FROM {name})" for name in names)
    [(*numbers, last)] = await fetch(
        f"SELECT {counts}, (SELECT at FROM ice_events ORDER BY seq DESC LIMIT 1)"
    )
    return Contents(dict(zip(names, map(int, numbers), strict=True)), from_text_or_none(last))


async def needs_keys(fetch: Fetch) -> bool:
    """Whether there is an ICE, an enrolment key or a webhook, so that a lost key file must not be made anew."""
    return bool(
        await fetch(
            "SELECT 1 FROM ice_tokens UNION ALL SELECT 1 FROM webhooks UNION ALL"
            " SELECT 1 FROM enrolment_keys WHERE revokedon IS NULL LIMIT 1"
        )
    )
