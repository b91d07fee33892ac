"""Metadata, claims and groups of an issuer. Whole attacks are in test_single_sign_on.py."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

import pytest

from gateway.core.jwks import BadToken
from gateway.core.login_state import LoginState
from gateway.core.oidc import (
    LOGOUT_EVENT,
    BadMetadata,
    Metadata,
    check_id_token,
    check_logout_token,
    discovery_url,
    groups_of,
    role_of,
)
from gateway.core.roles import Role

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
AT = NOW.timestamp()
ISSUER = "https://id.example/realms/lab"
ID = {
    "iss": ISSUER,
    "aud": "ice",
    "sub": "a-1",
    "nonce": "n",
    "sid": "s-1",
    "iat": AT,
    "exp": AT + 300,
}
OUT = {
    "iss": ISSUER,
    "aud": "ice",
    "sub": "a-1",
    "jti": "j",
    "events": {LOGOUT_EVENT: {}},
    "iat": AT,
    "exp": AT + 120,
}


def id_token(**changed):
    return check_id_token(ID | changed, issuer=ISSUER, client_id="ice", nonce="n", now=NOW)


def logout(**changed):
    claims = {name: value for name, value in (OUT | changed).items() if value is not None}
    return check_logout_token(claims, issuer=ISSUER, client_id="ice", now=NOW)


def test_a_good_id_token():
    found = id_token()
    assert (found.subject, found.sid) == ("a-1", "s-1")


@pytest.mark.parametrize(
    "changed",
    [{"iat": AT - 60}, {"iat": AT + 60}, {"exp": AT - 59}, {"aud": ["ice"]}, {"azp": "ice"}],
)
def test_clocks_may_differ_by_a_minute(changed):
    assert id_token(**changed).subject == "a-1"


@pytest.mark.parametrize(
    "changed",
    [
        *({"iat": AT - 61}, {"iat": AT + 61}, {"exp": AT - 60}, {"exp": float("inf")}),
        *({"exp": 10**400}, {"iat": -(10**400)}, {"nbf": 10**400}),
        *(
            {"iss": f"{ISSUER}/"},
            {"iss": [ISSUER]},
            {"aud": []},
            {"aud": {"ice": 1}},
            {"aud": "ICE"},
        ),
        *({"nonce": None}, {"nonce": ["n"]}, {"sub": ""}, {"sub": "é"}, {"iat": "1"}, {"nbf": "x"}),
    ],
)
def test_id_tokens_that_are_refused(changed):
    with pytest.raises(BadToken) as raised:
        id_token(**changed)
    assert "a-1" not in str(raised.value)


def test_a_good_logout_token():
    found = logout(sid="s-1")
    assert (found.subject, found.sid, found.jti) == ("a-1", "s-1", "j")
    assert logout(iat=AT - 590).until > AT, "it may be repeated for some minutes"
    assert logout(sub=None, sid="s-1").subject is None


@pytest.mark.parametrize("age", [-60, 0, 600])
def test_a_logout_token_is_remembered_for_as_long_as_it_is_good(age):
    until = logout(iat=AT - age, exp=AT + 9e9).until
    at_the_end = datetime.fromtimestamp(until, UTC)
    with pytest.raises(BadToken):
        check_logout_token(
            OUT | {"iat": AT - age, "exp": AT + 9e9}, issuer=ISSUER, client_id="ice", now=at_the_end
        )


@pytest.mark.parametrize(
    "changed",
    [
        *({"iat": AT - 601}, {"iat": AT + 61}, {"exp": AT - 60}, {"exp": None}, {"nonce": ""}),
        *({"events": {}}, {"events": {LOGOUT_EVENT: 1}}, {"events": LOGOUT_EVENT}, {"jti": None}),
        *({"jti": "j" * 256}, {"sub": None}, {"sub": "a" * 256}, {"sid": 1}, {"aud": "other"}),
    ],
)
def test_logout_tokens_that_are_refused(changed):
    with pytest.raises(BadToken):
        logout(**changed)


def test_an_id_token_is_no_logout_token_and_the_other_way_round():
    with pytest.raises(BadToken):
        check_logout_token(ID, issuer=ISSUER, client_id="ice", now=NOW)
    with pytest.raises(BadToken):
        check_id_token(OUT, issuer=ISSUER, client_id="ice", nonce="n", now=NOW)


@pytest.mark.parametrize(
    ("claim", "groups"),
    [
        (["a", "b", "a"], {"a", "b"}),
        ("a", {"a"}),
        ("a,b", {"a,b"}),
        (["a", 1, None, ["b"], {"c": 1}], {"a"}),
        *((bad, set()) for bad in (None, 1, True, {"a": 1}, [], [["a"]])),
    ],
)
def test_groups(claim, groups):
    assert groups_of(claim) == groups


def test_the_highest_role_counts():
    roles = {"a": Role.MEMBER, "b": Role.AUDITOR, "c": Role.ADMIN, "d": Role.MEMBER}
    assert role_of(frozenset("ab"), roles) is Role.AUDITOR
    assert role_of(frozenset("abcd"), roles) is Role.ADMIN
    assert role_of(frozenset("d"), roles) is Role.MEMBER
    assert role_of(frozenset("A"), roles) is None, "case counts"
    assert role_of(frozenset(), roles) is None
    assert role_of(groups_of(["x"] * 100_000), roles) is None


GOOD = {
    "issuer": ISSUER,
    "authorization_endpoint": f"{ISSUER}/auth?tenant=1",
    "token_endpoint": f"{ISSUER}/token",
    "jwks_uri": f"{ISSUER}/jwks",
}


def metadata(wanted=ISSUER, **changed):
    return Metadata.parse(json.dumps(GOOD | changed).encode(), wanted)


def test_metadata_of_an_issuer():
    found = metadata(unknown=1, authorization_response_iss_parameter_supported=True)
    assert found.iss_parameter
    assert found.scopes((), "groups") == ("openid", "profile")
    offers = metadata(scopes_supported=["email", "groups", "roles", "offline_access"])
    assert offers.scopes((), "groups") == ("openid", "profile", "email", "groups")
    assert offers.scopes((), "roles") == ("openid", "profile", "email", "groups", "roles")
    assert offers.scopes(("roles",), "groups") == ("openid", "roles")


def test_where_metadata_is():
    assert discovery_url(ISSUER) == f"{ISSUER}/.well-known/openid-configuration"
    assert (
        discovery_url("https://id.example/")
        == "https://id.example/.well-known/openid-configuration"
    )


def test_the_authorization_url_keeps_the_endpoints_query():
    login = LoginState("s&t", "n", "v", "", 0.0)
    url = metadata().authorization_url(
        login, client_id="ice gw", redirect_url="https://ice.example/cb", scopes=["openid", "a"]
    )
    query = {name: value for name, [value] in parse_qs(urlsplit(url).query).items()}
    assert query == {
        "tenant": "1",
        "response_type": "code",
        "client_id": "ice gw",
        "scope": "openid a",
        "redirect_uri": "https://ice.example/cb",
        "state": "s&t",
        "nonce": "n",
        "code_challenge": login.challenge,
        "code_challenge_method": "S256",
    }


def test_http_is_for_an_issuer_on_loopback_alone():
    here = "http://127.0.0.1:9"
    on_loopback = {name: f"{here}/{name}" for name in GOOD} | {"issuer": here}
    assert metadata(here, **on_loopback).issuer == here
    with pytest.raises(BadMetadata, match="jwks_uri"):
        metadata(here, **on_loopback | {"jwks_uri": "http://id.example/"})
    with pytest.raises(BadMetadata, match="jwks_uri"):
        metadata(jwks_uri=f"{here}/jwks")


@pytest.mark.parametrize(
    "url",
    [
        "",
        " https://id.example/jwks",
        "/jwks",
        "https://",
        "https://a@b/",
        "https://[/",
        "ftp://a/",
        "https://a/#x",
        "https://é/",
    ],
)
def test_endpoints_that_are_refused(url):
    with pytest.raises(BadMetadata, match="token_endpoint"):
        metadata(token_endpoint=url)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"issuer": 1}', b"\xff", b"[" * 9000])
def test_what_is_no_metadata(data):
    with pytest.raises(BadMetadata):
        Metadata.parse(data, ISSUER)


@pytest.mark.parametrize(
    ("offered", "has_secret", "method"),
    [
        (None, True, "client_secret_basic"),
        (["client_secret_post", "client_secret_basic"], True, "client_secret_basic"),
        (["client_secret_post", "private_key_jwt"], True, "client_secret_post"),
        (["private_key_jwt"], False, "none"),
    ],
)
def test_how_a_client_authenticates(offered, has_secret, method):
    found = metadata(token_endpoint_auth_methods_supported=offered)
    assert found.authentication(has_secret=has_secret) == method


def test_an_issuer_that_takes_no_secret():
    with pytest.raises(BadMetadata, match="no client secret"):
        metadata(token_endpoint_auth_methods_supported=["private_key_jwt"]).authentication(
            has_secret=True
        )
