"""The identity of an ICE: the state folder that stores its key and registration token.

Both are on disk before the first attempt to connect: an ICE that is killed after the gateway has bound its
key must come back with the same one. Source: docs/protocol.md and docs/client.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from client import platform, protocol
from client.credentials import IdentityProblem, Key, NotAToken, Token
from client.exceptions import IceClientError


class FolderUnusable(IdentityProblem):
    """The state folder cannot be read or written, or another process uses it."""


class DamagedDecision(IceClientError):
    """The stored decision of `ice-client accept` cannot be parsed; the text says what to do."""


_FILES: Final = (
    *("key.pem", "token", "token.moving", "state.json", "operations.db", "lock"),
    *("accepts.json", "accepts.lock"),
)


class Enrolment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request for an ICE; a client that is started again goes on with it."""

    gateway: str
    ice_name: str | None = None
    user: str | None = None
    id: str | None = None
    """While an admin has to approve it; the gateway's name for it."""
    since: str | None = None
    """Since when it waits; RFC 3339."""


class State(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The client's last report, for `ice-client status`; only the gateway knows the current state."""

    gateway: str | None = None
    """The base URL of the gateway that the client was last started for."""
    home: str | None = None
    """The base URL of the stored token's gateway; it differs while the ICE moves."""
    options: list[str] = []
    """The other options of the last run, as `status` suggests them."""
    ice_name: str | None = None
    ice_type: str | None = None
    admitted: str | None = None
    """SHA-256 of the last token that was admitted."""
    registered: bool = False
    """Whether that token was valid for this ICE when the gateway last answered."""
    connected: bool = False
    since: str | None = None
    """Since when it is connected, or is not; RFC 3339."""
    code: str | int | None = None
    """The refusal or close code that ended the last attempt or session."""
    sentence: str | None = None
    actionable: bool = False
    """Whether that sentence says what a person should do; see `backoff.Refused`."""
    next: str | None = None
    """When it tries to connect, or last tried; RFC 3339. None while connected or once stopped."""
    must_act: bool = False
    """Whether the client has stopped until a person acts."""
    enrolment: Enrolment | None = None
    """What the client asks for while it has no token."""
    accepts: list[str] | None = None
    """The kinds that others might send to the last client; None for all."""

    @property
    def moves(self) -> bool:
        """Whether the client was last started for another gateway than the stored token's."""
        return not same_gateway(self.home or self.gateway, self.gateway)


class StateFolder:
    """The files of one ICE; only its user can read them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._key = path / "key.pem"
        self._token = path / "token"
        self._moving = path / "token.moving"
        self._state = path / "state.json"
        self._lock = path / "lock"
        self._decision = path / "accepts.json"
        self._decision_lock = path / "accepts.lock"

    def exists(self) -> bool:
        """Whether the folder exists. Raises `FolderUnusable`."""
        with self._errors():
            return self.path.exists()

    def token(self, *, moving: bool = False) -> Token | None:
        """The stored token, or the one for the gateway that the ICE moves to.

        Raises `FolderUnusable`, or `NotAToken` naming the file.
        """
        path = self._moving if moving else self._token
        data = self._read(path)
        try:
            return None if data is None else Token.from_bytes(data)
        except NotAToken as problem:
            raise NotAToken(f"{path}: {problem}") from None

    def store_token(self, token: Token, *, moving: bool = False) -> None:
        """Raises `FolderUnusable`."""
        self._write(self._moving if moving else self._token, token.reveal().encode() + b"\n")

    def forget_moving_token(self) -> None:
        """Raises `FolderUnusable`."""
        with self._errors():
            self._moving.unlink(missing_ok=True)

    def open_to_others(self) -> list[str]:
        """The paths that other users can access until `lock` and reading restrict them. Raises `FolderUnusable`."""
        with self._errors():
            found = [path for path in (self._key, self._token) if platform.open_to_others(path)]
            # Without a key there is nothing yet that another user could have changed.
            if self._key.exists() and platform.open_to_others(self.path, platform.OTHERS_WRITE):
                found.insert(0, self.path)
        return [str(path) for path in found]

    def key(self) -> Key | None:
        """The stored key. Raises `IdentityProblem`; the client never replaces a key by itself."""
        pem = self._read(self._key)
        try:
            return None if pem is None else Key.from_pem(pem)
        except ValueError:
            raise IdentityProblem(
                f"{self._key} is not a private P-256 key: put it back from a backup, or delete it and"
                " ask the admin to reregister this ICE"
            ) from None

    def store_key(self, key: Key) -> None:
        """Raises `FolderUnusable`."""
        self._write(self._key, key.to_pem())

    def state(self) -> State:
        """The last report; an empty one if there is none or it cannot be parsed."""
        try:
            state = msgspec.json.decode(self._read(self._state) or b"{}", type=State)
            for url in (
                state.gateway,
                state.home,
                state.enrolment.gateway if state.enrolment else None,
            ):
                _authority(url)
        except ValueError:
            return State()
        else:
            return state

    def store_state(self, state: State) -> None:
        """Raises `FolderUnusable`."""
        self._write(self._state, msgspec.json.format(msgspec.json.encode(state)))

    def decision(self) -> protocol.Accepts | None:
        """What `ice-client accept` has stored; None for nothing.

        Raises `FolderUnusable` or `DamagedDecision`.
        """
        data = self._read(self._decision)
        try:
            return None if data is None else msgspec.json.decode(data, type=protocol.Accepts)
        except (ValueError, RecursionError):
            raise DamagedDecision(
                f"{self._decision} is damaged: say with `ice-client accept` what others may send"
            ) from None

    def decision_version(self) -> object:
        """A value that differs once another decision is stored; None without one. Raises `FolderUnusable`."""
        with self._errors(), contextlib.suppress(FileNotFoundError):
            found = self._decision.stat()
            return found.st_ino, found.st_mtime_ns, found.st_size
        return None

    def store_decision(self, decision: protocol.Accepts) -> None:
        """Store it, also while a client runs. Raises `IdentityProblem`."""
        lock = platform.FileLock(self._decision_lock)
        with self._errors():
            self._make()
            if not lock.acquire():
                raise FolderUnusable("another `ice-client accept` runs: try again")
            try:
                self._write(self._decision, msgspec.json.encode(decision))
            finally:
                lock.release()

    def in_use(self) -> bool:
        """Whether a client runs with this folder. Raises `FolderUnusable`."""
        with self._errors():
            return platform.is_locked(self._lock)

    def lock(self) -> platform.FileLock:
        """Create the folder if necessary, and lock it.

        Raises `FolderUnusable`, or another `IdentityProblem` if others could write there.
        """
        lock = platform.FileLock(self._lock)
        with self._errors():
            self._make()
            if not lock.acquire():
                raise FolderUnusable(
                    f"another ice-client runs with the state folder {self.path}: stop it, or name another"
                    " folder for another ICE"
                )
        return lock

    def _make(self) -> None:
        """Create the folder if necessary. Raises OSError, or `IdentityProblem` if others could write there."""
        platform.make_private_folder(self.path, ours=self._key.name)
        exposed = platform.exposure(self.path, _FILES)
        if exposed is not None:
            raise IdentityProblem(
                f"the state folder cannot be trusted: {exposed}; make the client's user the only one who can"
                " write to it (chown, chmod go-w), or name another folder with --state-dir"
            )

    def _read(self, path: Path) -> bytes | None:
        with self._errors(), contextlib.suppress(FileNotFoundError):
            return platform.read_private(path)
        return None

    def _write(self, path: Path, data: bytes) -> None:
        with self._errors():
            platform.write_private(path, data)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hint = "; it may belong to another user" if isinstance(error, PermissionError) else ""
            raise FolderUnusable(
                f"the state folder {self.path} cannot be used: {error.strerror or error}{hint}"
            ) from None


class LockedFolder:
    """A state folder that this process alone uses; its `state` is the last report.

    Raises `IdentityProblem`.
    """

    def __init__(self, path: Path) -> None:
        self._folder = StateFolder(path)
        self.exposed = self._folder.open_to_others()
        """The paths that other users could read or change until now."""
        self._lock = self._folder.lock()
        with self._unlocked_on_error():
            self.state = self._folder.state()

    def update_state(self, **changes: Any) -> None:
        """Change the report that `ice-client status` reads. Raises `FolderUnusable`."""
        self.state = msgspec.structs.replace(self.state, **changes)
        self._folder.store_state(self.state)

    def close(self) -> None:
        """Unlock the folder."""
        self._lock.release()

    def _own_key(self) -> Key:
        """The key, made and stored if there is none. Raises `IdentityProblem`."""
        key = self._folder.key()
        if key is None:
            key = Key.generate()
            self._folder.store_key(key)
        return key

    @contextlib.contextmanager
    def _unlocked_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._lock.release()
            raise


class Applicant(LockedFolder):
    """A locked state folder whose key asks for a token.

    Args:
        path: the state folder.
        gateway: the base URL of the gateway to ask.

    Raises:
        IdentityProblem: the text says what to do.
    """

    def __init__(self, path: Path, gateway: str) -> None:
        super().__init__(path)
        with self._unlocked_on_error():
            self.has_token = has_token(self._folder, gateway)
            self.key = self._own_key()

    def store_token(self, token: Token) -> None:
        """Raises `FolderUnusable`."""
        self._folder.store_token(token)


def has_token(folder: StateFolder, gateway: str) -> bool:
    """Whether the folder holds a token of this gateway. Raises `IdentityProblem` if it is another one's."""
    if folder.token() is None:
        return False
    state = folder.state()
    home = state.home or state.gateway
    if home is not None and not same_gateway(home, gateway):
        raise IdentityProblem(
            f"{folder.path} holds the token of {home}: name another folder with --state-dir for an ICE of"
            f" {gateway}"
        )
    return True


class Identity(LockedFolder):
    """A locked state folder with its key and tokens.

    The constructor locks the folder, stores the token given, and makes the key if there is none.

    Args:
        path: the state folder.
        given: the token that the user gave, if any.
        gateway: the base URL to connect to; by default that of the last run.

    Raises:
        IdentityProblem: the text says what to do.
    """

    def __init__(self, path: Path, given: Token | None, gateway: str | None = None) -> None:
        super().__init__(path)
        with self._unlocked_on_error():
            folder, state = self._folder, self.state
            self.state = msgspec.structs.replace(state, home=state.home or state.gateway or gateway)
            folder.key()  # refuse a damaged one before a token is stored
            stored = _stored(folder, given)
            if stored is not None and not same_gateway(self.state.home, gateway or self.state.home):
                self._tokens = _tokens_of_a_move(folder, given, stored)
            else:
                self._tokens = [_newest(given, stored)]
                if self._tokens != [stored]:
                    folder.store_token(self.token)
            self.key = self._own_key()
        self.token_ignored = given is not None and given not in self._tokens
        """Whether the given token was ignored because the stored one is not older."""

    @property
    def token(self) -> Token:
        """The token for the next attempt."""
        return self._tokens[0]

    @property
    def was_admitted(self) -> bool:
        """Whether this gateway has admitted this token before."""
        return not self.state.moves and self.state.admitted == self.token.digest()

    def try_next_token(self) -> bool:
        """While the ICE moves, fall back to the stored token; returns whether there was one."""
        if len(self._tokens) > 1:
            del self._tokens[0]
            return True
        return False

    def store_admitted_token(self) -> None:
        """Store the token that was just admitted. Raises `FolderUnusable`."""
        self._tokens = self._tokens[:1]
        if self.state.moves:
            self._folder.store_token(self.token)
            self.update_state(home=self.state.gateway)
        self._folder.forget_moving_token()


def same_gateway(one: str | None, other: str | None) -> bool:
    """Whether two base URLs, perhaps written differently, name the same gateway."""
    return _authority(one) == _authority(other)


def _authority(url: str | None) -> tuple[str | None, int | None, str]:
    """Host, port and path. Raises ValueError for what is no URL."""
    parts = urlsplit(url or "")
    default = 443 if parts.scheme == "https" else 80
    return parts.hostname, parts.port or default, parts.path.rstrip("/")


def _stored(folder: StateFolder, given: Token | None) -> Token | None:
    """The stored token; None if it is damaged and another one is given."""
    try:
        return folder.token()
    except NotAToken:
        if given is None:
            raise
        return None


def _tokens_of_a_move(folder: StateFolder, given: Token | None, stored: Token) -> list[Token]:
    """The token for the new gateway, given now or at an earlier start, then the stored one."""
    if given is not None and given != stored:
        folder.store_token(given, moving=True)
    with contextlib.suppress(NotAToken):
        given = given or folder.token(moving=True)
    return [stored] if given is None or given == stored else [given, stored]


def _newest(given: Token | None, stored: Token | None) -> Token:
    """The token to connect with. Raises `IdentityProblem` if there is none."""
    if stored is not None:
        return given if given is not None and given.supersedes(stored) else stored
    if given is not None:
        return given
    raise IdentityProblem(
        "this ICE has no registration token yet: ask the admin for one, then start with"
        " --token-file FILE (`--token-file -` reads it from standard input), or with --enrolment-key-file FILE"
        " for an enrolment key"
    )
