"""The registration token: contract section 4. joserfc is the oracle in both directions."""

from __future__ import annotations

import hashlib
import itertools
import json
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwe
from joserfc.jwe import JWERegistry
from joserfc.jwk import OctKey

from gateway.core import base64url
from gateway.core.ice import IceType
from gateway.core.secret import Secret
from gateway.core.tokens import Key, KeyRing, OpenedToken, RetiredToken, UnknownKey, open_with
from tests.support.ice import b64

NOW = datetime(2026, 11, 22, 9, 30, 0, 123456, tzinfo=UTC)
BYTES = bytes(range(32))
KEYS = {"k1": Key("k1", BYTES)}
RING = KeyRing(KEYS.values(), "k1")
HEADER = {"alg": "dir", "enc": "A256GCM", "kid": "k1", "iat": NOW.timestamp()}
CLAIMS = {
    "ice_name": "lab-1",
    "ice_type": "normal",
    "generation": 7,
    "jti": b64(bytes(16)),
    "iat": NOW.timestamp(),
}
ORACLE = OctKey.import_key(BYTES)
REGISTRY = JWERegistry(algorithms=["dir", "A256GCM"], strict_check_header=False)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def forge(header=(), claims=(), *, key=BYTES, iv=bytes(12), plain=None):
    """A JWE around whatever is asked for; with the defaults a genuine one."""
    head = b64(json.dumps({**HEADER, **dict(header)}).encode())
    text = json.dumps({**CLAIMS, **dict(claims)}).encode() if plain is None else plain
    sealed = AESGCM(key).encrypt(iv, text, head.encode())
    return f"{head}..{b64(iv)}.{b64(sealed[:-16])}.{b64(sealed[-16:])}"


def without(name):
    return json.dumps({key: value for key, value in CLAIMS.items() if key != name}).encode()


def opened(text):
    return open_with(KEYS, Secret(text))


GENUINE = forge()


# --- genuine -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", IceType)
def test_what_is_sealed_opens_again(kind):
    token = RING.seal("lab-1", kind, 7, NOW)
    digest = hashlib.sha256(token.reveal().encode()).hexdigest()
    assert RING.open(token) == OpenedToken("lab-1", kind, 7, digest)


def test_joserfc_opens_what_we_seal():
    token = RING.seal("lab-1", IceType.CI_CD, 7, NOW)
    read = jwe.decrypt_compact(token.reveal(), ORACLE, registry=REGISTRY)
    claims = json.loads(read.plaintext)
    assert read.headers() == {"alg": "dir", "enc": "A256GCM", "kid": "k1", "iat": NOW.timestamp()}
    assert claims.pop("jti")
    assert claims == {
        "ice_name": "lab-1",
        "ice_type": "ci-cd",
        "generation": 7,
        "iat": NOW.timestamp(),
    }


def test_we_open_what_joserfc_seals():
    text = jwe.encrypt_compact(HEADER, json.dumps(CLAIMS), ORACLE, registry=REGISTRY)
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert opened(text) == OpenedToken("lab-1", IceType.NORMAL, 7, digest)


def test_two_tokens_of_one_generation_differ_in_every_random_part():
    texts = [RING.seal("lab-1", IceType.NORMAL, 1, NOW).reveal() for _ in range(2)]
    read = [jwe.decrypt_compact(text, ORACLE, registry=REGISTRY).plaintext for text in texts]
    first, second = (json.loads(plain)["jti"] for plain in read)
    assert first != second
    assert len(first) >= 22, "128 random bits or more"
    assert texts[0].split(".")[2] != texts[1].split(".")[2], "an IV is used once"


def test_the_longest_name_stays_within_1024_characters():
    token = KeyRing([key := Key.generate(NOW)], key.kid).seal("x" * 64, IceType.NORMAL, 2**63, NOW)
    assert len(token.reveal()) <= 1024


