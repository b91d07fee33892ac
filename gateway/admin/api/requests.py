"""Validation of requests: bodies, query parameters, If-Match. A refusal names the invalid field.

Tested in tests/gateway/admin/test_api.py and tests/gateway/admin/api/test_ices.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Final, Self, TypeVar
from urllib.parse import urlencode

import msgspec
from aiohttp import web

from client.protocol import JsonTooComplex
from gateway.admin.auth import authenticate
from gateway.admin.context import CALLER, admin_context
from gateway.core import base64url
from gateway.core.json_input import NotJson, check_syntax, shape_fault
from gateway.core.problems import Problem, invalid, problem
from gateway.store.ice_listing import Listed
from gateway.web.http_headers import media_type
from gateway.web.responses import RequestRefused, read_body

MAX_LIMIT: Final = 200
DEFAULT_LIMIT: Final = 50
MAX_TEXT: Final = 256
MAX_NUMBER: Final = 2**63 - 1
_MAX_DIGITS: Final = 18
Limit = Annotated[int, msgspec.Meta(ge=1, le=MAX_LIMIT)]
Number = Annotated[int, msgspec.Meta(ge=0, le=MAX_NUMBER)]
"""The number of an event or an operation in the store."""
Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
LongText = Annotated[str, msgspec.Meta(max_length=4 * MAX_TEXT)]
"""A cursor, which may hold a text that ICEs are sorted by."""
Moment = Annotated[str, msgspec.Meta(max_length=40, extra_json_schema={"format": "date-time"})]
"""RFC 3339, in any time zone; see `moment`."""
_ZONED = Annotated[datetime, msgspec.Meta(tz=True)]
_TAG: Final = re.compile(r'"([1-9][0-9]{0,17})"')
"""An entity tag as `etag` writes it."""

B = TypeVar("B")
R = TypeVar("R")


class NoMembers(msgspec.Struct, forbid_unknown_fields=True):
    """Body of a call without parameters: an empty object, or no body."""


async def body_as(request: web.Request, shape: type[B]) -> B:
    """The JSON body as `shape`. Raises `RequestRefused`."""
    return decode_as(await json_body(request), shape)


async def optional_body_as(request: web.Request, shape: type[B]) -> B:
    """Likewise; no body is an empty object. Raises `RequestRefused`."""
    data = await _body(request) if request.body_exists else b""
    return decode_as(_checked(request, data) if data else b"{}", shape)


async def no_members(request: web.Request) -> tuple[()]:
    """Accept no body or an empty object. Raises `RequestRefused`."""
    await optional_body_as(request, NoMembers)
    return ()


async def json_body(request: web.Request) -> bytes:
    """The body, which is JSON within the bounds. Raises `RequestRefused`."""
    return _checked(request, await _body(request))


async def _body(request: web.Request) -> bytes:
    data = await read_body(request)
    # The body may have arrived slowly, and the caller may have lost their right meanwhile.
    request[CALLER] = unwrap(await authenticate(request) or problem("unauthenticated"))
    return data


def _checked(request: web.Request, data: bytes) -> bytes:
    too_complex = None
    try:
        check_syntax(data)
    except NotJson:
        raise RequestRefused(problem("malformed-json")) from None
    except JsonTooComplex as error:
        too_complex = str(error)
    # After the syntax, since invalid JSON is 400 with any type. The type is required because a page
    # of another site can send any body, but not with this type.
    if media_type(request.headers.get("Content-Type", "")) != "application/json":
        raise RequestRefused(problem("unsupported-media-type"))
    if too_complex is not None:
        raise RequestRefused(invalid("body", too_complex))
    return data


def decode_as(data: bytes, shape: type[B]) -> B:
    """JSON that `check_syntax` has accepted, as `shape`. Raises `RequestRefused`."""
    try:
        return msgspec.json.decode(data, type=shape)
    except msgspec.ValidationError as error:
        raise RequestRefused(invalid(*shape_fault(error))) from None


class Query(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Query parameters; an unknown name is refused, since a misspelt filter would list everything."""

    repeated: ClassVar[frozenset[str]] = frozenset()
    """The parameters that may be given several times; their fields are lists."""

    @classmethod
    def of(cls, request: web.Request) -> Self:
        """The parameters of a request. Raises `RequestRefused`."""
        return cls.parse(request.query.items())

    @classmethod
    def parse(cls, parameters: Iterable[tuple[str, str]]) -> Self:
        """Likewise, of names and values."""
        given: dict[str, str | list[str]] = {}
        for name, value in parameters:
            if name in cls.repeated:
                given[name] = [*given.get(name, []), *([value] if value else [])]
                continue
            if name in given:
                raise RequestRefused(invalid(name, "is given twice"))
            given[name] = value
        # A form sends an unused filter as an empty parameter.
        used = {name: value for name, value in given.items() if value}
        try:
            return msgspec.convert(used, type=cls, strict=False)
        except msgspec.ValidationError as error:
            raise RequestRefused(invalid(*shape_fault(error))) from None

    def address(self, **changes: Any) -> str:
        """This query with changes, encoded for an address; defaults are left out."""
        wanted = {name: getattr(self, name) for name in self.__struct_fields__} | changes
        defaults = type(self)()
        given = {
            name: value if isinstance(value, list) else _in_address(value)
            for name, value in wanted.items()
            if value != getattr(defaults, name)
        }
        return urlencode(given, doseq=True)


