"""Admissions of ICEs whose token was sealed by a key that has been retired: contract section 4."""

from __future__ import annotations

import json
import time

import pytest

from gateway.app import Tuning
from gateway.core import base64url
from gateway.core.ice import IceType
from gateway.core.times import utc_now
from gateway.core.tokens import Key as SealingKey
from gateway.core.tokens import KeyRing
from gateway.node.node import NodeLimits
from gateway.store.engine import StoreUnavailable
from tests.support.ice import Key, b64_json
from tests.support.keys import retire_key


def look_ups(running):
    """How many tokens were looked up by their hash: those found, and those not found."""
    counter = running.gateway.node._meters.token_look_ups
    return tuple(int(counter.labels(found)._value.get()) for found in ("yes", "no"))


async def registered(running, name="lab-1"):
    ice = await running.provision(name)
    await (await ice.connect()).close()
    return ice


def sealed(ring, name="lab-1", generation=1):
    """An envelope that no action of an admin has made."""
    return ring.seal(name, IceType.NORMAL, generation, utc_now()).reveal()


def garbage(token):
    """A token with the header of a genuine one and a body of another."""
    header, _, _, *body = token.split(".")
    return ".".join([header, "", base64url.encode(bytes(12)), *body])


async def test_a_registered_ice_goes_on(running):
    ice = await registered(running)
    retire_key(running)
    first = await ice.connect()
    assert first.welcome["generation"] == 1
    second = await ice.connect()
    await first.expect_dropped(4103)
    await running.act("lab-1", "deregister")
    await second.expect_dropped(4101)
    assert (await ice.refused()).code == "token-invalid", "the table has another hash now"
    assert look_ups(running) == (2, 1)


async def test_each_bad_handshake_has_its_code(running, subtests):
    ice, unused = await registered(running), await running.provision("lab-2")
    replaced = await registered(running, "lab-3")
    await running.act("lab-3", "reregister")
    ring = retire_key(running)
    unknown = SealingKey.generate(utc_now())
    used = ice.headers()
    await (await ice.connect(used)).close()
    cases = {
        "forged by who has read the key": (sealed(ring), "token-invalid", True),
        "garbage": (garbage(ice.token), "token-invalid", True),
        "replaced before": (replaced.token, "token-invalid", True),
        "never used": (unused.token, "token-invalid", True),
        "of a key that never was": (
            sealed(KeyRing([unknown], unknown.kid)),
            "token-invalid",
            False,
        ),
        "not even a token": (ice.token.rpartition(".")[0], "token-invalid", False),
    }
    for name, (token, code, looked_up) in cases.items():
        with subtests.test(name):
            found, before = look_ups(running)
            assert (await running.ice(token, ice.key).refused()).code == code
            assert look_ups(running) == (found, before + looked_up)
    before = look_ups(running)
    with subtests.test("a proof for another URL"):
        assert (await ice.refused(htu="http://elsewhere/ice/v1")).code == "proof-invalid"
    with subtests.test("a proof that was used"):
        refused = await ice.refused(used)
        assert (refused.code, refused.problem["retry"]) == ("proof-invalid", True)
    with subtests.test("a wrong clock"):
        refused = await ice.refused(iat=time.time() - 3600)
        assert refused.code == "use-dpop-nonce"
        assert look_ups(running) == before, "the proof is judged before the database is asked"
        nonce = refused.headers["DPoP-Nonce"]
        await (await ice.connect(iat=time.time() - 3600, nonce=nonce)).close()
    with subtests.test("another machine"):
        refused = await running.ice(ice.token, Key()).refused()
        assert (refused.status, refused.code) == (403, "key-mismatch")
    assert await running.status("lab-2") == "provisioned"
    answer = await running.eventually(
        "/ices/lab-1/connections",
        lambda answer: any(item["code"] == "key-mismatch" for item in answer.json["items"]),
    )
    codes = {item["code"] for item in answer.json["items"]}
    assert "token-invalid" not in codes, "nothing tells whose a token is that is not found"


async def test_one_proof_of_two_handshakes_at_once_is_used_once(running):
    ice = await registered(running)
    retire_key(running)
    headers = ice.headers()
    begun = [await ice.begin(headers) for _ in range(2)]
    outcomes = []
    for streams in begun:
        try:
            outcomes.append((await ice.finish(*streams)).welcome["ice_name"])
        except Exception as refused:  # noqa: BLE001 - told apart below
            outcomes.append(refused.code)
    assert sorted(outcomes) == ["lab-1", "proof-invalid"]


async def test_a_store_that_cannot_be_used_is_said(running, monkeypatch):
    ice = await registered(running)
    retire_key(running)

    async def unavailable(*_):
        raise StoreUnavailable("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(running.gateway.node.admission.loader, "find_by_token", unavailable)
        refused = await ice.refused()
        assert (refused.code, refused.problem["retry"]) == ("store-unavailable", True)
        patch.setattr(running.gateway.node.log, "fault", "the log cannot be read")
        assert (await ice.refused()).code == "store-unavailable"
    await (await ice.connect()).close()


@pytest.mark.gateway(tuning=Tuning(node=NodeLimits(attempts=3)))
async def test_who_guesses_is_throttled_and_a_genuine_token_is_not(running):
    ice = await registered(running)
    retire_key(running)
    guesses = running.ice(garbage(ice.token))
    assert [(await guesses.refused()).code for _ in range(3)] == ["token-invalid"] * 3
    refused = await guesses.refused()
    assert (refused.status, refused.code) == (429, "too-many-attempts")
    assert int(refused.headers["Retry-After"]) <= 60
    assert (await guesses.refused(ath="wrong")).code == "proof-invalid"
    await (await ice.connect()).close()
    assert look_ups(running) == (1, 4)


async def test_only_the_retired_key_of_this_gateway_is_known(running):
    """The id is in the token's header, for everybody to read and to change."""
    ice = await registered(running)
    retire_key(running)
    header, *others = ice.token.split(".")
    fields = json.loads(base64url.decode(header)) | {"iat": 1}
    changed = ".".join([b64_json(fields), *others])
    assert (await running.ice(changed, ice.key).refused()).code == "token-invalid"
    assert look_ups(running) == (0, 1)
