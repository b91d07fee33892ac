"""Who this ICE is: the folder in which its key and its registration token outlive the process.

The key and the token are on the disk before the first attempt to connect: an ICE that is killed
after the gateway has bound its key must come back with the same one. Source: contract sections 5 and 8.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from client import platform
from client.credentials import IdentityProblem, Key, NotAToken, Token, proof

__all__ = [
    "FolderLocked",
    "FolderUnusable",
    "Identity",
    "IdentityProblem",
    "Key",
    "KeyUnusable",
    "NoToken",
    "NotAToken",
    "State",
    "StateFolder",
    "Token",
    "proof",
]


class NoToken(IdentityProblem):
    """There is no token, neither given nor stored."""


class KeyUnusable(IdentityProblem):
    """The stored key cannot be read as one."""


class FolderUnusable(IdentityProblem):
    """The state folder cannot be read or written."""


class FolderLocked(IdentityProblem):
    """Another process runs with this state folder."""


class State(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What `ice-client status` reads. A report, not a truth: the gateway has that."""

    gateway: str | None = None
    ice_name: str | None = None
    ice_type: str | None = None
    admitted: str | None = None
    """SHA-256 of the last token that was admitted."""
    registered: bool = False
    """Whether that token still stood for this ICE when the gateway was last heard."""
    connected: bool = False
    since: str | None = None
    """Since when it is connected, or is not; RFC 3339."""
    code: str | int | None = None
    """The refusal or close code that ended the last attempt or session."""
    sentence: str | None = None
    next: str | None = None
    """When it tries to connect, or has tried last; RFC 3339. None while connected, or once it has stopped."""
    must_act: bool = False
    """Whether the client has stopped until a person acts."""


class StateFolder:
    """The files of one ICE, readable by its user alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._key = path / "key.pem"
        self._token = path / "token"
        self._state = path / "state.json"
        self._lock = path / "lock"

    def exists(self) -> bool:
        """Whether there is such a folder. Raises `FolderUnusable`."""
        try:
            return self.path.exists()
        except OSError as error:
            raise self._unusable(error) from None

    def token(self) -> Token | None:
        """The stored token. Raises `FolderUnusable`, or `NotAToken` naming the file."""
        data = self._read(self._token)
        try:
            return None if data is None else Token.from_bytes(data)
        except NotAToken as problem:
            raise NotAToken(f"{self._token}: {problem}") from None

    def store_token(self, token: Token) -> None:
        """Raises `FolderUnusable`."""
        self._write(self._token, token.reveal().encode() + b"\n")

    def key(self) -> Key | None:
        """The stored key. Raises `KeyUnusable`: it is never replaced by a new one unasked."""
        pem = self._read(self._key)
        try:
            return None if pem is None else Key.from_pem(pem)
        except ValueError:
            raise KeyUnusable(
                f"{self._key} is not a private P-256 key: put it back from a backup, or delete it and"
                " ask the admin to reregister this ICE"
            ) from None

    def store_key(self, key: Key) -> None:
        """Raises `FolderUnusable`."""
        self._write(self._key, key.to_pem())

    def state(self) -> State:
        """The last report; an empty one when there is none that can be understood."""
        try:
            return msgspec.json.decode(self._read(self._state) or b"{}", type=State)
        except ValueError:
            return State()

    def store_state(self, state: State) -> None:
        """Raises `FolderUnusable`."""
        self._write(self._state, msgspec.json.format(msgspec.json.encode(state)))

    def in_use(self) -> bool:
        """Whether a client runs with this folder. Raises `FolderUnusable`."""
        try:
            return platform.is_locked(self._lock)
        except OSError as error:
            raise self._unusable(error) from None

    def lock(self) -> platform.FileLock:
        """Make the folder, if need be, and take it. Raises `FolderUnusable` and `FolderLocked`."""
        lock = platform.FileLock(self._lock)
        try:
            platform.make_private_folder(self.path, ours=self._key.name)
            taken = lock.acquire()
        except OSError as error:
            raise self._unusable(error) from None
        if not taken:
            raise FolderLocked(
                f"another ice-client runs with the state folder {self.path}: stop it, or name another"
                " folder for another ICE"
            )
        return lock

    def _read(self, path: Path) -> bytes | None:
        try:
            return platform.read_private(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from None

    def _write(self, path: Path, data: bytes) -> None:
        try:
            platform.write_private(path, data)
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> FolderUnusable:
        hint = "; it may be another user's" if isinstance(error, PermissionError) else ""
        return FolderUnusable(
            f"the state folder {self.path} cannot be used: {error.strerror or error}{hint}"
        )


class Identity:
    """A locked state folder with the key and the token to connect with; made by `open`."""

    def __init__(
        self,
        folder: StateFolder,
        lock: platform.FileLock,
        key: Key,
        token: Token,
        state: State,
        *,
        kept: bool,
    ) -> None:
        self._folder = folder
        self._lock = lock
        self.key = key
        self.token = token
        self.kept = kept
        """Whether a token was given and the stored one kept, since that is not older."""
        self.state = state

    @classmethod
    def open(cls, path: Path, given: Token | None) -> Identity:
        """Take the folder; store the token given and make the key where needed.

        Raises `IdentityProblem`, whose text says what to do.
        """
        folder = StateFolder(path)
        lock = folder.lock()
        try:
            state = folder.state()
            key, stored = folder.key(), _stored(folder, given)
            token = _newest(given, stored)
            if token is not stored:
                folder.store_token(token)
            if key is None:
                key = Key.generate()
                folder.store_key(key)
        except BaseException:
            lock.release()
            raise
        kept = given is not None and given != token
        return cls(folder, lock, key, token, state, kept=kept)

    @property
    def was_admitted(self) -> bool:
        """Whether the gateway has admitted this very token before."""
        return self.state.admitted == self.token.digest()

    def note(self, **changes: Any) -> None:
        """Change the report that `ice-client status` reads. Raises `FolderUnusable`."""
        self.state = msgspec.structs.replace(self.state, **changes)
        self._folder.store_state(self.state)

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock.release()


def _stored(folder: StateFolder, given: Token | None) -> Token | None:
    """The stored token; one that has been spoilt does not stand in the way of a good one."""
    try:
        return folder.token()
    except NotAToken:
        if given is None:
            raise
        return None


def _newest(given: Token | None, stored: Token | None) -> Token:
    """The token to connect with. Raises `NoToken`."""
    if stored is not None:
        return given if given is not None and given.supersedes(stored) else stored
    if given is not None:
        return given
    raise NoToken(
        "this ICE has no registration token yet: ask the admin for one, then start with"
        " --token-file FILE (`--token-file -` reads it from standard input)"
    )
