"""HTTP requests on a connection: each answer is whole and of the catalogue, and only a right handshake is admitted.

The first byte of an input says into how many bytes at a time the rest is cut. In the rest `{TOKEN}` and `{PROOF}` stand
for the token of an ICE and a proof made for it, `{API}` for an admin's token.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import h11

from client.protocol import EnrolmentCode, RefusalCode
from gateway.core.problems import CODES
from tests.fuzz.target import Target, require
from tests.fuzz.wire import Answer, answers_of, close, wire

_SIZES = (10**6, 1, 7, 100)
_KNOWN = CODES | {code.value for code in RefusalCode} | {code.value for code in EnrolmentCode}
_SPACED = re.compile(rb"^([A-Z]+) +(\S+) +(HTTP/1\.1)(?=\r?$)", re.MULTILINE)
"""A request line, as a server may read it too (RFC 9112 section 3); h11 wants one space."""
_IN_ADDRESS = re.compile(rb"^[A-Z]+ +\S*\{TOKEN\}", re.MULTILINE)
_LOCATION = re.compile(rb"^Location: .*", re.MULTILINE)
_KEY = base64.b64encode(bytes(16))


def exchange(pieces: list[bytes]) -> bytes:
    """What the gateway writes."""
    return wire().exchange(pieces)


def check(data: bytes, product: Any) -> None:
    """See the module."""
    size, rest = _SIZES[data[0] % len(_SIZES)] if data else 1, data[1:]
    ice = wire().ice
    proof = ice.key.proof(ice.htu, ice.token) if b"{PROOF}" in rest else ""
    asked = rest.replace(b"{TOKEN}", ice.token.encode()).replace(b"{PROOF}", proof.encode())
    asked = asked.replace(b"{API}", wire().token.encode())
    written = product([asked[at : at + size] for at in range(0, len(asked), size)])
    # Who asks for an address gets it back in the way to the login page.
    shown = _LOCATION.sub(b"", written) if _IN_ADDRESS.search(rest) else written
    require(ice.token.encode() not in shown, "the token is shown")
    answers, _ = answers_of(written, to_head=b"HEAD" in asked)
    for answer in answers:
        _judge(answer)
    if answers and answers[-1].status == 101:
        _may_be_admitted(asked, len(answers), ice.token, proof)


def _judge(answer: Answer) -> None:
    require(answer.status != 500, f"{answer}")
    require("aiohttp" not in str(answer.headers).lower(), f"{answer.headers}")
    if answer.status == 101:
        require(answer.headers["upgrade"] == "websocket", f"{answer.headers}")
        require(answer.headers["sec-websocket-protocol"] == "ice.v1", f"{answer.headers}")
        return
    require(answer.headers.get("server") == "ice-gateway", f"{answer.headers}")
    if answer.headers.get("content-type") == "application/problem+json" and answer.body:
        problem = json.loads(answer.body)
        require(problem["code"] in _KNOWN, f"{problem}")
        require(problem["status"] == answer.status, f"{problem}")


def _may_be_admitted(asked: bytes, number: int, token: str, proof: str) -> None:
    """By h11, which reads the same requests: the last one that was answered is a right handshake."""
    reader = h11.Connection(h11.SERVER, max_incomplete_event_size=2**16)
    reader.receive_data(_SPACED.sub(rb"\1 \2 \3", asked))
    for turn in range(number):
        request = reader.next_event()
        require(isinstance(request, h11.Request), f"h11 reads {request} in {asked!r}")
        if turn == number - 1:
            break
        while not isinstance(reader.next_event(), h11.EndOfMessage):
            pass
        reader.send(h11.Response(status_code=200, headers=[(b"content-length", b"0")]))
        reader.send(h11.EndOfMessage())
        reader.start_next_cycle()
    require(request.method == b"GET", f"{request}")
    require(request.target.split(b"?")[0] == b"/ice/v1", f"{request}")
    require(request.http_version == b"1.1", f"{request}")
    found: dict[bytes, list[bytes]] = {}
    for name, value in request.headers:
        found.setdefault(name, []).append(value)

    def items(name: bytes) -> set[bytes]:
        return {item.strip().lower() for item in b",".join(found.get(name, [])).split(b",")}

    require(b"websocket" in items(b"upgrade") and b"upgrade" in items(b"connection"), f"{found}")
    require(b"transfer-encoding" not in found, f"{found}")
    require(not int(found.get(b"content-length", [b"0"])[0]), f"{found}")
    require(found[b"sec-websocket-version"] == [b"13"], f"{found}")
    [key] = found[b"sec-websocket-key"]
    require(len(base64.b64decode(key, validate=True)) == 16, f"{key!r}")
    require(b"ice.v1" in items(b"sec-websocket-protocol"), f"{found}")
    [authorization], [sent] = found[b"authorization"], found[b"dpop"]
    require(authorization.lower() == f"dpop {token}".lower().encode(), f"{authorization!r}")
    require(authorization.endswith(token.encode()) and sent == proof.encode(), f"{sent!r}")


def _request(line: bytes = b"GET /ice/v1 HTTP/1.1", **changed: bytes | None) -> bytes:
    headers: dict[str, bytes | None] = {
        "Host": b"127.0.0.1",
        "Upgrade": b"websocket",
        "Connection": b"Upgrade",
        "Sec-WebSocket-Version": b"13",
        "Sec-WebSocket-Key": _KEY,
        "Sec-WebSocket-Protocol": b"ice.v1",
        "Authorization": b"DPoP {TOKEN}",
        "DPoP": b"{PROOF}",
        **{name.replace("_", "-"): value for name, value in changed.items()},
    }
    lines = [f"{name}: ".encode() + value for name, value in headers.items() if value is not None]
    return b"\r\n".join([line, *lines, b"", b""])


_PLAIN = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
TARGET = Target(
    exchange,
    check,
    tuple(
        bytes([at]) + request
        for at, requests in enumerate(
            (
                (
                    _request(),
                    _request(b"GET /ice/v1?a=b HTTP/1.1"),
                    _PLAIN + _request(),
                    _request(DPoP=None),
                    _request(Authorization=b"DPoP x"),
                    _request(Upgrade=None),
                    _request(Sec_WebSocket_Version=b"12"),
                    _request(Sec_WebSocket_Key=b"short"),
                    _request(Sec_WebSocket_Protocol=b"a, ice.v2"),
                    _request(Content_Length=b"3") + b"abc",
                    _request(Transfer_Encoding=b"chunked") + b"0\r\n\r\n",
                    _request(Expect=b"100-continue"),
                    _request(b"GET /ice/v1 HTTP/1.0"),
                    _request(b"POST /ice/v1/enrolments HTTP/1.1", Content_Length=b"2", Upgrade=None)
                    + b"{}",
                    _request() + b"\x81\x80\0\0\0\0",
                    _PLAIN * 3,
                    b"GET / HTTP/1.1\r\nHost: a\r\n\tb\r\n\r\n",
                    b"GET /admin/api/v1/ices HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {API}\r\n\r\n",
                    b"GET http://a/readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
                    b"\x16\x03\x01\x02",
                    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                    b"HEAD /healthz HTTP/1.1\r\nHost: a\r\n\r\n" + _PLAIN,
                    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
                    b"GET /ice/v1 HTTP/1.1\nHost: a\n\n",
                ),
                (_request(), _PLAIN),
                (_request(),),
                (_request() + b"\x81\x80\0\0\0\0",),
            )
        )
        for request in requests
    ),
    (
        *(
            b"{TOKEN}",
            b"{PROOF}",
            b"\r\n",
            b"\r\n\r\n",
            b"Content-Length: ",
            b"Transfer-Encoding: chunked",
        ),
        *(
            b"Upgrade: websocket",
            b"Connection: ",
            b"keep-alive",
            b"Expect: 100-continue",
            b"HTTP/1.0",
        ),
        *(
            b"Sec-WebSocket-Key: ",
            b"Sec-WebSocket-Protocol: ",
            b"DPoP",
            b"Authorization: ",
            b"0\r\n\r\n",
        ),
    ),
    close=close,
    base_ms=100.0,
)
