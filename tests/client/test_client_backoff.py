"""What an ICE does after each refusal and each closing: contract sections 5 and 6."""

import asyncio
import json
from email.utils import formatdate

import pytest

from client import backoff, protocol
from client.backoff import ClosedByUs, Stopped
from client.environment import Environment
from client.identity import StateFolder
from client.protocol import CloseCode, RefusalCode
from tests.client.scripted_gateway import NOW, admit, answer, hang_up, make_token, refuse

FINAL = [code.value for code in RefusalCode if not code.retry]
RETRIED = [
    code.value for code in RefusalCode if code.retry and code is not RefusalCode.USE_DPOP_NONCE
]
RECONNECT = [code.value for code in CloseCode if code.then is protocol.Then.RECONNECT]


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", FINAL)
async def test_a_final_refusal_stops_an_ice_that_was_never_admitted(code, run, gateway, time):
    outcome = await run(refuse(code))

    assert outcome == Stopped(code, f"detail of {code}"), "the ICE should stop and say why"
    assert len(gateway.handshakes) == 1, "the ICE should not try again"
    assert time.delays == []


@pytest.mark.parametrize("code", RETRIED)
async def test_a_refusal_with_retry_is_tried_again_after_a_backoff(code, run, gateway, time):
    assert await run(refuse(code)) is None, "the ICE should come back"
    assert time.delays == [1.0]


@pytest.mark.parametrize(("retry", "comes_back"), [(True, True), (False, False)])
async def test_an_unknown_code_is_obeyed_by_its_retry(retry, comes_back, run):
    outcome = await run(refuse("full-moon", retry=retry, status=409))

    assert (outcome is None) is comes_back, "`retry` should decide about a code of the future"


async def test_proof_invalid_with_retry_is_tried_again_with_a_new_proof(run, gateway):
    assert await run(refuse("proof-invalid", retry=True)) is None

    first, second = (handshake.claims["jti"] for handshake in gateway.handshakes)
    assert first != second, "a proof is good once: the second attempt needs another"


@pytest.mark.parametrize("code", sorted(protocol.RETRIED_ONCE_ADMITTED))
async def test_an_ice_that_was_admitted_retries_slowly_what_may_be_the_gateways_fault(
    code, run, time
):
    assert await run(admit(close=(4201, "disconnected")), refuse(code)) is None
    assert time.draws[-1] == protocol.SLOW_RETRY, "the delay should be drawn from 300 to 600 s"
    assert time.delays[-1] == 600.0


async def test_the_admission_is_remembered_across_processes(run, time):
    await run()

    assert await run(refuse("token-invalid")) is None, "this token was admitted by the last process"
    assert time.delays == [600.0]


async def test_the_admission_of_another_token_does_not_count(run, time):
    await run()

    outcome = await run(refuse("token-invalid"), token=make_token(NOW + 1))
    assert outcome == Stopped("token-invalid", "detail of token-invalid")


@pytest.mark.parametrize("code", sorted(set(FINAL) - protocol.RETRIED_ONCE_ADMITTED))
async def test_other_final_refusals_stop_an_admitted_ice_too(code, run):
    outcome = await run(admit(close=(4201, "disconnected")), refuse(code))

    assert outcome == Stopped(code, f"detail of {code}")


@pytest.mark.parametrize(
    ("value", "delay"),
    [
        ("7", 7.0),
        ("0", 1.0),
        ("999999999", backoff.LONGEST),
        ("9" * 5000, backoff.LONGEST),
        ("1e999", 1.0),
        ("0.2", 1.0),
        ("", 1.0),
        (formatdate(NOW + 30, usegmt=True), 30.0),
        (formatdate(NOW - 30, usegmt=True), 1.0),
        ("soon", 1.0),
        ("-5", 1.0),
        ("nan", 1.0),
    ],
)
async def test_retry_after_is_honoured_where_it_is_larger(value, delay, run, time):
    time.fraction = 0.0
    headers = {"Retry-After": value, "Date": formatdate(NOW, usegmt=True)}

    assert await run(refuse("overloaded", headers=headers)) is None
    assert time.delays == [delay], f"Retry-After: {value} should make the ICE wait {delay} s"


