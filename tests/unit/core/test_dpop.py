"""DPoP proofs: contract section 5 and RFC 9449. joserfc and PyJWT are the oracles."""

from __future__ import annotations

import hashlib
import hmac
import json
import warnings

import jwt
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jws
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, OKPKey, import_key

from gateway.core import base64url
from gateway.core.dpop import (
    MAX_PROOF,
    Invalid,
    Jwk,
    Proof,
    normalise,
    thumbprint_of,
)
from gateway.core.replay import JtiCache, Nonces, ReplayGuard
from tests.support.ice import Key, b64, b64_json
from tests.support.proof import verify

URL = "https://gateway.example/ice/v1"
URLS = {normalise(URL)}
TOKEN = "a-token"
ATH = b64(hashlib.sha256(TOKEN.encode()).digest())
NOW = 1_800_000_000.0
LEASE_TIME = 5000.0
EC, ED = Key(), Key.ed25519()
CLAIMS = {"jti": "one", "htm": "GET", "htu": URL, "iat": NOW, "ath": ATH}
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def judge(text):
    return verify(text, token=TOKEN, urls=URLS, expected=URL)


def make(header=(), claims=(), *, key=EC, sign=None):
    """A proof with members overridden; one of None is left out. The defaults are good."""
    head = {"typ": "dpop+jwt", "alg": key.alg, "jwk": key.jwk, **dict(header)}
    body = {**CLAIMS, **dict(claims)}
    signed = ".".join(
        b64_json({name: value for name, value in part.items() if value is not None})
        for part in (head, body)
    )
    return f"{signed}.{b64((sign or key.sign)(signed.encode()))}"


def raw(claims, header=None, *, key=EC):
    """A well signed proof with claims, and perhaps a header, that are given as bytes."""
    head = header or json.dumps({"typ": "dpop+jwt", "alg": key.alg, "jwk": key.jwk}).encode()
    signed = f"{b64(head)}.{b64(claims)}"
    return f"{signed}.{b64(key.sign(signed.encode()))}"


def claims_with(name, value):
    """The claims with one of them in JSON of one's own."""
    return json.dumps({**CLAIMS, name: "@"}).replace('"@"', value).encode()


def accepted(text, message="a good proof was refused"):
    verdict = judge(text)
    assert isinstance(verdict, Proof), f"{message}: {verdict}"
    return verdict


def refused(text, why):
    verdict = judge(text)
    assert isinstance(verdict, Invalid), "a bad proof was accepted"
    assert why in verdict.detail


# --- good proofs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "alg"), [(EC, "ES256"), (ED, "Ed25519"), (ED, "EdDSA")], ids=["EC", "OKP", "old name"]
)
def test_a_good_proof_of_every_algorithm(key, alg):
    text = make({"alg": alg}, {"nonce": "n", "other": [1]}, key=key)
    assert accepted(text) == Proof(thumbprint_of(Jwk(**key.jwk)), "one", NOW, "n")


@pytest.mark.parametrize(
    ("header", "claims"),
    [
        ({"typ": "DPoP+JWT"}, {}),  # RFC 7515 section 4.1.9: media types ignore case
        ({"typ": "application/dpop+jwt"}, {}),
        ({"typ": "Application/DPoP+jwt"}, {}),
        ({"kid": "mine"}, {}),
        ({"jwk": {**EC.jwk, "kid": "mine", "use": "sig", "alg": "ES256"}}, {}),
        ({}, {"jti": "x" * 256}),
        ({}, {"jti": "\U0001f511"}),
        ({}, {"iat": int(NOW)}),
        ({}, {"htu": "wss://GATEWAY.example:443/ice/%761?a=b#c"}),
    ],
)
def test_what_a_good_proof_may_look_like(header, claims):
    accepted(make(header, claims))


def by_pyjwt(key, alg):
    return jwt.encode(
        CLAIMS, key.private, algorithm=alg, headers={"typ": "dpop+jwt", "jwk": key.jwk}
    )


def by_joserfc(key, alg):
    header = {"typ": "dpop+jwt", "alg": alg, "jwk": key.jwk}
    pem = key.private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # joserfc dislikes the older name EdDSA
        return jws.serialize_compact(
            header, json.dumps(CLAIMS), import_key(pem, key.jwk["kty"]), algorithms=[alg]
        )


