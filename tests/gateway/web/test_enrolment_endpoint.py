"""Machines that enrol: each refusal with its code, and that nobody gets a token who should not."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import pytest

from gateway.core.times import to_text, utc_now
from tests.support.machine import CI_CD, ENROLMENTS, KEY, Machine, new_key

changes_nothing = pytest.mark.asyncio(loop_scope="module")


async def machine(running, body=KEY, hostname="PC-7.example.org", **more):
    _, secret = await new_key(running, body, **more)
    return Machine(running.session, running.url, secret, hostname)


def another(one, hostname="PC-8", key=None):
    return Machine(one.session, one.url, one.secret, hostname, key=key)


def expect(answer, status, code=None):
    assert answer[0] == status, answer
    if code is not None:
        assert answer[1]["code"] == code, answer
        assert isinstance(answer[1]["retry"], bool)
    return answer[1]


async def waiting(running):
    return (await running.admin.get("/enrolments?state=waiting")).json["items"]


async def test_a_machine_enrols_registers_and_works(running):
    one = await machine(running, labels={"site": "north"})
    made = expect(await one.ask(), 201)
    assert made["ice_name"] == "lab-PC-7"
    entry = (await running.admin.get("/ices/lab-PC-7")).json
    assert (entry["status"], entry["provisionedto"]) == ("provisioned", "alice")
    assert entry["labels"] == {"site": "north"}
    connection = await running.ice(made["token"], one.key).connect()
    assert connection.welcome["status"] == "registered"
    [event] = (await running.admin.get("/events?action=provision")).json["items"]
    [key] = (await running.admin.get("/enrolment-keys")).json["items"]
    assert event["actor"] == f"enrolment:{key['id']}"
    assert key["uses"] == 1


async def test_the_token_is_worth_nothing_with_another_key(running):
    one = await machine(running)
    made = expect(await one.ask(), 201)
    refused = await running.ice(made["token"]).refused()
    assert (refused.status, refused.code) == (403, "key-mismatch")
    assert await running.status(made["ice_name"]) == "provisioned"
    await running.ice(made["token"], one.key).connect()


async def test_a_lost_answer_strands_nobody(running):
    one = await machine(running)  # a key for one use
    first = expect(await one.ask(), 201)
    second = expect(await one.ask(), 201)
    assert first["ice_name"] == second["ice_name"]
    assert (await running.ice(first["token"], one.key).refused()).code == "token-replaced"
    await running.ice(second["token"], one.key).connect()
    # Now it is registered: the key is used up for this machine, too.
    expect(await one.ask(), 401, "enrolment-key-invalid")
    [key] = (await running.admin.get("/enrolment-keys")).json["items"]
    assert key["uses"] == 1


async def test_two_machines_never_share_the_last_use(running):
    one = await machine(running, max_uses=3)
    machines = [another(one, f"pc-{number}") for number in range(12)]
    answers = await asyncio.gather(*(each.ask() for each in machines))
    assert sorted(status for status, _ in answers) == [201] * 3 + [401] * 9
    assert {body["code"] for status, body in answers if status == 401} == {"enrolment-key-invalid"}
    assert len((await running.admin.get("/ices")).json["items"]) == 3


async def test_a_key_that_others_used_up_is_refused_before_the_body(running):
    one = await machine(running)  # a key for one use
    expect(await one.ask(), 201)
    expect(await another(one).ask(hostname=7), 401, "enrolment-key-invalid")
    expect(await one.ask(hostname=7), 422, "invalid")
    expect(await one.ask(), 201)


async def test_a_name_is_taken_once(running):
    one = await machine(running, max_uses=10)
    expect(await one.ask(), 201)
    refused = expect(await another(one, "pc-7.example.net").ask(), 409, "ice-exists")
    assert refused["detail"].startswith("ICE Provision Failed! ICE Name or User already exists.")


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"hostname": "日本"}, "hostname"),
        ({"hostname": "a\nb"}, "hostname"),
        ({"hostname": 7}, "hostname"),
        ({"hostname": "x" * 254}, "hostname"),
        ({"platform": None}, "platform"),
        ({"ice_name": "other-7"}, "ice_name"),
        ({"ice_name": "lab-ü"}, "ice_name"),
        ({"ice_name": "lab-" + "x" * 61}, "ice_name"),
        ({"provisionedto": "root"}, "provisionedto"),
    ],
)
@changes_nothing
async def test_what_does_not_fit_is_named(shared, wanted, field):
    one = await machine(shared)
    refused = expect(await one.ask(**wanted), 422, "invalid")
    assert refused["field"] == field
    assert (await shared.admin.get("/ices")).json["items"] == []


@pytest.mark.parametrize(
    ("hostname", "name"),
    [
        ("Anna's PC.local", "lab-Anna-s-PC"),
        ("..", None),
        ("--x--", "lab-x"),
        ("p" * 80, "lab-" + "p" * 60),
    ],
)
async def test_the_host_name_is_made_to_fit(running, hostname, name):
    one = await machine(running, hostname=hostname)
    status, answer = await one.ask()
    assert (status, answer.get("ice_name")) == ((201, name) if name else (422, None))


async def test_bodies_that_are_none(running):
    one = await machine(running)
    for body, status, code, field in [
        (b"{", 400, "malformed-json", None),
        (b"[" * 2000 + b"]" * 2000, 422, "invalid", "body"),
        (b"[]", 422, "invalid", "body"),
        (b'{"hostname": "a", "platform": "b", "more": %s}' % (b"9" * 31), 422, "invalid", "body"),
        (b"{}", 422, "invalid", "hostname"),
        (b'{"hostname": "a"}', 422, "invalid", "platform"),
    ]:
        answer = await one.send("POST", ENROLMENTS, data=body)
        assert expect(answer[:2], status, code).get("field") == field
    status, _, _ = await one.send("POST", ENROLMENTS, data=b" " * 9000)
    assert status == 413


async def test_secrets_that_are_none_of_this_gateway(running):
    one = await machine(running)
    last = one.secret[-1]
    forged = [
        "",
        "x",
        "iceek_",
        f"iceek_{'0' * 32}_{'A' * 43}",
        one.secret[:-1] + ("A" if last != "A" else "B"),
        one.secret + "A",
        "ü",
    ]
    for secret in forged:
        expect(
            await Machine(running.session, running.url, secret).ask(), 401, "enrolment-key-invalid"
        )
    headers = one.headers("POST", ENROLMENTS)
    for without in ("Authorization", "DPoP"):
        rest = {name: value for name, value in headers.items() if name != without}
        code = "proof-invalid" if without == "DPoP" else "enrolment-key-invalid"
        expect(await one.ask(rest), 401, code)
    expect(await one.ask(), 201)


async def test_guessing_is_throttled_and_genuine_secrets_are_not(running):
    one = await machine(running, max_uses=5)
    liar = Machine(running.session, running.url, "iceek_x")
    for _ in range(100):
        expect(await liar.ask(), 401, "enrolment-key-invalid")
    refused = expect(await liar.ask(), 429, "too-many-attempts")
    assert refused["retry"] is True
    expect(await one.ask(), 201)


@pytest.mark.parametrize(
    "claims",
    [
        {"htm": "GET"},
        {"htu": "http://127.0.0.1:1/ice/v1/enrolments"},
        {"ath": "x"},
        {"jti": ""},
    ],
)
async def test_proofs_for_something_else(running, claims):
    one = await machine(running)
    expect(await one.ask(one.headers("POST", ENROLMENTS, **claims)), 401, "proof-invalid")


async def test_a_proof_is_good_once(running):
    one = await machine(running)
    headers = one.headers("POST", ENROLMENTS)
    expect(await one.ask(headers), 201)
    assert expect(await one.ask(headers), 401, "proof-invalid")["retry"] is True


async def test_a_clock_that_is_off_is_helped_by_a_nonce(running):
    one = await machine(running)
    late = {"iat": time.time() - 86_400}
    body = {"hostname": one.hostname, "platform": "test"}
    status, answer, headers = await one.send(
        "POST", ENROLMENTS, one.headers("POST", ENROLMENTS, **late), json=body
    )
    expect((status, answer), 401, "use-dpop-nonce")
    nonce = headers["DPoP-Nonce"]
    expect(await one.ask(one.headers("POST", ENROLMENTS, nonce=nonce, **late)), 201)


async def test_keys_that_do_not_stand(running):
    made, secret = await new_key(running)
    one = Machine(running.session, running.url, secret)
    first = expect(await one.ask(), 201)
    assert (await running.admin.call("DELETE", f"/enrolment-keys/{made['id']}")).status == 204
    # Not even for the machine that lost its answer.
    refused = expect(await one.ask(), 401, "enrolment-key-invalid")
    assert "revoked" in refused["detail"]
    assert (await running.ice(first["token"], one.key).connect()).welcome


async def test_a_disabled_user_is_refused_before_a_name_that_is_taken(running):
    one = await machine(running)
    await running.provision("lab-pc-7")
    await running.command("users", "disable", "alice")
    expect(await one.ask(), 403, "enrolment-refused")


async def test_disabled_user_gets_no_ice(running):
    one = await machine(running)
    await running.command("users", "disable", "alice")
    expect(await one.ask(), 403, "enrolment-refused")
    assert (await running.admin.get("/ices")).json["items"] == []


# --- approval ------------------------------------------------------------------------------------


async def asked(running, one, **wanted):
    """Ask with a key that needs an approval; the enrolment's id."""
    return expect(await one.ask(**wanted), 202)["enrolment"]


