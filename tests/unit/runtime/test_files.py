"""Whom files belong to that root makes, and which names survive a power cut."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from gateway.runtime import files


@pytest.mark.parametrize("root", [True, False])
def test_root_makes_files_for_the_gateways_user(tmp_path, monkeypatch, root):
    """Root restores, and the gateway, which is another user, can read what it made."""
    given = []
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    monkeypatch.setattr(os, "chown", lambda *args, **how: given.append((*args, how)))
    made, target = tmp_path / "made", tmp_path / "target"
    made.touch()
    files.copy_owner(made, target)
    target.touch()
    files.copy_owner(made, target)
    mine = tmp_path.stat()
    expected = (made, mine.st_uid, mine.st_gid, {"follow_symlinks": False})
    assert given == ([expected] * 2 if root else [])


MOUNTS = r"""
22 27 0:21 / / rw,relatime - ext4 /dev/vda rw
23 22 0:22 / /srv rw,relatime shared:1 - nfs4 host:/export rw
24 23 0:23 / /srv/local\040disk rw - xfs /dev/vdb rw
25 22 0:24 / /mnt rw - ext4 /dev/vdc rw
26 22 0:25 / /mnt rw - cifs //host/share rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/ice.db", None),
        ("/srv/ice.db", "nfs4"),
        ("/srv-not/ice.db", None),
        ("/srv/local disk/ice.db", None),
        ("/mnt/ice.db", "cifs"),
    ],
)
def test_a_network_file_system_is_known_by_its_mount(tmp_path, path, kind):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS.lstrip())
    assert files.network_file_system(Path(path), mounts) == kind


def test_where_mounts_are_not_told_every_place_is_local(tmp_path):
    assert files.network_file_system(Path("/srv"), tmp_path / "none") is None


def test_the_names_of_a_new_folder_and_those_above_it_are_on_the_disk(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def noted(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    folder = tmp_path / "fleet" / "tokens"
    files.make_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {tmp_path.stat().st_ino, folder.parent.stat().st_ino} <= set(synced)
    files.make_folder(
        folder
    )  # an earlier attempt may have been cut short before it had synced them
    assert synced.count(tmp_path.stat().st_ino) == 2


def test_a_folder_above_that_cannot_be_listed_is_no_fault(tmp_path, monkeypatch):
    def refused(path, flags):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refused)
    files.make_folder(tmp_path / "tokens")
    assert (tmp_path / "tokens").is_dir()
