"""An issuer's keys, and the signatures that they verify. Whole attacks are in test_single_sign_on.py."""

from __future__ import annotations

import json

import pytest
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from gateway.core.jwks import MAX_TOKEN, BadToken, KeySet, UnknownKey
from gateway.core.secret import Secret
from tests.support.evil_issuer import encoded, key_of, signed, signed_text, unsigned

CLAIMS = {"sub": "a-1"}


def key_set(*keys, **changed):
    return KeySet.parse(
        json.dumps({"keys": [key.as_dict(private=False) | changed for key in keys]}).encode()
    )


def verify(keys, token):
    return keys.verify(Secret(token))


@pytest.mark.parametrize("alg", ["RS256", "PS256", "ES256", "EdDSA"])
def test_the_algorithms_that_are_accepted(alg):
    key = key_of(alg, "one")
    assert verify(key_set(key), signed(CLAIMS, key)) == CLAIMS
    anonymous = key_set(key, kid="")  # as some issuers publish it
    assert verify(anonymous, signed(CLAIMS, key, kid="")) == CLAIMS


def test_the_key_is_the_one_of_the_kid():
    one, two = key_of("ES256", "one"), key_of("ES256", "two")
    keys = key_set(one, two)
    assert verify(keys, signed(CLAIMS, two)) == CLAIMS
    with pytest.raises(BadToken, match="signature is wrong"):
        verify(keys, signed(CLAIMS, two, kid="one"))
    assert verify(keys, signed(CLAIMS, two, kid=None)) == CLAIMS, "each is tried"
    with pytest.raises(UnknownKey):
        verify(keys, signed(CLAIMS, two, kid="three"))


def test_a_key_is_good_for_its_own_algorithm():
    key = RSAKey.generate_key(2048, {"kid": "one"})
    token = signed(CLAIMS, key, alg="PS256")
    assert verify(key_set(key), token) == CLAIMS
    with pytest.raises(UnknownKey):
        verify(key_set(key, alg="RS256"), token)


@pytest.mark.parametrize("alg", ["none", "None", "", "HS256", "RS1", "dir"])
def test_other_algorithms_are_refused_before_any_key(alg):
    with pytest.raises(BadToken, match="algorithm is not accepted"):
        verify(key_set(key_of("ES256", "one")), unsigned(CLAIMS, alg))


def test_unknown_members_of_the_header_are_ignored_and_critical_ones_refused():
    key = key_of("ES256", "one")
    keys = key_set(key)
    assert verify(keys, signed(CLAIMS, key, x5t="a", custom={"a": 1}, typ="JWT")) == CLAIMS
    for crit in (["custom"], ["exp"], []):
        with pytest.raises(BadToken):
            verify(keys, signed(CLAIMS, key, crit=crit, exp=1))


@pytest.mark.parametrize(
    "token",
    [
        *("", ".", "..", "...", "a.b.c", "é.é.é", "e30.e30.", "e30.e30.e30", "bnVsbA.e30.e30"),
        "A" * (MAX_TOKEN + 1),
        "W10." * 30_000,
    ],
)
def test_what_is_no_signed_token(token):
    with pytest.raises(BadToken):
        verify(key_set(key_of("ES256", "one")), token)


@pytest.mark.parametrize("text", ["[]", "7", '"a"', "", "{", '{"a": NaN}', "\x00", "[" * 5000])
def test_claims_that_are_no_object(text):
    key = key_of("ES256", "one")
    token = signed_text(text, key, {"alg": "ES256", "kid": "one"})
    with pytest.raises(BadToken, match="claims cannot be read"):
        verify(key_set(key), token)


def test_a_set_is_read_without_what_cannot_sign():
    good = key_of("ES256", "one").as_dict(private=False)
    others = [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "one"},
        OctKey.generate_key(256).as_dict(),
        {"kty": "RSA", "n": "A" * 170 + "Q", "e": "AQAB"},
        {"kty": "RSA", "n": encoded(b"\xff" * 128), "e": "AQAB"},
        {"kty": "RSA", "n": encoded(b"\xff" * 1025), "e": "AQAB"},
        {"kty": "RSA", "n": 7, "e": "AQAB"},
        {"kty": "EC", "crv": ["P-256"]},
        ECKey.generate_key("P-521").as_dict(private=False),
        OKPKey.generate_key("X25519").as_dict(private=False),
        good | {"use": "enc"},
        good | {"key_ops": ["sign"]},
        good | {"key_ops": 7},
        good | {"use": ["sig"]},
        {"kty": "RSA", "n": encoded(b"\xff" * 384), "e": encoded(b"\x7f" + b"\xff" * 383)},
        {"kty": "RSA", "n": encoded(b"\xff" * 384)},
        good | {"x": "AAAA"},
        good | {"crv": "P-999"},
        {"kty": "AKP", "pub": "x"},
        {},
    ]
    keys = KeySet.parse(json.dumps({"keys": [*others, good]}).encode()).keys
    assert [key.as_dict(private=False) for key in keys] == [good]
    with pytest.raises(ValueError, match="no key for"):
        KeySet.parse(json.dumps({"keys": others}).encode())


def test_private_members_are_not_taken():
    private = key_of("ES256", "one").as_dict(private=True)
    [key] = KeySet.parse(json.dumps({"keys": [private]}).encode()).keys
    assert not key.is_private


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"keys": 7}', b'{"keys": [7]}', b"\xff", b"[" * 9000]
)
def test_what_is_no_set_of_keys(data):
    with pytest.raises(ValueError):  # noqa: PT011 - of several parsers
        KeySet.parse(data)


def test_of_very_many_keys_some_are_used():
    many = [key_of("ES256", "one").as_dict(private=False)] * 1000
    assert len(KeySet.parse(json.dumps({"keys": many}).encode()).keys) == 32
