"""A backup: a folder with the database and the keys of one moment, and a manifest to check them.

A gateway may write meanwhile. The folder gets its name last, when everything is on the disk: a folder with
that name is complete.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from gateway import __version__
from gateway.core.audit_event import Actor, AuditAction, Event
from gateway.core.text import printable_line
from gateway.core.times import Clock, from_text, to_text
from gateway.core.tokens import KeyRing
from gateway.runtime.files import sync
from gateway.runtime.settings import Settings
from gateway.store import events, key_file
from gateway.store.engine import Engine, Transaction
from gateway.store.restore_mark import head
from gateway.store.sqlite.snapshot import (
    ReadOnlyDatabase,
    copy_database,
    copy_file,
    mark_as_copy,
    open_read_only,
    temporary,
)
from gateway.store.tables import needs_keys

DATABASE: Final = "ice-gateway.db"
KEYS: Final = "ice-gateway.keys.json"
MANIFEST: Final = "manifest.json"
_FORMAT: Final = 1
_ATTEMPTS: Final = 5
"""How often the database is copied again because the key file has changed meanwhile."""


class BackupRefused(Exception):
    """A backup cannot be made or restored; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class GatewayFiles:
    """The two files of a gateway that a backup copies."""

    database: Path
    key_file: Path

    @classmethod
    def of(cls, settings: Settings) -> GatewayFiles:
        """The files that the settings name; symbolic links are resolved."""
        return cls(settings.database_path.resolve(), settings.key_file.resolve())


class FileDigest(msgspec.Struct):
    """Size in bytes and SHA-256 of a file of a backup."""

    bytes: int
    sha256: str


class Manifest(msgspec.Struct):
    """`manifest.json`: `version` made it at `at`; `head` is the newest event in it (`SEQ:DIGEST`)."""

    format: int
    version: str
    schema: int
    at: str
    head: str
    files: dict[str, FileDigest]


# --- making one ----------------------------------------------------------------------------------


Copy = Callable[[Path, Path], None]
"""Copies a database from a path to another; see `copy_database`."""


async def back_up(
    engine: Engine,
    place: GatewayFiles,
    folder: Path,
    actor: Actor,
    clock: Clock,
    *,
    copy: Copy = copy_database,
) -> Manifest:
    """Make a backup in `folder`, an absolute path, which must be new or empty.

    The event is logged first. The event of a backup that fails later does no harm; a copy of the secrets without
    an event would.

    Raises:
        BackupRefused: `folder` is in use, cannot be written, or the database is damaged.
        KeyFileUnusable: there is no key file, but there are ICEs or enrolment keys.
    """
    check_free(folder)
    if key_file.read(place.key_file) is None and await needs_keys(engine.fetch):
        raise key_file.KeyFileUnusable(
            f"the key file {place.key_file} is missing, and without it a backup is worth nothing"
        )
    now = clock()
    event = Event.of(now, actor, AuditAction.BACKUP, folder=str(folder))

    async def unit(transaction: Transaction) -> None:
        events.append(transaction, [event])

    await engine.write(unit)
    try:
        with temporary(folder) as unfinished:
            unfinished.mkdir(0o700)
            await asyncio.to_thread(_copy_together, place, unfinished, now, copy)
            manifest = await _describe(unfinished, now)
            sync(unfinished)
            unfinished.rename(folder)
            sync(folder.parent)
    except (OSError, sqlite3.Error) as error:
        raise BackupRefused(f"the backup {folder} cannot be made: {error}") from error
    return manifest


def check_free(folder: Path) -> None:
    """Raise `BackupRefused` for a folder that is not empty: a backup overwrites nothing."""
    try:
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise BackupRefused(f"{folder} cannot be used: {error.strerror or error}") from error
    if (folder / MANIFEST).exists():
        raise BackupRefused(f"{folder} holds a backup already: name a new folder")
    if taken:
        raise BackupRefused(f"{folder} is not empty: name a new folder")


