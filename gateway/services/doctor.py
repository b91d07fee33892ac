"""Looks at all that a gateway needs, says what is wrong and what to do, and changes nothing.

It works on a broken database, on none, and beside a gateway that runs. What one check meets is no
reason not to make the others.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from gateway.core.times import Clock, to_text
from gateway.runtime.database_url import file_of
from gateway.runtime.settings import BadSetting, Settings
from gateway.services.diagnostics import Finding, failed, ok, warning
from gateway.services.doctor_network import handles, ports, tls
from gateway.store import key_file, restore_mark
from gateway.store.engine import StoreRefused, StoreUnavailable
from gateway.store.ices import sealed_with
from gateway.store.key_file import KeyFileUnusable
from gateway.store.restore_mark import Waiting, waiting
from gateway.store.sqlite.migrate import is_served, released
from gateway.store.sqlite.snapshot import SchemaInfo, open_read_only
from gateway.store.tables import COUNTED, Contents, contents

_MIB: Final = 1024 * 1024
_ROOM: Final = 64 * _MIB
"""Bytes that have to be free on the database's disk, beside a copy of it."""
_LONG_LOG: Final = 64 * _MIB
"""Bytes to which SQLite's log does not grow unless something reads without an end."""
_SKEW: Final = 2.0
"""Seconds by which a clock may be off without a word."""
_NAMED: Final = 3
"""ICEs that are named where there may be thousands."""
_BEGINNING: Final = 2026
"""The year before which the clock of a machine that runs this cannot be right."""
_OTHERS: Final = 0o077
_OTHERS_BUT_GROUP: Final = 0o027  # the key of TLS may well be root's, and the gateway's to read
_OTHERS_WRITE: Final = 0o022
_RESTORE: Final = "stop the gateway and restore a backup: `ice-gateway restore DIR`"


@dataclass(frozen=True, slots=True)
class Seen:
    """What of the database could be read; `fault` says why not more."""

    facts: SchemaInfo | None = None
    damage: str | None = None
    contents: Contents | None = None
    waits: Waiting | None = None
    needs: dict[str | None, list[str]] = field(default_factory=dict)
    served: bool = False
    fault: str | None = None


async def look(path: Path) -> Seen:
    """Read what the checks need from the database, as it is."""
    try:
        with open_read_only(path) as found:
            facts = found.schema_info()
            damage = found.find_damage(thorough=False)
            if not facts.ours:
                return Seen(facts, damage)
            held = await contents(found.fetch)
            if facts.schema < restore_mark.SCHEMA:
                return Seen(facts, damage, held)
            waits, needs = await waiting(found.fetch), await sealed_with(found.fetch)
            return Seen(facts, damage, held, waits, needs, is_served(path))
    except (sqlite3.Error, ValueError) as error:
        return Seen(fault=str(error))


async def ask(url: str) -> Seen:
    """Likewise, of a database on a server."""
    try:
        from gateway.store.postgres import migrate as server  # noqa: PLC0415 - only a fleet has asyncpg

        async with server.open_read_only(url) as (fetch, schema):
            facts = SchemaInfo(ours=bool(schema), empty=not schema, schema=schema)
            if not schema:
                return Seen(facts)
            held = await contents(fetch)
            waits, needs = await waiting(fetch), await sealed_with(fetch)
            return Seen(facts, None, held, waits, needs, await server.is_served(fetch))
    except (StoreRefused, StoreUnavailable, ModuleNotFoundError) as error:
        return Seen(fault=str(error))


