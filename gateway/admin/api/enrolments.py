"""`/enrolment-keys` and `/enrolments`: keys by which machines enrol, and decisions on those that wait.

Tested in tests/gateway/admin/api/test_enrolments.py.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from aiohttp import web

from gateway.admin.access import route
from gateway.admin.api.ices import LabelValue
from gateway.admin.api.requests import (
    DEFAULT_LIMIT,
    Limit,
    Moment,
    Query,
    Text,
    body_as,
    decode_cursor,
    encode_cursor,
    moment,
    no_members,
    split_page,
    unwrap,
)
from gateway.admin.auth import actor
from gateway.admin.context import CALLER, admin_context
from gateway.core.accounts import MAX_USER_NAME
from gateway.core.enrolment import (
    DEFAULT_LIFETIME,
    MAX_USES,
    Enrolment,
    EnrolmentKey,
    EnrolmentState,
)
from gateway.core.ice import IceType
from gateway.core.roles import Need
from gateway.services import enrolment_schemas
from gateway.services.enrolment_keys import NO_ENROLMENT, NO_KEY, NewKey, check_key
from gateway.web.responses import RequestRefused, json_response, no_content


class NewEnrolmentKey(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Body of POST /enrolment-keys: by default for one machine, for 7 days, without an approval.

    A key of normal ICEs needs their user; with `approval` that may be `*`, and the machine names the user.
    """

    name: str
    ice_type: IceType
    name_prefix: str
    provisionedto: Annotated[str, msgspec.Meta(max_length=MAX_USER_NAME)] | None = None
    labels: dict[str, LabelValue] = {}
    max_uses: Annotated[int, msgspec.Meta(ge=1, le=MAX_USES)] = 1
    expires: Moment | msgspec.UnsetType = msgspec.UNSET
    approval: bool = False

    def checked(self, now: datetime) -> NewKey:
        """The key to make. Raises `RequestRefused`."""
        expires: datetime | None = now + DEFAULT_LIFETIME
        if self.expires is not msgspec.UNSET:
            expires = moment("expires", self.expires)
        assert expires is not None  # noqa: S101 - the shape forbids null
        new = NewKey(
            self.name,
            self.ice_type,
            self.name_prefix,
            expires,
            self.provisionedto,
            self.max_uses,
            self.approval,
            self.labels,
        )
        fault = check_key(new, now)
        if fault is not None:
            raise RequestRefused(fault)
        return new


class EnrolmentKeyQuery(Query):
    """Page of GET /enrolment-keys."""

    limit: Limit = DEFAULT_LIMIT
    cursor: Text | None = None


class EnrolmentQuery(Query):
    """Filter and page of GET /enrolments."""

    state: EnrolmentState | None = None
    limit: Limit = DEFAULT_LIMIT
    cursor: Text | None = None


def routes() -> list[web.RouteDef]:
    """The routes of `/enrolment-keys` and `/enrolments`."""
    key, one = "/enrolment-keys/{id}", "/enrolments/{id}"
    change = Need.CHANGE_ACCOUNTS
    return [
        route("GET", "/enrolment-keys", list_keys, need=Need.SEE_ALL, reads=_key_query),
        route("POST", "/enrolment-keys", create_key, need=change, reads=_new),
        route("GET", key, show_key, need=Need.SEE_ALL, finds=_find_key),
        route("DELETE", key, revoke_key, need=Need.ACT, finds=_find_key),
        route("GET", "/enrolments", listing, need=Need.SEE_ALL, reads=_query),
        route("GET", one, show, need=Need.SEE_ALL, finds=_find),
        route("POST", f"{one}/approve", approve, need=change, reads=no_members, finds=_find),
        route("POST", f"{one}/reject", reject, need=change, reads=no_members, finds=_find),
    ]


async def _key_query(request: web.Request) -> tuple[EnrolmentKeyQuery, str | None]:
    query = EnrolmentKeyQuery.of(request)
    return query, decode_cursor(query.cursor)


async def _query(request: web.Request) -> tuple[EnrolmentQuery, str | None]:
    query = EnrolmentQuery.of(request)
    return query, decode_cursor(query.cursor)


async def _new(request: web.Request) -> tuple[NewKey]:
    asked = await body_as(request, NewEnrolmentKey)
    return (asked.checked(admin_context(request).clock()),)


async def _find_key(request: web.Request) -> tuple[EnrolmentKey | None]:
    if not request[CALLER].grants.sees_all:  # nothing is shown, whatever the id
        return (None,)
    key = await admin_context(request).enrolments.key(request.match_info["id"])
    if key is None:
        raise RequestRefused(NO_KEY)
    return (key,)


async def _find(request: web.Request) -> tuple[Enrolment | None]:
    if not request[CALLER].grants.sees_all:  # likewise
        return (None,)
    context = admin_context(request)
    enrolment = await context.enrolments.one(request.match_info["id"], context.clock())
    if enrolment is None:
        raise RequestRefused(NO_ENROLMENT)
    return (enrolment,)


async def list_keys(
    request: web.Request, query: EnrolmentKeyQuery, place: str | None
) -> web.Response:
    """List enrolment keys, newest first."""
    found = await admin_context(request).enrolments.keys_before(query.limit + 1, place)
    page, last = split_page(found, query.limit)
    cursor = None if last is None else encode_cursor(last.place)
    items = list(map(enrolment_schemas.key_document, page))
    return json_response(enrolment_schemas.EnrolmentKeyPage(items, cursor))


async def create_key(request: web.Request, new: NewKey) -> web.Response:
    """Make an enrolment key."""
    service = admin_context(request).services.enrolment_keys
    made = unwrap(await service.create_key(actor(request), new))
    document = enrolment_schemas.made_document(made)
    location = f"{request.path}/{made.key.id}"
    return json_response(document, status=201, headers={"Location": location})


async def show_key(request: web.Request, key: EnrolmentKey) -> web.Response:  # noqa: ARG001 - `route` has found it
    """Show an enrolment key."""
    return json_response(enrolment_schemas.key_document(key))


async def revoke_key(request: web.Request, key: EnrolmentKey) -> web.Response:
    """Revoke an enrolment key at once; one that was revoked before stays so."""
    unwrap(await admin_context(request).services.enrolment_keys.revoke_key(actor(request), key.id))
    return no_content()


async def listing(request: web.Request, query: EnrolmentQuery, place: str | None) -> web.Response:
    """List enrolments, oldest first."""
    context = admin_context(request)
    found = await context.enrolments.after(query.state, context.clock(), query.limit + 1, place)
    page, last = split_page(found, query.limit)
    cursor = None if last is None else encode_cursor(last.place)
    items = list(map(enrolment_schemas.enrolment_document, page))
    return json_response(enrolment_schemas.EnrolmentPage(items, cursor))


async def show(request: web.Request, enrolment: Enrolment) -> web.Response:  # noqa: ARG001 - `route` has found it
    """Show an enrolment."""
    return json_response(enrolment_schemas.enrolment_document(enrolment))


async def approve(request: web.Request, enrolment: Enrolment) -> web.Response:
    """Let a machine have its ICE; it gets its token with its next poll."""
    service = admin_context(request).services.enrolment_keys
    decided = unwrap(await service.approve(actor(request), enrolment.id))
    return json_response(enrolment_schemas.enrolment_document(decided))


async def reject(request: web.Request, enrolment: Enrolment) -> web.Response:
    """Refuse a machine its ICE."""
    service = admin_context(request).services.enrolment_keys
    decided = unwrap(await service.reject(actor(request), enrolment.id))
    return json_response(enrolment_schemas.enrolment_document(decided))
