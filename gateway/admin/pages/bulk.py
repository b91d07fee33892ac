"""Actions on many ICEs: a summary before, the number typed above 20, and the results with reasons.

Tested in tests/browser/test_actions.py and tests/gateway/admin/test_pages.py.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from gateway.admin.access import route, visible_ices, visible_pools
from gateway.admin.api.requests import unwrap
from gateway.admin.auth import actor
from gateway.admin.context import CALLER, admin_context
from gateway.admin.pages.base import MAX_FIELDS, PAGE, form_fields, render
from gateway.admin.pages.ice_filter import TableQuery
from gateway.admin.pages.ices import CHANGED, LABELS, form_error, table_row
from gateway.admin.pages.pausing import PAUSE_FIELDS, order_of, pause_form
from gateway.core.audit_event import AuditAction, Via
from gateway.core.ice import Action
from gateway.core.labels import MAX_LABELS, LabelChanges, label_fault, labels_of
from gateway.core.problems import Problem, invalid, problem
from gateway.core.roles import Need
from gateway.core.secret import Secret
from gateway.services.bulk_actions import MAX_BULK, MAX_ISSUED, BulkDone, BulkOutcome, Target
from gateway.services.pausing import PauseOrder
from gateway.web.responses import RequestRefused, json_response

MAX_BULK_FIELDS: Final = MAX_BULK + MAX_FIELDS
"""Maximum fields of a form that lists ICEs."""
_ISSUING: Final = (Action.REPROVISION, Action.REREGISTER)
_ACTIONS: Final = (
    AuditAction.DISCONNECT,
    AuditAction.LABEL,
    AuditAction.PAUSE,
    AuditAction.RESUME,
    *_ISSUING,
    Action.DEREGISTER,
)
_LABEL_FIELDS: Final = {"labels": "bulk-labels", "remove": "bulk-remove"}
_RESUME: Final = PauseOrder(by_admin=True, resume=True)
_TYPED_ABOVE: Final = 20
"""ICEs above which the admin types their number."""
_EXAMPLES: Final = 5
"""Names that a reason of a refusal lists."""
MAX_LISTED: Final = 200
"""Results that are listed one by one."""


@dataclass(frozen=True, slots=True)
class Refusals:
    """The ICEs that are refused for the same reason: how many, and the first names."""

    count: int
    reason: str
    names: list[str]


def routes() -> list[web.RouteDef]:
    """The routes of actions on many ICEs."""
    return [
        # Not below /ices, where a path of one segment is an ICE's page.
        route("GET", "/ice-names", names, need=Need.ACT),
        route("POST", "/ices/bulk", bulk, need=Need.ACT),
        route("POST", "/ices/bulk/confirm", confirm, need=Need.ACT),
    ]


async def names(request: web.Request) -> web.StreamResponse:
    """The names of the ICEs that the table's filter finds, as JSON."""
    context = admin_context(request)
    wanted = await TableQuery.of(request).filter(context.clock(), visible_pools(request))
    where = visible_ices(request[CALLER], wanted)
    found = [] if where is None else await context.ices.generations(where, MAX_BULK + 1)
    if len(found) > MAX_BULK:
        raise RequestRefused(
            problem("invalid", f"More than {MAX_BULK:,} ICEs match: filter further.")
        )
    return json_response([name for name, _ in found])


async def confirm(request: web.Request) -> web.StreamResponse:
    """Ask before a bulk action: how many ICEs it will change, and which it will refuse, and why."""
    action, targets, _ = await _asked(request)
    context = admin_context(request)
    count = len(targets)
    typed = count > _TYPED_ABOVE
    if action == AuditAction.LABEL:
        return render(request, "label_bulk.html", {"count": count, "typed": typed})
    if action == AuditAction.PAUSE:
        heading = f"Pause {count:,} ICE{'' if count == 1 else 's'}"
        return pause_form(request, heading, typed=count if typed else None)
    service, caller, now = context.services.bulk, actor(request, Via.PAGE), context.clock()
    if action == AuditAction.RESUME:
        done: BulkDone = unwrap(await service.pause(caller, targets, _RESUME, dry_run=True))
    else:
        done = unwrap(await service.act(caller, action, targets, dry_run=True))
    found = [await context.ices.find(each.ice_name) for each in targets[:PAGE]]
    rows = [table_row(listed, acts=True) for listed in found if listed is not None]
    to_do = len([outcome for outcome in done.outcomes if outcome.problem is None])
    if action == AuditAction.DISCONNECT and len(targets) <= PAGE:
        to_do = min(to_do, len([row for row in rows if row.listed.connection]))
    elif action == AuditAction.RESUME and len(targets) <= PAGE:
        to_do = min(to_do, len([row for row in rows if row.listed.paused(now)]))
    return render(
        request,
        "confirm_bulk.html",
        {
            "action": action,
            "labels": LABELS,
            "rows": rows,
            "count": count,
            "to_do": to_do,
            "now": now,
            "refused": grouped(done.outcomes),
            "generations": " ".join(str(outcome.generation or 0) for outcome in done.outcomes),
            "typed": to_do > _TYPED_ABOVE,
        },
    )


