"""Files and folders, with what is sure of them after a power cut and what is not.

Tested in tests/powerloss/test_powerloss.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SECTOR = 512
"""Bytes that are written whole or not at all."""


@dataclass
class Data:
    """A write of `data` at `offset`, or with `data` None a truncation to `offset` bytes."""

    offset: int
    data: bytes | None
    done: bool = False


@dataclass(eq=False)
class File:
    """A file's bytes: what is sure, and the changes after it."""

    sure: bytes = b""
    pending: list[Data] = field(default_factory=list)

    def content(self) -> bytes:
        """As a running process reads it."""
        if not self.pending:
            return self.sure
        content = bytearray(self.sure)
        for change in self.pending:
            apply(content, change)
        return bytes(content)

    def flush(self, changes: list[Data]) -> None:
        """Make these changes sure."""
        content = bytearray(self.sure)
        kept = []
        for change in self.pending:
            if any(change is one for one in changes):
                apply(content, change)
            else:
                kept.append(change)
        self.sure, self.pending = bytes(content), kept


@dataclass(eq=False)
class Folder:
    """A folder's names as a running process sees them, and those that are sure."""

    names: dict[str, Node] = field(default_factory=dict)
    sure: dict[str, Node] = field(default_factory=dict)


Node = File | Folder


@dataclass(eq=False)
class Naming:
    """A change of names in one folder; None removes one. It needs the change `after`, if that is not sure."""

    folder: Folder
    names: dict[str, Node | None]
    after: Naming | None = None


def apply(content: bytearray, change: Data) -> None:
    """Make a change."""
    if change.data is None:
        del content[change.offset :]
        content.extend(bytes(change.offset - len(content)))
        return
    content.extend(bytes(max(0, change.offset - len(content))))
    content[change.offset : change.offset + len(change.data)] = change.data
