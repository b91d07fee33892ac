"""Checks everything a gateway needs, says what is wrong and what to do, and changes nothing.

It works without a database, on a broken one, and beside a running gateway. A check that fails does not stop
the others.
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

from gateway.core.cron import is_zone
from gateway.core.enrolment import is_ours
from gateway.core.ice import Status
from gateway.core.login_rules import LoginRules
from gateway.core.text import printable_line
from gateway.core.times import Clock, to_text
from gateway.core.tokens import KeyRing
from gateway.runtime.database_url import file_of
from gateway.runtime.settings import BadSetting, Settings
from gateway.services.diagnostics import Finding, failed, ok, warning
from gateway.services.doctor_network import TIMEOUT, handles, ports, tls
from gateway.services.doctor_sso import examine as sso
from gateway.services.local_admins import missing_local_admin
from gateway.store import key_file, restore_mark, schedules
from gateway.store.engine import Fetch, StoreRefused, StoreUnavailable
from gateway.store.enrolments import standing_ids
from gateway.store.ices import sealed_with
from gateway.store.key_file import KeyFileUnusable
from gateway.store.restore_mark import RestoreMark, find_mark
from gateway.store.sqlite.migrate import is_served, released
from gateway.store.sqlite.snapshot import SchemaInfo, open_read_only
from gateway.store.tables import (
    COUNTED,
    ENROLMENT_SCHEMA,
    SSO_SCHEMA,
    WORK_SCHEMA,
    Contents,
    contents,
)

_MIB: Final = 1024 * 1024
_ROOM: Final = 64 * _MIB
"""Bytes that must be free on the database's disk in addition to room for a copy."""
_LONG_LOG: Final = 64 * _MIB
"""Bytes: SQLite's log grows beyond them only while a reader keeps a transaction open."""
_SKEW: Final = 2.0
"""Seconds by which a clock may be off without a finding."""
_NAMED: Final = 3
"""Maximum ICEs that a finding names: there may be thousands."""
_BEGINNING: Final = 2026
"""A clock that shows an earlier year is wrong."""
_OTHERS: Final = 0o077
_OTHERS_BUT_GROUP: Final = 0o027  # root may own the TLS key and let the gateway's group read it
_OTHERS_WRITE: Final = 0o022
_RESTORE: Final = "stop the gateway and restore a backup: `ice-gateway restore DIR`"


_Sealed = dict[Status, dict[str | None, list[str]]]


@dataclass(frozen=True, slots=True)
class DatabaseState:
    """What could be read of the database; `fault` says why the rest could not.

    `no_admin` is the command that provides an admin for while the issuer cannot be reached; None if there is one.
    `sealed` are the names of the ICEs by their status and the id of the key of their tokens; `enrolling` are the
    ids of the enrolment keys that machines may use; `zones` says how many schedules are in each time zone.
    """

    info: SchemaInfo | None = None
    damage: str | None = None
    contents: Contents | None = None
    mark: RestoreMark | None = None
    sealed: _Sealed = field(default_factory=dict)
    enrolling: list[str] = field(default_factory=list)
    zones: dict[str, int] = field(default_factory=dict)
    no_admin: str | None = None
    served: bool = False
    fault: str | None = None


async def inspect_file(path: Path, rules: LoginRules, now: datetime) -> DatabaseState:
    """Read what the checks need from an SQLite file, without changing it."""
    try:
        with open_read_only(path) as found:
            info = found.schema_info()
            damage = found.find_damage(thorough=False)
            if not info.ours:
                return DatabaseState(info, damage)
            held = await contents(found.fetch, info.schema)
            if info.schema < restore_mark.SCHEMA:
                return DatabaseState(info, damage, held)
            return DatabaseState(
                *(info, damage, held, *await _needs(found.fetch, info.schema, rules, now)),
                served=is_served(path),
            )
    except (sqlite3.Error, ValueError) as error:
        return DatabaseState(fault=printable_line(str(error)))


