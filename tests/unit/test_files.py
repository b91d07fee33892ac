"""Whom files belong to that root makes."""

from __future__ import annotations

import pytest

from gateway import files


@pytest.mark.parametrize("root", [True, False])
def test_root_makes_files_for_the_gateways_user(tmp_path, monkeypatch, root):
    """Root restores, and the gateway, which is another user, can read what it made."""
    given = []
    monkeypatch.setattr(files.os, "geteuid", lambda: 0 if root else 1000)
    monkeypatch.setattr(files.os, "chown", lambda *args, **how: given.append((*args, how)))
    made, target = tmp_path / "made", tmp_path / "target"
    made.touch()
    files.own(made, target)
    target.touch()
    files.own(made, target)
    mine = tmp_path.stat()
    expected = (made, mine.st_uid, mine.st_gid, {"follow_symlinks": False})
    assert given == ([expected] * 2 if root else [])
