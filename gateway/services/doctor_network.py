"""Whether a gateway can be reached: its ports, its certificate, and how many it can hold.

For `ice-gateway doctor`: ports are tried and let go again, a gateway that runs is asked.
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import resource
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509

from gateway import SERVER_NAME
from gateway.runtime.fd_limits import OVERHEAD
from gateway.runtime.settings import BadSetting, Settings
from gateway.runtime.sockets import host_port
from gateway.runtime.tls import Tls
from gateway.services.diagnostics import Finding, failed, ok, warning

_PATIENCE: Final = 3.0
"""Seconds for a gateway that runs to answer."""
_SOON: Final = timedelta(days=30)
_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to ask, not to listen


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a program at a port says: whether it is a gateway, and why it admits nobody."""

    ours: bool
    fault: str | None = None


def ports(settings: Settings, *, served: bool) -> Iterator[Finding]:
    """Whether the port is free, or held by the gateway that serves the database."""
    for host in settings.server_host:
        yield _port(settings, host, served=served)
    yield from _metrics(settings, served=served)


def _port(settings: Settings, host: str, *, served: bool) -> Finding:
    port = settings.server_port
    where = host_port(host, port)
    reason = _taken(host, port)
    if reason is None and served:
        remedy = "it was started with other settings; give the same --config to this command"
        return warning("port", f"a gateway serves the database, but not on {where}", remedy)
    if reason is None:
        return ok("port", f"{where} is free" if port else "any free one is taken")
    if reason != errno.EADDRINUSE:
        text = f"cannot listen on {where}: {_words(reason)}"
        return failed("port", text, "see server.host and server.port")
    answer = _ask(settings, host)
    if not answer.ours:
        remedy = "stop that program, or set server.port"
        return failed("port", f"another program has {where}", remedy)
    if not served:
        remedy = "stop it, set server.port, or name its --database"
        return failed("port", f"a gateway on another database has {where}", remedy)
    if answer.fault is not None:
        text = f"the gateway on {where} admits nobody: {answer.fault}"
        return failed("port", text, "do what it says")
    return ok("port", f"a gateway serves the database on {where}, and admits ICEs")


def _metrics(settings: Settings, *, served: bool) -> Iterator[Finding]:
    if settings.metrics_listen is None:
        yield ok("metrics", "turned off")
        return
    host, port = settings.metrics_listen
    reason = _taken(host, port)
    if reason is None:
        yield ok("metrics", f"{host_port(host, port)} is free")
    elif served and _scrape(host, port):
        yield ok("metrics", f"a gateway serves them on {host_port(host, port)}")
    else:
        text = f"cannot be served on {host_port(host, port)}: {_words(reason)}"
        yield warning("metrics", text, "set metrics.listen to a free port, or empty")


def _taken(host: str, port: int) -> int | None:
    """Why nobody can listen there now, as an error number; None where one can."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        socket.create_server(address, family=family).close()
    except socket.gaierror:
        return errno.EADDRNOTAVAIL
    except OSError as error:
        return error.errno
    return None


def _words(number: int) -> str:
    return os.strerror(number)


def _ask(settings: Settings, host: str) -> _Answer:
    """Ask whoever listens whether they are ready."""
    host, port = _ANY.get(host, host), settings.server_port
    connection = http.client.HTTPConnection(host, port, timeout=_PATIENCE)
    if settings.server_tls_certificate is not None:
        # Only asked whether it is there: what it says is believed by nobody.
        unchecked = ssl._create_unverified_context()  # noqa: S323, SLF001 - it is told no secret
        connection = http.client.HTTPSConnection(host, port, timeout=_PATIENCE, context=unchecked)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        if answer.headers.get("Server") != SERVER_NAME:
            return _Answer(ours=False)
        if answer.status == http.client.OK:
            return _Answer(ours=True)
        return _Answer(ours=True, fault=str(json.loads(answer.read()).get("detail")))
    except (OSError, http.client.HTTPException, ValueError, AttributeError):
        return _Answer(ours=False)
    finally:
        connection.close()


def _scrape(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(_ANY.get(host, host), port, timeout=_PATIENCE)
    try:
        connection.request("GET", "/metrics")
        return b"ice_gateway_" in connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def tls(settings: Settings, now: datetime) -> Iterator[Finding]:
    """Whether certificate and key are a pair, and for how long."""
    certificate, key = settings.server_tls_certificate, settings.server_tls_key
    if certificate is None and key is None:
        yield ok("tls", "none here: a proxy speaks it, or nobody from elsewhere connects")
        return
    if certificate is None or key is None:
        missing = "server.tls_certificate" if certificate is None else "server.tls_key"
        yield failed("tls", f"{missing} is missing", "set both, or neither")
        return
    try:
        Tls(certificate, key)
        since, until = _validity(certificate)
    except (BadSetting, OSError, ValueError) as error:
        yield failed("tls", str(error), "put a certificate (PEM) and its own key there")
        return
    text = f"{certificate} is good until {until:%Y-%m-%d}"
    if until <= now:
        yield failed("tls", f"{certificate} has expired on {until:%Y-%m-%d}", "renew it")
    elif since > now:
        text = f"{certificate} is good from {since:%Y-%m-%d %H:%M} UTC only"
        yield failed("tls", text, "put an older one there, or set the clock")
    elif until - now <= _SOON:
        yield warning("tls", f"{text}, for {(until - now).days} days", "renew it")
    else:
        yield ok("tls", text)


def _validity(certificate: Path) -> tuple[datetime, datetime]:
    """From when, and until when, every certificate of the chain is good. Raises ValueError."""
    chain = x509.load_pem_x509_certificates(certificate.read_bytes())
    begins = max(item.not_valid_before_utc for item in chain)
    return begins, min(item.not_valid_after_utc for item in chain)


def handles(settings: Settings) -> Iterator[Finding]:
    """Whether `ice.max_connections` fit into the limit of file handles, as it is here."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.ice_max_connections
    if limit == resource.RLIM_INFINITY or limit >= wanted + OVERHEAD:
        yield ok("handles", f"enough for {wanted} connections")
        return
    text = f"{limit} file handles do not do for ice.max_connections = {wanted}"
    remedy = "raise LimitNOFILE= of the service (ulimit -Hn here), or lower ice.max_connections"
    yield warning("handles", text, remedy)