@pytest.mark.parametrize(
    ("signer", "key", "alg"),
    [
        (by_pyjwt, EC, "ES256"),
        (by_pyjwt, ED, "EdDSA"),
        (by_joserfc, EC, "ES256"),
        (by_joserfc, ED, "EdDSA"),
        (by_joserfc, ED, "Ed25519"),
    ],
    ids=lambda given: getattr(given, "__name__", getattr(given, "alg", given)),
)
def test_what_others_sign_is_accepted(signer, key, alg):
    accepted(signer(key, alg), f"{signer.__name__} signs well")


# --- the oracles say the same ------------------------------------------------------------------


def joserfc_accepts(text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)
        try:
            jwk = jws.extract_compact(text.encode()).headers()["jwk"]
            jws.deserialize_compact(text, import_key(jwk), algorithms=["ES256", "EdDSA", "Ed25519"])
        except Exception:  # noqa: BLE001 - a library may refuse in any way it likes
            return False
    return True


def pyjwt_accepts(text):
    try:
        header = jwt.get_unverified_header(text)
        # PyJWT does not know the new name: the key decides between the two algorithms.
        key = jwt.PyJWK(header["jwk"], "EdDSA" if header["jwk"]["kty"] == "OKP" else "ES256")
        jwt.decode(text, key, ["ES256", "EdDSA"], {"verify_iat": False})
    except Exception:  # noqa: BLE001 - likewise
        return False
    return True


def parts_of(text):
    return [base64url.decode(part) for part in text.split(".")]


def resigned(change):
    """Change the signature's bytes."""

    def mutate(text):
        head, body, _ = text.split(".")
        return f"{head}.{body}.{b64(change(parts_of(text)[2]))}"

    return mutate


def reheaded(**members):
    """Change the header under the signature."""

    def mutate(text):
        _, body, signature = text.split(".")
        return f"{b64_json({**json.loads(parts_of(text)[0]), **members})}.{body}.{signature}"

    return mutate


def owner(text):
    return ED if b"OKP" in parts_of(text)[0] else EC


def signed_with(**members):
    """Change the header before the signature."""
    return lambda text: make(members, key=owner(text))


def respelled(text):
    """Set trailing bits of the signature that stand for nothing: 64 bytes leave four of them."""
    return text[:-1] + ALPHABET[ALPHABET.index(text[-1]) + 1]


MUTATIONS = {
    "nothing": lambda text: text,
    "first bit of the signature": resigned(lambda old: bytes([old[0] ^ 128]) + old[1:]),
    "last bit of the signature": resigned(lambda old: old[:-1] + bytes([old[-1] ^ 1])),
    "signature shorter": resigned(lambda old: old[:-1]),
    "signature longer": resigned(lambda old: old + b"\x00"),
    "r padded in front": resigned(lambda old: b"\x00" + old),
    "s padded in front": resigned(lambda old: old[:32] + b"\x00" + old[32:]),
    "no signature": resigned(lambda _: b""),
    "signature of zeros": resigned(lambda _: bytes(64)),
    "signature of ones": resigned(lambda _: b"\xff" * 64),
    "halves swapped": resigned(lambda old: old[32:] + old[:32]),
    "r + order": resigned(
        lambda old: (int.from_bytes(old[:32], "big") + P256_ORDER).to_bytes(33, "big") + old[32:]
    ),
    "claims of another": lambda text: ".".join(
        [text.split(".")[0], make(claims={"jti": "two"}).split(".")[1], text.split(".")[2]]
    ),
    "a member in the header": reheaded(kid="k"),
    "alg changed behind the signature": reheaded(alg="HS256"),
    "key of another": reheaded(jwk=Key().jwk),
    "key of another kind": signed_with(jwk=Key.ed25519().jwk, alg="ES256"),
    "point not on the curve": signed_with(jwk={**EC.jwk, "y": EC.jwk["x"]}),
    "point (0, 0)": signed_with(jwk={**EC.jwk, "x": b64(bytes(32)), "y": b64(bytes(32))}),
    "coordinates too large": signed_with(jwk={**EC.jwk, "x": b64(b"\xff" * 32)}),
    "another curve's name": signed_with(jwk={**EC.jwk, "crv": "P-384"}),
    "alg none": signed_with(alg="none"),
    "alg unknown": signed_with(alg="XX256"),
    "crit": signed_with(crit=["exp"]),
    "crit is null": lambda text: raw(
        parts_of(text)[1], parts_of(text)[0][:-1] + b', "crit": null}', key=owner(text)
    ),
    "another spelling of the same signature": respelled,
    "newline behind": lambda text: f"{text}\n",
    "space in front": lambda text: f" {text}",
    "two parts": lambda text: text.rpartition(".")[0],
    "four parts": lambda text: f"{text}.",
    "three dots": lambda _: "...",
    "nothing at all": lambda _: "",
}


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("key", [EC, ED], ids=["ES256", "Ed25519"])
def test_we_refuse_and_accept_what_the_oracles_do(key, mutation):
    alg = "ES256" if key is EC else "EdDSA"
    text = MUTATIONS[mutation](make({"alg": alg}, key=key))
    verdict = judge(text)
    assert isinstance(verdict, Proof) is joserfc_accepts(text), f"joserfc disagrees: {verdict}"
    assert isinstance(verdict, Proof) is pyjwt_accepts(text), f"PyJWT disagrees: {verdict}"
    assert isinstance(verdict, Proof) is (mutation == "nothing")


