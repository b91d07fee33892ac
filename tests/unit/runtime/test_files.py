"""Whom files belong to that root makes."""

from __future__ import annotations

import os
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
