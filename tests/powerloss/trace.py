"""What a process and its children did to the files below a folder, as strace recorded it.

    strace -f -y -xx ... -e trace=CALLS -o FILE command

Source of the format: strace(1). With `-xx` every string is hexadecimal, so that no separator is inside of one.
Tested in tests/powerloss/test_powerloss.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

LONGEST = 16 * 2**20
"""Bytes of one write that are recorded; a longer one is refused, not cut."""
_CHANGES = (
    *("open", "openat", "creat", "mkdir", "mkdirat", "rmdir", "unlink", "unlinkat"),
    *("link", "linkat", "symlink", "symlinkat", "rename", "renameat", "renameat2"),
    *("write", "writev", "pwrite64", "pwritev", "pwritev2", "sendfile", "lseek"),
    *("truncate", "ftruncate", "fallocate", "fsync", "fdatasync"),
)
_UNKNOWN = (
    *("io_uring_enter", "copy_file_range", "splice", "sync_file_range", "sync", "syncfs"),
    *("openat2", "mmap"),
)
"""Calls that could change or flush a file in a way that the model does not have."""
STRACE = (
    *("strace", "-f", "-y", "-xx", "-s", str(LONGEST), "--seccomp-bpf"),
    *("-e", f"trace={','.join(_CHANGES + _UNKNOWN)}", "-e", "signal=none", "-o"),
)
"""The command before the name of the file that it writes."""

_LINE = re.compile(r"(\d+) +(.*)")
_CALL = re.compile(r"(\w+)\((.*)\) += (-?\d+|0x[0-9a-f]+|\?)(.*)", re.DOTALL)
_UNFINISHED = re.compile(r"(\w+\(.*?),? <unfinished \.\.\.>")
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>(.*)")
_HANDLE = re.compile(r"(-?\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>(\(deleted\))?")
_SEPARATOR = re.compile(r"[\[\]{}]|, ")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


class Untraceable(Exception):
    """The recording has something that the model of the disk does not have; the text says what."""


@dataclass(frozen=True)
class Handle:
    """A descriptor and the path that it had at the call; `gone` if that name was removed before."""

    number: str
    path: str
    gone: bool


@dataclass
class Call:
    """One system call; `result` is None until it returned."""

    name: str
    args: list[str]
    result: int | None = None
    made: str = ""
    """The path of the descriptor that it returned."""

    def text(self, number: int) -> bytes:
        """A string among the arguments. Raises `Untraceable` if it was cut."""
        return text_of(self.args[number])

    def handle(self, number: int) -> Handle:
        """A descriptor among the arguments."""
        found = _HANDLE.fullmatch(self.args[number])
        if found is None:
            raise Untraceable(f"{self.name} without a path: {self.args[number]}")
        return Handle(found[1], _decoded(found[2]).decode(), bool(found[3]))


@dataclass(frozen=True)
class Moment:
    """A call begins or, with `ended`, returns. Between the two, other threads may make calls."""

    call: Call
    ended: bool


def text_of(argument: str) -> bytes:
    """The bytes of a string, or of all strings of a vector. Raises `Untraceable` if one was cut."""
    found = _TEXT.findall(argument)
    if any(cut for _, cut in found):
        raise Untraceable("a string of the recording was cut")
    return b"".join(_decoded(text) for text, _ in found)


def _decoded(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def moments(lines: Iterable[str]) -> Iterator[Moment]:
    """The calls in the order of the recording. Raises `Untraceable`."""
    open_calls: dict[str, tuple[str, Call]] = {}
    for line in lines:
        found = _LINE.fullmatch(line.rstrip("\n"))
        if found is None:
            raise Untraceable(f"no line of strace: {line[:80]!r}")
        pid, rest = found[1], found[2]
        if rest.startswith(("+++", "---")):
            continue
        if resumed := _RESUMED.fullmatch(rest):
            if pid not in open_calls:
                raise Untraceable(f"no beginning of {rest[:80]!r}")
            begun, call = open_calls.pop(pid)
            _fill(call, begun + resumed[1])
            yield Moment(call, ended=True)
        elif unfinished := _UNFINISHED.fullmatch(rest):
            name, _, args = unfinished[1].partition("(")
            call = Call(name, _split(args))
            open_calls[pid] = unfinished[1], call
            yield Moment(call, ended=False)
        else:
            call = Call("", [])
            _fill(call, rest)
            yield Moment(call, ended=False)
            yield Moment(call, ended=True)


def _fill(call: Call, text: str) -> None:
    found = _CALL.fullmatch(text)
    if found is None:
        raise Untraceable(f"no call: {text[:80]!r}")
    call.name, call.args = found[1], _split(found[2])
    call.result = -1 if found[3] == "?" else int(found[3], 0)
    made = _HANDLE.match(found[3] + found[4])
    call.made = _decoded(made[2]).decode() if made and call.result >= 0 else ""


def _split(args: str) -> list[str]:
    """Split at the commas that are in no vector."""
    if "[" not in args and "{" not in args:
        return args.split(", ")
    depth, parts, start = 0, [], 0
    for found in _SEPARATOR.finditer(args):
        if found[0] in "[{":
            depth += 1
        elif found[0] in "]}":
            depth -= 1
        elif not depth:
            parts.append(args[start : found.start()])
            start = found.end()
    return [*parts, args[start:]]


def recorded(path: Path) -> list[Moment]:
    """The whole recording. Raises `Untraceable`."""
    with path.open(encoding="ascii") as file:
        return list(moments(file))
