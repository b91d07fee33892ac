"""Checks a WebSocket handshake, and gives the URLs of the local socket.

Tested in tests/gateway/web/test_ice_endpoint.py.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from dataclasses import replace
from functools import lru_cache
from typing import Final

from client.protocol import PATH, SUBPROTOCOL, RefusalCode
from gateway.core.problems import Problem, refusal
from gateway.runtime.sockets import host_port
from gateway.web.upgrade import Upgrade

_KEY_BYTES: Final = 16  # RFC 6455 section 4.1


def bad_handshake(upgrade: Upgrade) -> Problem | None:
    """What is wrong with the handshake of an ICE; None if nothing."""
    fault = bad_upgrade(upgrade)
    if fault is None and not offers(upgrade, SUBPROTOCOL):
        return _bad(f"Sec-WebSocket-Protocol must offer {SUBPROTOCOL}")
    return fault


def offers(upgrade: Upgrade, subprotocol: str) -> bool:
    """Whether the client offers this subprotocol."""
    offered = ",".join(upgrade.headers.getall("Sec-WebSocket-Protocol", ())).split(",")
    return subprotocol in (name.strip() for name in offered)


def bad_upgrade(upgrade: Upgrade) -> Problem | None:
    """What is wrong with a handshake by RFC 6455 section 4.2.1; None if nothing."""
    upgrades = _tokens(upgrade, "Upgrade")
    if not upgrades:
        # RFC 9110 section 15.5.22: a 426 names the protocol.
        return replace(
            _bad("The request has no Upgrade header"),
            status=426,
            headers={"Upgrade": "websocket", "Connection": "Upgrade"},
        )
    if "websocket" not in upgrades or "upgrade" not in _tokens(upgrade, "Connection"):
        return _bad("Upgrade must be websocket, and Connection must name Upgrade")
    if upgrade.version != (1, 1):
        return _bad("The request must be HTTP/1.1")
    if _has_body(upgrade):
        return _bad("The request must have no body")
    if _single(upgrade, "Sec-WebSocket-Version") != "13":
        # Section 4.4: the answer names the supported version.
        return replace(
            _bad("Sec-WebSocket-Version must be 13"), headers={"Sec-WebSocket-Version": "13"}
        )
    if not _is_key(_single(upgrade, "Sec-WebSocket-Key")):
        return _bad("Sec-WebSocket-Key must be 16 bytes in base64")
    return None


def _has_body(upgrade: Upgrade) -> bool:
    """Whether the request has a body (RFC 9112 section 6), which could be read as frames, or a length that nobody knows."""
    length = upgrade.headers.get("Content-Length", "")
    return "Transfer-Encoding" in upgrade.headers or length.strip("0 ") != ""


def _bad(detail: str) -> Problem:
    return refusal(RefusalCode.BAD_HANDSHAKE, detail=detail)


def _tokens(upgrade: Upgrade, name: str) -> set[str]:
    """The items of a list header, in lower case."""
    values = ",".join(upgrade.headers.getall(name, ())).split(",")
    return {value.strip().lower() for value in values if value.strip()}


def _single(upgrade: Upgrade, name: str) -> str:
    """The value of a header that may appear only once (RFC 6455 section 11.3); empty otherwise."""
    values = upgrade.headers.getall(name, ())
    return values[0].strip() if len(values) == 1 else ""


def _is_key(text: str) -> bool:
    try:
        return len(b64decode(text, validate=True)) == _KEY_BYTES
    except (ValueError, binascii.Error):
        return False


def local_urls(upgrade: Upgrade) -> tuple[str, ...]:
    """The URLs of the socket's own address; a client could forge the Host header."""
    local = upgrade.local
    return () if local is None else _urls(*local, "https" if upgrade.secure else "http")


@lru_cache(64)
def _urls(host: str, port: int, scheme: str) -> tuple[str, ...]:
    return tuple(f"{scheme}://{host_port(name, port)}{PATH}" for name in (host, "localhost"))
