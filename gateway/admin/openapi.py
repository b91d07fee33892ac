"""The OpenAPI 3.1 document of the admin API, generated from the shapes that its routes decode.

Tested in tests/gateway/admin/test_api.py and tests/api/test_api_document.py.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Final, get_args

import msgspec
from aiohttp import web

from client.protocol import MAX_VALUE, OperationKind
from gateway import __version__
from gateway.admin import openapi_accounts, openapi_schedules, openapi_webhooks
from gateway.admin.api.audit import ExportQuery, VerificationQuery
from gateway.admin.api.bulk import Bulk
from gateway.admin.api.events import EventQuery
from gateway.admin.api.ices import IceChanges, IceFilters, IceQuery, NewIce, NewOwner, NewPause
from gateway.admin.api.nodes import Drain, NodeQuery
from gateway.admin.api.operations import LogDocument, NewOperation, OperationQuery, RequestQuery
from gateway.admin.api.pools import NewPool, PoolQuery
from gateway.admin.api.requests import NoMembers
from gateway.admin.auth import COOKIE, FORM_TOKEN, SECURE_COOKIE
from gateway.admin.openapi_builder import (
    answer,
    call,
    components,
    download,
    event,
    header,
    in_header,
    links,
    listing,
    located,
    nothing,
    one_of,
    problems,
    query,
    stream,
    variant,
    variants,
)
from gateway.core.accounts import MAX_USER_NAME
from gateway.core.audit_event import ID_PATTERN
from gateway.core.ice import NAME_PATTERN, NAME_RULE, IceType
from gateway.core.labels import KEY_PATTERN as LABEL_KEY
from gateway.core.operation import KEY_PATTERN
from gateway.core.problems import CODES
from gateway.services import operation_schemas, pool_schemas, schemas
from gateway.services.audit_export import FORMATS, media_type
from gateway.web.responses import json_response

_IN_PATH: Final[dict[str, dict[str, Any]]] = {
    "ice_name": {
        "description": f"The ICE's name, case ignored: {NAME_RULE}",
        "schema": {"type": "string", "pattern": f"^{NAME_PATTERN}$"},
    },
    "id": {"schema": {"type": "string", "minLength": 1}},
    "name": {"schema": {"type": "string", "minLength": 1}},
    "message": {"schema": {"type": "string", "minLength": 1}},
}
"""The variable parts of paths."""
_TAGS: Final = {
    "/ice-counts": "ices",
    "/ices/{ice_name}/operations": "operations",
    "/pools/{name}/operations": "operations",
}
"""The tags of paths whose first part is not their tag."""
_ACTIONS: Final[dict[str, tuple[str, type, type]]] = {
    "reprovision": ("Replace a token lost before registration", NewOwner, schemas.Renewed),
    "reregister": ("Let an ICE register again; drops its session", NewOwner, schemas.Renewed),
    "deregister": ("Deactivate an ICE; drops its session", NoMembers, schemas.Ended),
    "disconnect": ("Close an ICE's session; it may reconnect", NoMembers, schemas.Ended),
}
_PAUSES: Final[dict[str, tuple[str, type]]] = {
    "pause": ("Send an ICE nothing new until a time, or until it is resumed", NewPause),
    "resume": ("End the pause of an ICE", NoMembers),
}
_LINKS: Final = links(
    "ice_name",
    "$response.body#/ice/ice_name",
    ("showIce", *(f"{action}Ice" for action in _ACTIONS), "listConnections"),
)
_OPERATION_LINKS: Final = links(
    "id", "$response.body#/id", ("showOperation", "showOperationLog", "cancelOperation")
)
_ABOUT: Final = (
    "Every error is a problem document (RFC 9457) with a stable `code`. In addition to the statuses of each"
    " call, any request may be answered 400 (invalid HTTP), 404 (no such address), 405 (`Allow` names the"
    " allowed methods), 414, 417, 431 (address, Expect, headers) or 500."
)
_ETAG: Final = {"ETag": header("The generation", {"type": "string", "pattern": '^"[1-9][0-9]*"$'})}
_EVENT_ID: Final = {"type": "string", "pattern": f"^{ID_PATTERN}$"}
_LOG_PLACE: Final = {"type": "string", "pattern": "^[0-9]{1,18}$"}


def _new_ice(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The schemas of an ICE to provision: one for each type, since only a normal ICE has a user."""
    schema["properties"]["ice_name"]["pattern"] = f"^{NAME_PATTERN}$"
    user = {"type": "string", "minLength": 1, "maxLength": MAX_USER_NAME}
    normal = {"ice_type": {"const": IceType.NORMAL.value}, "provisionedto": user}
    ci_cd = {"ice_type": {"const": IceType.CI_CD.value}, "provisionedto": {"type": "null"}}
    names = {IceType.NORMAL.value: "NewNormalIce", IceType.CI_CD.value: "NewCiCdIce"}
    examples = [
        {"ice_name": "lab-pc-7", "ice_type": "normal", "provisionedto": "alice"},
        {"ice_name": "build-1", "ice_type": "ci-cd"},
    ]
    return {
        "NewNormalIce": variant("NewNormalIce", schema, normal, "provisionedto"),
        "NewCiCdIce": variant("NewCiCdIce", schema, ci_cd),
        "NewIce": variants("ice_type", names) | {"examples": examples},
    }


