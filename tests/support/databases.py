"""An empty SQLite database of this version, as a copy: to make one takes a third of a gateway's start.

What makes a database is tested in tests/contract/test_sqlite.py and tests/gateway/cli/test_serve.py.
"""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

from gateway.store.sqlite.migrate import BUSY_TIMEOUT, released, set_up


def put_database(path: Path) -> None:
    """Put it there, unless there is one."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "wb") as file:
        file.write(_empty())


@functools.cache
def _empty() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ice.db"
        set_up(
            path,
            serving=True,
            create=True,
            tell=print,
            steps=released(),
            busy_timeout=BUSY_TIMEOUT,
        )
        return path.read_bytes()