async def bulk(request: web.Request) -> web.StreamResponse:
    """Act on the chosen ICEs; show the results, and new tokens once."""
    action, targets, fields = await _asked(request)
    service, caller = admin_context(request).services.bulk, actor(request, Via.PAGE)
    if action == AuditAction.LABEL:
        changes = _label_changes(fields)
        if isinstance(changes, Problem):
            return form_error(request, changes, _LABEL_FIELDS, "#dialog-fault")
        done: BulkDone = unwrap(await service.label(caller, targets, changes, None))
    elif action in (AuditAction.PAUSE, AuditAction.RESUME):
        try:
            order = _RESUME if action == AuditAction.RESUME else order_of(fields, by_admin=True)
            done = unwrap(await service.pause(caller, targets, order))
        except RequestRefused as refusal:
            return form_error(request, refusal.problem, PAUSE_FIELDS, "#dialog-fault")
    else:
        done = unwrap(await service.act(caller, action, targets))
    drops = {drop.ice_name: drop for drop in done.dropped}
    context: dict[str, Any] = {
        "results": [
            (outcome, drops.get(outcome.ice_name)) for outcome in done.outcomes[:MAX_LISTED]
        ],
        "count": len(done.outcomes),
        "done": len([outcome for outcome in done.outcomes if outcome.problem is None]),
        "refused": grouped(done.outcomes),
        "action": action,
        "ended": done,
        "labels": LABELS,
    }
    template = "bulk_done.html"
    if action in _ISSUING and context["done"]:
        template = "bulk_issued.html"
        context |= {
            "token": tokens_csv((each.ice_name, each.token) for each in done.outcomes),
            "filename": f"{action}-tokens.csv",
        }
    return render(request, template, context, trigger={CHANGED: {}})


def _label_changes(fields: dict[str, str]) -> LabelChanges | Problem:
    """The labels to set and to remove."""
    labels = labels_of(fields.get("labels", ""))
    if isinstance(labels, str):
        return invalid("labels", labels)
    removed = [key.strip() for key in fields.get("remove", "").split(";") if key.strip()]
    wrong = next((fault for key in removed if (fault := label_fault(key, None))), None)
    if wrong is not None:
        return invalid("remove", wrong)
    if not labels and not removed:
        return invalid("labels", "write at least one, or one to remove")
    return dict.fromkeys(removed[:MAX_LABELS]) | labels


def grouped(outcomes: Sequence[BulkOutcome]) -> list[Refusals]:
    """The refused ICEs by reason, the most frequent first."""
    by_reason: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.problem is not None:
            by_reason.setdefault(_reason(outcome, outcome.problem), []).append(outcome.ice_name)
    found = [Refusals(len(names), reason, names[:_EXAMPLES]) for reason, names in by_reason.items()]
    return sorted(found, key=lambda refusals: -refusals.count)


def _reason(outcome: BulkOutcome, refused: Problem) -> str:
    own = f"{outcome.ice_name} "
    if refused.detail.startswith(own):
        return f"each {refused.detail.removeprefix(own)}"
    return refused.detail


def tokens_csv(tokens: Iterable[tuple[str, Secret | None]]) -> str:
    """New tokens as a file: a line for each ICE that got one."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("ice_name", "token"))
    writer.writerows((name, token.reveal()) for name, token in tokens if token is not None)
    return text.getvalue()


async def _asked(request: web.Request) -> tuple[str, list[Target], dict[str, str]]:
    """The action, its ICEs, each with the generation that was confirmed, and the other fields."""
    pairs = await form_fields(request, max_fields=MAX_BULK_FIELDS)
    fields = dict(pairs)
    action = fields.get("action", "")
    chosen = [value for name, value in pairs if name == "ice_names"]
    if action not in _ACTIONS or not chosen:
        raise RequestRefused(problem("invalid", "Choose ICEs, and what to do with them."))
    most = MAX_ISSUED if action in _ISSUING else MAX_BULK
    if len(chosen) > most:
        sentence = (
            f"{LABELS[action]} takes at most {most:,} ICEs at once; {len(chosen):,} are chosen."
        )
        raise RequestRefused(problem("invalid", sentence))
    generations = fields.get("generations", "").split()
    if not generations:
        return action, [Target(name) for name in chosen], fields
    if len(generations) != len(chosen) or not all(
        re.fullmatch("[0-9]{1,18}", each) for each in generations
    ):
        raise RequestRefused(invalid("generations", "must be the numbers that the page showed"))
    targets = [Target(*pair) for pair in zip(chosen, map(int, generations), strict=True)]
    return action, targets, fields
