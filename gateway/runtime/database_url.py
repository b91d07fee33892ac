"""Parses database URLs, and shows them without secrets. Pure but for the folder that a relative path is in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

FILE: Final = "sqlite:///"
SERVERS: Final = ("postgresql://", "postgres://")
ENCODE: Final = "in user and password write / as %2F, # as %23, ? as %3F, @ as %40, : as %3A"
"""How to fix a URL that cannot be parsed."""

_HOST: Final = r"(?:\[[^\[\]@/?#,]*\]|[^\[\]@:/?#,]*)(?::[0-9]*)?"
_SERVER: Final = re.compile(
    r"(?P<scheme>postgres(?:ql)?://)"
    r"(?:(?P<user>[^:@/?#]*)(?::[^@/?#]*)?@)?"
    rf"(?P<hosts>{_HOST}(?:,{_HOST})*)"
    r"(?P<path>/[^@?#]*)?"
    r"(?P<query>\?[^@#]*)?"
)
"""Matches only unambiguous URLs: a second `@`, or one after the host, could be part of a password."""


def file_of(url: str) -> Path | None:
    """The SQLite file (`sqlite:///relative.db`, `sqlite:////absolute.db`); None for a database server.

    The path is absolute, so that a message that names it can be understood in any folder.
    """
    if not url.startswith(FILE):
        return None
    return Path(unquote(url.removeprefix(FILE))).expanduser().absolute()


def names_server(url: str) -> bool:
    """Whether this is a well-formed URL of a database on a server."""
    parts = _SERVER.fullmatch(url)
    return parts is not None and bool((parts["path"] or "").strip("/"))


def shown(url: str) -> str:
    """The URL without password and parameters, for people and logs; of a file with its whole path.

    Only the scheme of a URL that cannot be parsed is shown: any other part may belong to the password.
    """
    file = file_of(url)
    if file is not None:
        return FILE + quote(str(file))
    parts = _SERVER.fullmatch(url)
    if parts is None:
        scheme, separator, _ = url.partition("://")
        return f"{scheme}://…" if separator and scheme.isalnum() else "…"
    user = "" if parts["user"] is None else f"{parts['user']}@"
    return f"{parts['scheme']}{user}{parts['hosts']}{parts['path'] or ''}"


def each_host(url: str) -> list[str]:
    """One URL for each host of a server's URL, with that host only."""
    parts = _SERVER.fullmatch(url)
    if parts is None:
        return [url]
    begin, end = parts.span("hosts")
    return [url[:begin] + host + url[end:] for host in parts["hosts"].split(",")]