def _in_address(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def moment(field: str, text: str | None) -> datetime | None:
    """The time of a query parameter or member, in UTC. Raises `RequestRefused`."""
    try:
        # Strict: like the other values of a query, a number would be taken for seconds since 1970.
        given: datetime | None = msgspec.convert(text, type=_ZONED | None)
        # In UTC the first and last hours of the calendar may be beyond it.
        return None if given is None else given.astimezone(UTC)
    except (msgspec.ValidationError, OverflowError):
        raise RequestRefused(invalid(field, "needs a time as RFC 3339 writes it")) from None


async def find_ice(request: web.Request) -> tuple[Listed]:
    """The ICE of the path, if the caller may see it. Raises `RequestRefused`."""
    context = admin_context(request)
    listed = await context.ices.find(request.match_info["ice_name"])
    if listed is None or not request[CALLER].sees(listed.ice):
        raise RequestRefused(problem("not-registered"))
    connection = listed.connection
    if (
        connection
        and connection.node == context.node.name
        and context.node.hub.get(listed.ice.ice_name) is None
    ):
        # It has just disconnected, and the store does not have that yet.
        listed = replace(listed, connection=None)
    return (listed,)


def split_page(found: Sequence[R], limit: int) -> tuple[Sequence[R], R | None]:
    """The first `limit` rows of `limit + 1` requested, and the last of them if there are more."""
    page = found[:limit]
    return page, page[-1] if len(found) > limit else None


def encode_cursor(text: str) -> str:
    """A cursor for a position in a listing, opaque to callers."""
    return base64url.encode(text.encode())


def decode_cursor(cursor: str | None) -> str | None:
    """The position of a cursor. Raises `RequestRefused`."""
    if cursor is None:
        return None
    try:
        return base64url.decode_text(cursor)
    except ValueError:
        raise RequestRefused(invalid("cursor", "take it from `next` of the page before")) from None


def is_number(text: str) -> bool:
    """Whether it is a whole number, not too long for one of the store."""
    return text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS


def number_of(cursor: str | None) -> int | None:
    """The number of a cursor that holds one. Raises `RequestRefused`."""
    text = decode_cursor(cursor)
    if text is not None and not is_number(text):
        raise RequestRefused(invalid("cursor", "take it from `next` of the page before"))
    return None if text is None else int(text)


def if_match(request: web.Request) -> frozenset[int] | None:
    """The generations that If-Match names (RFC 9110 section 13.1.1); None for any generation.

    Weak tags and tags that this gateway does not issue match nothing.
    """
    values = request.headers.getall("If-Match", [])
    if not values:
        return None
    tags = [tag.strip() for tag in ",".join(values).split(",")]
    if tags == ["*"]:
        return None
    return frozenset(int(ours[1]) for ours in map(_TAG.fullmatch, tags) if ours)


def etag(generation: int) -> dict[str, str]:
    """The ETag header of an ICE with this generation."""
    return {"ETag": f'"{generation}"'}


def unwrap(value: R | Problem) -> R:
    """The result of a service call. Raises `RequestRefused` if it is a problem."""
    if isinstance(value, Problem):
        raise RequestRefused(value)
    return value
