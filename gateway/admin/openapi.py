"""The OpenAPI 3.1 document: made from the routes' own shapes, so that it cannot fall behind them."""

from __future__ import annotations

import functools
from typing import Any, Final

import msgspec
from aiohttp import web

from gateway import __version__, documents
from gateway.admin.api.events import SEQ_PATTERN, EventQuery
from gateway.admin.api.ices import Bulk, IceQuery, NewIce
from gateway.admin.auth import COOKIE, FORM_TOKEN
from gateway.errors import CODES
from gateway.ice import NAME_PATTERN, NAME_RULE, IceType
from gateway.store.accounts import MAX_USER_NAME

_REF: Final = "#/components/schemas/{name}"
_SHAPES: Final = (
    NewIce,
    Bulk,
    IceQuery,
    EventQuery,
    documents.IceDocument,
    documents.IcePage,
    documents.Provisioned,
    documents.Renewed,
    documents.Ended,
    documents.BulkAnswer,
    documents.Happenings,
    documents.EventPage,
    documents.Presence,
    documents.ProblemDocument,
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
    "Every error is a problem document (RFC 9457) with a stable `code`. Beside what stands at each call,"
    " any request may be answered 400 (not proper HTTP), 404 (nothing at this address), 405 (not this"
    " method: `Allow` names those there are), 414, 417, 431 (address, Expect, headers) or 500."
)
_TITLES: Final = {
    400: "Not JSON",
    401: "Not authenticated",
    403: "Not allowed for this role, or this API token",
    404: "Not registered, or not to be seen by this caller",
    405: "Names cannot be changed or deleted",
    408: "The request did not arrive in time",
    409: "Not possible: the name exists, or the status is another",
    412: "The entry has moved on",
    413: "Larger than 1 MiB",
    415: "Not application/json",
    422: "A field is not valid",
    429: "Too many event streams of this user",
    503: "The store or the keys are not available",
}
_BODY: Final = (400, 408, 413, 415, 422)


def _header(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "required": True, "schema": schema}


_NO_STORE: Final = {"Cache-Control": _header("Nothing is kept", {"const": "no-store"})}
_ETAG: Final = {"ETag": _header("The generation", {"type": "string", "pattern": '^"[1-9][0-9]*"$'})}
_LOCATION: Final = {"Location": _header("The ICE", {"type": "string", "format": "uri-reference"})}
_ERROR_HEADERS: Final = {
    401: {"WWW-Authenticate": _header("How to authenticate", {"const": "Bearer"})},
    405: {"Allow": _header("The methods there are", {"type": "string", "minLength": 1})},
}


def _answer(
    shape: type,
    description: str,
    headers: dict[str, Any] | None = None,
    links: dict[str, Any] | None = None,
) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": description,
        "headers": _NO_STORE | (headers or {}),
        "content": {"application/json": {"schema": _ref(shape)}},
    }
    return answer | ({"links": links} if links else {})


def _next(operation_id: str, parameter: str) -> dict[str, Any]:
    """To the page behind this one."""
    parameters = {parameter: "$response.body#/next"}
    return {"next": {"operationId": operation_id, "parameters": parameters}}


def _ref(shape: type) -> dict[str, str]:
    return {"$ref": _REF.format(name=shape.__name__)}


def _stream() -> dict[str, Any]:
    """The events of a stream, each by its fields."""
    number = {"type": "string", "pattern": f"^{SEQ_PATTERN}$"}

    def event(name: str, shape: type, **more: dict[str, Any]) -> dict[str, Any]:
        data = {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": _ref(shape),
        }
        properties = {"event": {"const": name}, "data": data, **more}
        return {"type": "object", "properties": properties, "required": list(properties)}

    return {
        "oneOf": [
            event("message", documents.EventDocument, id=number),
            event("presence", documents.Presence),
        ]
    }


def _problems(*statuses: int) -> dict[str, Any]:
    return {
        str(status): {
            "description": _TITLES[status],
            "headers": _NO_STORE | _ERROR_HEADERS.get(status, {}),
            "content": {"application/problem+json": {"schema": _ref(documents.ProblemDocument)}},
        }
        for status in sorted({401, 503, *statuses})
    }


def _operation(
    operation_id: str,
    summary: str,
    answers: dict[str, Any],
    *statuses: int,
    parameters: list[dict[str, Any]] | None = None,
    body: type | None = None,
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": operation_id,
        "summary": summary,
        "responses": answers | _problems(*statuses),
    }
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _ref(body)}},
        }
    return operation


