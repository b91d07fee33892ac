"""The sentences for what keeps an ICE from its gateway. Most are told by the tests of TLS and of proxies."""

import errno
import ssl

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey

from client.backoff import Closed
from client.errors import closing_line, ending, one_line, unreachable

WHERE = "gw.example:8440"
KEY = ConnectionKey(
    host="gw.example",
    port=8440,
    is_ssl=True,
    ssl=True,
    proxy=None,
    proxy_auth=None,
    proxy_headers_hash=None,
)


def tls_error(reason):
    error = ssl.SSLError(1, f"[SSL: {reason}] its own words (_ssl.c:1006)")
    error.reason = reason
    return aiohttp.ClientConnectorSSLError(KEY, error)


def no_connection(number):
    words = "Connect call failed ('192.0.2.1', 8440)"
    return aiohttp.ClientConnectorError(KEY, OSError(number, words))


NO_ROUTE = f"There is no route to {WHERE}: check this machine's network."
NO_ANSWER = f"No answer from {WHERE}: is it running, or does a firewall block the connection?"
CLOSED = f"The connection to {WHERE} was closed before there was an answer."


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            no_connection(errno.ECONNREFUSED),
            f"Connection refused by {WHERE}: it is not running, or",
        ),
        (no_connection(errno.ENETUNREACH), NO_ROUTE),
        (no_connection(errno.EHOSTUNREACH), NO_ROUTE),
        (no_connection(errno.ETIMEDOUT), NO_ANSWER),
        (TimeoutError(), NO_ANSWER),
        (aiohttp.ConnectionTimeoutError("Connection timeout to host"), NO_ANSWER),
        (no_connection(errno.ECONNRESET), CLOSED),
        (aiohttp.ServerDisconnectedError(), CLOSED),
        (aiohttp.ClientConnectionResetError("Cannot write to closing transport"), CLOSED),
        (tls_error("WRONG_VERSION_NUMBER"), f"The server at {WHERE} does not speak TLS: check"),
        (
            tls_error("TLSV1_ALERT_PROTOCOL_VERSION"),
            f"The TLS handshake with {WHERE} failed (tlsv1 alert protocol version).",
        ),
        (
            OSError(errno.EMFILE, "Too many open files"),
            f"The connection to {WHERE} failed: Too many",
        ),
        (aiohttp.InvalidURL("x"), f"The connection to {WHERE} failed (InvalidURL)."),
    ],
)
def test_each_fault_has_its_sentence(error, sentence):
    refused = unreachable(error, WHERE, plain=False, proxy=None)

    assert refused.code == "unreachable"
    assert refused.sentence.startswith(sentence)
    assert refused.actionable == (": check" in refused.sentence), "`status` repeats it then"
    assert refused.retry, "whatever it is, it may pass"
    assert str(refused) == f"unreachable: {refused.sentence}", "nobody has refused anything"


def test_no_sentence_shows_the_insides_of_python():
    for error in (no_connection(errno.ECONNREFUSED), tls_error("HTTP_REQUEST")):
        line = str(unreachable(error, WHERE, plain=True, proxy="http://px:1"))

        assert not any(word in line for word in ("ssl:", "_ssl.c", "[", "('", "errno", "Error"))


def test_a_strangers_words_are_one_line():
    assert one_line("a\r\nb\x1b[2J\tc" + "d" * 999) == ("a b [2J c" + "d" * 999)[:500]


@pytest.mark.parametrize(
    ("closed", "line"),
    [
        (Closed(1012, "It restarts.", '{"retry_after": 2.5}'), "closed 1012 restart: It restarts."),
        (Closed(4201, "By an admin.", "disconnected"), "closed 4201 disconnected: By an admin."),
        (Closed(4999, "So.", "why not"), "closed 4999 why not: So."),
        (Closed(1006, "It was lost."), "closed 1006: It was lost."),
    ],
)
def test_the_line_of_a_sessions_end(closed, line):
    assert closing_line(closed) == line


def test_a_close_frame_without_a_code():
    frame = aiohttp.WSMessage(aiohttp.WSMsgType.CLOSE, 0, "")

    assert ending(frame) == Closed(1005, "The gateway closed the connection.")
