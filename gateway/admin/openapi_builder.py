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
_FRAMES: Final[dict[str, dict[str, Any]]] = {}
"""The schemas of the events of streams, by name."""
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
    429: "Too many streams, exports or attempts of this user, or too many operations of this ICE",
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


def located(what: str) -> dict[str, Any]:
    """The header with the address of what was made."""
    return {"Location": header(f"The {what}", {"type": "string", "format": "uri-reference"})}


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
    return _ref_to(shape.__name__)


def _ref_to(name: str) -> dict[str, str]:
    return {"$ref": _REF.format(name=name)}


def variants(tag: str, names: dict[str, str]) -> dict[str, Any]:
    """The schema of what its member `tag` tells apart; `names` are the schemas by the value of the tag."""
    return {
        "oneOf": [_ref_to(name) for name in dict.fromkeys(names.values())],
        "discriminator": {
            "propertyName": tag,
            "mapping": {value: _REF.format(name=name) for value, name in names.items()},
        },
    }


def either(*names: str) -> dict[str, Any]:
    """The schema of what has one of these schemas."""
    return {"oneOf": [_ref_to(name) for name in names]}


def variant(
    name: str, schema: dict[str, Any], properties: dict[str, Any], *required: str
) -> dict[str, Any]:
    """A schema in which some properties are narrower, or required, too."""
    return schema | {
        "title": name,
        "properties": schema["properties"] | properties,
        "required": [*schema["required"], *required],
    }


def one_of(tag: str, *shapes: type[msgspec.Struct]) -> dict[str, Any]:
    """The schema of a body in one of these shapes, which its member `tag` tells apart."""
    _SHAPES.update(dict.fromkeys(shapes))
    return variants(tag, {str(shape.__struct_config__.tag): shape.__name__ for shape in shapes})


def components() -> dict[str, Any]:
    """The schemas of all shapes that were referred to, and of the events of streams."""
    shapes = msgspec.json.schema_components(_SHAPES, ref_template=_REF)[1]
    return {name: _simplified(schema) for name, schema in (shapes | _FRAMES).items()}


def _simplified(schema: Any) -> Any:
    """Without defaults of null, which generators send, and without alternatives to what allows everything."""
    if isinstance(schema, list):
        return [_simplified(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _simplified(value)
        for key, value in schema.items()
        if not (key == "default" and value is None) and not (key == "anyOf" and {} in value)
    }


def event(name: str, shape: type, **more: dict[str, Any]) -> dict[str, Any]:
    """One event of a stream; `more` are its fields besides `event` and `data`.

    Its schema has a name, and so has that of its data, so that a client can refer to them.
    """
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": ref(shape),
    }
    properties = {"event": {"const": name}, "data": data, **more}
    return {"type": "object", "properties": properties, "required": list(properties)}


def stream(name: str, *events: dict[str, Any]) -> dict[str, Any]:
    """An answer of server-sent events; `name` begins the names of their schemas."""
    names = {}
    for each in events:
        value = each["properties"]["event"]["const"]
        names[value] = f"{name}{value.capitalize()}Event"
        _FRAMES[names[value]] = each
    return {
        "description": "Server-sent events; the schema describes one of them, whose `data` is JSON",
        "headers": NO_STORE,
        "content": {"text/event-stream": {"schema": variants("event", names)}},
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
        {
            "name": name,
            "in": "query",
            "allowEmptyValue": True,
            "schema": _simplified(property_schema),
        }
        for name, property_schema in schemas_by_name[shape.__name__]["properties"].items()
    ]
