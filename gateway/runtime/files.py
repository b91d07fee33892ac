"""Files that survive a power cut and have the right owner."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Final

_MOUNTS: Final = Path("/proc/self/mountinfo")
"""What is mounted where; see proc_pid_mountinfo(5)."""
_REMOTE: Final = frozenset(
    {"afs", "ceph", "cifs", "lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs"}
    | {"fuse.ceph", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs"}
)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder (0700) if it is missing, and those on the way to it, so that their names survive a power cut."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Each name on the way may be new, or of an earlier attempt that was cut short.
    for ancestor in path.absolute().parents:
        with contextlib.suppress(
            PermissionError
        ):  # a folder that others made, and only list themselves
            sync(ancestor)


def copy_owner(new: Path, replaced: Path) -> None:
    """Give a file made by root the owner of the file it replaces, or of the folder if there was none.

    Root may restore the database or rotate the keys of the user who runs the gateway.
    """
    if os.geteuid() == 0:
        owner = (replaced if replaced.exists() else replaced.parent).stat()
        os.chown(new, owner.st_uid, owner.st_gid, follow_symlinks=False)


def network_file_system(path: Path, mounts: Path = _MOUNTS) -> str | None:
    """The type of network file system that holds `path`; None if it is local or unknown.

    The last of several mounts on one point counts.
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # not Linux
        return None
    resolved, kind, deepest = path.resolve(), "", -1
    for line in lines:
        before, _, after = line.partition(" - ")
        # The file escapes white space as octal.
        point = Path(
            re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4])
        )
        if resolved.is_relative_to(point) and len(point.parts) >= deepest:
            kind, deepest = after.split()[0], len(point.parts)
    return kind if kind in _REMOTE else None