def test_the_twin_of_an_ecdsa_signature_is_no_second_proof():
    """Whoever saw (r, s) can make (r, n - s), which every library verifies: `jti` is what counts."""
    text = make()
    twin = resigned(
        lambda old: old[:32] + (P256_ORDER - int.from_bytes(old[32:], "big")).to_bytes(32, "big")
    )(text)
    assert joserfc_accepts(twin)
    replays = JtiCache()
    replays.remember(accepted(text), NOW + 60, NOW)
    assert replays.used(accepted(twin), NOW)


# --- bad headers and keys ----------------------------------------------------------------------

RSA = rsa.generate_private_key(65537, 2048)
RSA_JWK = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(RSA.public_key()))
PEM = EC.private.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


def point(curve, name):
    """A key on another curve: its JWK and its way to sign."""
    private = ec.generate_private_key(curve)
    numbers = private.public_key().public_numbers()
    size = (curve.key_size + 7) // 8
    x, y = (b64(value.to_bytes(size, "big")) for value in (numbers.x, numbers.y))

    def sign(data):
        r, s = decode_dss_signature(private.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")

    return {"jwk": {"kty": "EC", "crv": name, "x": x, "y": y}}, sign


P384, P384_SIGN = point(ec.SECP384R1(), "P-384")
K256, K256_SIGN = point(ec.SECP256K1(), "secp256k1")
LIAR = {"jwk": {**K256["jwk"], "crv": "P-256"}}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param(make({"alg": "none"}, sign=lambda _: b""), "alg must be", id="alg none"),
        pytest.param(
            make({"alg": "HS256"}, sign=lambda data: hmac.digest(PEM, data, "sha256")),
            "alg must be",
            id="HS256 with the public key as secret",
        ),
        pytest.param(
            jwt.encode(CLAIMS, RSA, "RS256", {"typ": "dpop+jwt", "jwk": RSA_JWK}),
            "alg must be",
            id="RS256",
        ),
        pytest.param(make({"alg": "es256"}), "alg must be", id="alg in lower case"),
        pytest.param(make({"alg": "ES256", "jwk": RSA_JWK}), "cannot be used", id="RSA key"),
        pytest.param(make(P384, sign=P384_SIGN), "32 bytes", id="P-384"),
        pytest.param(make({**P384, "alg": "ES384"}, sign=P384_SIGN), "alg must be", id="ES384"),
        pytest.param(make(K256, sign=K256_SIGN), "on the curve P-256", id="secp256k1"),
        pytest.param(make(LIAR, sign=K256_SIGN), "cannot be used", id="secp256k1 said to be P-256"),
        pytest.param(
            make({"jwk": {**ED.jwk, "crv": "X25519"}}, key=ED), "curve Ed25519", id="X25519"
        ),
        pytest.param(
            make({"jwk": {**ED.jwk, "crv": "Ed448"}}, key=ED), "curve Ed25519", id="Ed448"
        ),
        pytest.param(make({"alg": "EdDSA"}), "needs a key of kty OKP", id="EdDSA by EC"),
        pytest.param(make({"alg": "Ed25519"}), "needs a key of kty OKP", id="Ed25519 by EC"),
        pytest.param(make({"alg": "ES256"}, key=ED), "needs a key of kty EC", id="ES256 by OKP"),
        pytest.param(
            make({"jwk": {**EC.jwk, "kty": "OKP"}}), "needs a key of kty EC", id="wrong kty"
        ),
        pytest.param(make({"jwk": {}}), "jwk has no x", id="empty jwk"),
        pytest.param(make({"jwk": {**EC.jwk, "y": 7}}), "header needs", id="y is a number"),
        pytest.param(make({"jwk": {**EC.jwk, "y": None}}), "header needs", id="y is null"),
        pytest.param(
            make({"jwk": {**EC.jwk, "x": b64(b"\0" + base64url.decode(EC.jwk["x"]))}}),
            "x does not have 32 bytes",
            id="x with a leading zero",
        ),
        pytest.param(
            make({"jwk": {**EC.jwk, "x": EC.jwk["x"] + "="}}), "cannot be used", id="x padded"
        ),
        *(
            pytest.param(make({"jwk": {**EC.jwk, name: "AA"}}), "private members", id=f"jwk.{name}")
            for name in ("d", "p", "q", "dp", "dq", "qi", "oth", "k")
        ),
        pytest.param(make({"typ": "JWT"}), "typ must be", id="typ JWT"),
        pytest.param(make({"typ": "text/dpop+jwt"}), "typ must be", id="typ of another tree"),
        pytest.param(make({"crit": []}), "crit is not supported", id="empty crit"),
        pytest.param(make({"crit": ["b64"], "b64": False}), "crit is not supported", id="RFC 7797"),
        pytest.param(
            make(sign=lambda data: EC.private.sign(data, ec.ECDSA(hashes.SHA256()))),
            "the signature does not hold",
            id="DER signature",
        ),
        pytest.param(
            make(sign=lambda data: Key().sign(data)), "does not hold", id="signed by another"
        ),
        *(
            pytest.param(make({name: None}), "header needs", id=f"no {name}")
            for name in ("typ", "alg", "jwk")
        ),
        *(
            pytest.param(make({name: [1]}), "header needs", id=f"{name} is a list")
            for name in ("typ", "alg", "jwk")
        ),
    ],
)
def test_bad_headers_and_keys(text, why):
    refused(text, why)


