"""No gap of an admission admits: each is held open while something else happens.

The gaps are the awaits between the token's opening and the 101; between the last of them and the
101 there is none, which `test_nothing_is_awaited_before_the_101` holds.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import textwrap

import pytest

from gateway.core.times import utc_now
from gateway.node.admission import Admission
from gateway.node.signature_helper import HelperPace, SignatureHelper
from gateway.services.provisioning import Provisioning
from gateway.store.acknowledgements import Acknowledgements
from gateway.store.engine import StoreUnavailable
from gateway.store.ice_listing import IceListing
from gateway.store.key_file import KeyStore
from gateway.store.nodes import Nodes
from gateway.store.sqlite.engine import open_sqlite
from gateway.web.ice_endpoint import IceEndpoint
from tests.support.clock import RunningClock
from tests.support.harness import ADMIN, harness
from tests.support.ice import Key, Refused, until
from tests.support.keys import retire_key


class Gap:
    """Holds the next call of a coroutine function, before or after its work, until it is let go."""

    def __init__(self, monkeypatch, owner, name: str, *, after: bool) -> None:
        self.reached = asyncio.Event()
        self._go = asyncio.Event()
        self._armed = True
        original = getattr(owner, name)

        async def held(*args, **kwargs):
            mine, self._armed = self._armed, False
            if not mine:
                return await original(*args, **kwargs)
            if after:
                result = await original(*args, **kwargs)
            self.reached.set()
            await self._go.wait()
            return result if after else await original(*args, **kwargs)

        monkeypatch.setattr(owner, name, held)

    async def open(self) -> None:
        async with asyncio.timeout(5):
            await self.reached.wait()

    def let_go(self) -> None:
        self._go.set()


def parts(running):
    """Where the gaps of an admission lie: before and after each await on its way."""
    admission = running.gateway.node.admission
    return {
        "screening": (admission.screening, "screen"),
        "look-up": (admission.loader, "find"),
        "look-up by token": (admission.loader, "find_by_token"),
        "registration": (admission, "_register"),
        "decision": (admission, "_decide"),
    }


CONNECTING = [
    (gap, after) for gap in ("screening", "look-up", "decision") for after in (False, True)
]
WON = [("registration", True), ("decision", True)]
REGISTERING = [*CONNECTING, ("registration", False), ("registration", True)]
"""The gaps of a first handshake; in those of `WON` its compare-and-set has been committed."""


@pytest.fixture
def hold(running, monkeypatch):
    def hold(gap):
        owner, name = parts(running)[gap[0]]
        return Gap(monkeypatch, owner, name, after=gap[1])

    return hold


async def held_handshake(ice, gap):
    """Begin a handshake and wait until it stands in the gap; returns what finishes it."""
    streams = await ice.begin()
    await gap.open()
    return asyncio.ensure_future(ice.finish(*streams))


async def refusal_of(handshake):
    with pytest.raises(Refused) as refused:
        await handshake
    return refused.value.code


@pytest.mark.parametrize("gap", CONNECTING)
@pytest.mark.parametrize(
    ("action", "code"), [("deregister", "deregistered"), ("reregister", "token-replaced")]
)
async def test_an_action_in_a_gap_of_a_connection_refuses_it(running, hold, gap, action, code):
    ice = await running.provision()
    await (await ice.connect()).close()
    held = hold(gap)
    handshake = await held_handshake(ice, held)
    await running.act("lab-1", action)
    held.let_go()
    assert await refusal_of(handshake) == code
    assert "lab-1" not in running.gateway.node.hub, "a refused handshake left a session behind"


@pytest.mark.parametrize("gap", CONNECTING)
@pytest.mark.parametrize(
    ("action", "code"), [("deregister", "deregistered"), ("reregister", "token-replaced")]
)
async def test_an_action_in_a_gap_refuses_a_token_of_a_retired_key(
    running, hold, gap, action, code
):
    ice = await running.provision()
    await (await ice.connect()).close()
    retire_key(running)
    held = hold(("look-up by token", gap[1]) if gap[0] == "look-up" else gap)
    handshake = await held_handshake(ice, held)
    await running.act("lab-1", action)
    held.let_go()
    is_found_before = gap[0] == "decision" or gap == ("look-up", True)
    assert await refusal_of(handshake) == (code if is_found_before else "token-invalid")
    assert "lab-1" not in running.gateway.node.hub, "a refused handshake left a session behind"


async def test_an_ice_that_was_found_by_its_token_is_read_once_if_nothing_happens(
    running, monkeypatch
):
    ice = await running.provision()
    await (await ice.connect()).close()
    retire_key(running)

    asked = []
    find = running.gateway.node.admission.loader.find

    async def recorded(key, *proof):
        asked.append(key)
        return await find(key, *proof)

    monkeypatch.setattr(running.gateway.node.admission.loader, "find", recorded)
    await (await ice.connect()).close()
    assert len(asked) == 1, "the first reading was expected to do"
    assert asked != ["lab-1"], "it was expected to be by the token"


@pytest.mark.parametrize("gap", REGISTERING)
async def test_a_reprovision_in_a_gap_of_a_registration_refuses_it(running, hold, gap):
    ice = await running.provision()
    held = hold(gap)
    handshake = await held_handshake(ice, held)
    answer = await running.admin.post("/ices/lab-1/reprovision")
    held.let_go()
    if gap in WON:
        # The ICE has won: it is registered, and a reprovision is refused.
        assert answer.status == 409
        await (await handshake).round_trip()
    else:
        assert answer.status == 200
        assert await refusal_of(handshake) == "token-replaced"


@pytest.mark.parametrize("gap", WON)
@pytest.mark.parametrize(
    ("action", "code"), [("deregister", "deregistered"), ("reregister", "token-replaced")]
)
async def test_an_action_right_after_the_registration_refuses_it(running, hold, gap, action, code):
    ice = await running.provision()
    held = hold(gap)
    handshake = await held_handshake(ice, held)
    await running.act("lab-1", action)
    held.let_go()
    assert await refusal_of(handshake) == code
    assert "lab-1" not in running.gateway.node.hub


@pytest.mark.parametrize("gap", REGISTERING)
async def test_of_two_machines_with_one_token_only_the_first_registers(running, hold, gap):
    ice = await running.provision()
    held = hold(gap)
    handshake = await held_handshake(ice, held)
    second = running.ice(ice.token, Key())
    if gap in WON:
        assert (await second.refused()).code == "key-mismatch"
        held.let_go()
        await (await handshake).round_trip()
        return
    winner = await second.connect()
    held.let_go()
    assert await refusal_of(handshake) == "key-mismatch"
    await winner.round_trip()


@pytest.mark.parametrize("gap", REGISTERING)
async def test_of_two_handshakes_of_one_ice_only_the_older_is_closed(running, hold, gap):
    ice = await running.provision()
    held = hold(gap)
    handshake = await held_handshake(ice, held)
    first = await ice.connect()
    held.let_go()
    second = await handshake
    await first.expect_dropped(4103)
    await second.round_trip()
    assert running.gateway.node.hub.get("lab-1").id == second.welcome["session"]
    assert len(running.gateway.node.hub) == 1


@pytest.mark.parametrize("gap", REGISTERING)
async def test_a_client_that_vanished_has_no_session(running, hold, gap):
    ice = await running.provision()
    held = hold(gap)
    _, writer = await ice.begin()
    await held.open()
    writer.transport.abort()
    # Its end has been seen once the gateway has answered somebody who came later.
    assert (await running.admin.get("/ices/lab-1")).status == 200
    held.let_go()
    other = await running.provision("lab-2")
    await other.connect()
    assert [session.ice_name for session in running.gateway.node.hub] == ["lab-2"]
    await (await ice.connect()).round_trip()


@pytest.mark.gateway(monotonic=lambda: 1000.0)  # or on a busy machine the row would be read again
async def test_an_event_that_the_tail_has_not_seen_yet_drops_what_was_admitted(
    running, hold, monkeypatch
):
    """Committed, but unknown to this node: the ICE gets in on its old row and is dropped at once."""
    ice = await running.provision()
    await (await ice.connect()).close()
    held = hold(("look-up", True))
    handshake = await held_handshake(ice, held)
    tail = Gap(monkeypatch, running.gateway.node.log, "_read_new", after=False)
    action = asyncio.ensure_future(running.act("lab-1", "deregister"))
    await tail.open()
    held.let_go()
    connection = await handshake
    assert not action.done(), "the admin was answered before this node knew of the event"
    tail.let_go()
    await connection.expect_dropped(4101)
    answer = await action
    assert [drop["session"] for drop in answer["dropped"]] == [connection.welcome["session"]]
    assert answer["unconfirmed"] == []


@pytest.mark.sqlite
async def test_a_row_read_long_ago_is_read_again(tmp_path, monkeypatch):
    """Even if the tail stood still: what was read more than a second ago admits nobody."""
    clock = RunningClock()
    async with harness(tmp_path, monotonic=clock.monotonic) as running:
        ice = await running.provision()
        await (await ice.connect()).close()
        held = Gap(monkeypatch, running.gateway.node.admission.loader, "find", after=True)
        handshake = await held_handshake(ice, held)
        monkeypatch.setattr(running.gateway.node.log, "_read_new", asyncio.Event().wait)
        async with open_sqlite(running.gateway.settings.database_path) as engine:
            elsewhere = Provisioning(
                engine=engine,
                keys=KeyStore(running.gateway.settings.key_file),
                clock=utc_now,
                registration_ttl=0,
                confirmer=Acknowledgements(Nodes(engine.fetch), utc_now),
            )
            await elsewhere.deregister(ADMIN, (await IceListing(engine).find("lab-1")).ice)
        clock.skip(seconds=1.01)
        held.let_go()
        assert await refusal_of(handshake) == "deregistered"


@pytest.mark.sqlite
async def test_a_late_event_spares_the_reregistered_session(running, monkeypatch):
    """A tail that lags behind closes what is older than its event, not what has come since."""
    ice = await running.provision()
    old = await ice.connect()
    tail = Gap(monkeypatch, running.gateway.node.log, "_read_new", after=False)
    action = asyncio.ensure_future(running.admin.post("/ices/lab-1/reregister"))
    await tail.open()
    await running.eventually("/ices/lab-1", lambda answer: answer.json["status"] == "provisioned")
    async with open_sqlite(running.gateway.settings.database_path) as engine:
        elsewhere = Provisioning(
            engine=engine,
            keys=KeyStore(running.gateway.settings.key_file),
            clock=utc_now,
            registration_ttl=0,
            confirmer=Acknowledgements(Nodes(engine.fetch), utc_now),
        )
        issued = await elsewhere.reprovision(ADMIN, (await IceListing(engine).find("lab-1")).ice)
    newest = running.ice(issued.token.reveal())
    fresh = await newest.connect()
    tail.let_go()
    assert (await action).status == 200
    # The newer session superseded the older before the event could drop it.
    await old.expect_dropped(4103)
    await fresh.round_trip()


def test_nothing_is_awaited_before_the_101():
    """Between the last look at the hub and the 101 the code has no `await`."""
    [function] = ast.parse(textwrap.dedent(inspect.getsource(Admission.admit))).body
    [body] = [node.body for node in function.body if isinstance(node, ast.Try)]
    [loop] = [node for node in body if isinstance(node, ast.While)]
    [*_, last_look] = loop.body
    after = [last_look, *body[body.index(loop) + 1 :]]
    assert "is_outdated" in ast.unparse(last_look) or "is_outdated" in ast.unparse(loop.body[-2])
    awaits = [node for part in after for node in ast.walk(part) if isinstance(node, ast.Await)]
    assert awaits == [], "an await after the last look at the entry is a gap"
    [write] = [
        node
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(IceEndpoint._admit))))
        if getattr(node, "name", None) == "open_session"
    ]
    assert isinstance(write, ast.FunctionDef), "it writes the 101 in one step"


async def test_an_admission_while_the_log_is_lost_is_held_to_the_table(running, hold, monkeypatch):
    """While this node may have missed a change nobody gets in, and nobody is dropped for nothing."""
    ice = await running.provision()
    await (await ice.connect()).close()
    held = hold(("look-up", True))
    handshake = await held_handshake(ice, held)
    # The last step of the comparison.
    comparing = Gap(monkeypatch, running.gateway.node.dispatcher, "refresh", after=True)

    async def lost():
        raise StoreUnavailable("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(running.gateway.engine, "has_changed", lost)
        await until(lambda: not running.gateway.node.log.current)
    await comparing.open()
    held.let_go()
    assert await refusal_of(handshake) == "store-unavailable"
    comparing.let_go()
    # An action is answered once the tail has applied it: then it follows the log again.
    other = await running.provision("lab-2")
    await running.act("lab-2", "disconnect")
    await (await ice.connect()).round_trip()
    await (await other.connect()).round_trip()


async def test_an_admission_whose_signature_another_process_checks(running):
    """It admits and refuses the same while that process is missing, works, and dies."""
    helper = SignatureHelper(HelperPace(start=1, few=1), cores=lambda: 2)
    running.gateway.node.admission.screening.signatures = helper
    ice = await running.provision()
    header, claims, _ = ice.headers()["DPoP"].split(".")
    forged = {**ice.headers(), "DPoP": f"{header}.{claims}.{'A' * 86}"}
    try:
        await ice.connect()  # which starts it
        await until(lambda: helper._link is not None)
        for works in (True, False):
            assert (helper._link is not None) is works
            await ice.connect()
            with pytest.raises(Refused, match="proof-invalid"):
                await ice.connect(forged)
            await helper.close()
    finally:
        await helper.close()