async def inspect_check_server(url: str, rules: LoginRules, now: datetime) -> DatabaseState:
    """Read what the checks need from a PostgreSQL database, without changing it."""
    try:
        from gateway.store.postgres import migrate as server  # noqa: PLC0415 - asyncpg is optional

        async with server.open_read_only(url) as (fetch, schema):
            info = SchemaInfo(ours=bool(schema), empty=not schema, schema=schema)
            if not schema:
                return DatabaseState(info)
            held = await contents(fetch, schema)
            return DatabaseState(
                *(info, None, held, *await _needs(fetch, schema, rules, now)),
                served=await server.is_served(fetch),
            )
    except (StoreRefused, StoreUnavailable) as error:
        return DatabaseState(fault=str(error))


async def _needs(
    fetch: Fetch, schema: int, rules: LoginRules, now: datetime
) -> tuple[RestoreMark | None, _Sealed, list[str], dict[str, int], str | None]:
    """`mark`, `sealed`, `enrolling`, `zones` and `no_admin` of a database of `schema`."""
    sealed = {
        status: await sealed_with(fetch, status)
        for status in (Status.PROVISIONED, Status.REGISTERED)
    }
    enrolling = await standing_ids(fetch, now) if schema >= ENROLMENT_SCHEMA else []
    zones = await schedules.zones(fetch) if schema >= WORK_SCHEMA else {}
    no_admin = await missing_local_admin(fetch, rules, now) if schema >= SSO_SCHEMA else None
    return await find_mark(fetch), sealed, enrolling, zones, no_admin