def _new_operation(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The schemas of an operation to request: only one of kind `schedule` has `run_at`, which it needs."""
    schema["properties"]["idempotency_key"]["anyOf"][0]["pattern"] = f"^{KEY_PATTERN}$"
    schema["properties"]["params"]["description"] = f"Any JSON, of at most {MAX_VALUE:,} bytes"
    others = [kind.value for kind in OperationKind if kind is not OperationKind.SCHEDULE]
    scheduled = {
        "kind": {"const": OperationKind.SCHEDULE.value},
        "run_at": {"type": "string", "format": "date-time"},
    }
    immediate = {"kind": {"enum": others}, "run_at": {"type": "null"}}
    names = dict.fromkeys(others, "NewImmediateOperation")
    names[OperationKind.SCHEDULE.value] = "NewScheduledOperation"
    examples = [{"kind": "remote-execute", "params": {"suite": "smoke"}}]
    return {
        "NewImmediateOperation": variant("NewImmediateOperation", schema, immediate),
        "NewScheduledOperation": variant("NewScheduledOperation", schema, scheduled, "run_at"),
        "NewOperation": variants("kind", names) | {"examples": examples},
    }


def _calls() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every call with its path and method."""
    one = "/ices/{ice_name}"
    yield "/ices", "get", listing("listIces", "List ICEs", schemas.IcePage, IceQuery, 403)
    counted = {"200": answer(schemas.IceCounts, "How many there are")}
    filters = query(IceFilters)
    yield (
        "/ice-counts",
        "get",
        call("countIces", "Count ICEs", counted, 403, 422, parameters=filters),
    )
    provisioned = answer(schemas.Provisioned, "Provisioned", _ETAG | located("ICE"), _LINKS)
    summary = "Provision an ICE; its token is shown only once"
    described = call("provisionIce", summary, {"201": provisioned}, 403, 409, body=NewIce)
    yield "/ices", "post", described
    outcomes = answer(schemas.BulkAnswer, "The outcome for each ICE")
    summary = "Act on many ICEs in one transaction"
    yield (
        "/ices/bulk",
        "post",
        call("bulk", summary, {"200": outcomes}, 403, body=one_of("action", *get_args(Bulk))),
    )
    shown = answer(schemas.IceDocument, "The ICE", _ETAG)
    yield one, "get", call("showIce", "Show an ICE", {"200": shown}, 403, 404)
    summary = "Merge labels into an ICE's, where null removes one, and set its note"
    refusals = (403, 404, 405)
    described = call("describeIce", summary, {"200": shown}, *refusals, body=IceChanges)
    yield one, "patch", described
    for method in ("put", "delete"):
        refused = {"default": problems(405)["405"]}
        yield one, method, call(f"{method}Ice", "Names are final", refused, 405)
    if_match = in_header(
        "If-Match", "Act only if the entry still has this entity tag", {"type": "string"}
    )
    for action, (summary, body, shape) in _ACTIONS.items():
        done = {"200": answer(shape, "Done", _ETAG, _LINKS)}
        described = call(
            *(f"{action}Ice", summary, done, 403, 404, 409, 412),
            parameters=[if_match],
            body=body,
            body_required=False,
        )
        yield f"{one}/{action}", "post", described
    for action, (summary, body) in _PAUSES.items():
        described = call(
            *(f"{action}Ice", summary, {"200": shown}, 403, 404, 409, 412),
            parameters=[if_match],
            body=body,
            body_required=False,
        )
        yield f"{one}/{action}", "post", described
    last = answer(schemas.ConnectionEvents, "The last 50")
    summary = "List an ICE's recent connections and refusals"
    yield f"{one}/connections", "get", call("listConnections", summary, {"200": last}, 403, 404)
    yield from _event_calls()
    yield from _operation_calls()
    yield from _pool_calls()
    yield from openapi_schedules.calls()
    yield from openapi_webhooks.calls()
    yield from openapi_accounts.calls()
    yield from _audit_calls()
    yield from _node_calls()


def _event_calls() -> Iterator[tuple[str, str, dict[str, Any]]]:
    summary, page = "List audit events, oldest first", schemas.EventPage
    described = listing("listEvents", summary, page, EventQuery, 403, 409, cursor="after")
    yield "/events", "get", described
    events = stream(
        "Audit",
        event("message", schemas.EventDocument, id=_EVENT_ID),
        event("reset", schemas.ResetDocument, id=_EVENT_ID),
        event("presence", schemas.PresenceDocument),
        event("refused", schemas.RefusedDocument),
    )
    resume = in_header("Last-Event-ID", "Resume after the event with this id or number", _EVENT_ID)
    summary = (
        "Audit events (`id` is seq and digest) and news of presence and refusals as they happen"
    )
    described = call("streamEvents", summary, {"200": events}, 403, 422, 429, parameters=[resume])
    yield "/events/stream", "get", described


def _operation_calls() -> Iterator[tuple[str, str, dict[str, Any]]]:
    one, shape = "/operations/{id}", operation_schemas.OperationDocument
    summary = "Request an operation; the same idempotency key returns the same operation"
    place = located("operation")
    answers = {
        "202": answer(shape, "Accepted and stored", place, _OPERATION_LINKS),
        "200": answer(shape, "It has finished", place, _OPERATION_LINKS),
    }
    refusals, waits = (403, 404, 409, 429), query(RequestQuery)
    described = call(
        "requestOperation", summary, answers, *refusals, parameters=waits, body=NewOperation
    )
    yield "/ices/{ice_name}/operations", "post", described
    summary = "Request an operation of any ICE of a pool, as of one ICE"
    described = call(
        "requestPoolOperation", summary, answers, *refusals, parameters=waits, body=NewOperation
    )
    yield "/pools/{name}/operations", "post", described
    summary = "List operations, newest first; a page of large ones may be shorter than its limit"
    described = listing("listOperations", summary, operation_schemas.OperationPage, OperationQuery)
    yield "/operations", "get", described
    shown = answer(shape, "The operation")
    yield one, "get", call("showOperation", "Show an operation", {"200": shown}, 404)
    events = stream(
        "Operation",
        event("log", LogDocument, id=_LOG_PLACE),
        event("state", operation_schemas.OperationState),
        event("progress", operation_schemas.ProgressDocument),
        event("result", shape),
    )
    summary = "The log, states and progress as they come; ends with the result"
    resume = in_header("Last-Event-ID", "Resume the log after the event with this id", _LOG_PLACE)
    described = call(
        "streamOperation", summary, {"200": events}, 404, 422, 429, parameters=[resume]
    )
    yield f"{one}/stream", "get", described
    log = download("What is kept of the log", "text/plain")
    summary = "What the ICE logged: the newest `operations.log_kept` bytes"
    yield f"{one}/log", "get", call("showOperationLog", summary, {"200": log}, 404)
    cancelled = answer(shape, "Cancelled")
    summary = "Cancel an operation at once; the gateway asks the ICE to stop"
    described = call("cancelOperation", summary, {"200": cancelled}, 403, 404, 409, body=NoMembers)
    yield f"{one}/cancel", "post", described


def _pool_calls() -> Iterator[tuple[str, str, dict[str, Any]]]:
    path, one = "/pools", "/pools/{name}"
    yield path, "get", listing("listPools", "List pools", pool_schemas.PoolPage, PoolQuery, 403)
    others = links("name", "$response.body#/name", ("showPool", "setPool", "deletePool"))
    pool = {"200": answer(pool_schemas.PoolDocument, "The pool", links=others)}
    yield one, "get", call("showPool", "Show a pool", pool, 403, 404)
    made = pool | {"201": answer(pool_schemas.PoolDocument, "Made", links=others)}
    summary = "Make a pool, or replace its labels, type and description"
    yield one, "put", call("setPool", summary, made, 403, body=NewPool)
    deleted = {"204": nothing("Deleted")}
    summary = "Delete a pool and revoke its API tokens"
    yield one, "delete", call("deletePool", summary, deleted, 403, 404, 409)


def _audit_calls() -> Iterator[tuple[str, str, dict[str, Any]]]:
    newest = {"200": answer(schemas.HeadDocument, "Keep it on another machine")}
    described = call("showAuditHead", "Number and digest of the newest event", newest, 403, 404)
    yield "/audit/head", "get", described
    verdict = {"200": answer(schemas.VerdictDocument, "The verdict")}
    summary = "Verify that no event up to the given head was changed or removed"
    kept = query(VerificationQuery)
    described = call("verifyAudit", summary, verdict, 403, 422, parameters=kept)
    yield "/audit/verification", "get", described
    exported = {"200": download("The file", *map(media_type, FORMATS))}
    summary, formats = "Export all events, oldest first", query(ExportQuery)
    described = call("exportAudit", summary, exported, 403, 422, 429, parameters=formats)
    yield "/audit/export", "get", described


def _node_calls() -> Iterator[tuple[str, str, dict[str, Any]]]:
    summary = "List the gateways that serve this database; none for an SQLite file"
    yield "/nodes", "get", listing("listNodes", summary, schemas.NodePage, NodeQuery, 403)
    others = links("name", "$response.body#/name", ("drainNode", "resumeNode"))
    node = {"200": answer(schemas.NodeDocument, "The node", links=others)}
    summary = "Send a node's ICEs to the others, and admit none until it is resumed"
    described = call(*("drainNode", summary, node, 403, 404, 409), body=Drain, body_required=False)
    yield "/nodes/{name}/drain", "post", described
    summary = "Let a drained node admit ICEs again"
    described = call("resumeNode", summary, node, 403, 404, body=NoMembers)
    yield "/nodes/{name}/resume", "post", described


def _paths() -> dict[str, dict[str, Any]]:
    paths: dict[str, dict[str, Any]] = {}
    for path, method, described in _calls():
        variables = [
            {"name": name, "in": "path", "required": True, **variable}
            for name, variable in _IN_PATH.items()
            if f"{{{name}}}" in path
        ]
        tagged = {"tags": [_TAGS.get(path, path.split("/")[1])], **described}
        paths.setdefault(path, {"parameters": variables} if variables else {})[method] = tagged
    return paths


@functools.cache
def document() -> dict[str, Any]:
    """The whole document."""
    paths = _paths()
    shapes = components()
    for shape in ("IceChanges", "BulkLabel", "BulkNewIce", "NewEnrolmentKey", "NewPool"):
        # Checked after the shape, so that a refusal names the key.
        shapes[shape]["properties"]["labels"]["propertyNames"] = {"pattern": f"^{LABEL_KEY}$"}
    shapes |= _new_ice(shapes["NewIce"]) | _new_operation(shapes["NewOperation"])
    shapes |= openapi_accounts.new_enrolment_key(shapes["NewEnrolmentKey"])
    examples = [{"action": "disconnect", "ice_names": ["lab-pc-7", "build-1"]}]
    shapes["BulkDisconnect"]["examples"] = examples
    shapes |= openapi_schedules.new_schedule(shapes["NewSchedule"])
    for shape in ("IceChanges", "ScheduleChanges", "UserChanges", "WebhookChanges"):
        shapes[shape]["minProperties"] = 1
    shapes["NewUser"]["examples"] = [{"name": "alice", "role": "member"}]
    shapes["UserChanges"]["examples"] = [
        {"disabled": True},
        {"disabled": True, "ices": {"to": "bob"}},
        {"origin": "sso", "subject": "248289761001"},
    ]
    shapes["PasswordChange"]["examples"] = [{"old": "the old password", "new": "a new password"}]
    shapes["NewApiToken"]["examples"] = [{"user": "alice", "name": "nightly build"}]
    shapes["NewPool"]["examples"] = [{"labels": {"os": "linux", "gpu": "yes"}}]
    shapes["NewWebhook"]["examples"] = [
        {
            "name": "ops",
            "url": "https://hooks.example.com/ice",
            "events": ["deregister", "ice.away"],
        }
    ]
    shapes["WebhookChanges"]["examples"] = [{"enabled": False}]
    shapes["ScheduleChanges"]["examples"] = [{"enabled": False}]
    shapes["IceChanges"]["examples"] = [
        {"labels": {"os": "windows", "site": None}, "note": "in loan"}
    ]
    shapes["ProblemDocument"]["properties"]["code"]["examples"] = sorted(CODES)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ICE Gateway admin API",
            "version": __version__,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"apiToken": []}, {"login": []}],
        "paths": paths,
        "components": {
            "schemas": shapes,
            "securitySchemes": {
                "apiToken": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API token; one made for an ICE or a pool may operate only that",
                },
                "login": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": COOKIE,
                    "description": (
                        f"The page's login; over https its name is {SECURE_COOKIE}. A change needs"
                        f" Origin and {FORM_TOKEN}, too"
                    ),
                },
            },
        },
    }


@functools.lru_cache(maxsize=8)  # one entry for each path prefix of `server.public_url`
def _encoded(server: str) -> bytes:
    return msgspec.json.encode({**document(), "servers": [{"url": server}]})


async def handle(request: web.Request) -> web.Response:
    """Serve the document with the API's address as the request named it."""
    return json_response(msgspec.Raw(_encoded(request.path.removesuffix("/openapi.json"))))
