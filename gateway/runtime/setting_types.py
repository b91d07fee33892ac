"""Parsers for the values of settings, from TOML or an environment variable.

All raise `ValueError` or `TypeError`, and those of paths `RuntimeError` for a `~` that stands for no folder.

Tested in tests/unit/runtime/test_settings.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from gateway.core.addresses import Network, parse_network
from gateway.core.roles import Role
from gateway.core.times import MAX_DURATION
from gateway.core.version_key import version_key
from gateway.runtime.database_url import FILE, SERVERS, file_of, names_server

MAX_HOSTS: Final = 16
"""Maximum addresses that a gateway listens on."""
_BASE_URL: Final = re.compile(r"[A-Za-z0-9._~:/\[\]@!$&'()*+,;=-]+")
"""Of the characters of RFC 3986 those of a URL without query, fragment and escapes; in a route {} would be a pattern."""
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(value: object) -> float:
    """Seconds from `30s`, `5m`, `2h`, `7d`, or 0."""
    if value in (0, "0") and value is not False:
        return 0.0
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError
    return float(match[1]) * _UNITS[match[2]]


def duration_text(seconds: int) -> str:
    """A text for `duration`, in the largest unit that divides it: 90m for 5,400 seconds."""
    unit = next(unit for unit, size in reversed(_UNITS.items()) if seconds % size == 0)
    return f"{seconds // _UNITS[unit]}{unit}"


def duration_between(shortest: float, longest: float) -> Callable[[object], float]:
    """A parser of durations from `shortest` to `longest` seconds."""

    def parse(value: object) -> float:
        seconds = duration(value)
        if not shortest <= seconds <= longest:
            raise ValueError
        return seconds

    return parse


lifetime: Final = duration_between(0, MAX_DURATION)
"""Seconds, at most a hundred years, so that they can be added to a date."""


def positive_duration(value: object) -> float:
    """Seconds above 0, at most a hundred years."""
    seconds = lifetime(value)
    if not seconds:
        raise ValueError
    return seconds


def text(value: object) -> str:
    """A text; rejects an empty one."""
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def optional_path(value: object) -> Path | None:
    """An absolute path, with `~` expanded; empty means none."""
    if value == "":
        return None
    path = Path(text(value)).expanduser().absolute()
    _check_path(path)
    return path


def _check_path(path: Path) -> None:
    """Refuse what no file can be called; opening one would fail with a ValueError."""
    if "\0" in str(path):
        raise ValueError


def integer(low: int, high: int) -> Callable[[object], int]:
    """A parser of integers from `low` to `high`."""

    def parse(value: object) -> int:
        number = int(value) if isinstance(value, str) else value
        if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high:
            raise ValueError
        return number

    return parse


def boolean(value: object) -> bool:
    """A TOML boolean, or `true` or `false` in the environment."""
    words = {"true": True, "false": False}
    given = words.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(given, bool):
        raise ValueError  # noqa: TRY004 - parsers raise ValueError only
    return given


def listener(value: object) -> tuple[str, int] | None:
    """`HOST:PORT`, with an IPv6 host in brackets; empty turns the listener off."""
    if value == "":
        return None
    parts = urlsplit(f"//{text(value)}")
    if not parts.hostname or parts.port is None or parts.path or "@" in parts.netloc:
        raise ValueError
    if not _is_host(parts.hostname):
        raise ValueError
    return parts.hostname, parts.port


def texts(value: object) -> list[str]:
    """A TOML list, or a comma-separated text in the environment."""
    items = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ValueError
    return [item for item in items if item]


def hosts(value: object) -> tuple[str, ...]:
    """1 to `MAX_HOSTS` addresses or host names."""
    found = tuple(dict.fromkeys(texts(value)))
    if not 1 <= len(found) <= MAX_HOSTS or not all(map(_is_host, found)):
        raise ValueError
    return found


def _is_host(name: str) -> bool:
    """Whether this may be an address or a host name; a URL, a port and spaces are no part of one."""
    try:
        ip_address(name)
    except ValueError:
        return re.fullmatch(r"[\w.-]+", name) is not None and _has_labels(name)
    return True


def _has_labels(name: str) -> bool:
    """Whether each label has 1 to 63 characters; a look-up of another name raises UnicodeError."""
    try:
        name.encode("idna")
    except UnicodeError:
        return False
    return True


def public_urls(value: object) -> tuple[str, ...]:
    """Base URLs of http or https in ASCII, without query or fragment."""
    urls = []
    for url in texts(value):
        parts = urlsplit(url)
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or not _is_host(parts.hostname)
            or not _BASE_URL.fullmatch(url)
            or "@" in parts.netloc
            or (parts.port is not None and not parts.port)
        ):
            raise ValueError
        # The scheme in small letters, as all that compares it expects (RFC 3986 section 3.1).
        urls.append(parts.scheme + url.rstrip("/")[len(parts.scheme) :])
    return tuple(urls)


def networks(value: object) -> tuple[Network, ...]:
    """Addresses or networks (CIDR)."""
    return tuple(map(parse_network, texts(value)))


def scopes(value: object) -> tuple[str, ...]:
    """Scopes (RFC 6749 section 3.3), also as one text with spaces or commas between them."""
    found = texts(value.replace(" ", ",") if isinstance(value, str) else value)
    if not all(re.fullmatch(r"[!#-\[\]-~]+", scope) for scope in found):
        raise ValueError
    return tuple(dict.fromkeys(found))


def http_url(value: object) -> str:
    """One URL as `public_urls` takes them; empty means none."""
    if value == "":
        return ""
    [url] = public_urls([text(value)])
    return url


def issuer_url(value: object) -> str:
    """An issuer's URL, exactly as it is written: one with a final slash is another issuer. Empty means none."""
    return str(value) if http_url(value) else ""


def roles(value: object) -> dict[str, Role]:
    """The role of each group, from a TOML table, or from `group=role` with commas between in the environment."""
    if isinstance(value, str):
        split = (each.rpartition("=") for each in texts(value))
        pairs = [(group.strip(), role.strip()) for group, _, role in split]
    elif isinstance(value, dict):
        pairs = list(value.items())
    else:
        raise TypeError
    found = {group: Role(role) for group, role in pairs}
    if "" in found or len(found) != len(pairs):
        raise ValueError
    return found


def node_name(value: object) -> str:
    """A node's name; empty means the host's name."""
    if value == "":
        return ""
    name = text(value)
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name, re.ASCII):
        raise ValueError
    return name


def database(value: object) -> str:
    """A database URL; a plain path names an SQLite file."""
    url = text(value)
    if url.startswith(SERVERS):
        if not names_server(url):
            raise ValueError
        return url
    if ":" not in url:
        url = FILE + url
    path = file_of(url)
    if path is None or url[len(FILE) :] in ("", ":memory:"):
        raise ValueError
    _check_path(path)
    return url


def version(value: object) -> str | None:
    """The key (`core.version_key`) of a version as PEP 440 writes it; empty means none."""
    if value == "":
        return None
    key = version_key(text(value))
    if key is None:
        raise ValueError
    return key


def one_of(*words: str) -> Callable[[object], str]:
    """A parser of one of `words`."""

    def parse(value: object) -> str:
        if value not in words:
            raise ValueError
        return str(value)

    return parse
