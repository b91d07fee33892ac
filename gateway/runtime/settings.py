"""The settings: one table, and what follows from several of them. `setting_sources` reads their values.

`config/gateway.toml` documents all settings; a test compares it with this table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from gateway.core.addresses import Network, is_loopback
from gateway.core.attention import Expectations
from gateway.core.login_rules import LoginRules
from gateway.core.roles import Role
from gateway.runtime.database_url import ENCODE, file_of, shown
from gateway.runtime.setting_types import (
    MAX_HOSTS,
    boolean,
    database,
    duration_between,
    hosts,
    http_url,
    integer,
    issuer_url,
    lifetime,
    listener,
    networks,
    node_name,
    one_of,
    optional_path,
    positive_duration,
    public_urls,
    roles,
    scopes,
    text,
    version,
)
from gateway.runtime.sockets import host_port

ENV_PREFIX: Final = "ICE_GATEWAY_"


class BadSetting(Exception):
    """An unusable setting; the text is one line for a person."""


class BadOption(BadSetting):
    """A value that an option of the command line gave: wrong usage, not something to mend in a file."""


class AddressUnavailable(BadSetting):
    """An address that is not available now: another program uses it, or the network is not up yet."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its key in the TOML file, default, parser, and a text that says what it accepts.

    A `secret` may hold a password.
    """

    key: str
    default: Any
    parse: Callable[[object], Any]
    accepts: str
    secret: bool

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        section, name = self.key.split(".")
        return f"{ENV_PREFIX}{section}__{name}".upper()


_DURATION: Final = "a number with s, m, h or d, such as 30s"


def _setting(
    default: Any, parse: Callable[[object], Any], accepts: str, *, secret: bool = False
) -> Any:
    """A field of `Settings`; its name is the key with `_` in place of the dot."""
    metadata = {"default": default, "parse": parse, "accepts": accepts, "secret": secret}
    return field(metadata=metadata, repr=not secret)


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting, checked. Durations are seconds."""

    server_host: tuple[str, ...] = _setting(
        "127.0.0.1",
        hosts,
        f"an address or host name to listen on, or a list of {MAX_HOSTS} at the most",
    )
    server_port: int = _setting(8440, integer(0, 65535), "a port from 0 (any free one) to 65535")
    server_public_url: tuple[str, ...] = _setting(
        [], public_urls, "http(s)://host[:port][/prefix] in plain ASCII, or a list of such URLs"
    )
    server_trusted_proxies: tuple[Network, ...] = _setting(
        [], networks, "a list of addresses or networks (CIDR)"
    )
    server_tls_certificate: Path | None = _setting("", optional_path, "a PEM file, or empty")
    server_tls_key: Path | None = _setting("", optional_path, "a PEM file, or empty")
    server_keepalive: float = _setting(
        "75s", duration_between(1, 3600), f"{_DURATION}, from 1s to 1h"
    )
    server_hsts: float = _setting("0", lifetime, f"{_DURATION}, 36500d at most, or 0 for none")
    server_insecure: bool = _setting(default=False, parse=boolean, accepts="true or false")
    database_url: str = _setting(
        "sqlite:///ice-gateway.db",
        database,
        f"sqlite:///PATH, a path, or postgresql://USER@HOST/NAME; {ENCODE}",
        secret=True,
    )
    tokens_key_file: Path | None = _setting(
        "", optional_path, "a file, or empty for one beside the database"
    )
    tokens_registration_ttl: float = _setting(
        "7d", lifetime, f"{_DURATION}, 36500d at most, or 0 for never"
    )
    ice_heartbeat: float = _setting("30s", positive_duration, _DURATION)
    ice_max_connections: int = _setting(100_000, integer(1, 10_000_000), "a number from 1")
    ice_max_handshakes: int = _setting(16384, integer(1, 1_000_000), "a number from 1")
    ice_inactive_after: float = _setting(
        "30d", lifetime, f"{_DURATION}, 36500d at most, or 0 for never"
    )
    ice_recommended_version: str | None = _setting(
        "", version, "a version as PEP 440 writes it, such as 2.4, or empty"
    )
    operations_keep: float = _setting(
        "30d", lifetime, f"{_DURATION}, 36500d at most, or 0 for ever"
    )
    operations_kept_bytes: int = _setting(64 * 2**20, integer(1, 2**50), "a number of bytes from 1")
    operations_log_kept: int = _setting(
        2**20, integer(1, 2**26), "a number of bytes from 1 to 67108864"
    )
    admin_login_idle: float = _setting("30m", positive_duration, _DURATION)
    admin_login_lifetime: float = _setting("12h", positive_duration, _DURATION)
    sso_issuer: str = _setting(
        "", issuer_url, "the issuer's https://host[:port][/path], or empty for no single sign-on"
    )
    sso_client_id: str = _setting("", str, "the id of this gateway at the issuer")
    sso_client_secret_file: Path | None = _setting(
        "", optional_path, "a file, or empty for a client without a secret"
    )
    sso_ca_file: Path | None = _setting("", optional_path, "a PEM file, or empty")
    sso_scopes: tuple[str, ...] = _setting(
        [], scopes, "a list of scopes, or an empty one for what the issuer offers"
    )
    sso_username_claim: str = _setting("preferred_username", text, "the name of a claim")
    sso_groups_claim: str = _setting("groups", text, "the name of a claim")
    sso_roles: Mapping[str, Role] = _setting(
        {}, roles, "a table of groups, each with admin, auditor or member"
    )
    sso_required: bool = _setting(default=False, parse=boolean, accepts="true or false")
    sso_redirect_url: str = _setting(
        "", http_url, "http(s)://host[:port][/prefix]/admin/sso/callback, or empty"
    )
    sso_lifetime: float = _setting("8h", positive_duration, _DURATION)
    sso_tokens_after: float = _setting(
        "30d", lifetime, f"{_DURATION}, 36500d at most, or 0 for never"
    )
    webhooks_allow: tuple[Network, ...] = _setting(
        [], networks, "a list of addresses or networks (CIDR)"
    )
    notices_away_after: float = _setting("15m", positive_duration, _DURATION)
    node_name: str = _setting(
        "", node_name, "1 to 64 letters, digits, and . _ -, or empty for the host's name"
    )
    node_lease: float = _setting("30s", duration_between(2, 3600), f"{_DURATION}, from 2s to 1h")
    metrics_listen: tuple[str, int] | None = _setting(
        "127.0.0.1:9464", listener, "HOST:PORT, or empty to turn it off"
    )
    log_format: str = _setting(
        "auto", one_of("auto", "json", "text"), "auto (JSON unless on a terminal), json or text"
    )
    log_level: str = _setting(
        "info", one_of("debug", "info", "warning", "error"), "debug, info, warning or error"
    )

    @property
    def database_path(self) -> Path:
        """The SQLite file of the database. Raises `BadSetting` if the database is on a server."""
        path = file_of(self.database_url)
        if path is None:
            raise BadSetting(
                "database.url names a server, but this command works on SQLite files only: PostgreSQL has"
                " its own tools, such as pg_dump"
            )
        return path

    @property
    def database_shown(self) -> str:
        """`database_url` without its password, and with the whole path of a file."""
        return shown(self.database_url)

    @property
    def shown_url(self) -> str:
        """The URL of this gateway, for people: the first public one, otherwise the address it listens on."""
        if self.server_public_url:
            return self.server_public_url[0]
        scheme = "http" if self.server_tls_certificate is None else "https"
        return f"{scheme}://{host_port(self.server_host[0], self.server_port)}"

    @property
    def key_file(self) -> Path:
        """The file of the token keys; by default beside the SQLite file. Raises `BadSetting`."""
        if self.tokens_key_file is not None:
            return self.tokens_key_file
        path = file_of(self.database_url)
        if path is None:
            raise BadSetting(
                "set tokens.key_file: a database on a server has no folder for the token keys"
            )
        return path.with_name(f"{path.stem}.keys.json")

    @property
    def expectations(self) -> Expectations:
        """Which ICEs are outdated, and which inactive."""
        after = self.ice_inactive_after
        return Expectations(
            self.ice_recommended_version, timedelta(seconds=after) if after else None
        )

    @property
    def login_rules(self) -> LoginRules:
        """Who logs in by which means, and for how long."""
        after = self.sso_tokens_after
        return LoginRules(
            idle=timedelta(seconds=self.admin_login_idle),
            lifetime=timedelta(seconds=self.admin_login_lifetime),
            sso_lifetime=timedelta(seconds=self.sso_lifetime),
            tokens_after=timedelta(seconds=after) if after else None,
            issuer=self.sso_issuer,
            required=self.sso_required,
        )

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The path prefixes of every route: the empty one, and those of the public URLs."""
        paths = (urlsplit(url).path for url in self.server_public_url)
        return tuple(dict.fromkeys(("", *paths)))

    def check_exposure(self) -> list[str]:
        """Refuse accidental exposure; returns the warnings to log at each start. Raises `BadSetting`.

        Beyond loopback `server.public_url` is required: without it a proof's URL could only be compared with
        the Host header, which the client chooses. Plain http beyond loopback requires `server.insecure`.
        """
        exposed = self._exposed
        if not self.server_public_url and exposed is not None:
            raise BadSetting(
                f"server.host {exposed} is reachable from other machines: set server.public_url "
                "(or --public-url) to the URL under which ICEs reach this gateway"
            )
        warnings = []
        plain = self._plain_http()
        if plain is not None:
            # Only a proxy on this machine can expose a gateway on loopback; a refusal would not stop the proxy.
            if not (self.server_insecure or exposed is None):
                raise BadSetting(
                    f"{plain}, so that anyone on the network path could read tokens and passwords: use https"
                    " (server.tls_certificate and server.tls_key, or a proxy that ends TLS), or"
                    " --insecure (server.insecure) in a network where that does not matter"
                )
            warnings.append(f"{plain}: everybody on the way can read tokens and passwords")
        if not (self._speaks_tls or self.server_trusted_proxies) and any(
            url.startswith("https:") for url in self.server_public_url
        ):
            warnings.append(
                "TLS ends at a proxy, but server.trusted_proxies is empty: all clients will appear"
                " with the proxy's address"
            )
        return warnings

    @property
    def hsts(self) -> str | None:
        """The Strict-Transport-Security header of responses (RFC 6797); None without https."""
        https = any(url.startswith("https:") for url in self.server_public_url)
        if not (self.server_hsts and (https or self._speaks_tls)):
            return None
        return f"max-age={self.server_hsts:.0f}"

    @property
    def _exposed(self) -> str | None:
        """The first host that other machines can reach, if any."""
        return next((host for host in self.server_host if not is_loopback(host)), None)

    @property
    def _speaks_tls(self) -> bool:
        return self.server_tls_certificate is not None or self.server_tls_key is not None

    def _plain_http(self) -> str | None:
        """What other machines can reach by plain http, as a sentence; None if nothing."""
        urls = [urlsplit(url) for url in self.server_public_url]
        for url in urls:
            if url.scheme == "http" and not is_loopback(url.hostname or ""):
                return f"server.public_url {url.geturl()} is plain http"
        # If all URLs are https, TLS ends at a proxy.
        if self._exposed is None or self._speaks_tls:
            return None
        if all(url.scheme == "https" for url in urls):
            return None
        return f"server.host {self._exposed} is reachable from other machines by plain http"


SETTINGS: Final = tuple(
    Setting(one.name.replace("_", ".", 1), **one.metadata) for one in fields(Settings)
)