class Doctor:
    """The checks of what the settings name; `config` is the settings file.

    A program at a port has `timeout` seconds to answer.
    """

    def __init__(
        self,
        settings: Settings,
        config: Path | None,
        *,
        clock: Clock,
        monotonic: Callable[[], float] = time.monotonic,
        timeout: float = TIMEOUT,
    ) -> None:
        self._settings = settings
        self._config = config
        self._clock = clock
        self._monotonic = monotonic
        self._timeout = timeout
        self._began = clock(), monotonic()
        self._state = DatabaseState()

    async def examine(self) -> list[Finding]:
        """Run every check; an unexpected error is a finding, too."""
        on_disk = file_of(self._settings.database_url) is not None
        url = self._settings.database_url
        now, rules = self._clock(), self._settings.login_rules
        self._state = await (
            inspect_file(self._settings.database_path, rules, now)
            if on_disk
            else inspect_check_server(url, rules, now)
        )
        findings: list[Finding] = []
        for name, check in (
            ("settings", self._check_settings),
            ("database", self._check_file if on_disk else self._check_server),
            ("keys", self._check_keys),
            ("files", self._check_files if on_disk else self._check_key_file),
            *((("disk", self._check_disk),) if on_disk else ()),
            ("port", self._check_ports),
            ("tls", lambda: tls(self._settings, self._clock())),
            ("handles", lambda: handles(self._settings)),
            ("clock", self._check_clock),
            ("sso", self._check_admin),
        ):
            try:
                findings += check()
            except Exception as error:  # noqa: BLE001 - the other checks still run
                findings.append(failed(name, f"cannot be checked: {error}", "see what it says"))
        return [*findings, *await sso(self._settings, self._clock, seconds=self._timeout)]

    def _check_settings(self) -> Iterator[Finding]:
        """Check how far the gateway is exposed; the settings themselves have been read already."""
        try:
            warnings = self._settings.check_exposure()
        except BadSetting as error:
            yield failed("settings", str(error), "change what it names")
            return
        for text in warnings:
            yield warning("settings", text, "change what it names, unless it is meant so")
        if not warnings:
            yield ok("settings", f"from {self._config}" if self._config else "no file is named")

    def _check_ports(self) -> Iterator[Finding]:
        return ports(self._settings, served=self._state.served, timeout=self._timeout)

    # --- the database and the keys -------------------------------------------------------------------

    def _check_file(self) -> Iterator[Finding]:
        path, state = self._settings.database_path, self._state
        if not path.exists():
            remedy = "name it by --database or database.url; `ice-gateway serve` makes a new one"
            yield failed("database", f"there is no {path}", remedy)
        elif state.info is None:
            mine = os.access(path, os.R_OK)
            remedy = _RESTORE if mine else "run this as the gateway's user"
            yield failed("database", f"{path} cannot be read: {state.fault}", remedy)
        elif state.info.empty:
            yield warning("database", f"{path} is empty", "the next start sets it up")
        elif not state.info.ours:
            remedy = "name another by --database or database.url"
            yield failed("database", f"{path} is no database of a gateway", remedy)
        else:
            if state.damage is not None:
                yield failed("database", f"{path} is damaged: {state.damage}", _RESTORE)
            older = "nothing need be done: the next start migrates it, and keeps a copy"
            yield from self._check_contents(str(path), older)

    def _check_server(self) -> Iterator[Finding]:
        name, state = self._settings.database_shown, self._state
        if state.info is None:
            yield failed("database", str(state.fault), "change what it names")
        elif state.info.empty:
            yield warning("database", f"{name} has no tables yet", "the next start makes them")
        else:
            yield from self._check_contents(
                name, "keep a copy (pg_dump): the next start migrates it"
            )

    def _check_contents(self, name: str, older: str) -> Iterator[Finding]:
        """Check a database of the gateway; `older` is what to do if its schema is old."""
        state, newest = self._state, released()[-1][0]
        schema = 0 if state.info is None else state.info.schema
        if schema > newest:
            text = f"{name} is of a newer gateway (schema {schema}, this one knows {newest})"
            yield failed("database", text, "upgrade the gateway")
        elif schema < newest:
            yield warning("database", f"{name} is of an older gateway (schema {schema})", older)
        if state.mark is not None:
            remedy = "look at what it lists: `ice-gateway restore --confirm`"
            yield failed("restore", state.mark.sentence, remedy)
        if state.damage is None and state.contents is not None and schema <= newest:
            rows = state.contents.rows.items()
            held = ", ".join(f"{COUNTED[table]}: {count}" for table, count in rows)
            by = "a gateway serves it" if state.served else "no gateway serves it"
            yield ok("database", f"{name} is whole: {held}; {by}")
        lost = {zone: count for zone, count in state.zones.items() if not is_zone(zone)}
        if lost:
            several = "s" if len(lost) > 1 else ""
            text = (
                f"this machine does not know the time zone{several} {', '.join(lost)}:"
                f" what is scheduled in {'them' if several else 'it'} requests nothing ({sum(lost.values())} enabled)"
            )
            yield failed(
                "schedules", text, "update the time zone database (tzdata), or change them"
            )

    def _check_keys(self) -> Iterator[Finding]:
        path = self._settings.key_file
        ices = 0 if self._state.contents is None else self._state.contents.rows["ice_tokens"]
        enrolling = self._state.enrolling
        try:
            # Its owner and its mode are checked with the other files.
            ring = key_file.parse(path, path.read_bytes()) if path.exists() else None
        except (KeyFileUnusable, OSError) as error:
            yield failed("keys", str(error), "put it back from a backup")
            return
        if ring is not None:
            yield from self._check_key_ring(path, ring)
        elif ices:
            text = f"{path} is missing, and without it no token of the {ices} ICEs can be opened"
            yield failed("keys", text, "put it back from a backup, or set tokens.key_file")
        elif enrolling:
            text = f"{path} is missing, and without it none of {_keys(enrolling)} is known"
            yield failed("keys", text, "put it back from a backup, or revoke them")
        else:
            yield ok("keys", f"none yet: {path} is made with the first ICE")

    def _check_key_ring(self, path: Path, ring: KeyRing) -> Iterator[Finding]:
        opening = {None, *(key.kid for key in ring.keys)}
        lost: dict[str | None, list[str]] = {}
        retired: dict[str | None, list[str]] = {}
        for status, sealed in self._state.sealed.items():
            for kid in sealed.keys() - opening:
                if kid not in ring.retired:
                    lost.setdefault(kid, []).extend(sealed[kid])
                elif status is Status.PROVISIONED:  # a registered ICE goes on without the key
                    retired[kid] = sealed[kid]
        for needed, harm, remedy in (
            (lost, "lacks", "put its keys back from a backup, or reregister them"),
            (retired, "has retired", "reprovision them"),
        ):
            if needed:
                names = [name for needing in needed.values() for name in needing]
                text = (
                    f"{path} {harm} {', '.join(map(str, needed))}, which {_first_names(names)} need"
                )
                yield failed("keys", text, remedy)
        unknown = [
            key_id
            for key_id in self._state.enrolling
            if not any(is_ours(key_id, key) for key in ring.id_keys)
        ]
        if unknown:
            text = f"{path} lacks the key of {_keys(unknown)}: machines that use them are refused"
            yield failed("keys", text, "put its keys back from a backup, or revoke them")
        if not (lost or retired or unknown):
            yield ok("keys", f"{path} can be used: {len(ring.keys)} in it, {ring.seals} seals")

    def _check_admin(self) -> Iterator[Finding]:
        """Check that an admin gets in while the issuer cannot be reached."""
        command = self._state.no_admin
        if command is not None:
            text, remedy = "no enabled local admin has a password", f"run `{command}`"
            if self._settings.sso_required:
                yield failed("sso", f"{text}: with sso.required the gateway does not start", remedy)
            else:
                yield warning("sso", f"{text}: none gets in while the issuer is away", remedy)

    # --- files ---------------------------------------------------------------------------------------

    def _check_files(self) -> Iterator[Finding]:
        """Check that other users cannot read secrets or change what the gateway trusts."""
        faults = [
            failed("files", text, remedy)
            for text, remedy in (*self._open_to_others(), *self._not_ours())
        ]
        yield from faults or [ok("files", "no other user can read or change them")]

    def _check_key_file(self) -> Iterator[Finding]:
        """Likewise, if the database is on a server."""
        path = self._settings.key_file
        if _mode(path) & _OTHERS:
            yield failed("files", f"{path} is open to others", f"run `chmod 600 {path}`")
        else:
            yield ok("files", "no other user can read or change them")

    def _open_to_others(self) -> Iterator[tuple[str, str]]:
        database, tls_key = self._settings.database_path, self._settings.server_tls_key
        logs = [Path(f"{database}{suffix}") for suffix in ("-wal", "-shm")]
        for secret in (database, *logs, self._settings.key_file):
            if _mode(secret) & _OTHERS:
                yield f"{secret} is open to others", f"run `chmod 600 {secret}`"
        if tls_key is not None and _mode(tls_key) & _OTHERS_BUT_GROUP:
            yield f"{tls_key} is open to others", f"run `chmod 640 {tls_key}`"
        for trusted in (self._config, database.absolute().parent):
            mode = 0 if trusted is None else _mode(trusted)
            if mode & _OTHERS_WRITE and not mode & stat.S_ISVTX:
                yield f"{trusted} can be changed by others", f"run `chmod go-w {trusted}`"

    def _not_ours(self) -> Iterator[tuple[str, str]]:
        database, keys = self._settings.database_path, self._settings.key_file
        if keys.exists() and database.exists() and _owner(keys) != _owner(database):
            text = f"{keys} belongs to another user than {database}"
            yield text, "give both to the gateway's user"
        folder = database.absolute().parent
        if not os.access(folder, os.W_OK):
            remedy = "give it to the gateway's user, or run this as that user"
            yield f"no file can be made in {folder}", remedy

    def _check_disk(self) -> Iterator[Finding]:
        """Check for room to write, and for the copy that an upgrade, a backup or a restore makes."""
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

    def _check_clock(self) -> Iterator[Finding]:
        """Check that the clock does not contradict the log, the files or itself: there is no other clock."""
        now = self._clock()
        remedy = "set the clock, and have it kept right (NTP): tokens and proofs expire by it"
        found = list(self._contradictions(now, remedy))
        yield from found or [
            ok("clock", f"it is {to_text(now)}, and no file or event is dated in the future")
        ]

    def _contradictions(self, now: datetime, remedy: str) -> Iterator[Finding]:
        if now.year < _BEGINNING:
            yield failed("clock", f"it is {to_text(now)} here", remedy)
        last = None if self._state.contents is None else self._state.contents.last
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


def _keys(ids: list[str]) -> str:
    return f"{len(ids)} enrolment key{'' if len(ids) == 1 else 's'}"


def _first_names(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more ICEs" if more > 0 else "")


def _mode(path: Path) -> int:
    """The permissions of a file; 0 if there is none."""
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else 0


def _owner(path: Path) -> int:
    return path.stat().st_uid


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _mib(size: int) -> str:
    return f"{size / _MIB:,.0f} MiB"
