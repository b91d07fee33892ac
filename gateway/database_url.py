"""What a database URL names, and how it may be shown. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit, urlunsplit

FILE: Final = "sqlite:///"
SERVERS: Final = ("postgresql://", "postgres://")


def file_of(url: str) -> Path | None:
    """The SQLite file (`sqlite:///relative.db`, `sqlite:////absolute.db`); None for a server's."""
    if not url.startswith(FILE):
        return None
    return Path(unquote(url.removeprefix(FILE))).expanduser()


def shown(url: str) -> str:
    """The URL without password and parameters, for people and logs."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    return urlunsplit((parts.scheme, user.partition(":")[0] + at + host, parts.path, "", ""))
