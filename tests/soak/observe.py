"""What is looked at of the gateway again and again, and how much of each may grow."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.runtime.database_url import file_of
from tests.scale.samples import cpu_of, handles_of, rss_of
from tests.soak.trend import Allowance, trend
from tests.support.node import Node
from tests.support.postgres import Postgres

_PATIENCE = 60.0
MIB = 2**20
ALLOWED = {
    "rss": Allowance(6 * MIB),
    "handles": Allowance(6),
    "tasks": Allowance(6),
    "threads": Allowance(3),
    "objects": Allowance(3_000),
    "rows": Allowance(300),
    "database": Allowance(2 * MIB, 0.1),
    "log_per_s": Allowance(200, 0.3),
    "cpu_per_s": Allowance(0.05, 0.3),
}
"""By figure. Bytes, counts, or shares of a core; of what is logged and computed the rate may not grow."""
_TYPE = Allowance(500, 0.5)
"""Objects of one type."""
_KEPT = ("api_tokens",)
"""Tables that only grow, by what admins do: a revoked token is kept."""
_TABLES = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
_POSTGRES_TABLES = (
    "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
)


@dataclass(frozen=True)
class Look:
    """The gateway at one moment."""

    hours: float
    figures: dict[str, float]
    tables: dict[str, int]
    types: dict[str, int]
    tasks: dict[str, int]


@dataclass
class Observer:
    """Looks at a gateway; `state` is the file that it writes when it is asked."""

    node: Node
    database: str
    state: Path
    server: Postgres | None
    looks: list[Look] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)
    _last: tuple[float, float, int] | None = None

    async def look(self) -> Look:
        """Look now."""
        found = await self._alive()
        pid = self.node.pid
        tables = await asyncio.to_thread(self._rows)
        now, cpu, logged = time.monotonic(), cpu_of(pid), self.node.log.stat().st_size
        then, spent, written = self._last or (self._began, 0.0, 0)
        self._last = now, cpu, logged
        figures = {
            "rss": float(rss_of(pid)),
            "handles": float(handles_of(pid)),
            "tasks": float(sum(found["tasks"].values())),
            "threads": float(found["threads"]),
            "objects": float(found["objects"]),
            "rows": float(sum(tables.values()) - sum(tables[name] for name in _KEPT)),
            "database": float(self._size()),
            "log_per_s": (logged - written) / (now - then),
            "cpu_per_s": (cpu - spent) / (now - then),
        }
        hours = (now - self._began) / 3600
        look = Look(hours, figures, tables, found["types"], found["tasks"])
        self.looks.append(look)
        return look

    async def _alive(self) -> dict[str, Any]:
        self.state.unlink(missing_ok=True)
        self.node.signal(signal.SIGUSR2)
        async with asyncio.timeout(_PATIENCE):
            while not self.state.exists():  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.05)
        found: dict[str, Any] = json.loads(self.state.read_text())
        return found

    def _rows(self) -> dict[str, int]:
        """Rows of each table."""
        path = file_of(self.database)
        if path is not None:
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=_PATIENCE) as file:
                names = [name for (name,) in file.execute(_TABLES)]
                counts = {
                    name: file.execute(f"SELECT count(*) FROM {name}").fetchone()[0]  # noqa: S608 - names of our tables
                    for name in names
                }
            file.close()
            return counts
        assert self.server is not None
        name = self.database.rpartition("/")[2]
        names = self.server.sql(_POSTGRES_TABLES, database=name).split()
        query = " UNION ALL ".join(f"SELECT '{one}', count(*) FROM {one}" for one in names)  # noqa: S608 - likewise
        rows = self.server.sql(query, database=name).split()
        return {table: int(count) for table, _, count in (row.partition("|") for row in rows)}

    def _size(self) -> int:
        """Bytes of the database; of SQLite those of the pages in use: its file has room for the most there ever was."""
        path = file_of(self.database)
        if path is not None:
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=_PATIENCE) as file:
                size, count, free = (
                    int(file.execute(f"PRAGMA {name}").fetchone()[0])
                    for name in ("page_size", "page_count", "freelist_count")
                )
            file.close()
            return size * (count - free)
        assert self.server is not None
        name = self.database.rpartition("/")[2]
        return int(self.server.sql(f"SELECT pg_database_size('{name}')"))


def growth(looks: Sequence[Look]) -> list[str]:
    """What grows, a sentence each."""
    found = []
    for name, allowed in ALLOWED.items():
        seen = trend([look.figures[name] for look in looks])
        if seen is not None and seen.grows(allowed):
            found.append(
                f"{name} rises by {seen.rise:,.6g} in {seen.values} looks, at {seen.middle:,.6g}"
            )
    names = {name for look in looks for name in look.types}
    for name in sorted(names):
        seen = trend([look.types.get(name, 0) for look in looks])
        if seen is not None and seen.grows(_TYPE):
            found.append(f"objects of {name} rise by {seen.rise:,.0f}, at {seen.middle:,.0f}")
    return found


def row(look: Look) -> str:
    """A line of the table."""
    one = look.figures
    return (
        f"{look.hours:7.2f} {one['rss'] / MIB:8.1f} {one['handles']:8.0f} {one['tasks']:6.0f} {one['objects']:9,.0f}"
        f" {one['rows']:8,.0f} {one['database'] / MIB:8.2f} {one['log_per_s']:9,.0f} {one['cpu_per_s']:7.3f}"
    )


HEADER = (
    f"{'hours':>7} {'RSS MiB':>8} {'handles':>8} {'tasks':>6} {'objects':>9} {'rows':>8} {'DB MiB':>8} {'log B/s':>9}"
    f" {'CPU':>7}"
)
