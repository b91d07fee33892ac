"""What people and ICEs were told until a power cut, from the marks of a story."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Restore:
    """A restore that has begun: from which backup, and with which head of the log it began."""

    folder: str
    replaced: str
    done: bool = False
    confirming: bool = False


@dataclass
class Facts:
    """What was acknowledged. Of what has begun and not ended, either outcome is right."""

    heads: list[str] = field(default_factory=list)
    """One of these ends of the log must be in the database; empty if it is not known to anybody yet."""
    tokens: dict[str, str] = field(default_factory=dict)
    """The newest token of each ICE that somebody was shown."""
    operations: dict[str, str] = field(default_factory=dict)
    """Operations and the states that were told."""
    keys: dict[str, str] = field(default_factory=dict)
    """What each token key does: `seal`, `open` or `nothing`."""
    keys_change: bool = False
    """Whether a command changes the keys now."""
    backups: dict[str, bool] = field(default_factory=dict)
    """The folders of backups, and whether they are made."""
    backup_heads: dict[str, str] = field(default_factory=dict)
    """The end of the log of each backup that is made."""
    restore: Restore | None = None
    """Until it is confirmed."""
    secret: str | None = None
    """Of the enrolment key that the machine has."""
    key: str | None = None
    """The thumbprint that the gateway may know the client by."""
    token: str | None = None
    """The token that the client has sent."""
    started: list[str] = field(default_factory=list)
    """Operations that the client has begun: it must not begin them again."""
    files: dict[str, str] = field(default_factory=dict)
    """The texts of files that an admin was told of."""
    before: dict[str, Any] | None = None
    """What the database of an older release holds."""
    migrated: bool = False

    @classmethod
    def of(cls, marks: Iterable[dict[str, Any]]) -> Facts:
        """What these marks say, in their order."""
        facts = cls()
        for mark in marks:
            told = dict(mark)
            getattr(facts, f"_{told.pop('what')}")(**told)
        return facts

    def _head(self, head: str) -> None:
        self.heads = [head]

    def _token(self, ice: str, token: str) -> None:
        self.tokens[ice] = token

    def _operation(self, id: str, state: str) -> None:  # noqa: A002 - as in the API
        self.operations[id] = state

    def _key(self, kid: str | None, does: str) -> None:
        self.keys_change = kid is None
        if kid is not None:
            if does == "seal":
                self.keys = {k: "open" if v == "seal" else v for k, v in self.keys.items()}
            self.keys[kid] = does

    def _backup(self, folder: str, *, done: bool, head: str = "") -> None:
        self.backups[folder] = done
        if done:
            self.backup_heads[folder] = head

    def _restore(self, folder: str, *, done: bool) -> None:
        if not done:
            self.restore = Restore(folder, self.heads[-1])
            self.heads = [*self.heads, self.backup_heads[folder]]
        else:
            assert self.restore is not None
            self.restore.done = True
            self.heads = [self.backup_heads[folder]]
        self.tokens, self.operations = {}, {}

    def _confirm(self, *, done: bool) -> None:
        assert self.restore is not None
        self.restore.confirming = True
        if done:
            self.restore = None

    def _secret(self, secret: str) -> None:
        self.secret = secret

    def _ready(self, key: str, token: str) -> None:
        self.key, self.token = key, token

    def _started(self, operation: str) -> None:
        self.started.append(operation)

    def _file(self, path: str, text: str) -> None:
        self.files[path] = text

    def _migration(self, **before: Any) -> None:
        self.before = before
        self.heads = [before["head"]]
        self.tokens[before["ice"]] = before["token"]

    def _migrated(self) -> None:
        self.migrated = True
