"""The gateway's TOML file: read, or refused in one line that shows no password."""

from __future__ import annotations

import atexit
import functools
import os
import re
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gateway.runtime.setting_sources import load
from gateway.runtime.setting_types import MAX_HOSTS
from gateway.runtime.settings import BadSetting, Settings
from tests.fuzz.target import Target, require

_PASSWORD = "correct-horse-battery"
_HAS_PASSWORD = re.compile(rb"://[^/@\n:]*:" + _PASSWORD.encode())
"""In other places the text is no password, but the name of a host, for example."""


def _has_password(data: bytes) -> bool:
    """Whether the text is the password of a URL, and nothing else besides."""
    return data.count(_PASSWORD.encode()) == 1 and _HAS_PASSWORD.search(data) is not None


_LONGEST = 2000


@functools.cache
def _file() -> Path:
    handle, name = tempfile.mkstemp(suffix=".toml")
    os.close(handle)
    atexit.register(os.unlink, name)
    return Path(name)


def file_with(data: bytes) -> Path:
    """A file with this content; there is one, which is written again and again."""
    _file().write_bytes(data)
    return _file()


def one_line(said: str) -> None:
    """It is a sentence in one line."""
    require(said.isprintable(), f"not one line: {said!r}")
    require(0 < len(said) <= _LONGEST, f"{len(said)} characters: {said[:200]}")


def check(data: bytes, product: Any) -> None:
    """See the module."""
    file = file_with(data)
    try:
        settings: Settings = product(file, {})
        for warning in settings.check_exposure():
            one_line(warning)
        _ = settings.prefixes, settings.expectations, settings.login_rules
    except BadSetting as error:
        one_line(str(error))
        if str(error).startswith("database.url") and _has_password(data):
            require(_PASSWORD not in str(error), f"a password in {error}")
        return
    one_line(settings.shown_url)
    if _has_password(data):
        require(_PASSWORD not in settings.database_shown, "a password of the database")
    require(1 <= len(settings.server_host) <= MAX_HOSTS, f"{settings.server_host}")
    require(0 <= settings.server_port <= 65535, f"{settings.server_port}")
    for name in ("ice_heartbeat", "tokens_registration_ttl", "admin_login_idle", "node_lease"):
        require(0 <= getattr(settings, name) <= 36500 * 86400, f"{name}")
    for path in (settings.server_tls_key, settings.sso_ca_file, settings.tokens_key_file):
        require("\0" not in str(path), f"no file can be called {str(path)!r}")
    require("%00" not in settings.database_shown, "no file can be called so")
    listens = () if settings.metrics_listen is None else settings.metrics_listen[:1]
    for host in (*settings.server_host, *listens):
        host.encode("idna")  # as a look-up does
    for url in settings.server_public_url:
        require(url.isascii() and url.isprintable(), f"{url!r}")
        require(url.startswith(("http://", "https://")), f"{url!r}")
        require(not set(url) & set("?#%{}"), f"{url!r}")
        require("@" not in urlsplit(url).netloc, f"{url!r}")


TARGET = Target(
    load,
    check,
    (
        b"",
        b'[server]\nhost = "127.0.0.1"\nport = 8440\npublic_url = "https://gateway.example/ice"\n',
        b'[server]\nhost = ["::1", "0.0.0.0"]\ntrusted_proxies = ["10.0.0.0/8"]\nhsts = "1d"\ninsecure = true\n',
        b'[server]\nhost = "0.0.0.0"\n',
        b"[server]\nworkers = 4\n",
        b'[database]\nurl = "postgresql://ice:correct-horse-battery@db/ice"\n[tokens]\nkey_file = "/k"\n',
        b'[database]\nurl = "postgresql://ice:correct-horse-battery@db@x/ice"\n',
        b'[database]\nurl = "sqlite:///ice.db"\n[ice]\nheartbeat = "30s"\ninactive_after = "0"\n',
        b'[ice]\nmax_connections = 0\nrecommended_version = "2.4"\n[log]\nlevel = "debug"\nformat = "json"\n',
        b'[sso]\nissuer = "https://id.example"\nclient_id = "ice"\nroles = {a = "admin"}\nscopes = ["a"]\n',
        b'[metrics]\nlisten = "[::1]:9464"\n[node]\nname = "a"\nlease = "30s"\n[operations]\nkeep = "1d"\n',
        b"port = 1\n",
        b"[server]\nport = 99999999999999999999\n",
        b"[server\n",
        b"\xff\xfe[\x00",
    ),
    (
        *(b"[server]", b"[database]", b"[sso]", b"[ice]", b"[log]", b"[node]", b"[operations]"),
        *(b"public_url", b"host", b"url", b"port", b"roles", b"https://", b"sqlite:///"),
        *(b":correct-horse-battery@", b"postgresql://", b"inf", b"nan", b'"""', b"\\u0000", b"~"),
    ),
)
