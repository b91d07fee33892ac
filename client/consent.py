"""What the ICE's user lets others send: the decision in the state folder, or else a setting.

`ice-client accept` writes the decision, also while a client runs, which then looks at the file. Kinds are None
for all, and an empty list for none. Source: docs/client.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from client.exceptions import InvalidValue
from client.identity import DamagedDecision, FolderUnusable, StateFolder
from client.protocol import OperationKind

Kinds = list[str] | None
_KNOWN: Final = ", ".join(OperationKind)


def checked(kinds: Iterable[str] | None) -> Kinds:
    """The kinds in the order of `OperationKind`, each once. Raises `InvalidValue` for an unknown one."""
    if kinds is None:
        return None
    given = list(kinds)
    if unknown := sorted({str(kind) for kind in given if kind not in tuple(OperationKind)}):
        raise InvalidValue(f"unknown kinds: {', '.join(unknown)}; there are {_KNOWN}")
    return [kind.value for kind in OperationKind if kind in given]


def parsed(text: str) -> Kinds:
    """The kinds in a setting: `all`, `none`, or kinds with commas between them. Raises `InvalidValue`."""
    if text == "all":
        return None
    return checked([] if text == "none" else [kind.strip() for kind in text.split(",")])


def described(kinds: Iterable[str] | None) -> str:
    """The kinds for a person."""
    return "every kind" if kinds is None else ", ".join(kinds) or "nothing"


class Consent:
    """The kinds that count now.

    Args:
        folder: has the decision, once there is one.
        setting: the kinds while there is none.
        warn: called with a sentence for a person.
    """

    def __init__(self, folder: StateFolder, setting: Kinds, warn: Callable[[str], None]) -> None:
        self._folder = folder
        self._setting = setting
        self._warn = warn
        self._version: object = ()
        """Of the decision that was read last; empty for none yet."""
        self._problem: str | None = None
        """Why it could not be read the last time."""
        self.kinds = setting

    def load(self) -> None:
        """Read the decision at the start; one that cannot be read counts as none."""
        self.kinds = []
        self.reload()

    def reload(self) -> bool:
        """Read the decision if its file has changed; returns whether the kinds are others than before.

        If it cannot be read, the kinds stay.
        """
        before = self.kinds
        try:
            version = self._folder.decision_version()
            if version == self._version:
                return False
            decision = self._folder.decision()
        except (FolderUnusable, DamagedDecision) as problem:
            if str(problem) != self._problem:
                self._problem = str(problem)
                self._warn(f"{problem}; others may send: {described(before)}")
            return False
        self._version, self._problem = version, None
        if decision is None:
            self.kinds = self._setting
        else:
            kinds = decision.accepts
            # A newer version of the client may have stored kinds that this one does not know.
            self.kinds = None if kinds is None else checked({*kinds}.intersection(OperationKind))
        return self.kinds != before
