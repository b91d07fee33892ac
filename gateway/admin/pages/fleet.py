"""Provision the ICEs of a CSV file: a preview with the faults by line, then portions with their tokens.

The browser keeps the file and sends it with each request, so that the gateway keeps nothing of it.

Tested in tests/browser/test_fleet.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from aiohttp import web

from gateway.admin.access import route
from gateway.admin.api.requests import unwrap
from gateway.admin.auth import actor
from gateway.admin.context import admin_context
from gateway.admin.pages.base import form, render
from gateway.admin.pages.ices import LABELS
from gateway.core.audit_event import Via
from gateway.core.csv_table import CsvFault
from gateway.core.fleet_csv import Fleet, FleetRow, read_fleet
from gateway.core.problems import invalid
from gateway.core.roles import Need, Role
from gateway.services.bulk_actions import MAX_BULK, BulkDone, BulkOutcome, NewIce
from gateway.services.ice_changes import new_owner
from gateway.web.responses import RequestRefused, json_response

_PORTION: Final = 500
"""ICEs that one request provisions."""
_SHOWN: Final = 10
"""Rows of the preview."""
_FAULTS: Final = 200
"""Faults that the preview lists."""
_NO_USER: Final = new_owner(None)
"""The refusal of an ICE whose user does not exist."""


def routes() -> list[web.RouteDef]:
    """The routes of `/fleet`."""
    return [
        route("POST", "/fleet/check", check, need=Need.ACT),
        route("POST", "/fleet", provision, need=Need.ACT),
    ]


async def check(request: web.Request) -> web.StreamResponse:
    """Say what the file would do; nothing is done yet."""
    fleet, _ = await _fleet(request)
    possible: list[FleetRow] = []
    without_user: list[FleetRow] = []
    faults = list(fleet.faults)
    for start in range(0, len(fleet.rows), _PORTION):
        rows = fleet.rows[start : start + _PORTION]
        for row, outcome in zip(rows, await _outcomes(request, rows, dry_run=True), strict=True):
            if outcome.problem is None:
                possible.append(row)
            elif outcome.problem == _NO_USER:
                without_user.append(row)
            else:
                faults.append(CsvFault(row.line, None, outcome.problem.detail))
    faults.sort(key=lambda fault: fault.line)
    context: dict[str, Any] = {
        "possible": len(possible),
        "without_user": len(without_user),
        "users": sorted({row.user for row in without_user if row.user is not None}),
        "shown": sorted(possible + without_user, key=lambda row: row.line)[:_SHOWN],
        "faults": faults[:_FAULTS],
        "fault_count": len(faults),
        "labels": LABELS,
        "token": "",
        "filename": "registration-tokens.csv",
    }
    return render(request, "fleet.html", context)


async def provision(request: web.Request) -> web.StreamResponse:
    """Provision a portion of the file's rows, as JSON: each with its token or the reason of its refusal."""
    fleet, fields = await _fleet(request)
    begin = fields.get("from", "0")
    if not (begin.isascii() and begin.isdigit() and len(begin) <= len(str(MAX_BULK))):
        raise RequestRefused(invalid("from", "must be a number"))
    start = int(begin)
    rows = fleet.rows[start : start + _PORTION]
    if fields.get("add_users"):
        await _add_users(request, rows)
    outcomes = await _outcomes(request, rows, dry_run=False)
    after = start + len(rows)
    return json_response(
        {
            "items": [
                {
                    "line": row.line,
                    "ice_name": row.ice_name,
                    "token": outcome.token and outcome.token.reveal(),
                    "fault": outcome.problem and outcome.problem.detail,
                }
                for row, outcome in zip(rows, outcomes, strict=True)
            ],
            "next": after if after < len(fleet.rows) else None,
            "total": len(fleet.rows),
        }
    )


async def _fleet(request: web.Request) -> tuple[Fleet, dict[str, str]]:
    fields = await form(request)
    # A file of 10,000 rows takes 0.15 s.
    fleet = await asyncio.to_thread(read_fleet, fields.get("csv", ""), MAX_BULK)
    return fleet, fields


async def _outcomes(
    request: web.Request, rows: Sequence[FleetRow], *, dry_run: bool
) -> list[BulkOutcome]:
    new = [NewIce(row.ice_name, row.ice_type, row.user, row.labels) for row in rows]
    service = admin_context(request).services.bulk
    done: BulkDone = unwrap(await service.provision(actor(request, Via.PAGE), new, dry_run=dry_run))
    return done.outcomes


async def _add_users(request: web.Request, rows: Sequence[FleetRow]) -> None:
    """Add the users of these rows that do not exist, as members without a password."""
    accounts = admin_context(request).services.accounts
    for name in sorted({row.user for row in rows if row.user is not None}):
        if await accounts.user(name) is None:
            await accounts.add_user(actor(request, Via.PAGE), name, Role.MEMBER, None)
