"""The API: whatever body or query a call gets, its answer is as the API's own description says, and shows no secret.

The first line of an input says which call, such as `POST /ices`, the rest is the body, or the query of a call without
one. A machine's request for an ICE is one of the calls.
"""

from __future__ import annotations

import functools
import json
from typing import Any

from client.protocol import ENROLMENTS, EnrolmentCode
from gateway.admin import openapi
from gateway.core.problems import CODES
from tests.fuzz.target import Target, require
from tests.fuzz.wire import Answer, answers_of, close, wire
from tests.support.harness import API, Description
from tests.support.harness import Answer as Described

_LEFT_OUT = ("/webhooks", "/nodes", "stream", "export", "verification", "/events")
"""Calls that connect somewhere, stop the gateway, answer without an end, or read the whole log."""
_PLACES = {"{ice_name}": "lab-1", "{name}": "alice", "{id}": "0" * 32}
_KNOWN = CODES | {code.value for code in EnrolmentCode}


def _calls() -> dict[bytes, tuple[str, str, bool]]:
    """Method, path and whether it has a body, of each call, by the line that chooses it."""
    found = {_ENROL: ("POST", ENROLMENTS, True)}
    for path, item in sorted(openapi.document()["paths"].items()):
        if any(part in path for part in _LEFT_OUT):
            continue
        for name, value in _PLACES.items():
            path = path.replace(name, value)  # noqa: PLW2901
        for method in ("get", "post", "put", "patch"):
            if method in item:
                call = (method.upper(), API + path, "requestBody" in item[method])
                found[f"{method.upper()} {path}".encode()] = call
    return found


_ENROL = b"POST " + ENROLMENTS.encode()
CALLS = _calls()


@functools.cache
def _description() -> Description:
    return Description(openapi.document())


def exchange(request: bytes) -> bytes:
    """What the gateway writes."""
    return wire().exchange([request])


def request_of(method: str, path: str, body: bytes | None, query: bytes) -> bytes:
    """The whole request of a call."""
    escaped = b"".join(b"%%%02x" % byte if _is_escaped(byte) else bytes([byte]) for byte in query)
    headers = {"Authorization": f"Bearer {wire().token}"}
    if path == ENROLMENTS:
        headers = wire().machine.headers(method, path)
    headers |= {"Host": "a", "Content-Type": "application/json"}
    headers["Content-Length"] = str(len(body or b""))
    target = path.encode() + (b"?" + escaped if escaped else b"")
    lines = [f"{name}: {value}".encode() for name, value in headers.items()]
    head = [method.encode() + b" " + target + b" HTTP/1.1", *lines]
    return b"\r\n".join([*head, b"", b""]) + (body or b"")


def _is_escaped(byte: int) -> bool:
    """Whether a query cannot hold this byte."""
    return not 32 < byte < 127 or byte == ord("#")


def check(data: bytes, product: Any) -> None:
    """See the module."""
    line, _, given = data.partition(b"\n")
    if line not in CALLS:
        return
    method, path, has_body = CALLS[line]
    request = request_of(method, path, *((given, b"") if has_body else (None, given)))
    answers, rest = answers_of(product(request))
    require(len(answers) == 1 and not rest, f"{len(answers)} answers to {method} {path}")
    answer: Answer = answers[0]
    require(answer.status < 500, f"{method} {path}: {answer}")
    kind = answer.headers.get("content-type", "").partition(";")[0]
    told = json.loads(answer.body) if kind.endswith("json") else None
    if answer.status >= 400:
        require(told and told["code"] in _KNOWN, f"{method} {path}: {answer}")
    if path == ENROLMENTS:
        return
    headers = {name.title(): value for name, value in answer.headers.items()}
    _description().check(
        method, path.removeprefix(API), Described(answer.status, headers, answer.body, told)
    )


_BODIES: dict[bytes, tuple[bytes, ...]] = {
    _ENROL: (
        b'{"hostname":"pc-1","platform":"Linux"}',
        b'{"hostname":"\\u0000","platform":"Linux","ice_name":"lab-x","provisionedto":"alice"}',
    ),
    b"POST /ices": (
        b'{"ice_name":"n-1","ice_type":"normal","provisionedto":"alice","labels":{"a":"b"}}',
        b'{"ice_name":"-","ice_type":"ci-cd"}',
        b'{"ice_name":"LAB-1","ice_type":"ci-cd"}',
    ),
    b"POST /ices/bulk": (
        b'{"action":"deregister","filter":{"status":"provisioned"},"dry_run":true}',
        b'{"action":"label","ice_names":["lab-1"],"labels":{"a":null}}',
    ),
    b"PATCH /ices/lab-1": (b'{"labels":{"room":"4"}}', b'{"provisionedto":"bob"}'),
    b"POST /ices/lab-1/operations": (
        b'{"kind":"execute","params":{"a":[1e3]},"deadline":"2999-01-01T00:00:00Z"}',
        b'{"kind":"schedule","run_at":"2026-12-01T00:00:00+01:00"}',
        b'{"kind":"debug","params":1e999,"idempotency_key":"k"}',
    ),
    b"POST /schedules": (
        b'{"ice_name":"lab-1","kind":"execute","cron":"0 2 * * *","timezone":"Europe/Berlin"}',
    ),
    b"PUT /pools/alice": (b'{"labels":{"a":"b"},"ice_type":"ci-cd"}',),
    b"POST /users": (b'{"name":"carol","role":"member"}', b'{"name":"\\u0000","role":"x"}'),
    b"PATCH /users/alice": (b'{"role":"auditor"}', b'{"disabled":true,"ices":{"to":"bob"}}'),
    b"POST /api-tokens": (b'{"name":"t","expires_in":60,"ice_name":"lab-1"}', b'{"name":"t"}'),
    b"POST /enrolment-keys": (
        b'{"name":"k","ice_type":"ci-cd","name_prefix":"ci-","max_uses":2,"expires":"2026-12-02T00:00:00Z"}',
    ),
    b"POST /me/password": (b'{"old":"a","new":"a new password"}',),
    b"GET /ices": (
        b"limit=2&status=registered&sort=-last_seen&label=a=b",
        b"cursor=eA&limit=0",
        b"a=1&a=2",
    ),
    b"GET /operations": (b"state=queued&kind=debug&before=2026-01-01", b"cursor=MTI"),
    b"GET /users": (b"search=%C3%A4&limit=1",),
}


def _examples() -> tuple[bytes, ...]:
    general = (b"", b"{}", b"[", b'{"x":1}', b"[" * 200 + b"]" * 200, b'"\xff"')
    found = []
    for number, line in enumerate(CALLS):
        given = (*_BODIES.get(line, ()), general[number % len(general)])
        found += [line + b"\n" + body for body in given]
    return tuple(found)


TARGET = Target(
    exchange,
    check,
    _examples(),
    (
        *(
            b'"ice_name"',
            b'"ice_type"',
            b'"labels"',
            b'"kind"',
            b'"params"',
            b'"run_at"',
            b'"cron"',
        ),
        *(
            b"null",
            b"true",
            b"1e309",
            b"\\ud800",
            b"\\u0000",
            b"2026-11-29T00:00:00Z",
            b"9223372036854775807",
        ),
        *(
            b"cursor=",
            b"limit=",
            b"sort=",
            b"status=",
            b"&",
            b"%00",
            b"label=",
            b"after=",
            b"search=",
        ),
    ),
    max_bytes=8192,
    close=close,
    base_ms=100.0,
)
