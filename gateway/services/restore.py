"""Replaces the database by a backup and keeps the old one under another name; then an admin confirms.

If it is interrupted, the database is the old one or the new one. The new one carries the mark that it waits for
the confirmation (`restore_mark`) already in the backup.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from gateway.core.audit_event import Actor, AuditAction, Event
from gateway.core.hash_chain import Head
from gateway.core.ice import Status
from gateway.core.restore_diff import Revived, revived
from gateway.core.text import printable_line
from gateway.core.times import Clock, from_text, to_text
from gateway.core.tokens import KeyRing
from gateway.runtime.files import sync
from gateway.services.backup import DATABASE, Backup, BackupRefused, GatewayFiles, Manifest
from gateway.store import key_file, restore_mark
from gateway.store.engine import Engine, Fetch, StoreRefused, StoreRefusedForNow
from gateway.store.ices import sealed_with
from gateway.store.key_file import KeyFileUnusable
from gateway.store.restore_mark import RestoreMark, find_mark
from gateway.store.sqlite.commit_record import forget
from gateway.store.sqlite.engine import open_sqlite
from gateway.store.sqlite.migrate import exclusively, released
from gateway.store.sqlite.snapshot import (
    copy_file,
    into_one_file,
    mark_as_copy,
    open_read_only,
    put_in_place,
    temporary,
)

_LOGS: Final = ("-wal", "-journal")
"""The files of SQLite beside a database that hold a part of it."""


@dataclass(frozen=True, slots=True)
class Restored:
    """A restore that is done; the old database and the old key file are where `…_aside` says."""

    manifest: Manifest
    database_aside: Path | None
    keys_aside: Path | None


@dataclass(frozen=True, slots=True)
class _Replaced:
    """The database to replace.

    `sound` says whether it can be read, `head` is the end of its log, `aside` are the databases that it has
    replaced itself without a confirmation.
    """

    sound: bool
    head: Head | None = None
    aside: tuple[str, ...] = ()


async def restore(backup: Backup, place: GatewayFiles, actor: Actor, clock: Clock) -> Restored:
    """Replace the database by the backup, while no other process uses it.

    Raises:
        BackupRefused: it is no backup, or damaged, or cannot be put in place.
        StoreRefused, StoreUnavailable: the database is in use, or its folder cannot be used.
        KeyFileUnusable: the keys cannot be written.
    """
    with exclusively(place.database, why="before you restore"):
        _remove_unfinished(place.database)
        try:
            with temporary(place.database) as unfinished:
                return await _restore(backup, place, unfinished, actor, clock())
        except (OSError, sqlite3.Error) as error:
            raise BackupRefused(f"{place.database} cannot be restored: {error}") from error


async def _restore(
    backup: Backup, place: GatewayFiles, unfinished: Path, actor: Actor, now: datetime
) -> Restored:
    manifest = backup.manifest
    backup.extract(DATABASE, unfinished)
    with open_read_only(unfinished) as taken:
        await backup.check(taken, released()[-1][0])
    mark_as_copy(unfinished, from_text(manifest.at))
    keys = backup.extract_keys(unfinished.with_name("keys"))
    old = await _inspect(place.database)
    aside = None if old is None else _unused_name(place.database, now)
    event = Event.of(
        now,
        actor,
        AuditAction.RESTORE,
        copied=manifest.at,
        head=manifest.head,
        aside=None if aside is None else str(aside),
        head_aside=str(old.head) if old and old.head else None,
    )
    # An unconfirmed restore is replaced now: the review compares with what that one replaced, too.
    known = [*(old.aside if old else ()), *([str(aside)] if aside else [])]
    async with open_sqlite(unfinished, tell=lambda _: None) as engine:
        await engine.write(lambda transaction: restore_mark.note(transaction, known, event))
    if not into_one_file(unfinished):
        raise BackupRefused(f"{unfinished} is in use")
    # The keys come first: with the keys of both, either database works.
    keys_aside = _put_keys(keys, place.key_file, now)
    if old is not None and aside is not None:
        _put_aside(place.database, aside, sound=old.sound)
    forget(place.database)
    put_in_place(unfinished, place.database)
    return Restored(manifest, aside, keys_aside)


def _remove_unfinished(database: Path) -> None:
    """Remove the folders of a restore that was stopped; no other process makes any now."""
    for folder in database.parent.glob(f".{database.name}.*.unfinished"):
        shutil.rmtree(folder, ignore_errors=True)


async def _inspect(database: Path) -> _Replaced | None:
    """The present database, brought into one file; None if there is none.

    Raises `StoreRefused` for a database that must not be replaced.
    """
    if not await asyncio.to_thread(database.exists):
        return None
    try:
        with open_read_only(database) as found:
            info = found.schema_info()
            if not info.ours and not info.empty:
                raise StoreRefused(f"{database} is a database of another program")
            if found.find_damage(thorough=False) is not None:
                return _Replaced(sound=False)
            old = _Replaced(sound=True)
            if not info.empty:
                has_mark = info.schema >= restore_mark.SCHEMA
                mark = await find_mark(found.fetch) if has_mark else None
                aside = () if mark is None else mark.aside
                head = await restore_mark.head(found.fetch)
                old = _Replaced(sound=True, head=head, aside=aside)
        if not into_one_file(database):
            raise StoreRefusedForNow(f"a command has {database} open: try again when it has ended")
    except sqlite3.Error:
        return _Replaced(sound=False)
    return old


def _unused_name(path: Path, now: datetime) -> Path:
    """An unused name beside `path`, with the time in it."""
    stamp = to_text(now)[:19].replace("-", "").replace(":", "") + "Z"
    name = f"{path.name}.before-restore-{stamp}"
    found, number = path.with_name(name), 1
    while found.exists():
        number += 1
        found = path.with_name(f"{name}-{number}")
    return found


def _put_aside(database: Path, aside: Path, *, sound: bool) -> None:
    """Keep the database under another name.

    A sound one is now a single file, and stays in place until one rename replaces it. A damaged one
    still has its log beside it. SQLite would apply that log to the new database, so both move first.
    """
    if sound:
        copy_file(database, aside)
        return
    for suffix in _LOGS:
        log = Path(f"{database}{suffix}")
        if log.exists():
            copy_file(log, Path(f"{aside}{suffix}"))
    database.rename(aside)
    for suffix in (*_LOGS, "-shm"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)
    sync(database.parent)


def _put_keys(keys: KeyRing | None, path: Path, now: datetime) -> Path | None:
    """Add the keys of the backup to the key file; returns the path of the old file, if it was changed.

    The tokens of the backup need its keys. Keys that were retired since stay retired: see `without_key`. The newer keys stay as well: with them the gateway still recognises
    newer tokens as its own, though the restored table does not hold them. The key that seals stays the same.
    """
    if keys is None:
        return None
    try:
        there = key_file.parse(path, path.read_bytes())
        ring = there.merged(keys)
    except FileNotFoundError:
        key_file.replace(path, keys)
        return None
    except KeyFileUnusable:
        ring = keys
    except ValueError as error:
        raise KeyFileUnusable(
            f"{path} is of another gateway ({error}): set tokens.key_file to another file"
        ) from None
    else:
        if (len(ring.keys), ring.retired) == (len(there.keys), there.retired):
            return None
    aside = _unused_name(path, now)
    copy_file(path, aside)
    key_file.replace(path, ring)
    return aside


# --- the confirmation ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Review:
    """What a restore may have revived.

    `compared` names the databases that it was compared with. If there are none, `found` is everything that is
    valid in the restored table, and `reasons` say why nothing could be compared.
    """

    mark: RestoreMark
    found: list[Revived]
    compared: tuple[str, ...]
    reasons: list[str]


async def review(fetch: Fetch, now: datetime) -> Review | None:
    """Compare the table with the databases it replaced; None if it waits for no confirmation."""
    mark = await find_mark(fetch)
    if mark is None:
        return None
    older = await restore_mark.standing(fetch)
    anew = await restore_mark.with_new_token(fetch, mark.seq)
    found: dict[tuple[str, str], Revived] = {}
    reasons = [] if mark.aside else ["the database that it replaced is not known here"]
    for name in mark.aside:
        try:
            with open_read_only(Path(name)) as aside:
                if not await _is_later(aside.fetch, fetch, mark.seq):
                    reasons.append(f"{name} is not a later state of it")
                    continue
                newer = await restore_mark.standing(aside.fetch, aside.schema_info().schema)
        except (sqlite3.Error, ValueError) as error:
            reasons.append(f"{name} cannot be read ({printable_line(str(error))})")
            continue
        for item in revived(older, newer, now, reissued=anew):
            found.setdefault((item.what, item.name), item)
    if reasons:
        return Review(mark, revived(older, None, now), (), reasons)
    return Review(mark, list(found.values()), mark.aside, [])


async def without_key(fetch: Fetch, ring: KeyRing) -> list[str]:
    """The provisioned ICEs whose token was sealed with a key that was retired since: it never opens again.

    The registered ones are admitted as before.
    """
    sealed = await sealed_with(fetch, Status.PROVISIONED)
    return sorted((name for kid in ring.retired for name in sealed.get(kid, ())), key=str.lower)


async def _is_later(newer: Fetch, older: Fetch, seq: int) -> bool:
    """Whether `newer` holds event `seq` of `older`, so that its log continues the other."""
    theirs = await restore_mark.head(newer, seq)
    return theirs is not None and theirs == await restore_mark.head(older, seq)


async def confirm(engine: Engine, found: Review, actor: Actor, clock: Clock) -> bool:
    """Let ICEs be admitted again; False where another admin has confirmed already."""
    event = Event.of(
        clock(),
        actor,
        AuditAction.CONFIRM_RESTORE,
        copied=to_text(found.mark.copied),
        compared=list(found.compared),
        listed=len(found.found),
    )
    return await engine.write(lambda transaction: restore_mark.confirm(transaction, event))