def _query(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The parameters of a query shape; an empty one counts as not given."""
    return [
        {"name": name, "in": "query", "allowEmptyValue": True, "schema": property_schema}
        for name, property_schema in schema["properties"].items()
    ]


def _action(name: str, summary: str, shape: type) -> dict[str, Any]:
    answers = {"200": _answer(shape, "Done", _ETAG, _LINKS)}
    return {
        "parameters": [_NAME],
        "post": _operation(name, summary, answers, 403, 404, 409, 412, parameters=[_IF_MATCH]),
    }


def _new_ice(schema: dict[str, Any]) -> dict[str, Any]:
    """With the rules that the shape alone does not say: the name's, and who has a user."""
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


@functools.cache
def document() -> dict[str, Any]:
    """The whole document."""
    _, schemas = msgspec.json.schema_components(_SHAPES, ref_template=_REF)
    ice_query, event_query = schemas.pop("IceQuery"), schemas.pop("EventQuery")
    schemas["NewIce"] = _new_ice(schemas["NewIce"])
    schemas["Bulk"]["examples"] = [{"action": "disconnect", "ice_names": ["lab-pc-7", "build-1"]}]
    schemas["ProblemDocument"]["properties"]["code"]["examples"] = sorted(CODES)
    final = {
        method: _operation(f"{method}Ice", "Names are final", {}, 405)
        for method in ("put", "patch", "delete")
    }
    paths = {
        "/ices": {
            "get": _operation(
                "listIces",
                "List ICEs by name",
                {"200": _answer(documents.IcePage, "A page", links=_next("listIces", "cursor"))},
                403,
                422,
                parameters=_query(ice_query),
            ),
            "post": _operation(
                "provisionIce",
                "Provision an ICE; its token is shown this once",
                {"201": _answer(documents.Provisioned, "Provisioned", _ETAG | _LOCATION, _LINKS)},
                403,
                409,
                *_BODY,
                body=NewIce,
            ),
        },
        "/ices/bulk": {
            "post": _operation(
                "bulk",
                "Deregister or disconnect many ICEs in one transaction",
                {"200": _answer(documents.BulkAnswer, "What became of each")},
                403,
                *_BODY,
                body=Bulk,
            )
        },
        "/ices/{ice_name}": {
            "parameters": [_NAME],
            "get": _operation(
                "showIce",
                "Show an ICE",
                {"200": _answer(documents.IceDocument, "The ICE", _ETAG)},
                403,
                404,
            ),
            **final,
        },
        "/ices/{ice_name}/reprovision": _action(
            "reprovisionIce", "Replace a token lost before registration", documents.Renewed
        ),
        "/ices/{ice_name}/reregister": _action(
            "reregisterIce", "Let an ICE register again; drops its session", documents.Renewed
        ),
        "/ices/{ice_name}/deregister": _action(
            "deregisterIce", "Deactivate an ICE; drops its session", documents.Ended
        ),
        "/ices/{ice_name}/disconnect": _action(
            "disconnectIce", "Close an ICE's session; it may come back", documents.Ended
        ),
        "/ices/{ice_name}/connections": {
            "parameters": [_NAME],
            "get": _operation(
                "listConnections",
                "What became of an ICE's recent connections",
                {"200": _answer(documents.Happenings, "The last 50")},
                403,
                404,
            ),
        },
        "/events": {
            "get": _operation(
                "listEvents",
                "List audit events, oldest first",
                {"200": _answer(documents.EventPage, "A page", links=_next("listEvents", "after"))},
                403,
                422,
                parameters=_query(event_query),
            )
        },
        "/events/stream": {
            "get": _operation(
                "streamEvents",
                "Audit events (`id` is their seq) and `presence` events as they happen",
                {
                    "200": {
                        "description": "Server-sent events",
                        "headers": _NO_STORE,
                        "content": {"text/event-stream": {"schema": _stream()}},
                    }
                },
                403,
                422,
                429,
                parameters=[
                    {
                        "name": "Last-Event-ID",
                        "in": "header",
                        "description": "Resume behind this event",
                        "schema": {"type": "string", "pattern": f"^{SEQ_PATTERN}$"},
                    }
                ],
            )
        },
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
            "schemas": schemas,
            "securitySchemes": {
                "apiToken": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API token; one made for an ICE may operate that alone",
                },
                "login": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": COOKIE,
                    "description": f"The page's login; a change needs Origin and {FORM_TOKEN}, too",
                },
            },
        },
    }


@functools.lru_cache(maxsize=8)  # there are as many addresses as `server.public_url` has prefixes
def _encoded(server: str) -> bytes:
    return msgspec.json.encode({**document(), "servers": [{"url": server}]})


async def handle(request: web.Request) -> web.Response:
    """The document, with the address under which it was asked for."""
    return web.Response(
        body=_encoded(request.path.removesuffix("/openapi.json")),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
