"""Files that are there after a power cut, and belong to whom they should."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

_MOUNTS: Final = Path("/proc/self/mountinfo")
_REMOTE: Final = frozenset(
    {"afs", "ceph", "cifs", "lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs"}
    | {"fuse.ceph", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs"}
)


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def own(made: Path, instead: Path) -> None:
    """Give a file made by root to the owner of what it takes the place of, or else of its folder.

    Root restores the database and rotates the keys of the user as whom the gateway runs.
    """
    if os.geteuid() == 0:
        owner = (instead if instead.exists() else instead.parent).stat()
        os.chown(made, owner.st_uid, owner.st_gid, follow_symlinks=False)


def network_file_system(path: Path) -> str | None:
    """The kind of network file system on which `path` lies; None where it is local, or nobody can tell.

    Source: proc_pid_mountinfo(5); of several mounts on one place the last counts.
    """
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # not Linux
        return None
    place, kind, deepest = path.resolve(), "", -1
    for line in lines:
        before, _, after = line.partition(" - ")
        # Blanks and the like stand there in octal.
        point = Path(
            re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4])
        )
        if place.is_relative_to(point) and len(point.parts) >= deepest:
            kind, deepest = after.split()[0], len(point.parts)
    return kind if kind in _REMOTE else None
