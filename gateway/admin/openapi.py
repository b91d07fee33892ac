"""The OpenAPI 3.1 document of the admin API, generated from the shapes that its routes decode.

Tested in tests/gateway/admin/test_api.py and tests/api/test_api_document.py.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import msgspec
from aiohttp import web

from client.protocol import MAX_VALUE, OperationKind
from gateway import __version__
from gateway.admin.api.events import EventQuery
from gateway.admin.api.ices import Bulk, IceQuery, NewIce
from gateway.admin.api.operations import NewOperation, OperationQuery, RequestQuery
from gateway.admin.api.requests import NoMembers
from gateway.admin.auth import COOKIE, FORM_TOKEN, SECURE_COOKIE
from gateway.admin.openapi_builder import (
    BODY,
    REF,
    answer,
    call,
    event,
    header,
    next_page,
    query,
    stream,
)
from gateway.core.accounts import MAX_USER_NAME
from gateway.core.audit_event import ID_PATTERN
from gateway.core.ice import NAME_PATTERN, NAME_RULE, IceType
from gateway.core.operation import KEY_PATTERN
from gateway.core.problems import CODES
from gateway.services import schemas
from gateway.web.responses import DATA_HEADERS

_SHAPES: Final = (
    NewIce,
    NoMembers,
    Bulk,
    IceQuery,
    EventQuery,
    NewOperation,
    RequestQuery,
    OperationQuery,
    schemas.IceDocument,
    schemas.IcePage,
    schemas.Provisioned,
    schemas.Renewed,
    schemas.Ended,
    schemas.BulkAnswer,
    schemas.ConnectionEvents,
    schemas.EventPage,
    schemas.PresenceDocument,
    schemas.RefusedDocument,
    schemas.ResetDocument,
    schemas.OperationDocument,
    schemas.OperationPage,
    schemas.OperationState,
    schemas.ProblemDocument,
)
_NAME: Final = {
    "name": "ice_name",
    "in": "path",
    "required": True,
    "description": f"The ICE's name, case ignored: {NAME_RULE}",
    "schema": {"type": "string", "pattern": f"^{NAME_PATTERN}$"},
}
_IF_MATCH: Final = {
    "name": "If-Match",
    "in": "header",
    "description": "Act only if the entry still has this entity tag",
    "schema": {"type": "string"},
}
_LINKS: Final = {
    operation_id: {
        "operationId": operation_id,
        "parameters": {"ice_name": "$response.body#/ice/ice_name"},
    }
    for operation_id in (
        "showIce",
        "reprovisionIce",
        "reregisterIce",
        "deregisterIce",
        "disconnectIce",
        "listConnections",
    )
}
_ABOUT: Final = (
    "Every error is a problem document (RFC 9457) with a stable `code`. In addition to the statuses of each"
    " call, any request may be answered 400 (invalid HTTP), 404 (no such address), 405 (`Allow` names the"
    " allowed methods), 414, 417, 431 (address, Expect, headers) or 500."
)
_ETAG: Final = {"ETag": header("The generation", {"type": "string", "pattern": '^"[1-9][0-9]*"$'})}
_EVENT_ID: Final = {"type": "string", "pattern": f"^{ID_PATTERN}$"}
_REFERENCE: Final = {"type": "string", "format": "uri-reference"}
_OPERATION_ID: Final = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1},
}
_OPERATION_LINKS: Final = {
    operation_id: {"operationId": operation_id, "parameters": {"id": "$response.body#/id"}}
    for operation_id in ("showOperation", "cancelOperation")
}


def _action(name: str, summary: str, shape: type) -> dict[str, Any]:
    answers = {"200": answer(shape, "Done", _ETAG, _LINKS)}
    return {
        "parameters": [_NAME],
        "post": call(
            name,
            summary,
            answers,
            403,
            404,
            409,
            412,
            *BODY,
            parameters=[_IF_MATCH],
            body=NoMembers,
            body_required=False,
        ),
    }


def _located(what: str) -> dict[str, Any]:
    return {"Location": header(f"The {what}", _REFERENCE)}


def _new_ice(schema: dict[str, Any]) -> dict[str, Any]:
    """Add the rules that the shape does not express: the name's pattern, and which type has a user."""
    kinds = {
        IceType.NORMAL: {"type": "string", "minLength": 1, "maxLength": MAX_USER_NAME},
        IceType.CI_CD: {"type": "null"},
    }
    schema["properties"]["ice_name"]["pattern"] = f"^{NAME_PATTERN}$"
    schema["examples"] = [
        {"ice_name": "lab-pc-7", "ice_type": "normal", "provisionedto": "alice"},
        {"ice_name": "build-1", "ice_type": "ci-cd"},
    ]
    return schema | {
        "oneOf": [
            {
                "properties": {"ice_type": {"const": kind.value}, "provisionedto": owner},
                "required": ["provisionedto"] if kind is IceType.NORMAL else [],
            }
            for kind, owner in kinds.items()
        ]
    }