class Doctor:
    """The checks, on what the settings and the settings file `config` name."""

    def __init__(
        self,
        settings: Settings,
        config: Path | None,
        *,
        clock: Clock,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._config = config
        self._clock = clock
        self._monotonic = monotonic
        self._began = clock(), monotonic()
        self._seen = Seen()

    async def examine(self) -> list[Finding]:
        """Make every check; what one does not expect is a finding, too."""
        on_disk = file_of(self._settings.database_url) is not None
        url = self._settings.database_url
        self._seen = await (look(self._settings.database_path) if on_disk else ask(url))
        findings: list[Finding] = []
        for name, check in (
            ("settings", self._exposure),
            ("database", self._database if on_disk else self._server),
            ("keys", self._keys),
            ("files", self._files if on_disk else self._key_file),
            *((("disk", self._disk),) if on_disk else ()),
            ("port", lambda: ports(self._settings, served=self._seen.served)),
            ("tls", lambda: tls(self._settings, self._clock())),
            ("handles", lambda: handles(self._settings)),
            ("clock", self._time),
        ):
            try:
                findings += check()
            except Exception as error:  # noqa: BLE001 - a doctor does not die of a disease
                findings.append(failed(name, f"cannot be checked: {error}", "see what it says"))
        return findings

    def _exposure(self) -> Iterator[Finding]:
        """They could be read, or nobody would be here."""
        try:
            warnings = self._settings.check_exposure()
        except BadSetting as error:
            yield failed("settings", str(error), "change what it names")
            return
        for text in warnings:
            yield warning("settings", text, "change what it names, unless it is meant so")
        if not warnings:
            yield ok("settings", f"from {self._config}" if self._config else "no file is named")

    # --- the database and the keys -------------------------------------------------------------------

    def _database(self) -> Iterator[Finding]:
        path, seen = self._settings.database_path, self._seen
        if not path.exists():
            remedy = "name it by --database or database.url; `ice-gateway serve` makes a new one"
            yield failed("database", f"there is no {path}", remedy)
            return
        if seen.facts is None:
            mine = os.access(path, os.R_OK)
            remedy = _RESTORE if mine else "run this as the gateway's user"
            yield failed("database", f"{path} cannot be read: {seen.fault}", remedy)
            return
        if seen.facts.empty:
            yield warning("database", f"{path} is empty", "the next start sets it up")
            return
        if not seen.facts.ours:
            remedy = "name another by --database or database.url"
            yield failed("database", f"{path} is no database of a gateway", remedy)
            return
        if seen.damage is not None:
            yield failed("database", f"{path} is damaged: {seen.damage}", _RESTORE)
        yield from self._content(
            str(path), "nothing need be done: the next start migrates it, and keeps a copy"
        )

    def _server(self) -> Iterator[Finding]:
        name, seen = self._settings.database_shown, self._seen
        if seen.facts is None:
            yield failed("database", str(seen.fault), "change what it names")
        elif seen.facts.empty:
            yield warning("database", f"{name} has no tables yet", "the next start makes them")
        else:
            yield from self._content(name, "keep a copy (pg_dump): the next start migrates it")

    def _content(self, name: str, older: str) -> Iterator[Finding]:
        """What a database of ours says of itself; `older` is what to do where its schema is old."""
        seen, newest = self._seen, released()[-1][0]
        schema = 0 if seen.facts is None else seen.facts.schema
        if schema > newest:
            text = f"{name} is of a newer gateway (schema {schema}, this one knows {newest})"
            yield failed("database", text, "upgrade the gateway")
        elif schema < newest:
            yield warning("database", f"{name} is of an older gateway (schema {schema})", older)
        if seen.waits is not None:
            remedy = "look at what it lists: `ice-gateway restore --confirm`"
            yield failed("restore", seen.waits.sentence, remedy)
        if seen.damage is None and seen.contents is not None and schema <= newest:
            rows = seen.contents.rows.items()
            held = ", ".join(f"{COUNTED[table]}: {count}" for table, count in rows)
            by = "a gateway serves it" if seen.served else "no gateway serves it"
            yield ok("database", f"{name} is whole: {held}; {by}")

    def _keys(self) -> Iterator[Finding]:
        path = self._settings.key_file
        ices = 0 if self._seen.contents is None else self._seen.contents.rows["ice_tokens"]
        try:
            # Whose it is and who may read it is looked at with the other files.
            ring = key_file.parse(path, path.read_bytes()) if path.exists() else None
        except (KeyFileUnusable, OSError) as error:
            yield failed("keys", str(error), "put it back from a backup")
            return
        kids = {None} if ring is None else {None, *(key.kid for key in ring.keys)}
        lost = {kid: names for kid, names in self._seen.needs.items() if kid not in kids}
        if ring is not None and lost:
            names = [name for needing in lost.values() for name in needing]
            text = f"{path} lacks {', '.join(map(str, lost))}, which {_some(names)} need"
            yield failed("keys", text, "put its keys back from a backup, or reregister them")
        elif ring is not None:
            yield ok("keys", f"{path} can be used: {len(ring.keys)} in it, {ring.seals} seals")
        elif ices:
            text = f"{path} is missing, without which no token of the {ices} ICEs opens"
            yield failed("keys", text, "put it back from a backup, or set tokens.key_file")
        else:
            yield ok("keys", f"none yet: {path} is made with the first ICE")

    # --- files ---------------------------------------------------------------------------------------

    def _files(self) -> Iterator[Finding]:
        """Nobody else reads what is secret, or writes what is believed."""
        faults = [
            failed("files", text, remedy) for text, remedy in (*self._open(), *self._foreign())
        ]
        yield from faults or [ok("files", "nobody else may read or change them")]

    def _key_file(self) -> Iterator[Finding]:
        """Of a gateway whose database is elsewhere."""
        path = self._settings.key_file
        if _mode(path) & _OTHERS:
            yield failed("files", f"{path} is open to others", f"run `chmod 600 {path}`")
        else:
            yield ok("files", "nobody else may read or change them")

    def _open(self) -> Iterator[tuple[str, str]]:
        database, tls_key = self._settings.database_path, self._settings.server_tls_key
        logs = [Path(f"{database}{suffix}") for suffix in ("-wal", "-shm")]
        for secret in (database, *logs, self._settings.key_file):
            if _mode(secret) & _OTHERS:
                yield f"{secret} is open to others", f"run `chmod 600 {secret}`"
        if tls_key is not None and _mode(tls_key) & _OTHERS_BUT_GROUP:
            yield f"{tls_key} is open to others", f"run `chmod 640 {tls_key}`"
        for believed in (self._config, database.absolute().parent):
            mode = 0 if believed is None else _mode(believed)
            if mode & _OTHERS_WRITE and not mode & stat.S_ISVTX:
                yield f"{believed} can be changed by others", f"run `chmod go-w {believed}`"

    def _foreign(self) -> Iterator[tuple[str, str]]:
        database, keys = self._settings.database_path, self._settings.key_file
        if keys.exists() and database.exists() and _owner(keys) != _owner(database):
            text = f"{keys} belongs to another user than {database}"
            yield text, "give both to the gateway's user"
        folder = database.absolute().parent
        if not os.access(folder, os.W_OK):
            remedy = "give it to the gateway's user, or run this as that user"
            yield f"no file can be made in {folder}", remedy

    def _disk(self) -> Iterator[Finding]:
        """Room to write, and for the copy that an upgrade, a backup or a restore makes."""
        path = self._settings.database_path
        size, log = _size(path), _size(Path(f"{path}-wal"))
        free = shutil.disk_usage(path.absolute().parent).free
        text = f"{_mib(free)} free beside a database of {_mib(size)}"
        if free < _ROOM:
            yield failed("disk", text, "make room: soon nothing can be written")
        elif free < _ROOM + size + log:
            yield warning("disk", text, "make room for a copy of it, as an upgrade makes one")
        else:
            yield ok("disk", text)
        if log > _LONG_LOG:
            text = f"SQLite's log {path}-wal has grown to {_mib(log)}"
            yield warning("disk", text, "end programs that read for very long, or restart")

    # --- the clock -----------------------------------------------------------------------------------

    def _time(self) -> Iterator[Finding]:
        """There is no other clock to ask: does this one contradict the log, the files, or itself?"""
        now = self._clock()
        remedy = "set the clock, and have it kept right (NTP): tokens and proofs expire by it"
        found = list(self._contradictions(now, remedy))
        yield from found or [ok("clock", f"it is {to_text(now)}, and nothing is of later")]

    def _contradictions(self, now: datetime, remedy: str) -> Iterator[Finding]:
        if now.year < _BEGINNING:
            yield failed("clock", f"it is {to_text(now)} here", remedy)
        last = None if self._seen.contents is None else self._seen.contents.last
        if last is not None and last - now > timedelta(seconds=_SKEW):
            text = f"it is {to_text(now)} here, and the newest event is of {to_text(last)}"
            yield failed("clock", text, remedy)
        database = file_of(self._settings.database_url)
        for path in filter(None, (database, self._settings.key_file)):
            if path.exists() and path.stat().st_mtime > now.timestamp() + _SKEW:
                yield warning("clock", f"{path} was written later than it is now", remedy)
        began, steady = self._began
        went, real = (now - began).total_seconds(), self._monotonic() - steady
        if abs(went - real) > _SKEW:
            yield warning("clock", f"it went {went:.0f} s within {real:.0f} s", remedy)


def _some(names: list[str]) -> str:
    """The first of them, and how many more."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more ICEs" if more > 0 else "")


def _mode(path: Path) -> int:
    """Its permissions; none where there is no such file."""
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else 0


def _owner(path: Path) -> int:
    return path.stat().st_uid


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _mib(size: int) -> str:
    return f"{size / _MIB:,.0f} MiB"