async def test_without_retry_after_it_is_the_backoff_alone(run, time):
    time.fraction = 0.25
    assert await run(refuse("overloaded")) is None
    assert time.delays == [0.25]


async def test_retry_after_as_a_date_is_read_by_the_clock_of_the_answer(run, time):
    theirs = NOW + 5000
    headers = {
        "Retry-After": formatdate(theirs + 20, usegmt=True),
        "Date": formatdate(theirs, usegmt=True),
    }
    await run(refuse("draining", headers=headers))

    assert time.delays == [20.0], "an ICE whose clock is off should still wait 20 s"


@pytest.mark.parametrize(
    "turn",
    [
        answer(502, "<html>Bad gateway</html>"),
        answer(403, "<html>Forbidden</html>"),
        answer(401, json.dumps({"error": "who are you"})),
        answer(404),
        answer(200, "<html>It works</html>"),
        answer(403, json.dumps({"code": "deregistered"})),
        answer(403, json.dumps({"code": "deregistered", "retry": "no"})),
        answer(403, json.dumps(["deregistered"])),
        answer(403, json.dumps({"code": "x", "retry": False}) + " " * 200_000),
        answer(403, "[" * 60_000),
        hang_up,
        admit(protocols=()),
    ],
)
async def test_an_answer_that_is_not_the_gateways_is_tried_again(turn, run, gateway, time):
    # aiohttp sends a request again by itself when the peer hangs up.
    turns = [turn, turn] if turn is hang_up else [turn]

    assert await run(*turns) is None, "a proxy's answer must not stop the ICE"
    assert time.delays == [1.0]


async def test_a_request_that_aiohttp_sends_again_brings_a_new_proof(run, gateway):
    assert await run(hang_up) is None

    jtis = [handshake.claims["jti"] for handshake in gateway.handshakes]
    assert len(jtis) == len(set(jtis)) == 2, "each request needs a proof of its own"


async def test_a_redirect_is_not_followed_with_the_credentials(run, gateway, events):
    await run(answer(307, Location=f"{gateway.url}/thief"))

    assert [handshake.path for handshake in gateway.handshakes] == ["/ice/v1"] * 2
    assert "redirect" in str(events[1]), "the line should say what happened"


async def test_a_strangers_text_cannot_write_more_than_one_line(run, gateway):
    outcome = await run(refuse("deregistered", detail="one\n\x1b[2Jtwo" + "x" * 9999))

    assert outcome.sentence.startswith("one [2Jtwo"), "control characters should be gone"
    assert len(outcome.sentence) == 500


# --- nonces ------------------------------------------------------------------------------------


async def test_a_nonce_is_used_at_once_and_for_one_proof_only(run, gateway, time):
    nonce = refuse("use-dpop-nonce", headers={"DPoP-Nonce": "n-1"})

    assert await run(nonce, admit(close=(4201, "disconnected"))) is None
    used = [handshake.claims.get("nonce") for handshake in gateway.handshakes]
    assert used == [None, "n-1", None], "a nonce is for the next proof, and not for later ones"
    assert time.delays == [1.0], "the first retry is at once; only the reconnection waits"


async def test_nonces_that_never_suffice_do_not_become_a_tight_circle(run, gateway, time):
    turns = [refuse("use-dpop-nonce", headers={"DPoP-Nonce": f"n-{n}"}) for n in range(4)]

    assert await run(*turns) is None
    assert time.delays == [1.0, 2.0, 4.0], "from the second in a row the ICE should back off"
    used = [handshake.claims.get("nonce") for handshake in gateway.handshakes]
    assert used == [None, "n-0", "n-1", "n-2", "n-3"], "it should use the last nonce it got"


