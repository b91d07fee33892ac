"""`/ices/bulk`: actions on many ICEs in one transaction.

Tested in tests/gateway/admin/api/test_bulk.py.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from aiohttp import web

from gateway.admin.access import route, visible_pools
from gateway.admin.api.ices import IceFilters, LabelChanges, LabelValue, NewPause, Note
from gateway.admin.api.requests import Moment, body_as, unwrap
from gateway.admin.auth import actor
from gateway.admin.context import admin_context
from gateway.core.audit_event import Actor
from gateway.core.ice import IceType
from gateway.core.pause import pause_fault
from gateway.core.problems import Problem, invalid
from gateway.core.roles import Need
from gateway.services import schemas
from gateway.services.bulk_actions import (
    MAX_BULK,
    MAX_ISSUED,
    BulkActions,
    BulkDone,
    BulkOutcome,
    NewIce,
    Target,
)
from gateway.services.labelling import description_fault
from gateway.services.pausing import PauseOrder
from gateway.store.ice_filter import IceFilter
from gateway.store.ice_listing import IceListing
from gateway.store.pools import Pools
from gateway.web.responses import RequestRefused, json_response

Names = Annotated[list[str], msgspec.Meta(max_length=MAX_BULK)]
Generations = Annotated[list[int], msgspec.Meta(max_length=MAX_BULK)]


class BulkNewIce(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An ICE to provision, with its first labels."""

    ice_name: str
    ice_type: IceType
    provisionedto: str | None = None
    labels: dict[str, LabelValue] = {}


class _Many(
    msgspec.Struct,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    tag_field="action",
):
    """An action on ICEs that exist.

    `generations` are those that the ICEs must have, in the order of `ice_names`. A dry run may name the ICEs
    by the filters of GET /ices instead.
    """

    ice_names: Names | msgspec.UnsetType = msgspec.UNSET
    generations: Generations | msgspec.UnsetType = msgspec.UNSET
    filter: IceFilters | msgspec.UnsetType = msgspec.UNSET
    dry_run: bool = False


class BulkDeregister(_Many, tag="deregister"):
    """Deregister ICEs."""


class BulkDisconnect(_Many, tag="disconnect"):
    """Close the sessions of ICEs."""


class BulkPause(_Many, tag="pause"):
    """Send ICEs nothing new until a time, or until they are resumed."""

    note: Note = ""
    until: Moment | None = None

    def order(self) -> PauseOrder:
        """What the body asks for; only admins act on many ICEs. Raises `RequestRefused`."""
        return NewPause(self.note, self.until).order(by_admin=True)


class BulkResume(_Many, tag="resume"):
    """End the pauses of ICEs."""

    def order(self) -> PauseOrder:
        """Likewise."""
        return PauseOrder(by_admin=True, resume=True)


class BulkReprovision(_Many, tag="reprovision"):
    """Replace tokens that were lost before registration; at most 1,000."""


class BulkReregister(_Many, tag="reregister"):
    """Let ICEs register again; at most 1,000."""


class BulkLabel(_Many, tag="label"):
    """Merge labels into those of ICEs (null removes one), and set their note."""

    labels: LabelChanges | msgspec.UnsetType = msgspec.UNSET
    note: Note | msgspec.UnsetType = msgspec.UNSET


class BulkProvision(
    msgspec.Struct,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    tag_field="action",
    tag="provision",
):
    """Provision ICEs."""

    ices: Annotated[list[BulkNewIce], msgspec.Meta(max_length=MAX_ISSUED)]
    dry_run: bool = False


BulkAct = (
    BulkDeregister
    | BulkDisconnect
    | BulkPause
    | BulkResume
    | BulkReprovision
    | BulkReregister
    | BulkLabel
)
Bulk = BulkAct | BulkProvision
"""The shapes of the body, which its `action` tells apart."""


def routes() -> list[web.RouteDef]:
    """The route of `/ices/bulk`."""
    return [route("POST", "/ices/bulk", bulk, need=Need.ACT, reads=_bulk)]


async def _bulk(request: web.Request) -> tuple[Bulk, IceFilter | None]:
    wanted: Bulk = await body_as(request, Bulk)  # type: ignore[arg-type]
    clock = admin_context(request).clock
    return wanted, await checked(wanted, clock(), visible_pools(request))


