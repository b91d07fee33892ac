"""The calls of the OpenAPI document by which users, API tokens and enrolled machines come and go.

Tested in tests/gateway/admin/test_api.py and tests/api/test_api_document.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateway.admin.api.api_tokens import ApiTokenQuery, NewApiToken
from gateway.admin.api.enrolments import EnrolmentKeyQuery, EnrolmentQuery, NewEnrolmentKey
from gateway.admin.api.requests import NoMembers
from gateway.admin.api.users import NewUser, PasswordChange, UserChanges, UserQuery
from gateway.admin.openapi_builder import (
    answer,
    call,
    links,
    listing,
    located,
    nothing,
    variant,
    variants,
)
from gateway.core.accounts import MAX_USER_NAME
from gateway.core.enrolment import PREFIX_PATTERN
from gateway.core.ice import IceType
from gateway.services import account_schemas, enrolment_schemas


def calls() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """These calls with path and method."""
    yield from _user_calls()
    yield from _api_token_calls()
    yield from _enrolment_calls()


def _user_calls() -> Iterator[tuple[str, str, dict[str, Any]]]:
    one, others = "/users/{name}", links("name", "$response.body#/name", ("showUser", "changeUser"))
    yield (
        "/users",
        "get",
        listing("listUsers", "List users", account_schemas.UserPage, UserQuery, 403),
    )
    added = {"201": answer(account_schemas.UserDocument, "Added", located("user"), others)}
    yield "/users", "post", call("addUser", "Add a user", added, 403, 409, body=NewUser)
    user = {"200": answer(account_schemas.UserDocument, "The user", links=others)}
    yield one, "get", call("showUser", "Show a user", user, 403, 404)
    changed_user = answer(account_schemas.ChangedUserDocument, "The user", links=others)
    summary = (
        "Change a user's role, password or origin, disable or enable them: all of it or nothing"
    )
    described = call("changeUser", summary, {"200": changed_user}, 403, 404, 409, body=UserChanges)
    yield one, "patch", described
    caller = {"200": answer(account_schemas.MeDocument, "The caller")}
    yield "/me", "get", call("showMe", "Show the caller", caller, 403)
    changed = {"204": nothing("Changed; the caller's other logins have ended")}
    summary = "Change the caller's password; a wrong old one counts as a failed login"
    described = call("setMyPassword", summary, changed, 403, 409, 429, body=PasswordChange)
    yield "/me/password", "post", described


def _api_token_calls() -> Iterator[tuple[str, str, dict[str, Any]]]:
    one, path = "/api-tokens/{id}", "/api-tokens"
    summary, page = (
        "List API tokens, newest first; a member's own ones",
        account_schemas.ApiTokenPage,
    )
    yield path, "get", listing("listApiTokens", summary, page, ApiTokenQuery, 403)
    token = "$response.body#/api_token/id"  # noqa: S105 - where an id is
    others = links("id", token, ("showApiToken", "revokeApiToken"))
    made = {"201": answer(account_schemas.ApiTokenMade, "Created", located("API token"), others)}
    summary = "Create an API token; its text is shown only once"
    yield path, "post", call("createApiToken", summary, made, 403, body=NewApiToken)
    shown = {"200": answer(account_schemas.ApiTokenDocument, "The API token")}
    yield one, "get", call("showApiToken", "Show an API token", shown, 403, 404)
    revoked = {"204": nothing("Revoked, now or before")}
    yield one, "delete", call("revokeApiToken", "Revoke an API token", revoked, 403, 404)


def _enrolment_calls() -> Iterator[tuple[str, str, dict[str, Any]]]:
    path, one = "/enrolment-keys", "/enrolment-keys/{id}"
    summary, page = "List enrolment keys, newest first", enrolment_schemas.EnrolmentKeyPage
    yield path, "get", listing("listEnrolmentKeys", summary, page, EnrolmentKeyQuery, 403)
    new_id = "$response.body#/enrolment_key/id"
    others = links("id", new_id, ("showEnrolmentKey", "revokeEnrolmentKey"))
    shape = enrolment_schemas.EnrolmentKeyMade
    made = {"201": answer(shape, "Created", located("enrolment key"), others)}
    summary = "Make an enrolment key; its secret is shown only once"
    yield path, "post", call("createEnrolmentKey", summary, made, 403, body=NewEnrolmentKey)
    shown = {"200": answer(enrolment_schemas.EnrolmentKeyDocument, "The enrolment key")}
    yield one, "get", call("showEnrolmentKey", "Show an enrolment key", shown, 403, 404)
    revoked = {"204": nothing("Revoked, now or before")}
    yield one, "delete", call("revokeEnrolmentKey", "Revoke an enrolment key", revoked, 403, 404)
    path, one = "/enrolments", "/enrolments/{id}"
    summary, waiting = "List enrolments, oldest first", enrolment_schemas.EnrolmentPage
    yield path, "get", listing("listEnrolments", summary, waiting, EnrolmentQuery, 403)
    shown = {"200": answer(enrolment_schemas.EnrolmentDocument, "The enrolment")}
    yield one, "get", call("showEnrolment", "Show an enrolment", shown, 403, 404)
    for decision, summary in (
        ("approve", "Let a machine have its ICE; its next poll brings the token"),
        ("reject", "Refuse a machine its ICE"),
    ):
        described = call(f"{decision}Enrolment", summary, shown, 403, 404, 409, body=NoMembers)
        yield f"{one}/{decision}", "post", described


def new_enrolment_key(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The schemas of an enrolment key to make: one for each type, since only normal ICEs have a user."""
    schema["properties"]["name_prefix"]["pattern"] = f"^{PREFIX_PATTERN}$"
    user = {"type": "string", "minLength": 1, "maxLength": MAX_USER_NAME}
    normal = {"ice_type": {"const": IceType.NORMAL.value}, "provisionedto": user}
    ci_cd = {"ice_type": {"const": IceType.CI_CD.value}, "provisionedto": {"type": "null"}}
    names = {
        IceType.NORMAL.value: "NewNormalEnrolmentKey",
        IceType.CI_CD.value: "NewCiCdEnrolmentKey",
    }
    examples = [{"name": "runners", "ice_type": "ci-cd", "name_prefix": "ci-", "max_uses": 200}]
    return {
        "NewNormalEnrolmentKey": variant("NewNormalEnrolmentKey", schema, normal, "provisionedto"),
        "NewCiCdEnrolmentKey": variant("NewCiCdEnrolmentKey", schema, ci_cd),
        "NewEnrolmentKey": variants("ice_type", names) | {"examples": examples},
    }