async def test_a_demand_for_a_nonce_without_one_is_not_retried_at_once(run, time):
    assert await run(refuse("use-dpop-nonce")) is None
    assert time.delays == [1.0]


# --- closings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [4101, 4102])
async def test_a_final_closing_stops_the_ice(code, run, gateway, time, folder):
    closing = protocol.CLOSINGS[code]
    outcome = await run(admit(close=(code, closing.reason)))

    assert outcome == Stopped(code, f"{closing.reason}: {closing.sentence}")
    assert len(gateway.handshakes) == 1, "the ICE should not come back"
    state = StateFolder(folder).state()
    assert state.must_act
    assert not state.registered


@pytest.mark.parametrize("code", [*RECONNECT, 1000, 1001, 1011, 3999, 4999])
async def test_other_closings_are_followed_by_a_reconnection(code, run, time, events):
    assert await run(admit(close=(code, "why"))) is None
    assert time.delays == [1.0]
    closed = next(event for event in events if event.kind == "closed")
    assert str(closed).startswith(f"closed {code} why: "), "the line should say code and reason"
    error = code in RECONNECT and code < 3000
    assert (closed.level >= 40) is error, (
        f"{code} is{'' if error else ' not'} to be logged as error"
    )


@pytest.mark.parametrize(
    ("reason", "delay"),
    [
        ('{"retry_after": 12.5}', 12.5),
        ('{"retry_after": 1e9}', backoff.LONGEST),
        ('{"retry_after": 0}', 1.0),
        ('{"retry_after": 0.2}', 1.0),
        ('{"retry_after": -1}', 1.0),
        ('{"retry_after": -1e999}', 1.0),
        ('{"retry_after": NaN}', 1.0),
        ('{"retry_after": null}', 1.0),
        ("[" * 61, 1.0),
        ('{"retry_after": "soon"}', 1.0),
        ("restart", 1.0),
        ("", 1.0),
    ],
)
async def test_a_restart_names_the_time_to_come_back(reason, delay, run, time, events):
    time.fraction = 0.0
    assert await run(admit(close=(1012, reason))) is None
    assert time.delays == [delay]
    closed = next(event for event in events if event.kind == "closed")
    assert str(closed) == "closed 1012 restart: The gateway is restarting or has lost its database."


async def test_restarts_one_after_the_other_make_no_tight_circle(run, time):
    """A gateway that says 0 each time would have some 200 connections a second."""
    time.fraction = 0.0
    assert await run(*[admit(close=(1012, '{"retry_after": 0}'))] * 5) is None
    assert time.delays == [1.0] * 5


async def test_a_superseded_ice_waits_and_comes_back(run, time):
    assert await run(admit(close=(4103, "superseded"))) is None
    assert time.draws == [protocol.SUPERSEDED_WAIT], "the wait should be drawn from 60 to 120 s"
    assert time.delays == [120.0]


async def test_an_unknown_code_of_those_that_stop_an_ice_makes_it_wait(run, time):
    assert await run(*[admit(close=(4199, "later"))] * 3) is None
    assert time.draws == [protocol.SUPERSEDED_WAIT] * 3


async def test_the_third_supersession_in_15_minutes_stops_the_ice(run, gateway, time, folder):
    outcome = await run(*[admit(close=(4103, "superseded"))] * 3)

    assert isinstance(outcome, Stopped), "somebody else runs as this ICE"
    assert outcome.code == 4103
    assert "another process" in outcome.sentence
    assert len(gateway.handshakes) == 3
    state = StateFolder(folder).state()
    assert state.must_act
    assert state.registered, "the ICE is still registered: it is only run twice"


async def test_supersessions_further_apart_do_not_stop_the_ice(run, time):
    turns = [admit(close=(4103, "superseded"))] * 2
    late = refuse("overloaded", headers={"Retry-After": "900"})

    assert await run(*turns, late, admit(close=(4103, "superseded"))) is None


