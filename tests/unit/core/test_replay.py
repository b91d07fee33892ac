"""Nonces, and proofs that are good once: contract section 5 and RFC 9449."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.core.dpop import Proof
from gateway.core.replay import JtiCache, Nonces, ReplayGuard
from tests.support.ice import b64

NOW = 1_800_000_000.0
LEASE_TIME = 5000.0

# --- nonces and age ----------------------------------------------------------------------------

NONCES = Nonces(lambda: [b"one gateway process"])


@pytest.mark.parametrize(
    ("age", "good"), [(0, True), (0.001, True), (299.9, True), (300, False), (9e9, False)]
)
def test_a_nonce_is_good_for_300_seconds(age, good):
    until = NONCES.expiry(NONCES.issue(NOW), NOW + age)
    assert until == (NOW + 300 if good else None)


@given(st.floats(1.7e9, 1.9e9))
def test_a_nonce_is_good_at_the_very_moment_it_is_made(now):
    assert NONCES.expiry(NONCES.issue(now), now) is not None


def test_a_nonce_of_the_future_is_not_good():
    """5 minutes would not be 5 minutes."""
    assert NONCES.expiry(NONCES.issue(NOW + 16), NOW) is None


def test_the_first_key_signs_and_each_verifies():
    one, other = Nonces(lambda: [b"one", b"other"]), Nonces(lambda: [b"other", b"one"])
    assert one.expiry(other.issue(NOW), NOW) is not None
    assert other.expiry(one.issue(NOW), NOW) is not None
    assert Nonces(lambda: [b"other"]).expiry(one.issue(NOW), NOW) is None


GENUINE = NONCES.issue(NOW)


@pytest.mark.parametrize(
    "nonce",
    [
        "",
        "garbage",
        "x" * 32,
        "x" * 10_000,
        GENUINE[:-1],
        GENUINE + "A",
        GENUINE + "=",
        GENUINE + "\n",
        GENUINE[:-1] + ("A" if GENUINE[-1] != "A" else "B"),
        GENUINE[:4] + "A" + GENUINE[5:],
        Nonces(lambda: [b"another process"]).issue(NOW),
        b64((2**64 - 1).to_bytes(8, "big") + bytes(16)),
        "\u00e9" * 32,
        "\u0661" * 32,
    ],
)
def test_a_wrong_or_forged_nonce_is_not_good(nonce):
    assert NONCES.expiry(nonce, NOW) is None


@pytest.mark.parametrize(
    ("iat", "nonce", "fresh"),
    [
        (NOW, None, True),
        (NOW - 60, None, True),
        (NOW + 60, None, True),
        (NOW - 60.001, None, False),
        (NOW + 60.001, None, False),
        (NOW, "wrong", False),
        (NOW, "", False),
        (NOW, NONCES.issue(LEASE_TIME - 300), False),
        (0.0, NONCES.issue(LEASE_TIME - 100), True),
        (NOW, NONCES.issue(LEASE_TIME - 100), True),
    ],
)
def test_a_proof_is_judged_by_its_iat_or_by_its_nonce_alone(iat, nonce, fresh):
    assert ReplayGuard(NONCES).accept(Proof("key", "one", iat, nonce), NOW, LEASE_TIME) is fresh


# --- replays -----------------------------------------------------------------------------------

PROOF = Proof("key", "one", NOW, None)
WITH_NONCE = Proof("key", "one", 0.0, NONCES.issue(LEASE_TIME))


@pytest.mark.parametrize("nonce", [None, GENUINE, "stale"])
def test_to_ask_whether_a_proof_is_fresh_uses_nothing_up(nonce):
    guard, proof = ReplayGuard(NONCES), Proof("thumbprint", "jti", NOW, nonce)
    assert guard.fresh(proof, NOW, NOW) is (nonce != "stale")
    assert not guard.used(proof, NOW, NOW)
    assert guard.accept(proof, NOW, NOW) is (nonce != "stale")


def another(proof, now, lease_time):
    """Another proof of the same moment; that it is let through has others be forgotten."""
    made = replace(proof, jti=f"at {now} {lease_time}", iat=now)
    return made if proof.nonce is None else replace(made, nonce=NONCES.issue(lease_time))


@pytest.mark.parametrize(("proof", "lasts"), [(PROOF, 60), (WITH_NONCE, 299.999)])
def test_a_proof_is_used_once_for_as_long_as_it_is_fresh(proof, lasts):
    guard = ReplayGuard(NONCES)
    assert not guard.used(proof, NOW, LEASE_TIME)
    assert guard.accept(proof, NOW, LEASE_TIME)
    for passed in (0, lasts / 2, lasts):
        then = NOW + passed, LEASE_TIME + passed
        assert guard.accept(another(proof, *then), *then)
        assert guard.used(proof, *then), "fresh and forgotten: it could be used again"
    assert not guard.accept(proof, NOW + lasts + 0.002, LEASE_TIME + lasts + 0.002)


@pytest.mark.parametrize("jump", [-86400, -3600, -90, -61, -30, 30, 61, 90, 3600, 86400])
@pytest.mark.parametrize("proof", [PROOF, WITH_NONCE], ids=["by iat", "by nonce"])
def test_no_setting_of_the_clock_lets_a_proof_through_twice(proof, jump):
    """There and back, with others let through at each time, as an hour passes."""
    guard = ReplayGuard(NONCES)
    assert guard.accept(proof, NOW, LEASE_TIME)
    offset = 0
    for passed in range(0, 3600, 20):
        if passed in (100, 400):
            offset = jump - offset  # there, and later back again
        then = NOW + passed + offset, LEASE_TIME + passed
        guard.accept(another(proof, *then), *then)
        again = not guard.used(proof, *then) and guard.accept(proof, *then)
        assert not again, f"{passed} s later, by a clock set by {offset} s"


def test_a_clock_set_back_asks_for_nonces_until_it_has_caught_up():
    guard = ReplayGuard(NONCES)
    assert guard.accept(PROOF, NOW, LEASE_TIME)
    for ahead, fresh in ((-3600, False), (-61, False), (-60, True), (0, True)):
        now = NOW + ahead
        assert guard.accept(another(PROOF, now, LEASE_TIME), now, LEASE_TIME) is fresh, f"{ahead} s"
        with_nonce = replace(another(WITH_NONCE, now, LEASE_TIME), jti=f"n {ahead}")
        assert guard.accept(with_nonce, now, LEASE_TIME), "with a nonce an ICE is always admitted"


@pytest.mark.parametrize(
    ("other", "used"),
    [
        (Proof("key", "two", NOW, None), False),
        (Proof("other", "one", NOW, None), False),
        (Proof("key one", "", NOW, None), False),
        (Proof("key", "one", NOW + 7, "nonce"), True),
    ],
)
def test_a_jti_counts_per_key_whatever_else_the_proof_says(other, used):
    replays = JtiCache()
    replays.remember(PROOF, NOW + 60, NOW)
    assert replays.used(other, NOW) is used


def test_a_jti_remembered_again_is_kept_for_the_longer_time():
    replays = JtiCache()
    replays.remember(PROOF, NOW + 60, NOW)
    replays.remember(PROOF, NOW + 300, NOW)
    replays.remember(replace(PROOF, jti="two"), NOW + 360, NOW + 300)
    assert replays.used(PROOF, NOW + 300)


def test_what_can_not_be_used_again_is_forgotten():
    replays = JtiCache()
    for second in range(2000):
        now = NOW + second
        replays.remember(Proof("key", str(second), now, None), now + 60, now)
        assert len(replays) <= 301, "memory must not grow with the proofs of a lifetime"
    assert sum(map(len, replays._due.values())) <= 301
    assert len(replays._seconds) <= 301