def test_a_ring_opens_with_every_key_and_seals_with_one():
    old, new = Key("old", bytes(32)), Key("new", BYTES)
    ring = KeyRing([old, new], "new")
    assert [key.kid for key in ring.keys] == ["old", "new"]
    before = KeyRing([old], "old").seal("lab-1", IceType.NORMAL, 1, NOW)
    assert isinstance(ring.open(before), OpenedToken)
    after = ring.seal("lab-1", IceType.NORMAL, 2, NOW)
    assert KeyRing([old], "old").open(after) == UnknownKey("new")


def test_an_unknown_key_is_named_so_that_the_file_can_be_read_again():
    assert open_with({}, Secret(GENUINE)) == UnknownKey("k1")


def test_of_a_retired_key_the_id_stays():
    old, new = Key("old", bytes(32)), Key("new", BYTES)
    ring = KeyRing([old, new], "new").retiring("old")
    token = KeyRing([old], "old").seal("lab-1", IceType.NORMAL, 1, NOW)
    assert ([key.kid for key in ring.keys], ring.retired) == (["new"], ("old",))
    assert ring.open(token) == RetiredToken(token.digest()), "only the hash says whose it is"
    third = Key("third", bytes(range(1, 33)))
    later = ring.with_key(third).sealing_with("third").retiring("new")
    assert later.retired == ("old", "new"), "no change forgets an id"
    assert later.with_key(old).retired == ("new",), "a key that was put back is not retired"
    assert isinstance(later.with_key(old).open(token), OpenedToken)
    with pytest.raises(KeyError):
        later.retiring("third")


def test_a_retired_key_does_not_come_back_with_the_keys_of_a_backup():
    old, new, other = Key("old", bytes(32)), Key("new", BYTES), Key("other", bytes(range(1, 33)))
    ring = KeyRing([old, new], "new").retiring("old")
    merged = ring.merged(KeyRing([old, other], "old", ["older", "new"]))
    assert ({key.kid for key in merged.keys}, merged.seals) == ({"new", "other"}, "new")
    assert merged.retired == ("old", "older"), "what seals here is not retired"


def test_each_copy_of_a_ring_derives_the_first_key_of_the_others():
    """While a key is added, promoted and retired, and only one of two copies has the change."""
    old, new = Key("old", bytes(32)), Key("new", BYTES)
    steps = [KeyRing([old], "old")]
    steps.append(steps[-1].with_key(new))
    steps.append(steps[-1].sealing_with("new"))
    steps.append(steps[-1].retiring("old"))
    for one, next_one in itertools.pairwise(steps):
        ours, theirs = one.derived(b"nonces"), next_one.derived(b"nonces")
        assert ours[0] in theirs, "what a copy signed before was expected to hold after"
        assert theirs[0] in ours
    assert steps[0].derived(b"nonces") != steps[0].derived(b"another purpose")


# --- not genuine -------------------------------------------------------------------------------


def test_the_forger_of_these_tests_can_make_a_genuine_token():
    assert isinstance(opened(GENUINE), OpenedToken)
    assert isinstance(opened(forge(header={"typ": "JWT"})), OpenedToken)


def test_no_character_can_be_changed():
    for position, old in enumerate(GENUINE):
        # The neighbour in the alphabet differs in the lowest bit only: in a last character that bit
        # may stand for nothing.
        new = "A" if old == "." else ALPHABET[ALPHABET.index(old) ^ 1]
        changed = GENUINE[:position] + new + GENUINE[position + 1 :]
        assert not isinstance(opened(changed), OpenedToken), (
            f"{old} -> {new} at {position} unnoticed"
        )