# --- Ed25519 keys that are none (contract section 5) -------------------------------------------

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
IDENTITY = (0, 1)


def added(one, other):
    """The sum of two points (RFC 8032 section 5.1)."""
    (x1, y1), (x2, y2) = one, other
    product = D * x1 * x2 * y1 * y2
    return (
        (x1 * y2 + x2 * y1) * pow(1 + product, -1, P) % P,
        (y1 * y2 + x1 * x2) * pow(1 - product, -1, P) % P,
    )


def root(square):
    """A square root modulo P, or None."""
    x = pow(square, (P + 3) // 8, P)
    for candidate in (x, x * pow(2, (P - 1) // 4, P) % P):
        if candidate * candidate % P == square:
            return candidate
    return None


def points_of(y):
    """The points of this y coordinate."""
    x = root((y * y - 1) * pow(D * y * y + 1, -1, P) % P)
    return set() if x is None else {(x, y), (-x % P, y)}


def times(number, point):
    total = IDENTITY
    for _ in range(number):
        total = added(total, point)
    return total


ORDER_8 = int.from_bytes(
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
)
SMALL = {0, 1, P - 1, ORDER_8, P - ORDER_8}


def encoded(y, sign=0):
    return (y | sign << 255).to_bytes(32, "little")


def test_the_points_of_small_order_are_all_there():
    points = set().union(*map(points_of, SMALL))
    assert len(points) == 8
    assert all(times(8, point) == IDENTITY for point in points)
    assert {added(one, other) for one in points for other in points} == points


@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize(
    ("y", "why"),
    [(y, "small order") for y in sorted(SMALL)] + [(y, "canonical") for y in range(P, 2**255)],
)
def test_no_key_of_small_order_or_in_another_encoding(y, sign, why):
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64(encoded(y, sign))}
    # To the identity any message is signed by it and a scalar of zero.
    forged = b64(encoded(1) + bytes(32))
    signed = make({"alg": "Ed25519", "jwk": jwk}).rpartition(".")[0]
    refused(f"{signed}.{forged}", why)


def test_every_key_that_is_made_is_taken():
    for _ in range(50):
        accepted(make(key=Key.ed25519()))


def test_members_that_nobody_reads_are_not_decoded():
    huge = ",".join(["1e999"] * 300)
    header = json.dumps({"typ": "dpop+jwt", "alg": EC.alg, "jwk": {**EC.jwk, "x5c": "@"}, "y": 1})
    accepted(raw(json.dumps(CLAIMS).encode(), header.replace('"@"', f"[{huge}]").encode()))


# --- bad claims --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLAIMS)
@pytest.mark.parametrize("value", [None, "null", "[]", "true", r'"\ud800"', r'"\ud800A"'])
def test_a_claim_missing_or_of_the_wrong_kind(name, value):
    text = make(claims={name: None}) if value is None else raw(claims_with(name, value))
    refused(text, "its claims need")


@pytest.mark.parametrize(
    "iat",
    ["1e999", "-1e999", "NaN", "Infinity", "9" * 400, '"1"', "0x1"],
    ids=lambda given: given[:9],
)
def test_iat_is_a_finite_number(iat):
    refused(raw(claims_with("iat", iat)), "its claims need")


@pytest.mark.parametrize(
    "iat", ["1e308", "-1e308", "9" * 300, "-1", "-0.0", "1e-400"], ids=lambda given: given[:9]
)
def test_an_iat_far_away_only_makes_the_proof_stale(iat):
    proof = accepted(raw(claims_with("iat", iat)), "its age is judged later")
    assert not ReplayGuard(Nonces(lambda: [b"key"])).accept(proof, NOW, LEASE_TIME)


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"htm": "POST"}, "htm must be GET"),
        ({"htm": "get"}, "htm must be GET"),
        ({"htu": "https://gateway.example/ice/v2"}, URL),
        ({"htu": "https://evil.example/ice/v1"}, "https://evil.example/ice/v1"),
        ({"htu": "\x00" * 300}, "the proof was made for"),
        ({"htu": f" {URL}"}, "the proof was made for"),
        ({"htu": URL.replace("/ice", "/\nice")}, "the proof was made for"),
        ({"htu": "https://gateway.example:1/ice/v1"}, "the proof was made for"),
        ({"htu": "https://[::1/ice/v1"}, "the proof was made for"),
        ({"ath": b64(hashlib.sha256(b"another token").digest())}, "not the hash of this token"),
        ({"ath": ATH + "="}, "not the hash of this token"),
        ({"ath": "\u00e9"}, "not the hash of this token"),
        ({"ath": ""}, "not the hash of this token"),
        ({"jti": ""}, "1 to 256 characters"),
        ({"jti": "x" * 257}, "1 to 256 characters"),
    ],
)
def test_bad_claims(claims, why):
    refused(make(claims=claims), why)


