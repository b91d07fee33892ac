"""Why there is no connection, or no longer one: a sentence for a person for each fault.

aiohttp's own texts are for programmers (`ssl:default [Connect call failed ...]`), and its reprs hold the
request's headers, and so the token.
"""

from __future__ import annotations

import errno
import socket
import ssl
from http import HTTPStatus
from typing import Final

import aiohttp
from aiohttp import WSMsgType

from client import protocol
from client.backoff import Closed, Refused

LOST: Final = 1006
_NO_CODE: Final = 1005  # RFC 6455 section 7.1.5: a close frame without a code
_LINE_LIMIT: Final = 500
_NO_WAY: Final = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL}
)
# What OpenSSL makes of an answer that is not TLS.
_NOT_TLS: Final = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}
)
# Of OpenSSL's x509_vfy.h.
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_ANOTHER_HOST: Final = frozenset({62, 64})


def one_line(text: str) -> str:
    """What a stranger sent, fit for a terminal's line."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(printable.split())[:_LINE_LIMIT]


def text_of(value: object) -> str:
    """What `str()` makes of an error of other people's code, whatever that raises."""
    try:
        return str(value)
    except BaseException:  # noqa: BLE001 - it must not end the client either
        return ""


def described(error: BaseException) -> str:
    """The name and the text of an error of other people's code."""
    name, text = type(error).__name__, text_of(error)
    return f"{name}: {text}" if text else name


# --- no connection -----------------------------------------------------------------------------


def unreachable(error: Exception, where: str, *, plain: bool, proxy: str | None) -> Refused:
    """Why a handshake came to no answer of the gateway.

    Args:
        error: what aiohttp raised.
        where: the gateway's `host[:port]`.
        plain: whether it was connected to without TLS.
        proxy: the URL, without its password, of the proxy that was to be gone through.
    """
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _unanswered("certificate-untrusted", _distrust(error.certificate_error, where))
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return _unanswered("proxy-refused", _refused_by_proxy(error, where, proxy))
    # A proxy's name that cannot be resolved is an error that knows of no proxy.
    at_proxy = (aiohttp.ClientProxyConnectionError, aiohttp.ClientConnectorDNSError)
    if proxy is not None and isinstance(error, at_proxy):
        return _unanswered("proxy-unreachable", _absence(error, f"the proxy {proxy}"))
    sentence = _absence(error, where)
    if isinstance(error, aiohttp.ServerDisconnectedError) and plain:
        sentence += " Does it speak https?"
    if proxy is not None:
        sentence += f" (through the proxy {proxy})"
    return _unanswered("unreachable", sentence)


def _unanswered(code: str, sentence: str) -> Refused:
    return Refused(code, one_line(sentence), answered=False)


def _absence(error: Exception, where: str) -> str:
    """Why nobody answers at `where`, the gateway or a proxy."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    match cause:
        case socket.gaierror():
            return f"No address is known for {where}: check the name, and this machine's network."
        case ssl.SSLError(reason=str(reason)) if reason in _NOT_TLS:
            return f"What answers at {where} does not speak TLS: check the port, and http or https."
        case ssl.SSLError():
            reason = (cause.reason or "no reason given").lower().replace("_", " ")
            return f"No TLS connection can be made to {where} ({reason})."
        case ConnectionRefusedError():
            return f"Nobody listens at {where}: it is not running, or the address is another."
        case OSError(errno=number) if number in _NO_WAY:
            return f"There is no way to {where}: check this machine's network."
        case TimeoutError():
            return f"No answer from {where}: is it running, or does a firewall keep us from it?"
        case aiohttp.ServerDisconnectedError() | ConnectionError():
            return f"The connection to {where} was closed before there was an answer."
        case aiohttp.ClientResponseError():
            return f"What answers at {where} is no gateway: check the address."
        case OSError(strerror=str(words)):
            return f"The connection to {where} failed: {words}."
        case _:
            return f"The connection to {where} failed ({type(cause).__name__})."


def _distrust(error: Exception, where: str) -> str:
    """What is wrong with the gateway's certificate, and what to do."""
    host = where.rsplit(":", 1)[0] if not where.endswith("]") else where
    match error:
        case ssl.SSLCertVerificationError(verify_code=code) if code in _ANOTHER_HOST:
            return (
                f"The gateway's certificate is not made out to {host}: give --gateway the name that it is"
                " made out to."
            )
        case ssl.SSLCertVerificationError(verify_code=code) if code == _EXPIRED:
            return (
                "The gateway's certificate has expired: its operator must renew it, or this machine's"
                " clock is wrong."
            )
        case ssl.SSLCertVerificationError(verify_code=code) if code == _NOT_YET_VALID:
            return "The gateway's certificate is not valid yet: is this machine's clock right?"
        case ssl.SSLCertVerificationError(verify_message=words):
            return (
                "The gateway's certificate is not trusted: if an authority of your own has signed it, name"
                f" that with --ca-file. ({words})"
            )
    return "The gateway's certificate is not trusted."


def _refused_by_proxy(error: aiohttp.ClientHttpProxyError, where: str, proxy: str | None) -> str:
    if error.status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return (
            f"The proxy {proxy} asks for a user and a password (HTTP 407): set HTTPS_PROXY to"
            " http://user:password@host:port."
        )
    return (
        f"The proxy {proxy} did not connect us to {where} (HTTP {error.status}): ask its operator, or"
        " name the gateway in NO_PROXY if it is reached directly."
    )


# --- no longer a connection --------------------------------------------------------------------


def ending(frame: aiohttp.WSMessage) -> Closed:
    """What the last frame that aiohttp gives says about the end of a session."""
    if frame.type is WSMsgType.CLOSE:
        code = frame.data or _NO_CODE
        rule = protocol.CLOSINGS.get(code)
        sentence = rule.sentence if rule else "The gateway has closed the connection."
        return Closed(code, one_line(frame.extra or ""), sentence)
    if frame.type is WSMsgType.ERROR and isinstance(frame.data, aiohttp.WebSocketError):
        return Closed(
            frame.data.code, "", f"The gateway broke RFC 6455; we have closed. ({frame.data})"
        )
    return Closed(LOST, "", "The connection was lost.")


def closing_line(closed: Closed) -> str:
    """The line for a session's end. The reason of 1012 is for programs: how long to wait."""
    rule = protocol.CLOSINGS.get(closed.code)
    reason = rule.reason if rule and rule.then is protocol.Then.AFTER else closed.reason
    return f"{' '.join(filter(None, (f'closed {closed.code}', reason)))}: {closed.sentence}"
