"""The calls of the OpenAPI document about schedules.

Tested in tests/gateway/admin/test_api.py and tests/api/test_api_document.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from client.protocol import MAX_VALUE
from gateway.admin.api.requests import NoMembers
from gateway.admin.api.schedules import (
    NewSchedule,
    OccurrenceQuery,
    ScheduleChanges,
    ScheduleQuery,
)
from gateway.admin.openapi_builder import (
    answer,
    call,
    either,
    links,
    listing,
    located,
    nothing,
    variant,
)
from gateway.core.ice import NAME_PATTERN
from gateway.services import operation_schemas
from gateway.services.schedule_schemas import OccurrencePage, ScheduleDocument, SchedulePage

_LINKS = links(
    "id",
    "$response.body#/id",
    (*("showSchedule", "changeSchedule", "runSchedule"), "listOccurrences", "deleteSchedule"),
)


def calls() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """These calls with path and method."""
    one = "/schedules/{id}"
    summary = "List schedules, newest first; a page of large ones may be shorter than its limit"
    listed = listing("listSchedules", summary, SchedulePage, ScheduleQuery, 403)
    yield "/schedules", "get", listed
    made = {"201": answer(ScheduleDocument, "Made", located("schedule"), _LINKS)}
    summary = "Request an operation of an ICE or a pool at the times of a cron expression"
    described = call("createSchedule", summary, made, 403, 404, 409, body=NewSchedule)
    yield "/schedules", "post", described
    schedule = {"200": answer(ScheduleDocument, "The schedule", links=_LINKS)}
    yield one, "get", call("showSchedule", "Show a schedule", schedule, 403, 404)
    summary = "Change a schedule; its operations are requested by the caller from then on"
    yield one, "patch", call("changeSchedule", summary, schedule, 403, 404, body=ScheduleChanges)
    deleted = {"204": nothing("Deleted")}
    summary = "Delete a schedule and its history; its operations stay"
    yield one, "delete", call("deleteSchedule", summary, deleted, 403, 404)
    requested = {
        "202": answer(operation_schemas.OperationDocument, "Requested", located("operation"))
    }
    summary = "Request an operation of a schedule now, whether or not it is enabled"
    described = call("runSchedule", summary, requested, 403, 404, 409, 429, body=NoMembers)
    yield f"{one}/run", "post", described
    summary = "List what became of the newest 1,000 occurrences, newest first"
    described = listing("listOccurrences", summary, OccurrencePage, OccurrenceQuery, 403, 404)
    yield f"{one}/occurrences", "get", described


def new_schedule(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The schemas of a schedule to make: it is of an ICE or of a pool."""
    name = {"type": "string", "pattern": f"^{NAME_PATTERN}$"}
    null = {"type": "null"}
    schema["properties"]["params"]["description"] = f"Any JSON, of at most {MAX_VALUE:,} bytes"
    of_ice = variant("NewIceSchedule", schema, {"ice_name": name, "pool": null}, "ice_name")
    of_pool = variant("NewPoolSchedule", schema, {"pool": name, "ice_name": null}, "pool")
    examples = [
        {
            "name": "nightly",
            "ice_name": "lab-pc-7",
            "cron": "0 2 * * *",
            "timezone": "Europe/Berlin",
        }
    ]
    return {
        "NewIceSchedule": of_ice,
        "NewPoolSchedule": of_pool,
        "NewSchedule": either("NewIceSchedule", "NewPoolSchedule") | {"examples": examples},
    }
