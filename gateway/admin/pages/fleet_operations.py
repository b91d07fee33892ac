"""The page of all operations that the caller may see, newest first, and the page of one of them.

Tested in tests/gateway/admin/test_operation_pages.py.
"""

from __future__ import annotations

from aiohttp import web

from client.protocol import OperationKind
from gateway.admin.access import route
from gateway.admin.api.operations import OperationFilters, find_operation
from gateway.admin.api.requests import Number
from gateway.admin.context import CALLER, admin_context
from gateway.admin.pages.base import PAGE, render, render_table
from gateway.admin.pages.operations import LABELS, details, operations_page
from gateway.core.operation import Operation
from gateway.core.roles import OPERATING, Need


class OperationsQuery(OperationFilters):
    """The query of the page's address: the filter, and the number of the operation before which the page starts."""

    before: Number | None = None


def routes() -> list[web.RouteDef]:
    """The routes of `/operations`."""
    return [
        route("GET", "/operations", page, need=Need.CALLER),
        route("GET", "/operations/{id}", show, need=Need.CALLER, finds=find_operation),
    ]


async def page(request: web.Request) -> web.StreamResponse:
    """The page, or only its table if htmx asks for that."""
    query = OperationsQuery.of(request)
    where = await query.filter(admin_context(request).services.accounts)
    operates = request[CALLER].role in OPERATING  # these operate each ICE whose operations they see
    found = await operations_page(request, where, query.before, PAGE, operates=operates)
    older, newest = found.pop("next"), f"operations?{query.address(before=None)}"
    context = {
        **found,
        "title": "Operations",
        "query": query,
        "kinds": list(OperationKind),
        "states": LABELS,
        "of": None,
        "address": f"operations?{query.address()}",
        "filtered": query != OperationsQuery(before=query.before),
        "newest": None if query.before is None else newest,
        "older": None if older is None else f"operations?{query.address(before=older)}",
        "announced": request.headers.get("HX-Trigger") == "filter",
    }
    return render_table(request, "fleet_operations", context)


async def show(request: web.Request, operation: Operation) -> web.StreamResponse:
    """The page of one operation, for a link to it."""
    place = operation.ice_name or f"the pool {operation.pool}"
    context = {
        "title": f"{operation.kind} at {place}",
        "section": "Operations",
        **await details(request, operation),
    }
    return render(request, "operation_page.html", context)
