"""The JSON objects of users and API tokens, beside those of `services.schemas`.

Tested in tests/gateway/admin/api/test_users.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.core.accounts import ApiToken, Origin, TokenState
from gateway.core.ice import Action, Status
from gateway.core.revocation import Drop
from gateway.core.roles import Role
from gateway.services.accounts import AccountService
from gateway.services.leavers import Left
from gateway.services.schemas import Time, described
from gateway.services.user_changes import Changed
from gateway.store.accounts import ListedUser


class UserDocument(msgspec.Struct, kw_only=True):
    """A user: the number of ICEs tagged to them and of their logins now, and when they last logged in.

    `origin` is null for a user from before single sign-on; `subject` is the issuer's name of a user of origin `sso`.
    """

    name: str
    role: Role
    createdon: Time
    disabledon: Time | None
    has_password: bool
    origin: Origin | None
    subject: str | None
    ices: int
    logins: int
    lastlogin: Time | None


class LeaverIceDocument(msgspec.Struct, omit_defaults=True):
    """An ICE that a disabled user had, with its status now and the action that was done; without one it stays.

    `token` is shown only this once.
    """

    ice_name: str
    status: Status
    action: Action | None = None
    token: str | None = None


class LeftDocument(msgspec.Struct):
    """What became of the ICEs of a disabled user."""

    items: list[LeaverIceDocument]
    dropped: list[Drop]
    unconfirmed: list[str]


class ChangedUserDocument(UserDocument, kw_only=True):
    """A user after a change; `left` only if the change said what becomes of their ICEs."""

    left: LeftDocument | msgspec.UnsetType = msgspec.UNSET


class UserPage(msgspec.Struct):
    """Users by name; `next` is the cursor of the next page, null at the end."""

    items: list[UserDocument]
    next: str | None


class ApiTokenDocument(msgspec.Struct, kw_only=True):
    """An API token. With `ice_name` or `pool` it may only operate that ICE or pool; with `accounts` it may change accounts.

    `lastused` is exact to a minute; `madeby` is the token, login or command that made it, null if not known. Only a
    `good` token authenticates.
    """

    id: str
    user: str
    name: str
    ice_name: str | None
    pool: str | None
    accounts: bool
    createdon: Time
    expireson: Time | None
    revokedon: Time | None
    lastused: Time | None
    madeby: str | None
    state: TokenState


class ApiTokenPage(msgspec.Struct):
    """API tokens, newest first; `next` is the cursor of the next page, null at the end."""

    items: list[ApiTokenDocument]
    next: str | None


class ApiTokenMade(msgspec.Struct):
    """A new API token with its secret, which is shown only this once."""

    api_token: ApiTokenDocument
    token: str


class MeDocument(UserDocument, kw_only=True):
    """The caller: a user, and the API token of the request, null for a login."""

    api_token: ApiTokenDocument | None


def user_document(listed: ListedUser, logins: int) -> UserDocument:
    """Describe a user with the number of their logins."""
    return described(UserDocument, listed.user, **_counts_of(listed, logins))


def leaver_document(changed: Changed) -> ChangedUserDocument:
    """Describe a user who was disabled, without another read: it could fail, and the tokens would be lost."""
    user = changed.user
    stay = sum(each.ice.provisionedto == user.name for each in changed.left.ices)
    counts = _counts_of(ListedUser(user, stay), logins=0)
    return described(ChangedUserDocument, user, **counts, left=left_document(changed.left))


def left_document(left: Left) -> LeftDocument:
    """Describe what became of a leaver's ICEs, with their new tokens."""
    items = [
        LeaverIceDocument(
            each.ice.ice_name,
            each.ice.status,
            each.action,
            None if each.token is None else each.token.reveal(),
        )
        for each in left.ices
    ]
    return LeftDocument(items, left.dropped, left.unconfirmed)


def me_document(listed: ListedUser, logins: int, api_token: ApiTokenDocument | None) -> MeDocument:
    """Describe the caller."""
    return described(MeDocument, listed.user, **_counts_of(listed, logins), api_token=api_token)


def _counts_of(listed: ListedUser, logins: int) -> dict[str, Any]:
    has_password = listed.user.password_hash is not None
    return {"has_password": has_password, "ices": listed.ices, "logins": logins}


def api_token_document(token: ApiToken, state: TokenState) -> ApiTokenDocument:
    """Describe an API token, without its hash."""
    return described(ApiTokenDocument, token, name=token.label, state=state)


async def api_token_documents(
    accounts: AccountService, tokens: Sequence[ApiToken]
) -> list[ApiTokenDocument]:
    """Describe API tokens with their present states."""
    return list(map(api_token_document, tokens, await accounts.token_states(tokens)))
