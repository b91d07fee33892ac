"""The file that holds the token keys: a JWK Set (RFC 7517) with more members: `seals`, `retired`, `retired_id_keys`, `sha256`.

`retired` has the ids of retired keys. A version before it ignores the member, and leaves it out where it writes the file; likewise
`sha256`, by which a damaged file is known.

Only the gateway's user may read and change it. A file of root may also be readable by its group, as in the secrets
that containers mount. The first process that seals makes the file, and only while there is no ICE, enrolment key or
webhook: a new file in place of a lost one would make every token, key and secret invalid without notice.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import pwd
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from gateway.core import base64url, enrolment
from gateway.core.secret import Secret
from gateway.core.times import utc_now
from gateway.core.tokens import Key, KeyRing, OpenedToken, RetiredToken, UnknownKey, open_with
from gateway.runtime.files import copy_owner, sync

REREAD_INTERVAL: Final = 1.0
"""Seconds between two reads of the file because of an unknown `kid`, so that forged tokens cost no I/O."""


_NOT_FOR_OWNER: Final = 0o077
_NOT_FOR_ROOT: Final = 0o037
"""Mode bits that a file of the gateway's user, or of root, must not have."""


class KeyFileUnusable(Exception):
    """The key file is missing, unreadable, open to others, or not a key file; the text says which."""


class _Jwk(msgspec.Struct, omit_defaults=True):
    kty: str
    kid: str
    k: str
    made: datetime | None = None  # RFC 7517 section 4: further members are ignored by others


class _Document(msgspec.Struct, omit_defaults=True):
    keys: list[_Jwk]
    seals: str
    retired: list[str] = []
    retired_id_keys: list[str] = []
    sha256: str = ""
    """Of the document without this member, so that a damaged key is not taken for a key."""

    def digest(self) -> str:
        without = msgspec.structs.replace(self, sha256="")
        return hashlib.sha256(msgspec.json.encode(without)).hexdigest()


def read(path: Path) -> KeyRing | None:
    """The keys in the file; None if there is no file. Raises `KeyFileUnusable`."""
    try:
        # Without O_NOFOLLOW: a secret manager may mount the file as a link.
        with path.open("rb") as file:
            _check_owner(path, os.fstat(file.fileno()))
            content = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        if isinstance(error, PermissionError):
            with contextlib.suppress(OSError):
                _check_owner(path, path.stat())  # what is wrong, where it can be seen
        raise KeyFileUnusable(
            f"the key file {path} cannot be read: {error.strerror or error}"
        ) from error
    return parse(path, content)


def _check_owner(path: Path, info: os.stat_result) -> None:
    """Refuse a file that other users could read or change. Raises `KeyFileUnusable`."""
    me, owner, mode = os.geteuid(), info.st_uid, stat.S_IMODE(info.st_mode)
    if me and owner not in (me, 0):  # root may rotate the keys of the gateway's user
        raise KeyFileUnusable(
            f"the key file {path} belongs to {_user(owner)}, and not to {_user(me)} who runs this: run"
            f" `chown {me} {path}` as root"
        )
    if mode & (_NOT_FOR_ROOT if owner == 0 else _NOT_FOR_OWNER):
        group = " (or 640, for the group of the gateway)" if owner == 0 else ""
        raise KeyFileUnusable(
            f"the key file {path} can be read by others: run `chmod 600 {path}`{group} as its owner"
        )


def _user(uid: int) -> str:
    try:
        return f"the user {pwd.getpwuid(uid).pw_name}"
    except KeyError:  # it has no name, as in many containers
        return f"the user id {uid}"


def parse(path: Path, content: bytes) -> KeyRing:
    """The keys in the `content` of the file `path`. Raises `KeyFileUnusable`."""
    try:
        document = msgspec.json.decode(content, type=_Document)
        if document.sha256 and document.sha256 != document.digest():
            raise KeyFileUnusable(f"the key file {path} is damaged: put it back from a backup")
        return KeyRing(
            (Key(jwk.kid, base64url.decode(jwk.k), jwk.made) for jwk in document.keys),
            document.seals,
            document.retired,
            map(base64url.decode, document.retired_id_keys),
        )
    except (ValueError, KeyError):
        raise KeyFileUnusable(f"{path} is not a key file of the gateway") from None


def create(path: Path) -> KeyRing:
    """Make the file with one new key. If another process was faster, return the keys of its file."""
    key = Key.generate(utc_now())
    with _written(path, KeyRing([key], key.kid)) as name, contextlib.suppress(FileExistsError):
        # A hard link appears complete or not at all, and never replaces the file of another process.
        os.link(name, path)
    ring = read(path)
    if ring is None:
        raise KeyFileUnusable(f"the key file {path} vanished while it was made")
    return ring


def replace(path: Path, ring: KeyRing) -> None:
    """Replace the keys in the file atomically. Raises `KeyFileUnusable`."""
    # Replace the file itself, not a link to it.
    path = path.resolve()
    with _written(path, ring) as name:
        copy_owner(Path(name), path)
        os.rename(name, path)  # noqa: PTH104 - the name is mkstemp's text


