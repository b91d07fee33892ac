"""Builders for parts of the OpenAPI document: calls, answers, refusals, headers, streams.

Tested in tests/gateway/admin/test_api.py and tests/api/test_api_document.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from gateway.admin.api.requests import NoMembers
from gateway.services import schemas

_REF: Final = "#/components/schemas/{name}"
_SHAPES: Final[dict[type, None]] = {}
"""The shapes that `ref` has named, in that order."""
_TITLES: Final = {
    400: "Not JSON",
    401: "Not authenticated",
    403: "Not allowed for this role, or this API token",
    404: "Not there, or not visible to this caller",
    405: "Names cannot be changed or deleted",
    408: "The request did not arrive in time",
    409: "Conflict: the name exists, the type, status or state forbids it, or the log ends earlier",
    412: "The entry has changed",
    413: "Larger than 1 MiB",
    415: "Not application/json",
    422: "A field is not valid",
    429: "Too many streams or attempts of this user, or too many operations of this ICE",
    503: "The store or the keys are not available",
}
_BODY: Final = (400, 408, 413, 415, 422)


def header(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A header that every answer has."""
    return {"description": description, "required": True, "schema": schema}


NO_STORE: Final = {"Cache-Control": header("Must not be cached", {"const": "no-store"})}
_ERROR_HEADERS: Final = {
    401: {"WWW-Authenticate": header("How to authenticate", {"const": "Bearer"})},
    405: {"Allow": header("The allowed methods", {"type": "string", "minLength": 1})},
}


def answer(
    shape: type,
    description: str,
    headers: dict[str, Any] | None = None,
    links: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """An answer in JSON."""
    described: dict[str, Any] = {
        "description": description,
        "headers": NO_STORE | (headers or {}),
        "content": {"application/json": {"schema": ref(shape)}},
    }
    return described | ({"links": links} if links else {})


def nothing(description: str) -> dict[str, Any]:
    """An answer without a body (204)."""
    return {"description": description, "headers": NO_STORE}


def links(parameter: str, value: str, operation_ids: Iterable[str]) -> dict[str, Any]:
    """Links from an answer to calls whose `parameter` is the `value` in it."""
    return {
        operation_id: {"operationId": operation_id, "parameters": {parameter: value}}
        for operation_id in operation_ids
    }


def ref(shape: type) -> dict[str, str]:
    """A reference to the schema of a shape, which is then among `components`."""
    _SHAPES[shape] = None
    return {"$ref": _REF.format(name=shape.__name__)}


def one_of(tag: str, *shapes: type[msgspec.Struct]) -> dict[str, Any]:
    """The schema of a body in one of these shapes, which its member `tag` tells apart."""
    mapping = {str(shape.__struct_config__.tag): ref(shape)["$ref"] for shape in shapes}
    return {
        "oneOf": [ref(shape) for shape in shapes],
        "discriminator": {"propertyName": tag, "mapping": mapping},
    }


def components() -> dict[str, Any]:
    """The schemas of all shapes that were referred to."""
    return msgspec.json.schema_components(_SHAPES, ref_template=_REF)[1]


def event(name: str, shape: type, **more: dict[str, Any]) -> dict[str, Any]:
    """One event of a stream; `more` are its fields besides `event` and `data`."""
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": ref(shape),
    }
    properties = {"event": {"const": name}, "data": data, **more}
    return {"type": "object", "properties": properties, "required": list(properties)}


def stream(*events: dict[str, Any]) -> dict[str, Any]:
    """An answer of server-sent events."""
    return {
        "description": "Server-sent events",
        "headers": NO_STORE,
        "content": {"text/event-stream": {"schema": {"oneOf": list(events)}}},
    }


def download(description: str, *media_types: str) -> dict[str, Any]:
    """A file in one of these types."""
    return {
        "description": description,
        "headers": NO_STORE,
        "content": {
            media_type.partition(";")[0]: {"schema": {"type": "string"}}
            for media_type in media_types
        },
    }


def problems(*statuses: int) -> dict[str, Any]:
    """The refusals of a call, by status."""
    return {
        str(status): {
            "description": _TITLES[status],
            "headers": NO_STORE | _ERROR_HEADERS.get(status, {}),
            "content": {"application/problem+json": {"schema": ref(schemas.ProblemDocument)}},
        }
        for status in sorted({401, 503, *statuses})
    }


def call(
    operation_id: str,
    summary: str,
    answers: dict[str, Any],
    *statuses: int,
    parameters: list[dict[str, Any]] | None = None,
    body: type | dict[str, Any] | None = None,
    body_required: bool = True,
) -> dict[str, Any]:
    """One call: its answers, and the statuses of its refusals besides those of any body.

    The body is a shape, or a schema that refers to several.
    """
    described: dict[str, Any] = {
        "operationId": operation_id,
        "summary": summary,
        "responses": answers | problems(*statuses, *(() if body is None else _BODY)),
    }
    if parameters:
        described["parameters"] = parameters
    if body is not None:
        described["requestBody"] = {
            "required": body_required and body is not NoMembers,
            "content": {
                "application/json": {"schema": body if isinstance(body, dict) else ref(body)}
            },
        }
    return described


def listing(
    operation_id: str,
    summary: str,
    page: type,
    filters: type,
    *statuses: int,
    cursor: str = "cursor",
) -> dict[str, Any]:
    """A call that answers with a page; the parameter `cursor` takes the `next` of the page before."""
    next_page = {"operationId": operation_id, "parameters": {cursor: "$response.body#/next"}}
    answers = {"200": answer(page, "A page", links={"next": next_page})}
    return call(operation_id, summary, answers, 422, *statuses, parameters=query(filters))


def in_header(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A header that a request may have."""
    return {"name": name, "in": "header", "description": description, "schema": schema}


def query(shape: type) -> list[dict[str, Any]]:
    """The parameters of a query shape; an empty one counts as not given."""
    _, schemas_by_name = msgspec.json.schema_components((shape,), ref_template=_REF)
    return [
        {"name": name, "in": "query", "allowEmptyValue": True, "schema": property_schema}
        for name, property_schema in schemas_by_name[shape.__name__]["properties"].items()
    ]