def test_a_wrong_url_is_answered_in_bounded_length():
    assert len(judge(make(claims={"htu": "x" * 2000})).detail) < 400


# --- bad form ----------------------------------------------------------------------------------

GOOD = make()
HEAD, BODY, SIGNATURE = GOOD.split(".")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (make(claims={"pad": "x" * MAX_PROOF}), "longer than 4096"),
        (f"{GOOD}\u00e9", "not ASCII"),
        (f"{GOOD}\ud800", "not ASCII"),
        ("." * 4096, "three parts"),
        (respelled(GOOD), "header needs"),
        (f"{GOOD}==", "header needs"),  # PyJWT takes it; RFC 7515 section 2 does not
        (f"{HEAD}.{BODY[:9]} {BODY[9:]}.{SIGNATURE}", "header needs"),
        (f"{HEAD}+.{BODY}.{SIGNATURE}", "header needs"),
        (raw(b""), "header needs"),
        (raw(b"[]"), "header needs"),
        (raw(b"\xff\xfe"), "header needs"),
        (raw(json.dumps(CLAIMS).encode()[:-1] + b',"x":"\xff"}'), "header needs"),
        (raw(b"\xef\xbb\xbf{}"), "header needs"),
        (raw(b"[" * 1500), "header needs"),
        (raw(b'{"other":' + b"[" * 1400), "header needs"),
        (raw(b"{}", b"{" * 100), "header needs"),
        (raw(json.dumps(CLAIMS).encode() + b"x"), "header needs"),
    ],
    ids=lambda given: given[:20] if given.isprintable() else "",
)
def test_bad_form(text, why):
    refused(text, why)


