"""`/ices`: provision, list and act on ICEs."""

from __future__ import annotations

import functools
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec
from aiohttp import web

from gateway.admin.access import route, visible_ices, visible_pools
from gateway.admin.api.requests import (
    DEFAULT_LIMIT,
    Limit,
    LongText,
    Moment,
    Query,
    Text,
    body_as,
    decode_as,
    decode_cursor,
    encode_cursor,
    etag,
    find_ice,
    if_match,
    json_body,
    moment,
    no_members,
    optional_body_as,
    split_page,
    unwrap,
)
from gateway.admin.auth import actor
from gateway.admin.context import CALLER, admin_context
from gateway.core.accounts import fold_user
from gateway.core.attention import Attention
from gateway.core.ice import Ice, IceType, Status
from gateway.core.labels import KEY_PATTERN, MAX_LABELS, MAX_NOTE, MAX_VALUE
from gateway.core.pause import pause_fault
from gateway.core.problems import NAME_IS_FINAL, invalid, problem, quoted
from gateway.core.roles import Need, Role
from gateway.core.search import MAX_WORDS, words_of
from gateway.core.version_key import version_key
from gateway.services import schemas
from gateway.services.ice_changes import validate_new
from gateway.services.labelling import description_fault
from gateway.services.pausing import PauseOrder
from gateway.services.provisioning import Done, Issued
from gateway.store.ice_filter import IceFilter
from gateway.store.ice_listing import NO_ICES, Listed
from gateway.store.ice_order import Mark, Order, SortKey
from gateway.store.pools import Pools
from gateway.store.sessions import events_of
from gateway.web.responses import RequestRefused, json_response, problem_response

_NAME_IS_FINAL: Final = replace(
    problem("method-not-allowed", NAME_IS_FINAL), headers={"Allow": "GET, HEAD, PATCH"}
)
LabelValue = Annotated[str, msgspec.Meta(max_length=MAX_VALUE)]
LabelChanges = dict[str, LabelValue | None]
"""Labels to set, by key; null removes one."""
Note = Annotated[str, msgspec.Meta(max_length=MAX_NOTE)]
Label = Annotated[str, msgspec.Meta(pattern=f"^{KEY_PATTERN}=")]
"""`KEY=VALUE`"""
Labels = Annotated[list[Label], msgspec.Meta(max_length=MAX_LABELS)]