async def decide(running, enrolment, decision="approve", status=200):
    answer = await running.admin.post(f"/enrolments/{enrolment}/{decision}")
    assert answer.status == status, answer
    return answer.json


async def test_an_admin_approves(running):
    one = await machine(running, approval=True)
    answer = expect(await one.ask(), 202)
    assert answer["retry_after"] >= 1
    [shown] = await waiting(running)
    assert (shown["hostname"], shown["ice_name"]) == ("PC-7.example.org", "lab-PC-7")
    assert (shown["address"], shown["replaces"]) == ("127.0.0.1", False)
    expect(await one.poll(answer["enrolment"]), 202)
    assert expect(await one.ask(), 202)["enrolment"] == answer["enrolment"]
    await decide(running, answer["enrolment"])
    made = expect(await one.poll(answer["enrolment"]), 200)
    await running.ice(made["token"], one.key).connect()
    assert await waiting(running) == []
    await decide(running, answer["enrolment"], status=409)


async def test_an_admin_rejects(running):
    one = await machine(running, approval=True)
    enrolment = await asked(running, one)
    await decide(running, enrolment, "reject")
    expect(await one.poll(enrolment), 403, "enrolment-refused")
    expect(await one.ask(), 403, "enrolment-refused")
    assert (await running.admin.get("/ices")).json["items"] == []


