"""What the machine says of the nodes and of PostgreSQL at one moment, and the difference between two."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.support.postgres import Postgres

_TICK = os.sysconf("SC_CLK_TCK")
_SQL = """
SELECT pg_snapshot_xmax(pg_current_snapshot()), pg_current_wal_insert_lsn() - '0/0',
(SELECT sum(xact_commit) FROM pg_stat_database WHERE datname = '{name}'), wal_fpi, pg_database_size('{name}')
FROM pg_stat_wal
"""


@dataclass(frozen=True)
class Sample:
    """Totals since the start of each process, but for the memory."""

    at: float
    node_cpu: list[float]
    """Seconds of each node."""
    node_rss: list[int]
    """Bytes of each."""
    postgres_cpu: float
    writes: int
    """Transactions that wrote: counted at once."""
    commits: int
    """Those that read, too: a connection tells what it did ten seconds later at the most."""
    wal: int
    """Bytes."""
    page_images: int
    """Whole pages in the log: the first change of each after a checkpoint."""
    database: int
    """Bytes."""
    logged: int
    """Bytes that the nodes have logged."""

    def since(self, before: Sample) -> Span:
        """What has happened in between."""
        return Span(
            seconds=self.at - before.at,
            node_cpu=[now - then for now, then in zip(self.node_cpu, before.node_cpu, strict=True)],
            node_rss=self.node_rss,
            postgres_cpu=self.postgres_cpu - before.postgres_cpu,
            writes=self.writes - before.writes,
            commits=self.commits - before.commits,
            wal=self.wal - before.wal,
            page_images=self.page_images - before.page_images,
            database=self.database,
            logged=self.logged - before.logged,
        )


@dataclass(frozen=True)
class Span:
    """Between two samples; memory and the size of the database are those at its end."""

    seconds: float
    node_cpu: list[float]
    node_rss: list[int]
    postgres_cpu: float
    writes: int
    commits: int
    wal: int
    page_images: int
    database: int
    logged: int

    def json(self) -> dict[str, Any]:
        return asdict(self)


def cpu_of(pid: int, *, children: bool = False) -> float:
    """Seconds of a process, and of its children that have ended."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, stat[11 : 15 if children else 13])) / _TICK


def rss_of(pid: int) -> int:
    """Resident bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def handles_of(pid: int) -> int:
    """Open file handles."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def of_tree(pid: int) -> float:
    """Seconds of a process with its children, whether they live or have ended."""
    spent = cpu_of(pid, children=True)
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            spent += cpu_of(int(child), children=True)
        except OSError:
            continue  # it ended between the two: the next sample has it
    return spent


def sample(server: Postgres, database: str, pids: list[int], logs: list[Path]) -> Sample:
    """A look at everything now."""
    main = int((server.data / "postmaster.pid").read_text().split()[0])
    counts = server.sql(_SQL.format(name=database)).strip().split("|")
    writes, wal, commits, page_images, size = (int(float(count)) for count in counts)
    return Sample(
        at=time.monotonic(),
        node_cpu=[cpu_of(pid) for pid in pids],
        node_rss=[rss_of(pid) for pid in pids],
        postgres_cpu=of_tree(main),
        writes=writes,
        commits=commits,
        wal=wal,
        page_images=page_images,
        database=size,
        logged=sum(log.stat().st_size for log in logs),
    )


def pages_of(server: Postgres, database: str) -> dict[str, int]:
    """Pages of each table and index that presence writes, by name."""
    rows = server.sql(
        "SELECT c.relname, pg_relation_size(c.oid) FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid"
        " JOIN pg_class t ON t.oid = coalesce(i.indrelid, c.oid) WHERE t.relname IN"
        " ('ice_tokens', 'ice_sessions', 'ice_connections', 'ice_proofs', 'ice_instances', 'ice_away')",
        database=database,
    )
    found = (row.split("|") for row in rows.split())
    return {name: int(size) // 8192 for name, size in found}
