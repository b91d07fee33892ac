"""A sentence for a person for each failure to connect, and for each end of a connection.

aiohttp's own texts are for programmers (`ssl:default [Connect call failed ...]`), and its reprs contain the
request's headers, including the token.
"""

from __future__ import annotations

import errno
import socket
import ssl
from http import HTTPStatus
from typing import Final

import aiohttp
from aiohttp import WSCloseCode, WSMsgType

from client import protocol
from client.backoff import Closed, Refused

_NO_CODE: Final = 1005  # RFC 6455 section 7.1.5: a close frame without a code
_LINE_LIMIT: Final = 500
_NO_ROUTE: Final = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL}
)
# OpenSSL's reasons for an answer that is not TLS.
_NOT_TLS: Final = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}
)
# From OpenSSL's x509_vfy.h.
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_HOST_MISMATCH: Final = frozenset({62, 64})


def one_line(text: str) -> str:
    """Text from a peer, cut and made printable for one line of a terminal."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(printable.split())[:_LINE_LIMIT]


def text_of(value: object) -> str:
    """`str(value)` of a handler's error; empty if that raises."""
    try:
        return str(value)
    except BaseException:  # noqa: BLE001 - a handler must not end the client
        return ""


def described(error: BaseException) -> str:
    """The name and the text of a handler's error."""
    name, text = type(error).__name__, text_of(error)
    return f"{name}: {text}" if text else name


# --- no connection -----------------------------------------------------------------------------


def unreachable(error: Exception, where: str, *, plain: bool, proxy: str | None) -> Refused:
    """Why the gateway did not answer a handshake.

    Args:
        error: what aiohttp raised.
        where: the gateway's `host[:port]`.
        plain: whether the connection was without TLS.
        proxy: the URL of the proxy in between, without its password.
    """
    # For a proxy's name that cannot be resolved aiohttp raises the same error as for the gateway's.
    at_proxy = (aiohttp.ClientProxyConnectionError, aiohttp.ClientConnectorDNSError)
    actionable = True
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        code, sentence = (
            "certificate-untrusted",
            _certificate_problem(error.certificate_error, where),
        )
    elif isinstance(error, aiohttp.ClientHttpProxyError):
        code, sentence = "proxy-refused", _proxy_problem(error, where, proxy)
    elif proxy is not None and isinstance(error, at_proxy):
        code, (sentence, _) = "proxy-unreachable", _connection_problem(error, f"the proxy {proxy}")
    else:
        code, (sentence, actionable) = "unreachable", _connection_problem(error, where)
        if isinstance(error, aiohttp.ServerDisconnectedError) and plain:
            sentence += " Does it speak https?"
        if proxy is not None:
            sentence += f" (through the proxy {proxy})"
    return Refused(code, one_line(sentence), answered=False, actionable=actionable)


def _connection_problem(error: Exception, where: str) -> tuple[str, bool]:
    """Why there is no answer from `where`, the gateway or a proxy; and whether it says what to check."""
    server = f"The server at {where}"
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    match cause:
        case socket.gaierror():
            return f"Cannot resolve {where}: check the name and this machine's network.", True
        case ssl.SSLError(reason=str(reason)) if reason in _NOT_TLS:
            return f"{server} does not speak TLS: check the port, and http or https.", True
        case ssl.SSLError():
            reason = (cause.reason or "no reason given").lower().replace("_", " ")
            return f"The TLS handshake with {where} failed ({reason}).", False
        case ConnectionRefusedError():
            return (
                f"Connection refused by {where}: it is not running, or the address is wrong.",
                False,
            )
        case OSError(errno=number) if number in _NO_ROUTE:
            return f"There is no route to {where}: check this machine's network.", True
        case TimeoutError():
            sentence = "is it running, or does a firewall block the connection?"
            return f"No answer from {where}: {sentence}", False
        case aiohttp.ServerDisconnectedError() | ConnectionError():
            return f"The connection to {where} was closed before there was an answer.", False
        case aiohttp.ClientResponseError():
            return f"{server} is not a gateway: check the address.", True
        case OSError(strerror=str(words)):
            return f"The connection to {where} failed: {words}.", False
        case _:
            return f"The connection to {where} failed ({type(cause).__name__}).", False


def _certificate_problem(error: Exception, where: str) -> str:
    """What is wrong with the gateway's certificate, and what to do."""
    host = where.rsplit(":", 1)[0] if not where.endswith("]") else where
    match error:
        case ssl.SSLCertVerificationError(verify_code=code) if code in _HOST_MISMATCH:
            return f"The gateway's certificate is not valid for {host}: give --gateway a name that it is valid for."
        case ssl.SSLCertVerificationError(verify_code=code) if code == _EXPIRED:
            return "The gateway's certificate has expired: its operator must renew it, or this machine's clock is wrong."
        case ssl.SSLCertVerificationError(verify_code=code) if code == _NOT_YET_VALID:
            return "The gateway's certificate is not valid yet: is this machine's clock right?"
        case ssl.SSLCertVerificationError(verify_message=words):
            return (
                "The gateway's certificate is not trusted: if your own authority signed it, name that authority"
                f" with --ca-file. ({words})"
            )
    return "The gateway's certificate is not trusted."


def _proxy_problem(error: aiohttp.ClientHttpProxyError, where: str, proxy: str | None) -> str:
    if error.status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return (
            f"The proxy {proxy} requires a user and a password (HTTP 407): set HTTPS_PROXY to"
            " http://user:password@host:port."
        )
    return (
        f"The proxy {proxy} did not connect to {where} (HTTP {error.status}): ask its operator, or name the"
        " gateway in NO_PROXY if this machine can reach it directly."
    )


# --- the end of a connection -------------------------------------------------------------------


def ending(frame: aiohttp.WSMessage) -> Closed:
    """How a session ended, by the last frame from aiohttp."""
    if frame.type is WSMsgType.CLOSE:
        code = frame.data or _NO_CODE
        rule = protocol.CLOSINGS.get(code)
        sentence = rule.sentence if rule else "The gateway closed the connection."
        return Closed(code, sentence, one_line(frame.extra or ""))
    if frame.type is WSMsgType.ERROR and isinstance(frame.data, aiohttp.WebSocketError):
        sentence = f"The gateway broke RFC 6455; the client closed the connection. ({frame.data})"
        return Closed(frame.data.code, sentence)
    return Closed(WSCloseCode.ABNORMAL_CLOSURE, "The connection was lost.")


def closing_line(closed: Closed) -> str:
    """The line for the end of a session. It leaves out the reason of 1012, which is JSON."""
    rule = protocol.CLOSINGS.get(closed.code)
    reason = rule.reason if rule and rule.then is protocol.Then.AFTER else closed.reason
    return f"{' '.join(filter(None, (f'closed {closed.code}', reason)))}: {closed.sentence}"