async def test_another_key_pair_learns_nothing(running):
    one = await machine(running, approval=True)
    enrolment = await asked(running, one)
    await decide(running, enrolment)
    expect(await another(one).poll(enrolment), 403, "key-mismatch")
    expect(await one.poll("0" * 24), 404, "not-found")
    other = await machine(running)
    expect(await other.poll(enrolment), 404, "not-found")
    expect(await one.poll(enrolment), 200)


async def test_a_poll_whose_answer_was_lost_is_answered_anew(running):
    one = await machine(running, approval=True)
    enrolment = await asked(running, one)
    await decide(running, enrolment)
    expect(await one.poll(enrolment), 200)
    made = expect(await one.poll(enrolment), 200)
    await running.ice(made["token"], one.key).connect()
    expect(await one.poll(enrolment), 403, "enrolment-refused")


async def test_what_changes_between_request_and_approval(running):
    one = await machine(running, approval=True, max_uses=10)
    first, second = await asked(running, one), await asked(running, another(one, "PC-7"))
    await decide(running, first)
    await decide(running, second, status=409)  # the first approved wins
    taken = await asked(running, another(one, "PC-9"))
    await running.provision("lab-pc-9")
    await decide(running, taken, status=409)
    late = another(one, "PC-10")
    enrolment = await asked(running, late)
    await decide(running, enrolment)
    await running.provision("lab-pc-10")
    expect(await late.poll(enrolment), 403, "enrolment-refused")
    leaver = another(one, "PC-11")
    enrolment = await asked(running, leaver)
    await decide(running, enrolment)
    await running.command("users", "disable", "alice")
    expect(await leaver.poll(enrolment), 403, "enrolment-refused")
    await decide(running, await asked(running, another(one, "PC-12")), status=422)


async def test_an_approval_by_a_key_that_is_used_up_keeps_no_name(running):
    one = await machine(running, approval=True)  # a key for one use
    late, other = another(one, "PC-9"), await machine(running, approval=True, hostname="PC-9")
    enrolments = [await asked(running, each) for each in (one, late, other)]
    await decide(running, enrolments[0])
    await decide(running, enrolments[1])
    await decide(running, enrolments[2], status=409)
    expect(await one.poll(enrolments[0]), 200)
    expect(await late.poll(enrolments[1]), 401, "enrolment-key-invalid")
    await decide(running, enrolments[2])
    expect(await other.poll(enrolments[2]), 200)


async def test_a_revoked_key_ends_what_waits(running):
    made, secret = await new_key(running, approval=True)
    one = Machine(running.session, running.url, secret)
    enrolment = await asked(running, one)
    await running.admin.call("DELETE", f"/enrolment-keys/{made['id']}")
    await decide(running, enrolment, status=409)
    expect(await one.poll(enrolment), 401, "enrolment-key-invalid")


