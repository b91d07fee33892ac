"""A disk that loses power: what POSIX promises of files, names and `fsync`, and nothing more.

- The bytes of a file are sure once an `fsync` or `fdatasync` of the file that began after the write has returned.
  Until then each write, truncation and extension may be lost, kept or torn at sectors of 512 bytes, whatever
  came of those before and after it. Bytes that were never written read as zeros.
- A name in a folder (made, removed, linked or renamed) is sure once an `fsync` of the folder has returned; an `fsync` of
  the file does not help. Until then each change may be lost or kept. Changes of one name keep their order.
- A rename is atomic: both names changed or none. Between two folders, the new name may be there without the old one
  being gone, but never none of the two.
- Names and bytes do not wait for each other: a rename may be kept while the bytes of the file are lost.

ext4 with its defaults, XFS and btrfs lose less. What holds here holds there, as long as a disk keeps what it said it has
flushed, and a sector that is not written keeps its bytes. Owners and modes are not modelled.

Tested in tests/powerloss/test_powerloss.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from tests.powerloss.nodes import Data, File, Folder, Naming, Node
from tests.powerloss.trace import Call, Handle, Moment, Untraceable, text_of

Ignore = Callable[[str, str], bool]
State = dict[str, bytes | None]
"""The content of each file by its path below the folder; None for a folder."""
_MAPPED = "-shm"
"""SQLite's index of the write-ahead log: mapped, never flushed, and made anew from the log."""


