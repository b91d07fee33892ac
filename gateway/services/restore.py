"""Puts a backup in the place of the database, which is put aside; then the admin confirms.

Whatever stops it half-way leaves the old database or the new one, and the new one says from the
beginning that it waits (`hold`): the copy in the backup does so already.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from gateway.core.audit_event import Actor, Event
from gateway.core.codes import AuditAction
from gateway.core.hash_chain import Head
from gateway.core.restore_diff import Revived, revived
from gateway.core.times import Clock, from_text, to_text
from gateway.core.tokens import KeyRing
from gateway.runtime.files import sync
from gateway.services.backup import DATABASE, Backup, BackupRefused, Manifest, Place
from gateway.store import key_file, restore_mark
from gateway.store.engine import Engine, Fetch, StoreRefused, StoreRefusedForNow
from gateway.store.key_file import KeyFileUnusable
from gateway.store.restore_mark import Waiting, waiting
from gateway.store.sqlite.engine import open_sqlite
from gateway.store.sqlite.migrate import alone, released
from gateway.store.sqlite.snapshot import as_it_is, duplicate, mark, put, single, temporary

_LOGS: Final = ("-wal", "-journal")
"""What SQLite may keep beside a database, as a part of it."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What was done: the backup, and where the database and key file are that were there before."""

    manifest: Manifest
    database_aside: Path | None
    keys_aside: Path | None


@dataclass(frozen=True, slots=True)
class _Present:
    """The database that is there; `sound` where it can be read, `head` of its log where it has one."""

    sound: bool
    head: Head | None = None
    aside: tuple[str, ...] = ()


async def restore(backup: Backup, place: Place, actor: Actor, clock: Clock) -> Restored:
    """Put the backup in its place, while nobody uses the database that is there.

    Raises:
        BackupRefused: the backup is none, or damaged, or cannot be put in place.
        StoreRefused, StoreUnavailable: the database is in use, or its folder cannot be used.
        KeyFileUnusable: the keys cannot be written.
    """
    with alone(place.database, why="before you restore"):
        _sweep(place.database)
        try:
            with temporary(place.database) as unfinished:
                return await _restore(backup, place, unfinished, actor, clock())
        except (OSError, sqlite3.Error) as error:
            raise BackupRefused(f"{place.database} cannot be restored: {error}") from error


async def _restore(
    backup: Backup, place: Place, unfinished: Path, actor: Actor, now: datetime
) -> Restored:
    manifest = backup.manifest
    backup.take(DATABASE, unfinished)
    with as_it_is(unfinished) as taken:
        await backup.check(taken, released()[-1][0])
    mark(unfinished, from_text(manifest.at))
    keys = backup.take_keys(unfinished.with_name("keys"))
    present = await _look(place.database)
    aside = None if present is None else _free(place.database, now)
    event = Event(
        now,
        actor,
        AuditAction.RESTORE,
        None,
        None,
        {
            "copied": manifest.at,
            "head": manifest.head,
            "aside": None if aside is None else str(aside),
            "head_aside": str(present.head) if present and present.head else None,
        },
    )
    # What a table that still waits has replaced is worth comparing with, too.
    known = [*(present.aside if present else ()), *([str(aside)] if aside else [])]
    async with open_sqlite(unfinished, tell=_nobody) as engine:
        await engine.write(lambda transaction: restore_mark.note(transaction, known, event))
    if not single(unfinished):
        raise BackupRefused(f"{unfinished} is in use")
    # The keys come first: with those of both, either database is as good as it was.
    keys_aside = _put_keys(keys, place.key_file, now)
    if present is not None and aside is not None:
        _put_aside(place.database, aside, sound=present.sound)
    put(unfinished, place.database)
    return Restored(manifest, aside, keys_aside)


def _sweep(database: Path) -> None:
    """Remove what a restore that was stopped has left; nobody else makes any while we are alone."""
    for folder in database.parent.glob(f".{database.name}.*.unfinished"):
        shutil.rmtree(folder, ignore_errors=True)


