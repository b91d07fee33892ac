"""What a request brings, checked: bodies, query parameters, If-Match. A fault names its field."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Final, Self, TypeVar

import msgspec
from aiohttp import web

from client.protocol import JsonTooComplex
from gateway.admin.auth import recognise
from gateway.admin.context import CALLER, PARTS
from gateway.core import base64url
from gateway.core.json_input import NotJson, check_syntax
from gateway.core.problems import Problem, invalid, problem
from gateway.store.ices import Listed
from gateway.web.http_headers import media_type
from gateway.web.responses import RequestRefused, read_body

MAX_LIMIT: Final = 200
DEFAULT_LIMIT: Final = 50
MAX_TEXT: Final = 256
Limit = Annotated[int, msgspec.Meta(ge=1, le=MAX_LIMIT)]
Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
_TAG: Final = re.compile(r'"([1-9][0-9]{0,17})"')
"""What `etag` makes."""

B = TypeVar("B")
R = TypeVar("R")


class NoMembers(msgspec.Struct, forbid_unknown_fields=True):
    """Body of calls whose path says everything: an object without members, or no body."""


async def body_as(request: web.Request, shape: type[B]) -> B:
    """The JSON body as `shape`. Raises `RequestRefused`."""
    return _parsed(request, await _body(request), shape)


async def no_members(request: web.Request) -> tuple[()]:
    """Take an empty body, or an object without members. Raises `RequestRefused`."""
    if request.body_exists:
        data = await _body(request)
        if data:
            _parsed(request, data, NoMembers)
    return ()


async def _body(request: web.Request) -> bytes:
    data = await read_body(request)
    # The body may have taken its time: who has lost their right meanwhile has none any more.
    caller = await recognise(request)
    if caller is None:
        raise RequestRefused(problem("unauthenticated"))
    request[CALLER] = caller
    return data


def _parsed(request: web.Request, data: bytes, shape: type[B]) -> B:
    too_complex = None
    try:
        check_syntax(data)
    except NotJson:
        raise RequestRefused(problem("malformed-json")) from None
    except JsonTooComplex as error:
        too_complex = str(error)
    # Second, since what cannot be parsed is 400 whatever it is called. It is asked for because a
    # page of another site can send any body, but not this type.
    if media_type(request.headers.get("Content-Type", "")) != "application/json":
        raise RequestRefused(problem("unsupported-media-type"))
    if too_complex is not None:
        raise RequestRefused(invalid("body", too_complex))
    return decode_as(data, shape)


def decode_as(data: bytes, shape: type[B]) -> B:
    """JSON that `check_syntax` has taken, as `shape`. Raises `RequestRefused`."""
    try:
        return msgspec.json.decode(data, type=shape)
    except msgspec.ValidationError as error:
        raise RequestRefused(_shape_problem(error)) from None


def _shape_problem(error: msgspec.ValidationError) -> Problem:
    """Msgspec ends its sentences with the place: ... - at `$.ice_name`."""
    # From the right, since the sentence quotes what was sent; without a place all of it is the reason.
    reason, found, place = str(error).rpartition(" - at `$")
    if not found:
        reason, place = place, ""
    field = place.rstrip("`").lstrip(".")
    if not field and "field `" in reason:  # a missing or unknown member stands in the sentence
        field = reason.split("field `")[1].split("`")[0]
    return invalid(field or "body", reason[:1].lower() + reason[1:])


class Query(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Query parameters; an unknown one is refused, since a misspelt filter would list everything."""

    @classmethod
    def of(cls, request: web.Request) -> Self:
        """The parameters of a request. Raises `RequestRefused`."""
        given: dict[str, str] = {}
        for name, value in request.query.items():
            if name in given:
                raise RequestRefused(invalid(name, "is given twice"))
            given[name] = value
        # An empty parameter is what a form sends for a filter that is not used.
        used = {name: value for name, value in given.items() if value}
        try:
            return msgspec.convert(used, type=cls, strict=False)
        except msgspec.ValidationError as error:
            raise RequestRefused(_shape_problem(error)) from None


async def find_ice(request: web.Request) -> tuple[Listed]:
    """The ICE of the path; one that the caller may not see does not exist for them. Raises `RequestRefused`."""
    parts = request.config_dict[PARTS]
    listed = await parts.ices.find(request.match_info["ice_name"])
    if listed is None or not request[CALLER].sees(listed.ice):
        raise RequestRefused(problem("not-registered"))
    connection = listed.connection
    if (
        connection
        and connection.node == parts.node.name
        and parts.node.hub.get(listed.ice.ice_name) is None
    ):
        # It has just gone, and that is not written yet.
        listed = replace(listed, connection=None)
    return (listed,)


def cut(found: Sequence[R], limit: int) -> tuple[Sequence[R], R | None]:
    """A page of what was found, which is one more where there are more; and its last row then."""
    page = found[:limit]
    return page, page[-1] if len(found) > limit else None


def encode_cursor(text: str) -> str:
    """A place in a listing, opaque to callers."""
    return base64url.encode(text.encode())


def decode_cursor(cursor: str | None) -> str | None:
    """The reverse. Raises `RequestRefused`."""
    if cursor is None:
        return None
    try:
        return base64url.decode(cursor).decode()
    except ValueError:
        raise RequestRefused(invalid("cursor", "take it from `next` of the page before")) from None


def if_match(request: web.Request) -> frozenset[int] | None:
    """The generations that If-Match names (RFC 9110 section 13.1.1); None for any.

    Only strong tags match; what is no tag of ours matches nothing.
    """
    values = request.headers.getall("If-Match", [])
    if not values:
        return None
    tags = [tag.strip() for tag in ",".join(values).split(",")]
    if tags == ["*"]:
        return None
    return frozenset(int(ours[1]) for ours in map(_TAG.fullmatch, tags) if ours)


def etag(generation: int) -> dict[str, str]:
    """The entity tag of one ICE's answer."""
    return {"ETag": f'"{generation}"'}


def unwrap(value: Any) -> Any:
    """A use case's result. Raises `RequestRefused` where it is a problem."""
    if isinstance(value, Problem):
        raise RequestRefused(value)
    return value