HEAD, _, IV, BODY, TAG = GENUINE.split(".")
SEALED = base64url.decode(BODY) + base64url.decode(TAG)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("....", id="only dots"),
        pytest.param(GENUINE[:-1], id="truncated by one"),
        pytest.param(GENUINE[:-23], id="without its tag"),
        pytest.param(f"{HEAD}.{IV}.{BODY}.{TAG}", id="4 parts"),
        pytest.param(f"{GENUINE}.", id="6 parts"),
        pytest.param(f"{HEAD}.{b64(bytes(32))}.{IV}.{BODY}.{TAG}", id="with an encrypted key"),
        pytest.param(f"{HEAD}..{IV}.{BODY}.{TAG[:16]}", id="tag of 96 bits"),
        pytest.param(f"{HEAD}..{IV}.{b64(SEALED)}.", id="tag in the body"),
        pytest.param(f"{HEAD}..{IV}..{b64(SEALED)}", id="body in the tag"),
        pytest.param(f"{HEAD}..{IV}..{TAG}", id="no body"),
        pytest.param(GENUINE + "=", id="padded"),
        pytest.param(f" {GENUINE}", id="space before"),
        pytest.param(f"{GENUINE}\n", id="newline behind"),
        pytest.param(f"{GENUINE}\u00e9", id="not ASCII"),
        pytest.param(f"{GENUINE}\ud800", id="surrogate"),
        pytest.param(forge(key=bytes(32)), id="other key of the same kid"),
        pytest.param(forge({"alg": "A256KW"}), id="other alg"),
        pytest.param(forge({"alg": "DIR"}), id="alg in capitals"),
        pytest.param(forge({"enc": "A128GCM"}), id="other enc"),
        pytest.param(forge({"kid": 1}), id="kid is a number"),
        pytest.param(forge({"kid": None}), id="kid is null"),
        pytest.param(forge({"iat": None}), id="no iat in the header"),
        pytest.param(forge(iv=bytes(16)), id="IV of 128 bits"),
        pytest.param(forge(claims={"ice_type": "other"}), id="unknown type"),
        pytest.param(forge(claims={"generation": "7"}), id="generation is a text"),
        pytest.param(forge(plain=b"not json"), id="no JSON inside"),
        pytest.param(
            forge(plain=json.dumps(CLAIMS).encode()[:-1] + b',"x":"\xff"}'), id="not UTF-8 inside"
        ),
        pytest.param(forge(plain=b"[" * 200), id="nested too deeply"),
        pytest.param(forge({"pad": "x" * 1000}), id="oversized"),
        *(pytest.param(forge(plain=without(name)), id=f"without {name}") for name in CLAIMS),
    ],
)
def test_what_is_not_one_of_our_tokens_is_refused(text):
    assert opened(text) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=60)
@given(
    st.text(max_size=40)
    | st.lists(st.text(ALPHABET, max_size=20), min_size=5, max_size=5).map(".".join)
    | st.builds(
        forge,
        st.dictionaries(st.sampled_from([*HEADER, "crit", "zip"]), JSON, max_size=2),
        st.dictionaries(st.sampled_from([*CLAIMS, "other"]), JSON, max_size=2),
    )
    | st.builds(forge, plain=st.binary(max_size=40))
)
def test_opening_never_raises(text):
    assert isinstance(opened(text), OpenedToken | UnknownKey | None)


# --- keys --------------------------------------------------------------------------------------


def test_a_key_does_not_show_its_bytes():
    key = Key("k1", b"\x07" * 32)
    assert repr(key) == "Key('k1', ***)"
    assert key.reveal() == b"\x07" * 32


def test_a_key_has_256_bits():
    assert len(Key.generate(NOW).reveal()) == 32
    with pytest.raises(ValueError, match="32 bytes"):
        Key("k1", bytes(16))


def test_a_ring_must_hold_the_key_that_seals():
    with pytest.raises(KeyError):
        KeyRing([Key("k1", BYTES)], "k2")


def test_no_key_id_looks_like_an_option(monkeypatch):
    drawn = iter([b"\xf8" * 6, b"\0" * 6, b"\1" * 32])
    monkeypatch.setattr("secrets.token_bytes", lambda _: next(drawn))
    assert Key.generate(NOW).kid == "AAAAAAAA"