async def _look(database: Path) -> _Present | None:
    """What is there, brought into one file. Raises `StoreRefused` where it is not to be replaced."""
    if not await asyncio.to_thread(database.exists):
        return None
    try:
        with as_it_is(database) as found:
            facts = found.facts()
            if not facts.ours and not facts.empty:
                raise StoreRefused(f"{database} is a database of another program")
            if found.damage(thorough=False) is not None:
                return _Present(sound=False)
            if facts.empty:
                present = _Present(sound=True)
            else:
                waits = None
                if facts.schema >= restore_mark.SCHEMA:
                    waits = await waiting(found.fetch)
                present = _Present(
                    sound=True,
                    head=await restore_mark.head(found.fetch),
                    aside=() if waits is None else waits.aside,
                )
        if not single(database):
            raise StoreRefusedForNow(f"a command has {database} open: try again when it has ended")
    except sqlite3.Error:
        return _Present(sound=False)
    return present


def _free(path: Path, now: datetime) -> Path:
    """A dated name beside `path` that nothing has."""
    stamp = to_text(now)[:19].replace("-", "").replace(":", "") + "Z"
    name = f"{path.name}.before-restore-{stamp}"
    found, number = path.with_name(name), 1
    while found.exists():
        number += 1
        found = path.with_name(f"{name}-{number}")
    return found


def _put_aside(database: Path, aside: Path, *, sound: bool) -> None:
    """Keep the database under another name.

    A sound one is a single file by now, and stays in place until it is replaced in one step. A damaged
    one has its log beside it, which must never meet another database: so it leaves before the new one
    comes.
    """
    if sound:
        duplicate(database, aside)
        return
    for suffix in _LOGS:
        log = Path(f"{database}{suffix}")
        if log.exists():
            duplicate(log, Path(f"{aside}{suffix}"))
    database.rename(aside)
    for suffix in (*_LOGS, "-shm"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)
    sync(database.parent)


def _put_keys(keys: KeyRing | None, path: Path, now: datetime) -> Path | None:
    """Have the keys of both in the key file; returns where it is as it was, if it was changed.

    Tokens of the backup need its keys. Those made since are none of the restored table, but with their
    keys an ICE is told so, instead of being taken for a stranger's. What seals goes on sealing.
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
        if len(ring.keys) == len(there.keys):
            return None
    aside = _free(path, now)
    duplicate(path, aside)
    key_file.replace(path, ring)
    return aside


def _nobody(_: str) -> None:
    """Nobody is told that a copy was migrated."""


# --- the confirmation ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Review:
    """What a table that waits may have revived.

    `compared` says with which databases; without any, `found` is all that is good in it and `reasons`
    say why.
    """

    waiting: Waiting
    found: list[Revived]
    compared: tuple[str, ...]
    reasons: list[str]


async def review(fetch: Fetch, now: datetime) -> Review | None:
    """Compare the table with what it replaced; None where it does not wait for a confirmation."""
    waits = await waiting(fetch)
    if waits is None:
        return None
    older = await restore_mark.standing(fetch)
    anew = await restore_mark.given_anew(fetch, waits.seq)
    found: dict[tuple[str, str], Revived] = {}
    reasons = [] if waits.aside else ["the database that it replaced is not known here"]
    for name in waits.aside:
        try:
            with as_it_is(Path(name)) as aside:
                if not await _is_later(aside.fetch, fetch, waits.seq):
                    reasons.append(f"{name} is not a later state of it")
                    continue
                newer = await restore_mark.standing(aside.fetch)
        except (sqlite3.Error, ValueError) as error:
            reasons.append(f"{name} cannot be read ({error})")
            continue
        for item in revived(older, newer, now, reissued=anew):
            found.setdefault((item.what, item.name), item)
    if reasons:
        return Review(waits, revived(older, None, now), (), reasons)
    return Review(waits, list(found.values()), waits.aside, [])


async def _is_later(newer: Fetch, older: Fetch, seq: int) -> bool:
    """Whether the one log goes on from where the other was copied."""
    theirs = await restore_mark.head(newer, seq)
    return theirs is not None and theirs == await restore_mark.head(older, seq)


async def confirm(engine: Engine, found: Review, actor: Actor, clock: Clock) -> bool:
    """Let ICEs be admitted again; False where somebody else has."""
    event = Event(
        clock(),
        actor,
        AuditAction.CONFIRM_RESTORE,
        None,
        None,
        {
            "copied": to_text(found.waiting.copied),
            "compared": list(found.compared),
            "listed": len(found.found),
        },
    )
    return await engine.write(lambda transaction: restore_mark.confirm(transaction, event))