def test_deep_nesting_in_members_that_nobody_reads():
    for depth in (10, 500, 1400):
        nested = b"[" * depth + b"]" * depth
        verdict = judge(raw(json.dumps(CLAIMS).encode()[:-1] + b',"x":' + nested + b"}"))
        assert isinstance(verdict, Proof | Invalid)


# --- never an exception ------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=4,
)
MEMBERS = st.sampled_from([*CLAIMS, "nonce", "exp"])
HEADERS = st.sampled_from(["typ", "alg", "jwk", "crit"])
JWKS = st.dictionaries(
    st.sampled_from(["kty", "crv", "x", "y"]),
    JSON | st.sampled_from(["EC", "OKP", "P-256", "Ed25519", b64(bytes(32))]),
    max_size=3,
).map(lambda members: {"jwk": {**EC.jwk, **members}})


@settings(max_examples=150)
@given(
    st.text(max_size=40)
    | st.lists(st.binary(max_size=30).map(b64), min_size=3, max_size=3).map(".".join)
    | st.builds(raw, st.binary(max_size=30), st.none() | st.binary(max_size=30))
    | st.builds(
        make,
        st.dictionaries(HEADERS, JSON, max_size=2) | JWKS,
        st.dictionaries(MEMBERS, JSON, max_size=2),
        key=st.sampled_from([EC, ED]),
    )
)
def test_verifying_never_raises(text):
    assert isinstance(judge(text), Proof | Invalid)


# --- thumbprints -------------------------------------------------------------------------------


def test_the_thumbprint_of_rfc_8037_appendix_a3():
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    assert thumbprint_of(Jwk(**jwk)) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


@pytest.mark.parametrize("key", [EC, ED], ids=["EC", "OKP"])
def test_a_proof_bears_the_thumbprint_that_joserfc_gives(key):
    oracle = (ECKey if key is EC else OKPKey).import_key(key.jwk)
    extra = {"jwk": {**key.jwk, "kid": "k", "use": "sig", "ext": True}}
    assert accepted(make(extra, key=key)).thumbprint == oracle.thumbprint()


# --- URLs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "same_as"),
    [
        ("https://h/x", ("h", None, "/x")),
        ("HTTPS://Gateway.EXAMPLE/Path", ("gateway.example", None, "/Path")),
        ("https://h:443/x", ("h", None, "/x")),
        ("wss://h:443/x", ("h", None, "/x")),
        ("http://h:80/x", ("h", None, "/x")),
        ("ws://h/x", ("h", None, "/x")),
        ("http://h:443/x", ("h", 443, "/x")),
        ("wss://h:80/x", ("h", 80, "/x")),
        ("https://h:8440/x", ("h", 8440, "/x")),
        ("https://h:/x", ("h", None, "/x")),
        ("https://h/%69ce/v%31", ("h", None, "/ice/v1")),
        ("https://h/x?a=b#c", ("h", None, "/x")),
        ("https://h", ("h", None, "")),
        ("https://127.0.0.1:8440/x", ("127.0.0.1", 8440, "/x")),
        ("https://[::1]:8440/x", ("::1", 8440, "/x")),
        ("wss://[2001:DB8::1]/x", ("2001:db8::1", None, "/x")),
        ("https://user@h/x", None),
        ("https://@h/x", None),
        ("https://evil@h:443/x", None),
        ("ftp://h/x", None),
        ("file:///x", None),
        ("javascript:x", None),
        ("//h/x", None),
        ("/ice/v1", None),
        ("h/ice/v1", None),
        ("https:///x", None),
        ("https://:443/x", None),
        ("https://h:port/x", None),
        ("https://h:65536/x", None),
        ("https://h:-1/x", None),
        ("https://[::1/x", None),
        ("https://[h]/x", None),
        ("https://h\uff0fx/y", None),  # a solidus of full width, which NFKC turns into /
        ("", None),
    ],
)
def test_urls_are_compared_in_one_form(url, same_as):
    assert normalise(url) == same_as


@given(st.text() | st.text("htps:/wf[]@%?#.0189a\\ \n").map("https://".__add__))
def test_normalising_never_raises(url):
    normalise(url)
