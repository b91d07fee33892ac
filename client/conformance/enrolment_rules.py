"""Judges the requests of an ICE that enrols. Pure; source: docs/protocol.md, Enrolment.

Tested in tests/client/test_client_conformance_rules.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final
from urllib.parse import urlsplit

import msgspec

from client import protocol
from client.conformance.report import Finding
from client.conformance.request_rules import Request
from client.conformance.sentences import Sentence

_MAX_BODY: Final = 8192


class _Wanted(msgspec.Struct):
    """The body of the first request."""

    hostname: Annotated[str, msgspec.Meta(max_length=253)]
    platform: Annotated[str, msgspec.Meta(max_length=128)]
    ice_name: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    provisionedto: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None


def is_enrolment(request: Request) -> bool:
    """Whether this is a request for an ICE, or about such a request."""
    return protocol.ENROLMENTS in urlsplit(request.target).path


def judge_enrolment(request: Request, body: bytes, secret: str) -> Iterator[Finding]:
    """Judge what is not the proof."""
    fault = _fault_of(request, body)
    yield Finding(Sentence.ENROL_REQUEST, fault is None, fault or "")
    sent = request.all("Authorization")
    scheme, _, value = sent[0].partition(" ") if len(sent) == 1 else ("", "", "")
    good = scheme.lower() == "bearer" and value.strip() == secret
    elsewhere = secret in request.target or secret.encode() in body
    seen = f"{len(sent)} Authorization headers, scheme {scheme!r}"
    yield Finding(
        Sentence.ENROL_SECRET,
        good and not elsewhere,
        "it is in the URL or the body" if elsewhere else seen,
    )


def _fault_of(request: Request, body: bytes) -> str | None:
    path = urlsplit(request.target).path
    if request.method == "GET":
        return None if path.rpartition("/")[0].endswith(protocol.ENROLMENTS) else f"GET {path}"
    if request.method != "POST" or not path.endswith(protocol.ENROLMENTS):
        return f"{request.method} {path}"
    if len(body) > _MAX_BODY:
        return f"its body has {len(body)} bytes"
    try:
        wanted = msgspec.json.decode(body, type=_Wanted)
    except (ValueError, RecursionError) as error:
        return f"its body: {error}"
    texts = (wanted.hostname, wanted.platform, wanted.ice_name or "", wanted.provisionedto or "")
    return None if all(map(str.isprintable, texts)) else "a text that cannot be printed"