async def test_a_connection_lost_without_a_close_frame_is_replaced(gateway, make_ice, time, events):
    async with make_ice() as ice:
        await ice.connected()
        session = await gateway.held.get()
        session.socket._req.transport.abort()
        await gateway.after_script()

    assert next(event.code for event in events if event.kind == "closed") == 1006


async def test_a_silent_gateway_is_left_after_two_heartbeats(gateway, make_ice, events):
    gateway.script.append(admit(heartbeat=0.05))
    async with make_ice() as ice:
        old = await gateway.session()
        await gateway.after_script()
        # On a connection that the ICE has itself replaced, this is not for it.
        await old.socket.close(code=4103, message=b"superseded")
        assert (await ice.connected()).session == "s-1"

    closed = [event for event in events if event.kind == "closed"]
    assert len(closed) == 1, "4103 on a replaced connection should be ignored"
    assert "Nothing was heard" in str(closed[0])


async def test_pings_show_that_the_gateway_lives_and_are_answered(gateway, make_ice, monkeypatch):
    loop = asyncio.get_running_loop()
    elapsed = loop.time
    passed = 0.0
    monkeypatch.setattr(loop, "time", lambda: elapsed() + passed)
    gateway.script.append(admit(heartbeat=30.0))
    async with make_ice() as ice:
        session = await gateway.session()
        # By the first answer the ICE has read the welcome; 60 s without a ping are too long from then on.
        for seconds in (0.0, 40.0, 40.0):
            passed += seconds
            await session.socket.ping(b"are you there")
            pong = await asyncio.wait_for(session.pongs.get(), 5)
            assert pong == b"are you there", "the ICE should answer pings"
        assert ice.welcome is not None, "pings count as life"

    assert len(gateway.handshakes) == 1


# --- backoff -----------------------------------------------------------------------------------


async def test_backoff_doubles_to_its_cap_with_full_jitter(run, time):
    time.fraction = 0.5
    assert await run(*[answer(502)] * 9) is None

    limits = [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert time.draws == [(0.0, limit) for limit in limits], "full jitter draws from 0 to the limit"
    assert time.delays == [limit / 2 for limit in limits]


async def test_an_ice_that_is_dropped_at_once_backs_off(run, time):
    assert await run(*[admit(close=(4201, "disconnected"))] * 4) is None
    assert time.delays == [1.0, 2.0, 4.0, 8.0], "a welcome alone should not reset the backoff"


def test_a_session_that_has_lasted_resets_the_backoff():
    rules = backoff.Backoff(Environment(uniform=lambda low, high: high, monotonic=lambda: 0.0))
    closed = backoff.Closed(4201, "", "disconnected")
    waits = [rules.closed(closed, lasted=lasted) for lasted in (0, 0, 59.9, 60.0, 0)]

    assert waits == [1.0, 2.0, 4.0, 1.0, 2.0]


def test_backoff_stays_at_its_cap_for_ever():
    rules = backoff.Backoff(Environment(uniform=lambda low, high: high, monotonic=lambda: 0.0))
    refused = backoff.Refused("unreachable", "")
    waits = [rules.refused(refused, was_admitted=True) for _ in range(5000)]

    assert waits[-1] == backoff.CAP


async def test_nobody_listening_is_tried_again(make_ice, unused_tcp_port, time, events):
    async with make_ice(gateway_url=f"http://127.0.0.1:{unused_tcp_port}") as ice:
        await time.after_sleeps(3)
        ice.stop()
        assert await ice.wait() == ClosedByUs()

    assert time.delays[:3] == [1.0, 2.0, 4.0]
    assert str(events[1]) == (
        f"unreachable: Connection refused by 127.0.0.1:{unused_tcp_port}: it is not running, or the address"
        " is wrong. (trying again in 1.0 s)"
    )
