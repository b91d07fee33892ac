"""What single sign-on needs together, and what would send secrets over plain http."""

from __future__ import annotations

import pytest

from gateway.core.roles import Role
from gateway.runtime.setting_sources import load
from gateway.runtime.settings import BadSetting
from gateway.runtime.sso_settings import sso_settings

GOOD = {
    "sso.issuer": "https://id.example",
    "sso.client_id": "ice",
    "sso.roles": "a=b=admin,qa=member",
}


def settings(**changed):
    return sso_settings(
        load(None, {}, GOOD | {f"sso.{key}": value for key, value in changed.items()})
    )


def test_without_an_issuer_there_is_none():
    assert sso_settings(load(None, {})) is None


def test_a_role_for_each_group():
    assert settings().roles == {"a=b": Role.ADMIN, "qa": Role.MEMBER}


@pytest.mark.parametrize("roles", ["qa", "=admin", "qa=boss", "qa=admin,qa=member", 7, {"qa": 7}])
def test_roles_that_are_refused(roles):
    with pytest.raises(BadSetting, match=r"sso\.roles"):
        settings(roles=roles)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"client_id": ""}, "client_id"),
        ({"roles": {}}, "roles"),
        ({"issuer": "http://id.example"}, "plain http"),
        ({"redirect_url": "http://ice.example/admin/sso/callback"}, "plain http"),
        ({"redirect_url": "https://ice.example/admin"}, "must end in"),
        ({"scopes": ['open"id']}, "scopes"),
        ({"issuer": "", "required": True}, "needs sso.issuer"),
    ],
)
def test_what_is_refused(changed, named):
    with pytest.raises(BadSetting, match=named):
        settings(**changed)


def test_the_redirect_url_follows_the_public_one():
    one = load(None, {}, GOOD | {"server.public_url": ["https://ice.example/gw"]})
    assert sso_settings(one).redirect_url == "https://ice.example/gw/admin/sso/callback"
    two = {"server.public_url": ["https://ice.example", "https://other.example"]}
    with pytest.raises(BadSetting, match="redirect_url is needed"):
        sso_settings(load(None, {}, GOOD | two))
    named = "https://other.example/admin/sso/callback"
    assert (
        sso_settings(load(None, {}, GOOD | two | {"sso.redirect_url": named})).redirect_url == named
    )


def test_the_issuer_keeps_its_final_slash():
    assert settings(issuer="https://id.example/").issuer == "https://id.example/"
