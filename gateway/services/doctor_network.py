"""Checks whether clients can reach a gateway: its ports, its certificate, its limit of file handles.

For `ice-gateway doctor`. It binds a free port for a moment, and sends a request to a running gateway.

Tested in tests/gateway/services/test_doctor.py.
"""

from __future__ import annotations

import contextlib
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

TIMEOUT: Final = 3.0
"""Seconds for a running gateway to answer."""
_SOON: Final = timedelta(days=30)
_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to connect, not to listen


@dataclass(frozen=True, slots=True)
class _Answer:
    """Whether the program at a port is a gateway, and why it does not admit ICEs."""

    ours: bool
    fault: str | None = None


def ports(settings: Settings, *, served: bool, timeout: float) -> Iterator[Finding]:
    """Check that each port is free, or that the gateway that serves the database has it."""
    for host in settings.server_host:
        yield _port(settings, host, served=served, timeout=timeout)
    yield from _metrics(settings, served=served, timeout=timeout)


def _port(settings: Settings, host: str, *, served: bool, timeout: float) -> Finding:
    port = settings.server_port
    where = host_port(host, port)
    reason = _bind_error(host, port)
    if reason is None and served:
        remedy = "it was started with other settings; give the same --config to this command"
        return warning("port", f"a gateway serves the database, but not on {where}", remedy)
    if reason is None:
        return ok("port", f"{where} is free" if port else "the system chooses a free port")
    if reason != errno.EADDRINUSE:
        text = f"cannot listen on {where}: {os.strerror(reason)}"
        return failed("port", text, "see server.host and server.port")
    answer = _probe(settings, host, timeout)
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


def _metrics(settings: Settings, *, served: bool, timeout: float) -> Iterator[Finding]:
    if settings.metrics_listen is None:
        yield ok("metrics", "turned off")
        return
    host, port = settings.metrics_listen
    reason = _bind_error(host, port)
    if reason is None:
        yield ok("metrics", f"{host_port(host, port)} is free")
    elif served and _serves_metrics(host, port, timeout):
        yield ok("metrics", f"a gateway serves them on {host_port(host, port)}")
    else:
        text = f"cannot be served on {host_port(host, port)}: {os.strerror(reason)}"
        yield warning("metrics", text, "set metrics.listen to a free port, or empty")


def _bind_error(host: str, port: int) -> int | None:
    """The error number of an attempt to listen there; None if it succeeds."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        socket.create_server(address, family=family).close()
    except socket.gaierror:
        return errno.EADDRNOTAVAIL
    except OSError as error:
        return error.errno
    return None


def _probe(settings: Settings, host: str, timeout: float) -> _Answer:
    """Ask the program that listens there whether it is ready."""
    host, port = _LOOPBACK.get(host, host), settings.server_port
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    if settings.server_tls_certificate is not None:
        # This only asks whether the gateway is there, and does not trust the answer.
        unchecked = ssl._create_unverified_context()  # noqa: S323, SLF001 - it gets no secret
        connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=unchecked)
    failures = (OSError, http.client.HTTPException, ValueError, AttributeError)
    with contextlib.closing(connection), contextlib.suppress(*failures):
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        if answer.headers.get("Server") != SERVER_NAME:
            return _Answer(ours=False)
        if answer.status == http.client.OK:
            return _Answer(ours=True)
        return _Answer(ours=True, fault=str(json.loads(answer.read()).get("detail")))
    return _Answer(ours=False)


def _serves_metrics(host: str, port: int, timeout: float) -> bool:
    connection = http.client.HTTPConnection(_LOOPBACK.get(host, host), port, timeout=timeout)
    failures = (OSError, http.client.HTTPException)
    with contextlib.closing(connection), contextlib.suppress(*failures):
        connection.request("GET", "/metrics")
        return b"ice_gateway_" in connection.getresponse().read()
    return False


def tls(settings: Settings, now: datetime) -> Iterator[Finding]:
    """Check that certificate and key are a pair, and when the certificate expires."""
    certificate, key = settings.server_tls_certificate, settings.server_tls_key
    if certificate is None and key is None:
        yield ok(
            "tls", "none here: right only behind a proxy with TLS, or for clients on this machine"
        )
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
    """From when until when every certificate of the chain is valid. Raises ValueError."""
    chain = x509.load_pem_x509_certificates(certificate.read_bytes())
    begins = max(item.not_valid_before_utc for item in chain)
    return begins, min(item.not_valid_after_utc for item in chain)


def handles(settings: Settings) -> Iterator[Finding]:
    """Check that `ice.max_connections` fit into the limit of file handles of this shell."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.ice_max_connections
    if limit == resource.RLIM_INFINITY or limit >= wanted + OVERHEAD:
        yield ok("handles", f"enough for {wanted} connections")
        return
    text = f"{limit} file handles do not do for ice.max_connections = {wanted}"
    remedy = "raise LimitNOFILE= of the service (ulimit -Hn here), or lower ice.max_connections"
    yield warning("handles", text, remedy)