class NewIce(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /ices."""

    ice_name: str
    ice_type: IceType
    provisionedto: str | None = None


class NewOwner(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Body of reprovision and reregister: the user that a normal ICE belongs to from now on, if another.

    For a ci-cd ICE leave it out or send null; a normal ICE refuses null.
    """

    provisionedto: str | msgspec.UnsetType | None = msgspec.UNSET

    def new_user_for(self, ice: Ice) -> str | None:
        """The user who gets the ICE; None if it keeps its own, or has none. Raises `RequestRefused`."""
        if isinstance(self.provisionedto, msgspec.UnsetType):
            return None
        if self.provisionedto is None and ice.ice_type is IceType.NORMAL:
            raise RequestRefused(
                invalid("provisionedto", "a normal ICE needs a user: leave it out to keep this one")
            )
        return self.provisionedto


class IceChanges(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Body of PATCH /ices/{ice_name}."""

    labels: LabelChanges | msgspec.UnsetType = msgspec.UNSET
    note: Note | msgspec.UnsetType = msgspec.UNSET


class NewPause(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Body of pause; without `until` it holds until the ICE is resumed."""

    note: Note = ""
    until: Moment | None = None

    def order(self, *, by_admin: bool, resume: bool = False) -> PauseOrder:
        """What the body asks for. Raises `RequestRefused`."""
        return PauseOrder(by_admin, resume, moment("until", self.until), self.note)


class IceFilters(Query):
    """The filters of ICEs."""

    repeated: ClassVar = frozenset({"label"})

    status: Status | None = None
    ice_type: IceType | None = None
    provisionedto: Text | None = None
    connected: bool | None = None
    inactive: bool | None = None
    paused: bool | None = None
    q: Text | None = None
    label: Labels = msgspec.field(default_factory=list)
    pool: Text | None = None
    attention: Attention | None = None
    version_below: Text | None = None
    lastseen_before: Moment | None = None
    lastseen_after: Moment | None = None

    async def filter(self, now: datetime, pools: Pools | None) -> IceFilter:
        """The filter at `now`; `pools` is None for a caller who sees none. Raises `RequestRefused`."""
        where = self.conditions(now)
        if self.pool is None:
            return where
        if pools is None:
            raise RequestRefused(problem("forbidden", "Only admins and auditors see pools."))
        found = await pools.find(self.pool)
        if found is None:
            raise RequestRefused(invalid("pool", f"there is no pool {quoted(self.pool)}"))
        return replace(where, pool=found)

    def conditions(self, now: datetime) -> IceFilter:
        """The filter at `now` without its pool. Raises `RequestRefused` for a version that cannot be compared."""
        below = version_key(self.version_below)
        if self.version_below is not None and below is None:
            raise RequestRefused(invalid("version_below", "needs a version as PEP 440 writes it"))
        words = () if self.q is None else words_of(self.q)
        if len(words) > MAX_WORDS:
            raise RequestRefused(invalid("q", f"at most {MAX_WORDS} words"))
        return IceFilter(
            status=self.status,
            ice_type=self.ice_type,
            provisionedto=None if self.provisionedto is None else fold_user(self.provisionedto),
            connected=self.connected,
            inactive=self.inactive,
            paused=self.paused,
            words=words,
            labels=tuple(
                (key, value) for key, _, value in (one.partition("=") for one in self.label)
            ),
            attention=self.attention,
            version_below=below,
            lastseen_before=moment("lastseen_before", self.lastseen_before),
            lastseen_after=moment("lastseen_after", self.lastseen_after),
            now=now,
        )


class IceQuery(IceFilters):
    """Filters, order and page of GET /ices."""

    sort: Literal[
        "name",
        "-name",
        "lastseen",
        "-lastseen",
        "version",
        "-version",
        "provisionedon",
        "-provisionedon",
    ] = "name"
    limit: Limit = DEFAULT_LIMIT
    cursor: LongText | None = None

    @property
    def order(self) -> Order:
        """The order of the items."""
        return Order(SortKey(self.sort.lstrip("-")), self.sort.startswith("-"))

    def after(self) -> Mark | None:
        """The place of the cursor, None for the first page. Raises `RequestRefused`."""
        text = decode_cursor(self.cursor)
        if text is None:
            return None
        try:
            sort, value, name = msgspec.json.decode(text, type=tuple[str, str | None, str])
        except msgspec.DecodeError:
            sort, value, name = "", None, ""
        if sort != self.sort:
            raise RequestRefused(invalid("cursor", "take it from `next` of the page before"))
        return Mark(value, name)

    def next(self, last: Listed) -> str:
        """The cursor of the page after this ICE."""
        mark = last.mark(self.order)
        return encode_cursor(msgspec.json.encode((self.sort, mark.value, mark.name)).decode())


def routes() -> list[web.RouteDef]:
    """The routes of `/ices`."""
    one = "/ices/{ice_name}"
    return [
        route("POST", "/ices", provision, need=Need.ACT, reads=_new_ice),
        route("GET", "/ices", listing, need=Need.USER, reads=_query),
        route("GET", "/ice-counts", counts, need=Need.USER, reads=_filters),
        route("GET", one, show, need=Need.USER, finds=find_ice),
        route("PATCH", one, describe, need=Need.ACT, reads=_changes, finds=find_ice),
        *(route(method, one, final, need=Need.CALLER) for method in ("DELETE", "PUT")),
        *(
            route(
                "POST",
                f"{one}/{action}",
                functools.partial(act, action),
                need=Need.ACT,
                reads=reads,
                finds=find_ice,
            )
            for action, reads in (
                ("reprovision", _new_owner),
                ("reregister", _new_owner),
                ("deregister", no_members),
                ("disconnect", no_members),
            )
        ),
        *(
            route(
                *("POST", f"{one}/{action}", set_pause),
                need=Need.PAUSE,
                reads=reads,
                finds=find_ice,
            )
            for action, reads in (("pause", _new_pause), ("resume", _resume))
        ),
        route("GET", f"{one}/connections", connections, need=Need.USER, finds=find_ice),
    ]


async def _new_ice(request: web.Request) -> tuple[NewIce]:
    new = await body_as(request, NewIce)
    # The user is looked up only after the caller's right is checked: others must not learn who exists.
    unwrap(validate_new(new.ice_name, new.ice_type, new.provisionedto))
    return (new,)


async def _query(request: web.Request) -> tuple[IceQuery, IceFilter, Mark | None]:
    query = IceQuery.of(request)
    return query, await _filter_of(request, query), query.after()


async def _filters(request: web.Request) -> tuple[IceFilter]:
    return (await _filter_of(request, IceFilters.of(request)),)


async def _filter_of(request: web.Request, query: IceFilters) -> IceFilter:
    return await query.filter(admin_context(request).clock(), visible_pools(request))


async def _new_owner(request: web.Request) -> tuple[NewOwner]:
    return (await optional_body_as(request, NewOwner),)


async def _changes(request: web.Request) -> tuple[LabelChanges, str | None]:
    data = await json_body(request)
    if set(decode_as(data, dict[str, msgspec.Raw])) - {"labels", "note"}:
        raise RequestRefused(_NAME_IS_FINAL)
    changes = decode_as(data, IceChanges)
    labels = {} if isinstance(changes.labels, msgspec.UnsetType) else changes.labels
    note = None if isinstance(changes.note, msgspec.UnsetType) else changes.note
    if changes == IceChanges():
        raise RequestRefused(invalid("body", "names neither labels nor a note"))
    unwrap(description_fault(labels, note))
    return labels, note


async def provision(request: web.Request, new: NewIce) -> web.Response:
    """Provision an ICE."""
    issued: Issued = unwrap(
        await admin_context(request).services.provisioning.provision(
            actor(request), new.ice_name, new.ice_type, new.provisionedto
        )
    )
    document = schemas.ice_document(Listed(issued.ice), admin_context(request).clock())
    return json_response(
        schemas.Provisioned(document, issued.token.reveal()),
        status=201,
        headers={
            "Location": f"{request.path}/{issued.ice.ice_name}",
            **etag(issued.ice.generation),
        },
    )


async def listing(
    request: web.Request, query: IceQuery, where: IceFilter, after: Mark | None
) -> web.Response:
    """List ICEs, filtered, sorted and paged."""
    visible = visible_ices(request[CALLER], where)
    if visible is None:
        return json_response(schemas.IcePage([], None))
    context = admin_context(request)
    found = await context.ices.page(visible, query.limit + 1, order=query.order, after=after)
    page, last = split_page(found, query.limit)
    return json_response(
        schemas.IcePage(
            [schemas.ice_document(listed, context.clock()) for listed in page],
            None if last is None else query.next(last),
        )
    )


async def counts(request: web.Request, where: IceFilter) -> web.Response:
    """Count ICEs by what a person wants to know of them."""
    visible = visible_ices(request[CALLER], where)
    context = admin_context(request)
    found = NO_ICES if visible is None else await context.ices.counts(visible, context.clock())
    return json_response(schemas.counts_document(found))


async def show(request: web.Request, listed: Listed) -> web.Response:
    """Show one ICE."""
    return _answer(request, listed)


def _answer(request: web.Request, listed: Listed) -> web.Response:
    return json_response(
        schemas.ice_document(listed, admin_context(request).clock()),
        headers=etag(listed.ice.generation),
    )


async def describe(
    request: web.Request, labels: LabelChanges, note: str | None, listed: Listed
) -> web.Response:
    """Merge labels into an ICE's, and set its note."""
    context, name = admin_context(request), listed.ice.ice_name
    unwrap(await context.services.bulk.label_one(actor(request), name, labels, note))
    return _answer(request, await context.ices.find(name) or listed)


async def _new_pause(request: web.Request) -> tuple[PauseOrder]:
    wanted = await optional_body_as(request, NewPause)
    order = wanted.order(by_admin=request[CALLER].role is Role.ADMIN)
    unwrap(pause_fault(order.until, order.note, admin_context(request).clock()))
    return (order,)


async def _resume(request: web.Request) -> tuple[PauseOrder]:
    await no_members(request)
    return (PauseOrder(by_admin=request[CALLER].role is Role.ADMIN, resume=True),)


async def set_pause(request: web.Request, order: PauseOrder, listed: Listed) -> web.Response:
    """Send an ICE nothing new, or end its pause; nothing changes if there is none."""
    context = admin_context(request)
    bulk = context.services.bulk
    unwrap(await bulk.pause_one(actor(request), listed.ice, order, if_match(request)))
    return _answer(request, await context.ices.find(listed.ice.ice_name) or listed)


async def final(request: web.Request) -> web.Response:  # noqa: ARG001 - the same for every ICE
    """Refuse to change or delete an ICE."""
    return problem_response(_NAME_IS_FINAL)


async def connections(request: web.Request, listed: Listed) -> web.Response:
    """List an ICE's recent connections and refusals."""
    found = await events_of(admin_context(request).engine.fetch, listed.ice.ice_name)
    return json_response(
        schemas.ConnectionEvents(
            [schemas.connection_event_document(connection_event) for connection_event in found]
        )
    )


async def act(action: str, request: web.Request, *given: Any) -> web.Response:
    """Reprovision, reregister, deregister or disconnect an ICE; `given` ends with the ICE."""
    *bodies, listed = given
    users = [body.new_user_for(listed.ice) for body in bodies]
    actions = admin_context(request).services.provisioning.actions
    done: Done = unwrap(
        await actions[action](actor(request), listed.ice, if_match(request), *users)
    )
    ice = schemas.ice_document(done.after(listed), admin_context(request).clock())
    drops = (done.dropped, done.unconfirmed)
    return json_response(
        schemas.Renewed(ice, done.token.reveal(), *drops)
        if isinstance(done, Issued)
        else schemas.Ended(ice, *drops),
        headers=etag(done.ice.generation),
    )