class Disk:
    """The files below `root`, from the calls that were made.

    Args:
        root: the folder; what it holds at first is sure.
        ignore: whether a flush of the path below `root`, after the one of another path, is left out, as if the program
            had forgotten it.
    """

    def __init__(self, root: str, ignore: Ignore = lambda *_: False) -> None:
        self._root = PurePosixPath(root)
        self._ignore = ignore
        self._top = Folder()
        self.naming: list[Naming] = []
        """The changes of names that are not sure, in order."""
        self._cursors: dict[tuple[int, str], int] = {}
        self._appends: set[tuple[int, str]] = set()
        self._begun: dict[int, Any] = {}
        self._before = ""
        self.flushed: str | None = None
        """The path below the root that the last call has flushed."""

    # --- what a state is made of -------------------------------------------------------------------

    def state(
        self, keeps: Callable[[Naming], bool], written: Callable[[File], bytes] = File.content
    ) -> State:
        """The disk with these changes of names (and those that they do not need lost), and these bytes."""
        names = self._names(keeps)
        state: State = {}
        contents: dict[int, bytes] = {}

        def walk(folder: Folder, path: str) -> None:
            for name, node in sorted(names.get(id(folder), folder.sure).items()):
                if isinstance(node, Folder):
                    state[path + name] = None
                    walk(node, f"{path}{name}/")
                elif not name.endswith(_MAPPED):
                    if id(node) not in contents:
                        contents[id(node)] = written(node)
                    state[path + name] = contents[id(node)]

        walk(self._top, "")
        return state

    def _names(self, keeps: Callable[[Naming], bool]) -> dict[int, dict[str, Node]]:
        """The names in each folder that differ from the sure ones."""
        names: dict[int, dict[str, Node]] = {}

        def of(folder: Folder) -> dict[str, Node]:
            return names.setdefault(id(folder), dict(folder.sure))

        lost: set[tuple[int, str]] = set()
        dropped: set[int] = set()
        for change in self.naming:
            keys = {(id(change.folder), name) for name in change.names}
            needed = change.after is not None and id(change.after) in dropped
            if needed or keys & lost or not keeps(change):
                lost |= keys
                dropped.add(id(change))
                continue
            for name, node in change.names.items():
                if node is None:
                    of(change.folder).pop(name, None)
                else:
                    of(change.folder)[name] = node
        return names

    # --- calls -------------------------------------------------------------------------------------

    def follow(self, moment: Moment) -> bool:
        """Do what a call did; whether what the disk may hold has changed. Raises `Untraceable`."""
        call = moment.call
        handler = getattr(self, f"_{call.name}", None)
        if handler is None:
            raise Untraceable(f"{call.name} is not modelled")
        self.flushed = None
        if moment.ended:
            if call.result is None or call.result < 0:
                return False
            return bool(handler(call))
        if call.name in ("fsync", "fdatasync"):
            self._begin_flush(call)
        return False

    def _inside(self, path: str) -> str | None:
        """The path below the root; None outside."""
        pure = PurePosixPath(path)
        if ".." in pure.parts:
            raise Untraceable(f"{path} is not resolved")
        return str(pure.relative_to(self._root)) if pure.is_relative_to(self._root) else None

    def _path(self, call: Call, name: int, folder: int | None = None) -> str | None:
        path = call.text(name).decode()
        if path.startswith("/"):
            return self._inside(path)
        if folder is None:
            raise Untraceable(f"{call.name} of {path}, which is relative to an unknown folder")
        return self._inside(f"{call.handle(folder).path}/{path}")

    def _parent(self, path: str) -> tuple[Folder, str]:
        *folders, name = PurePosixPath(path).parts
        found = self._top
        for part in folders:
            node = found.names.get(part)
            if not isinstance(node, Folder):
                raise Untraceable(f"{path} is in no folder")
            found = node
        return found, name

    def _node(self, path: str) -> Node | None:
        if path == ".":
            return self._top
        folder, name = self._parent(path)
        return folder.names.get(name)

    def _file(self, handle: Handle) -> File | None:
        """The open file; None outside of the root, of SQLite's index, and once it has no name."""
        path = None if handle.gone else self._inside(handle.path)
        if path is None or path.endswith(_MAPPED):
            return None
        node = self._node(path)
        if not isinstance(node, File):
            raise Untraceable(f"{path} was opened before the recording")
        return node

    def _rename_names(
        self, folder: Folder, names: dict[str, Node | None], after: Naming | None = None
    ) -> Naming:
        for name, node in names.items():
            if node is None:
                folder.names.pop(name, None)
            else:
                folder.names[name] = node
        change = Naming(folder, names, after)
        self.naming.append(change)
        return change

    def put(self, path: str, content: bytes | None) -> None:
        """A file or folder that was there, sure, before the recording."""
        folder, name = self._parent(path)
        folder.names[name] = folder.sure[name] = Folder() if content is None else File(content)

    def _opened(self, call: Call, path: str | None, flags: str) -> bool:
        if path is None or path == "." or path.endswith(_MAPPED):
            return False
        folder, name = self._parent(path)
        changed, node = False, folder.names.get(name)
        if node is None:
            # Without O_CREAT another thread has made it, whose call returns a moment later.
            node = File()
            self._rename_names(folder, {name: node})
            changed = True
        if isinstance(node, File):
            if "O_TRUNC" in flags and node.content():
                node.pending.append(Data(0, None, done=True))
                changed = True
            at = id(node), str(call.result)
            self._cursors[at] = 0
            self._appends.discard(at)
            if "O_APPEND" in flags:
                self._appends.add(at)
            # Reading moves the position, too, and is not recorded.
            if "O_WRONLY" not in flags:
                del self._cursors[at]
        return changed

    def _open(self, call: Call) -> bool:
        return self._opened(call, self._path(call, 0), call.args[1])

    def _openat(self, call: Call) -> bool:
        return self._opened(call, self._path(call, 1, 0), call.args[2])

    def _creat(self, call: Call) -> bool:
        return self._opened(call, self._path(call, 0), "O_WRONLY|O_CREAT|O_TRUNC")

    def _made_folder(self, path: str | None) -> bool:
        if path is None:
            return False
        folder, name = self._parent(path)
        self._rename_names(folder, {name: Folder()})
        return True

    def _mkdir(self, call: Call) -> bool:
        return self._made_folder(self._path(call, 0))

    def _mkdirat(self, call: Call) -> bool:
        return self._made_folder(self._path(call, 1, 0))

    def _removed(self, path: str | None) -> bool:
        if path is None or path.endswith(_MAPPED):
            return False
        folder, name = self._parent(path)
        self._rename_names(folder, {name: None})
        return True

    def _unlink(self, call: Call) -> bool:
        return self._removed(self._path(call, 0))

    _rmdir = _unlink

    def _unlinkat(self, call: Call) -> bool:
        return self._removed(self._path(call, 1, 0))

    def _linked(self, old: str | None, new: str | None) -> bool:
        if old is None and new is None:
            return False
        if old is None or new is None or (node := self._node(old)) is None:
            raise Untraceable(f"a link from {old} to {new}")
        folder, name = self._parent(new)
        self._rename_names(folder, {name: node})
        return True

    def _link(self, call: Call) -> bool:
        return self._linked(self._path(call, 0), self._path(call, 1))

    def _linkat(self, call: Call) -> bool:
        return self._linked(self._path(call, 1, 0), self._path(call, 3, 2))

    def _symlink(self, call: Call) -> bool:
        if self._path(call, 1) is not None:
            raise Untraceable("symbolic links are not modelled")
        return False

    def _symlinkat(self, call: Call) -> bool:
        if self._path(call, 2, 1) is not None:
            raise Untraceable("symbolic links are not modelled")
        return False

    def _renamed(self, old: str | None, new: str | None) -> bool:
        if old is None and new is None:
            return False
        if old is None or new is None or (node := self._node(old)) is None:
            raise Untraceable(f"a rename from {old} to {new}")
        (source, before), (target, name) = self._parent(old), self._parent(new)
        if source is target:
            self._rename_names(target, {name: node, before: None})
        else:
            made = self._rename_names(target, {name: node})
            self._rename_names(source, {before: None}, after=made)
        return True

    def _rename(self, call: Call) -> bool:
        return self._renamed(self._path(call, 0), self._path(call, 1))

    def _renameat(self, call: Call) -> bool:
        if len(call.args) > 4 and call.args[4] != "0":
            raise Untraceable(f"renameat2 with {call.args[4]}")
        return self._renamed(self._path(call, 1, 0), self._path(call, 3, 2))

    _renameat2 = _renameat

    def _change(self, handle: Handle, offset: int, data: bytes | None) -> bool:
        file = self._file(handle)
        if file is None:
            return False
        file.pending.append(Data(offset, data, done=True))
        return True

    def _write_at_cursor(self, call: Call, data: bytes) -> bool:
        handle = call.handle(0)
        file = self._file(handle)
        if file is None:
            return False
        at = id(file), handle.number
        if at in self._appends:
            offset = len(file.content())
        elif at in self._cursors:
            offset = self._cursors[at]
        else:
            raise Untraceable(f"a write to {handle.path} at an unknown position")
        self._cursors[at] = offset + len(data)
        return self._change(handle, offset, data)

    def _write(self, call: Call) -> bool:
        if self._outside(call):
            return False
        return self._write_at_cursor(call, call.text(1)[: call.result])

    def _writev(self, call: Call) -> bool:
        if self._outside(call):
            return False
        return self._write_at_cursor(call, text_of(call.args[1])[: call.result])

    def _outside(self, call: Call, number: int = 0) -> bool:
        """Whether a descriptor is no file below the root; a pipe or socket has no path."""
        found = call.args[number]
        if "<" not in found:
            return True
        handle = call.handle(number)
        return not handle.path.startswith("/") or self._inside(handle.path) is None

    def _pwrite64(self, call: Call) -> bool:
        if self._outside(call):
            return False
        return self._change(call.handle(0), int(call.args[3]), call.text(1)[: call.result])

    def _pwritev(self, call: Call) -> bool:
        if self._outside(call):
            return False
        data = text_of(call.args[1])[: call.result]
        return self._change(call.handle(0), int(call.args[3]), data)

    _pwritev2 = _pwritev

    def _sendfile(self, call: Call) -> bool:
        if self._outside(call) or not call.result:
            return False
        source = self._file(call.handle(1))
        if source is None:
            raise Untraceable("sendfile from a file that is not recorded")
        start = int(call.args[2].split(" => ")[0].strip("[]"))
        return self._write_at_cursor(call, source.content()[start : start + call.result])

    def _lseek(self, call: Call) -> bool:
        if not self._outside(call):
            handle = call.handle(0)
            path = None if handle.gone else self._inside(handle.path)
            node = None if path is None or path.endswith(_MAPPED) else self._node(path)
            if isinstance(node, File):
                self._cursors[id(node), handle.number] = call.result or 0
        return False

    def _ftruncate(self, call: Call) -> bool:
        return not self._outside(call) and self._change(call.handle(0), int(call.args[1]), None)

    def _truncate(self, call: Call) -> bool:
        if self._path(call, 0) is not None:
            raise Untraceable("truncate is not modelled")
        return False

    def _fallocate(self, call: Call) -> bool:
        if not self._outside(call) and not call.handle(0).path.endswith(_MAPPED):
            raise Untraceable("fallocate is not modelled")
        return False

    def _mmap(self, call: Call) -> bool:
        writes = "MAP_SHARED" in call.args[3] and "PROT_WRITE" in call.args[2]
        if writes and not self._outside(call, 4) and not call.handle(4).path.endswith(_MAPPED):
            raise Untraceable(f"{call.handle(4).path} is written by mapping it")
        return False

    # --- flushing ----------------------------------------------------------------------------------

    def _begin_flush(self, call: Call) -> None:
        """Keep what has been done by now: a flush says nothing about what begins during it."""
        if self._outside(call) or call.handle(0).gone:
            return
        path = self._inside(call.handle(0).path)
        assert path is not None
        node = self._node(path)
        if isinstance(node, Folder):
            waiting = set(map(id, self.naming))
            changes = [c for c in self.naming if c.folder is node and id(c.after) not in waiting]
            self._begun[id(call)] = path, node, changes
        elif node is not None:
            self._begun[id(call)] = path, node, [c for c in node.pending if c.done]

    def _fsync(self, call: Call) -> bool:
        begun = self._begun.pop(id(call), None)
        if begun is None:
            return False
        path, node, changes = begun
        self.flushed = path
        before, self._before = self._before, path
        if self._ignore(path, before):
            return True
        if isinstance(node, File):
            node.flush(changes)
            return True
        for change in changes:
            for name, named in change.names.items():
                if named is None:
                    node.sure.pop(name, None)
                else:
                    node.sure[name] = named
        done = set(map(id, changes))
        self.naming = [change for change in self.naming if id(change) not in done]
        return True

    _fdatasync = _fsync