def _copy_together(place: GatewayFiles, target: Path, now: datetime, copy: Copy) -> None:
    """Copy both so that each ICE of the database has its key in the key file.

    The database is copied again if the key file has changed meanwhile. Otherwise the copy could lack a key
    that was made or retired between the two copies, whichever comes first.
    """
    for _ in range(_ATTEMPTS):
        before = key_file.signature(place.key_file)
        copy(place.database, target / DATABASE)
        content = None if before is None else place.key_file.read_bytes()
        if key_file.signature(place.key_file) == before:
            break
        (target / DATABASE).unlink()
    else:
        raise BackupRefused(f"the key file {place.key_file} changes all the time: try again")
    mark_as_copy(target / DATABASE, now)
    if content is not None:
        key_file.parse(place.key_file, content)
        _write(target / KEYS, content)


async def _describe(target: Path, now: datetime) -> Manifest:
    with open_read_only(target / DATABASE) as made:
        damage = made.find_damage(thorough=False)
        if damage is not None:
            raise BackupRefused(
                f"the database is damaged, and so would the backup be ({damage}): restore an"
                " earlier one"
            )
        manifest = Manifest(
            _FORMAT,
            __version__,
            made.schema_info().schema,
            to_text(now),
            str(await head(made.fetch)),
            _digests(target),
        )
    _write(target / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    return manifest


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    sync(path)


def _digests(folder: Path) -> dict[str, FileDigest]:
    return {path.name: _digest(path) for path in sorted(folder.iterdir())}


def _digest(path: Path) -> FileDigest:
    with path.open("rb") as file:
        return FileDigest(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


# --- reading one ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup in a folder. Every method raises `BackupRefused`."""

    folder: Path
    manifest: Manifest

    @classmethod
    def find(cls, folder: Path) -> Backup:
        """Read the manifest in `folder`."""
        try:
            manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
            from_text(manifest.at)
        except FileNotFoundError:
            raise BackupRefused(f"{folder} is no backup: it has no {MANIFEST}") from None
        except (OSError, ValueError) as error:
            raise BackupRefused(f"the backup {folder} cannot be read: {error}") from error
        if manifest.format != _FORMAT:
            raise BackupRefused(
                f"the backup {folder} was made by a newer gateway ({manifest.version}): upgrade first"
            )
        if manifest.files.keys() not in ({DATABASE}, {DATABASE, KEYS}):
            raise BackupRefused(
                f"the backup {folder} is damaged: {MANIFEST} names other files than a backup has"
            )
        return cls(folder, manifest)

    def extract(self, name: str, target: Path) -> None:
        """Copy one of its files to `target`, and check its digest."""
        try:
            copy_file(self.folder / name, target)
            found = _digest(target)
        except OSError as error:
            raise BackupRefused(
                f"{name} of the backup {self.folder} cannot be read: {error}"
            ) from error
        if found != self.manifest.files.get(name):
            raise BackupRefused(
                f"the backup {self.folder} is damaged: {name} is not what {MANIFEST} says"
            )

    def extract_keys(self, target: Path) -> KeyRing | None:
        """Its keys, copied to `target`; None if it has no key file. Raises `KeyFileUnusable`."""
        if KEYS not in self.manifest.files:
            return None
        self.extract(KEYS, target)
        return key_file.parse(self.folder / KEYS, target.read_bytes())

    async def check(self, taken: ReadOnlyDatabase, newest: int) -> None:
        """Check its database, already extracted, for damage and against the manifest.

        `newest` is the schema of this gateway.
        """
        schema = self.manifest.schema
        if schema > newest:
            raise BackupRefused(
                f"the backup {self.folder} is of a newer gateway (schema {schema}, this one knows"
                f" {newest}): upgrade the gateway first"
            )
        try:
            info, damage = taken.schema_info(), taken.find_damage(thorough=True)
            if damage is None and (not info.ours or info.schema != schema):
                damage = f"it is no database of schema {schema}"
            if damage is None and str(await head(taken.fetch)) != self.manifest.head:
                damage = "its audit log does not end where the manifest says"
        except sqlite3.Error as error:
            damage = printable_line(str(error))
        if damage is not None:
            raise BackupRefused(f"the database in the backup {self.folder} is damaged: {damage}")