async def test_a_machine_that_was_set_up_anew(running):
    one = await machine(running, approval=True, max_uses=10)
    enrolment = await asked(running, one)
    await decide(running, enrolment)
    made = expect(await one.poll(enrolment), 200)
    old = await running.ice(made["token"], one.key).connect()
    again = another(one, "PC-7")
    replacing = await asked(running, again)
    [shown] = await waiting(running)
    assert (shown["replaces"], shown["generation"]) == (True, 1)
    await decide(running, replacing)
    assert await running.status("lab-PC-7") == "registered"  # until its poll
    made = expect(await again.poll(replacing), 200)
    await old.expect_dropped(4102)
    connection = await running.ice(made["token"], again.key).connect()
    assert connection.welcome["generation"] == 2


@pytest.mark.parametrize("action", ["deregister", "reregister"])
async def test_a_change_since_ends_what_would_replace(running, action):
    one = await machine(running, approval=True, max_uses=10)
    ice = await running.provision("lab-pc-7")
    expect(await one.ask(), 409, "ice-exists")  # not registered: nothing to replace
    await ice.connect()
    first, second = await asked(running, one), await asked(running, another(one, "PC-7"))
    await decide(running, first)
    await running.act("lab-pc-7", action)
    expect(await one.poll(first), 403, "enrolment-refused")
    await decide(running, second, status=409)


async def test_the_ice_of_another_user_is_never_replaced(running):
    await running.add_user("bob")
    one = await machine(running, approval=True, provisionedto="*", max_uses=10)
    ice = await running.provision("lab-pc-7")
    await ice.connect()
    expect(await one.ask(provisionedto="bob"), 409, "ice-exists")
    expect(await one.ask(), 422, "invalid")
    await asked(running, one, provisionedto="ALICE")


async def test_a_user_whom_nobody_knows_is_told_to_the_admin_alone(running):
    one = await machine(running, approval=True, provisionedto="*")
    enrolment = await asked(running, one, provisionedto="carol")
    refused = await decide(running, enrolment, status=422)
    assert refused["field"] == "provisionedto"
    await running.add_user("Carol")
    await decide(running, enrolment)
    made = expect(await one.poll(enrolment), 200)
    assert (await running.admin.get(f"/ices/{made['ice_name']}")).json["provisionedto"] == "Carol"


@pytest.mark.parametrize("other", ["root", "nobody"])
async def test_a_repetition_changes_no_user(running, other):
    one = await machine(running, approval=True, provisionedto="*")
    enrolment = await asked(running, one, provisionedto="alice")
    await decide(running, enrolment)
    # Neither the ICE goes to a user whom the admin has not approved, nor shows the answer who exists.
    for _ in range(2):
        made = expect(await one.ask(provisionedto=other), 201)
        entry = (await running.admin.get(f"/ices/{made['ice_name']}")).json
        assert entry["provisionedto"] == "alice"
    await running.command("users", "disable", "alice")
    expect(await one.ask(provisionedto=other), 403, "enrolment-refused")


@pytest.mark.parametrize("user", ["", "a\0b", "\x1b[31mred", "alice\n", "\u202eecila", "x" * 129])
async def test_what_cannot_be_a_user_waits_for_nobody(running, user):
    one = await machine(running, approval=True, provisionedto="*")
    refused = expect(await one.ask(provisionedto=user), 422, "invalid")
    assert refused["field"] == "provisionedto"
    assert await waiting(running) == []


async def test_only_so_many_wait(running):
    one = await machine(running, approval=True, max_uses=10)
    rows = [
        (
            "INSERT INTO enrolments (id, key_id, ice_name, ice_type, provisionedto, hostname, platform,"
            " address, thumbprint, state, replaces, createdon, expireson)"
            " SELECT $1 || n, $2, 'lab-x' || n, 'normal', 'alice', 'x', 'x', 'x', 'x' || n, 'waiting', 0,"
            " $3, $4 FROM (WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 1000)"
            " SELECT n FROM t) AS numbers"
        )
    ]
    [key] = (await running.admin.get("/enrolment-keys")).json["items"]
    now = utc_now()
    await running.gateway.engine.write(
        lambda tx: tx.run(rows[0], "0", key["id"], to_text(now), to_text(now + timedelta(days=1)))
    )
    refused = expect(await one.ask(), 429, "queue-full")
    assert refused["retry"] is True


async def test_nothing_secret_is_shown(running):
    one = await machine(running, CI_CD)
    expect(await one.ask(), 201)
    for path in ("/enrolment-keys", "/enrolments", "/events", "/ices"):
        text = (await running.admin.get(path)).body.decode()
        assert one.secret not in text
        assert one.secret.split("_", 2)[2] not in text


async def test_a_node_that_is_drained_enrols_nobody(running):
    one = await machine(running)
    running.gateway.node.pause(paused=True)
    expect(await one.ask(), 503, "draining")
    running.gateway.node.pause(paused=False)
    expect(await one.ask(), 201)