async def checked(wanted: Bulk, now: datetime, pools: Pools | None) -> IceFilter | None:
    """The filter of a valid body, None if it names the ICEs. Raises `RequestRefused`."""
    if isinstance(wanted, BulkProvision):
        for place, new in enumerate(wanted.ices):
            unwrap(description_fault(new.labels, None, f"ices[{place}].labels"))
        return None
    if isinstance(wanted, BulkLabel):
        if _description(wanted) == ({}, None):
            unwrap(invalid("body", "names neither labels nor a note"))
        unwrap(description_fault(*_description(wanted)))
    if isinstance(wanted, BulkPause):
        order = wanted.order()
        unwrap(pause_fault(order.until, order.note, now))
    if isinstance(wanted.filter, msgspec.UnsetType):
        unwrap(_names_fault(wanted))
        return None
    if wanted.ice_names is not msgspec.UNSET or wanted.generations is not msgspec.UNSET:
        unwrap(invalid("ice_names", "either the names or a filter, not both"))
    if not wanted.dry_run:
        unwrap(invalid("filter", "only for a dry run; then send the names that it found"))
    return await wanted.filter.filter(now, pools)


def _names_fault(wanted: BulkAct) -> Problem | None:
    """What is wrong with the names of an action; None if nothing is."""
    if isinstance(wanted.ice_names, msgspec.UnsetType):
        return invalid("ice_names", "is required, or a filter at a dry run")
    count, most = len(wanted.ice_names), _most(wanted)
    if count > most:
        return invalid("ice_names", f"at most {most:,} at once")
    if not isinstance(wanted.generations, msgspec.UnsetType) and len(wanted.generations) != count:
        return invalid("generations", "needs one for each of `ice_names`")
    return None


def _most(wanted: BulkAct) -> int:
    """How many ICEs the action takes at once."""
    return MAX_ISSUED if isinstance(wanted, BulkReprovision | BulkReregister) else MAX_BULK


def _description(wanted: BulkLabel) -> tuple[LabelChanges, str | None]:
    return (
        {} if isinstance(wanted.labels, msgspec.UnsetType) else wanted.labels,
        None if isinstance(wanted.note, msgspec.UnsetType) else wanted.note,
    )


async def bulk(request: web.Request, wanted: Bulk, where: IceFilter | None) -> web.Response:
    """Act on many ICEs in one transaction."""
    context = admin_context(request)
    answer = await perform(context.services.bulk, context.ices, actor(request), wanted, where)
    return json_response(answer)


async def perform(
    service: BulkActions, table: IceListing, caller: Actor, wanted: Bulk, where: IceFilter | None
) -> schemas.BulkAnswer:
    """Do what a body asks for; `where` is what `checked` gave. Raises `RequestRefused`."""
    if isinstance(wanted, BulkProvision):
        new = [
            NewIce(each.ice_name, each.ice_type, each.provisionedto, each.labels)
            for each in wanted.ices
        ]
        made = await service.provision(caller, new, dry_run=wanted.dry_run)
        return _answer(made, success=201)
    targets = _named(wanted) if where is None else await _matching(table, where, _most(wanted))
    if isinstance(wanted, BulkLabel):
        done = await service.label(caller, targets, *_description(wanted), dry_run=wanted.dry_run)
    elif isinstance(wanted, BulkPause | BulkResume):
        done = await service.pause(caller, targets, wanted.order(), dry_run=wanted.dry_run)
    else:
        action = wanted.__struct_config__.tag
        done = await service.act(caller, str(action), targets, dry_run=wanted.dry_run)
    return _answer(done, success=200)


def _named(wanted: BulkAct) -> list[Target]:
    names = [] if isinstance(wanted.ice_names, msgspec.UnsetType) else wanted.ice_names
    if isinstance(wanted.generations, msgspec.UnsetType):
        return [Target(name) for name in names]
    return [Target(*pair) for pair in zip(names, wanted.generations, strict=True)]


async def _matching(table: IceListing, where: IceFilter, most: int) -> list[Target]:
    """The ICEs that a filter finds. Raises `RequestRefused` if there are too many."""
    found = await table.generations(where, most + 1)
    if len(found) > most:
        raise RequestRefused(invalid("filter", f"matches more than {most:,} ICEs"))
    return [Target(*pair) for pair in found]


def _answer(result: BulkDone | Problem, *, success: int) -> schemas.BulkAnswer:
    """The answer; `success` is the status of the single action when it succeeds."""
    answered: BulkDone = unwrap(result)
    return schemas.BulkAnswer(
        [_item(outcome, success) for outcome in answered.outcomes],
        answered.dropped,
        answered.unconfirmed,
    )


def _item(outcome: BulkOutcome, success: int) -> schemas.BulkItem:
    refused = outcome.problem
    return schemas.BulkItem(
        outcome.ice_name,
        success if refused is None else refused.status,
        None if refused is None else refused.code,
        None if outcome.token is None else outcome.token.reveal(),
        outcome.generation,
    )