def _new_operation(schema: dict[str, Any]) -> dict[str, Any]:
    """Add the rules that the shape does not express: the key's pattern, and which kind has `run_at`."""
    schema["properties"]["idempotency_key"]["anyOf"][0]["pattern"] = f"^{KEY_PATTERN}$"
    schema["properties"]["params"]["description"] = f"Any JSON, of at most {MAX_VALUE:,} bytes"
    schema["examples"] = [{"kind": "remote-execute", "params": {"suite": "smoke"}}]
    others = [kind.value for kind in OperationKind if kind is not OperationKind.SCHEDULE]
    return schema | {
        "oneOf": [
            {
                "properties": {
                    "kind": {"const": OperationKind.SCHEDULE.value},
                    "run_at": {"type": "string", "format": "date-time"},
                },
                "required": ["run_at"],
            },
            {"properties": {"kind": {"enum": others}, "run_at": {"type": "null"}}},
        ]
    }


def _operations(queries: dict[str, Any]) -> dict[str, Any]:
    """The paths of operations."""

    def one(description: str, links: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        return answer(schemas.OperationDocument, description, more, links)

    located = _located("operation")
    return {
        "/ices/{ice_name}/operations": {
            "parameters": [_NAME],
            "post": call(
                "requestOperation",
                "Request an operation; the same idempotency key returns the same operation",
                {
                    "202": one("Accepted and stored", _OPERATION_LINKS, **located),
                    "200": one("It has finished", _OPERATION_LINKS, **located),
                },
                403,
                404,
                409,
                429,
                *BODY,
                parameters=query(queries["RequestQuery"]),
                body=NewOperation,
            ),
        },
        "/operations": {
            "get": call(
                "listOperations",
                "List operations, newest first; a page of large ones may be shorter than its limit",
                {
                    "200": answer(
                        schemas.OperationPage,
                        "A page",
                        links=next_page("listOperations", "cursor"),
                    )
                },
                422,
                parameters=query(queries["OperationQuery"]),
            ),
        },
        "/operations/{id}": {
            "parameters": [_OPERATION_ID],
            "get": call("showOperation", "Show an operation", {"200": one("The operation")}, 404),
        },
        "/operations/{id}/stream": {
            "parameters": [_OPERATION_ID],
            "get": call(
                "streamOperation",
                "States and progress as they come; ends with the result",
                {
                    "200": stream(
                        event("state", schemas.OperationState),
                        event("progress", schemas.ProgressDocument),
                        event("result", schemas.OperationDocument),
                    )
                },
                404,
                429,
            ),
        },
        "/operations/{id}/cancel": {
            "parameters": [_OPERATION_ID],
            "post": call(
                "cancelOperation",
                "Cancel an operation at once; the gateway asks the ICE to stop",
                {"200": one("Cancelled")},
                403,
                404,
                409,
                *BODY,
                body=NoMembers,
                body_required=False,
            ),
        },
    }


@functools.cache
def document() -> dict[str, Any]:
    """The whole document."""
    _, components = msgspec.json.schema_components(_SHAPES, ref_template=REF)
    shapes = (IceQuery, EventQuery, OperationQuery, RequestQuery)
    queries = {shape.__name__: components.pop(shape.__name__) for shape in shapes}
    components["NewIce"] = _new_ice(components["NewIce"])
    components["NewOperation"] = _new_operation(components["NewOperation"])
    components["Bulk"]["examples"] = [
        {"action": "disconnect", "ice_names": ["lab-pc-7", "build-1"]}
    ]
    components["ProblemDocument"]["properties"]["code"]["examples"] = sorted(CODES)
    final = {
        method: call(f"{method}Ice", "Names are final", {}, 405)
        for method in ("put", "patch", "delete")
    }
    paths = {
        "/ices": {
            "get": call(
                "listIces",
                "List ICEs by name",
                {"200": answer(schemas.IcePage, "A page", links=next_page("listIces", "cursor"))},
                403,
                422,
                parameters=query(queries["IceQuery"]),
            ),
            "post": call(
                "provisionIce",
                "Provision an ICE; its token is shown only once",
                {
                    "201": answer(
                        schemas.Provisioned, "Provisioned", _ETAG | _located("ICE"), _LINKS
                    )
                },
                403,
                409,
                *BODY,
                body=NewIce,
            ),
        },
        "/ices/bulk": {
            "post": call(
                "bulk",
                "Deregister or disconnect many ICEs in one transaction",
                {"200": answer(schemas.BulkAnswer, "The outcome for each ICE")},
                403,
                *BODY,
                body=Bulk,
            )
        },
        "/ices/{ice_name}": {
            "parameters": [_NAME],
            "get": call(
                "showIce",
                "Show an ICE",
                {"200": answer(schemas.IceDocument, "The ICE", _ETAG)},
                403,
                404,
            ),
            **final,
        },
        "/ices/{ice_name}/reprovision": _action(
            "reprovisionIce", "Replace a token lost before registration", schemas.Renewed
        ),
        "/ices/{ice_name}/reregister": _action(
            "reregisterIce", "Let an ICE register again; drops its session", schemas.Renewed
        ),
        "/ices/{ice_name}/deregister": _action(
            "deregisterIce", "Deactivate an ICE; drops its session", schemas.Ended
        ),
        "/ices/{ice_name}/disconnect": _action(
            "disconnectIce", "Close an ICE's session; it may reconnect", schemas.Ended
        ),
        "/ices/{ice_name}/connections": {
            "parameters": [_NAME],
            "get": call(
                "listConnections",
                "List an ICE's recent connections and refusals",
                {"200": answer(schemas.ConnectionEvents, "The last 50")},
                403,
                404,
            ),
        },
        "/events": {
            "get": call(
                "listEvents",
                "List audit events, oldest first",
                {
                    "200": answer(
                        schemas.EventPage, "A page", links=next_page("listEvents", "after")
                    )
                },
                403,
                409,
                422,
                parameters=query(queries["EventQuery"]),
            )
        },
        "/events/stream": {
            "get": call(
                "streamEvents",
                "Audit events (`id` is seq and digest) and news of presence and refusals as they happen",
                {
                    "200": stream(
                        event("message", schemas.EventDocument, id=_EVENT_ID),
                        event("reset", schemas.ResetDocument, id=_EVENT_ID),
                        event("presence", schemas.PresenceDocument),
                        event("refused", schemas.RefusedDocument),
                    )
                },
                403,
                422,
                429,
                parameters=[
                    {
                        "name": "Last-Event-ID",
                        "in": "header",
                        "description": "Resume after the event with this id or number",
                        "schema": _EVENT_ID,
                    }
                ],
            )
        },
        **_operations(queries),
    }
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
            "schemas": components,
            "securitySchemes": {
                "apiToken": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API token; one made for an ICE may operate only that ICE",
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
    return web.Response(
        body=_encoded(request.path.removesuffix("/openapi.json")),
        content_type="application/json",
        headers=DATA_HEADERS,
    )