@contextlib.contextmanager
def _written(path: Path, ring: KeyRing) -> Iterator[str]:
    """The name of a temporary file beside `path` that holds `ring` on the disk; removed afterwards."""
    document = _Document(
        [_Jwk("oct", key.kid, base64url.encode(key.reveal()), key.made) for key in ring.keys],
        ring.seals,
        list(ring.retired),
        list(map(base64url.encode, ring.retired_id_keys)),
    )
    document.sha256 = document.digest()
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:  # mkstemp made it 0600
                file.write(msgspec.json.format(msgspec.json.encode(document)))
                file.flush()
                os.fsync(file.fileno())
            yield name
        finally:
            with contextlib.suppress(FileNotFoundError):  # renamed
                os.unlink(name)  # noqa: PTH108 - the name is mkstemp's text
        sync(path.parent)
    except OSError as error:
        raise KeyFileUnusable(
            f"the key file {path} cannot be written: {error.strerror or error}"
        ) from error


def signature(path: Path) -> tuple[int, int] | None:
    """Inode and modification time of the file; None if it cannot be read."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


class KeyStore:
    """The keys that this process knows. Another process may make the file or add keys."""

    def __init__(self, path: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._monotonic = monotonic
        self._ring: KeyRing | None = None
        # The first unknown `kid` always reads the file, which another process may have made.
        self._read_at = -math.inf
        self._signature: tuple[int, int] | None = None

    def load(self) -> bool:
        """Read the file now; False if there is none yet. Raises `KeyFileUnusable`."""
        self._ring = read(self.path)
        return self._ring is not None

    def reload(self) -> None:
        """Read the file again. If it cannot be used, the known keys stay."""
        with contextlib.suppress(KeyFileUnusable):
            self._ring = read(self.path) or self._ring

    def kids(self) -> frozenset[str]:
        """The ids of the keys that this process knows."""
        return frozenset() if self._ring is None else frozenset(key.kid for key in self._ring.keys)

    def retired(self) -> frozenset[str]:
        """The ids of the keys that this process knows to be retired."""
        return frozenset() if self._ring is None else frozenset(self._ring.retired)

    def derived(self, purpose: bytes) -> tuple[bytes, ...]:
        """See `KeyRing.derived`; empty if there are no keys yet."""
        return () if self._ring is None else self._ring.derived(purpose)

    def find(self, kid: str) -> Key | None:
        """The key of this id; an unknown one reads the file like `open`."""
        found = self._find(kid)
        return self._find(kid) if found is None and self._reread() else found

    def _find(self, kid: str) -> Key | None:
        keys = () if self._ring is None else self._ring.keys
        return next((key for key in keys if key.kid == kid), None)

    def fault(self) -> str | None:
        """What is wrong with the file; the keys of a usable file replace the known keys.

        If the file is unusable, the known keys still open tokens.
        """
        try:
            found = read(self.path)
        except KeyFileUnusable as error:
            return str(error)
        if found is None and self._ring is not None:
            return (
                f"the key file {self.path} is missing: put it back from a backup; without it no"
                " token can be made, and the gateway does not start again"
            )
        self._ring = found
        return None

    def open(self, token: Secret) -> OpenedToken | RetiredToken | None:
        """The contents of a genuine token, or the hash of one that only the database can tell from garbage.

        An unknown `kid` reads the file again, at most once a second.
        """
        opened = self._open(token)
        if isinstance(opened, UnknownKey) and self._reread():
            opened = self._open(token)
        return None if isinstance(opened, UnknownKey) else opened

    def made_id(self, key_id: str) -> bool:
        """Whether this gateway made an enrolment key's id; an unknown one reads the file like `open`."""
        return self._made(key_id) or (self._reread() and self._made(key_id))

    def _made(self, key_id: str) -> bool:
        ring = self._ring
        return ring is not None and any(enrolment.is_ours(key_id, key) for key in ring.id_keys)

    def _reread(self) -> bool:
        """Read the file again, unless that was done just now."""
        now = self._monotonic()
        # A changed file is read at once: otherwise a forged token could make the next new ICE fail.
        found = signature(self.path)
        if now - self._read_at < REREAD_INTERVAL and found == self._signature:
            return False
        self._read_at, self._signature = now, found
        self.reload()
        return True

    def _open(self, token: Secret) -> OpenedToken | RetiredToken | UnknownKey | None:
        # Without any key, the `kid` may still be found in the file.
        return open_with({}, token) if self._ring is None else self._ring.open(token)

    def for_sealing(self, *, may_create: bool) -> KeyRing:
        """The keys that the file holds now. Raises `KeyFileUnusable`.

        Args:
            may_create: whether no ICE, enrolment key or webhook needs it, so that a missing file may be made.
        """
        ring = read(self.path)
        if ring is None:
            if not may_create:
                raise KeyFileUnusable(
                    f"the key file {self.path} is missing; it is not made anew, since every token"
                    " would become worthless: put it back from a backup"
                )
            ring = create(self.path)
        self._ring = ring
        return ring
