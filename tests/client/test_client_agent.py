"""`IceClient` as a library."""

import asyncio
import contextlib
import json
import logging
import stat

import pytest

from client import __version__, protocol
from client.agent import IceStopped
from client.backoff import ClosedByUs, Stopped
from client.credentials import IdentityProblem, NotAToken
from client.endpoint import BadAddress, PlainHttp
from client.environment import Environment
from client.identity import FolderUnusable, StateFolder
from tests.client.scripted_gateway import NOW, admit, make_token, refuse, welcome

# --- connecting --------------------------------------------------------------------------------


async def test_a_handshake_brings_what_the_contract_asks_for(gateway, make_ice, token):
    async with make_ice() as ice:
        await ice.connected()

    (handshake,) = gateway.handshakes
    assert handshake.path == "/ice/v1"
    assert handshake.headers["Authorization"] == f"DPoP {token}"
    assert handshake.headers["Sec-WebSocket-Protocol"] == "ice.v1"
    assert handshake.headers["User-Agent"] == f"ice-client/{__version__}"
    assert "Sec-WebSocket-Extensions" not in handshake.headers, "compression should be off"
    assert handshake.claims["htm"] == "GET"
    assert handshake.claims["htu"] == f"{gateway.url}/ice/v1"
    assert handshake.claims["iat"] == NOW
    assert "nonce" not in handshake.claims


async def test_a_machine_whose_name_is_not_utf_8_says_hello(gateway, make_ice, monkeypatch):
    """The system gives octets; Python stands lone surrogates in for those that are no UTF-8."""
    monkeypatch.setattr("socket.gethostname", lambda: "b\udcfcro-7")
    monkeypatch.setattr("platform.release", lambda: "6.1-\udcff")
    gateway.script.append(admit())
    async with make_ice(version="1.\udc80"):
        session = await gateway.session()
        hello = (await session.expect("ice.hello"))["params"]

    assert hello["hostname"] == "b\ufffdro-7"
    assert "6.1-\ufffd" in hello["platform"]
    assert hello["version"] == "1.\ufffd"


async def test_a_path_prefix_is_kept(gateway, make_ice):
    async with make_ice(gateway_url=f"{gateway.url}/behind/proxy/") as ice:
        await ice.connected()

    assert gateway.handshakes[0].path == "/behind/proxy/ice/v1"
    assert gateway.handshakes[0].claims["htu"] == f"{gateway.url}/behind/proxy/ice/v1"


async def test_key_and_token_are_stored_before_the_first_attempt(gateway, make_ice, folder, token):
    seen = {}

    async def look(gateway, request):
        for name in ("key.pem", "token"):
            seen[name] = stat.S_IMODE((folder / name).stat().st_mode)
        return await refuse("deregistered")(gateway, request)

    gateway.script.append(look)
    async with make_ice() as ice:
        await ice.wait()

    assert seen == {"key.pem": 0o600, "token": 0o600}


async def test_the_same_key_signs_after_a_restart(gateway, make_ice):
    for options in ({}, {"token": None}):
        async with make_ice(**options) as ice:
            await ice.connected()

    first, second = (handshake.header["jwk"] for handshake in gateway.handshakes)
    assert first == second


async def test_hello_follows_the_welcome(gateway, make_ice):
    gateway.script.append(admit())
    async with make_ice(version="9.9") as ice:
        session = await gateway.session()
        hello = await session.expect("ice.hello")
        greeting = await ice.connected()

    assert set(hello["params"]) == {"version", "platform", "hostname", "instance", "running"}
    assert hello["params"]["running"] == []
    assert hello["params"]["version"] == "9.9"
    assert "id" not in hello, "ice.hello is a notification"
    assert greeting.ice_name == "lab-1"


async def test_each_start_of_the_client_is_an_instance(gateway, make_ice):
    """A connection that is lost is no start."""
    instances = []
    for connections in (2, 1):
        gateway.script.extend([admit()] * connections)
        async with make_ice():
            for _ in range(connections):
                session = await gateway.session()
                instances.append((await session.expect("ice.hello"))["params"]["instance"])
                await session.socket.close(code=1012)

    first, again, second = instances
    assert first == again
    assert len({first, second}) == 2
    assert len(first) == 32


async def test_leaving_closes_with_1000(gateway, make_ice, folder):
    gateway.script.append(admit())
    async with make_ice() as ice:
        await ice.connected()
        session = await gateway.session()
        assert StateFolder(folder).state().connected

    assert await session.closed() == 1000
    assert await ice.wait() == ClosedByUs()
    assert not StateFolder(folder).state().connected
    assert not StateFolder(folder).in_use(), "the folder should be free again"


async def test_stop_ends_the_wait(make_ice):
    async with make_ice() as ice:
        await ice.connected()
        ice.stop()
        assert await ice.wait() == ClosedByUs()


async def test_stop_ends_a_long_sleep(gateway, make_ice, time):
    asleep = asyncio.Event()

    async def sleep(seconds):
        asleep.set()
        await asyncio.sleep(3600)

    gateway.script.append(refuse("overloaded"))
    async with make_ice(environment=Environment(sleep=sleep)) as ice:
        await asyncio.wait_for(asleep.wait(), 5)
        ice.stop()
        assert await ice.wait() == ClosedByUs()


async def test_stop_before_the_beginning_is_obeyed(gateway, make_ice):
    ice = make_ice()
    ice.stop()
    async with ice:
        assert await ice.wait() == ClosedByUs()

    assert gateway.handshakes == []


async def test_connected_tells_when_there_will_be_no_connection(gateway, make_ice):
    gateway.script.append(refuse("key-mismatch"))
    async with make_ice() as ice:
        with pytest.raises(IceStopped, match="detail of key-mismatch") as caught:
            await ice.connected()

    assert caught.value.outcome == Stopped("key-mismatch", "detail of key-mismatch")


async def test_connected_waits_through_a_reconnection(gateway, make_ice):
    gateway.script.extend([refuse("draining"), refuse("overloaded")])
    async with make_ice() as ice:
        assert (await ice.connected()).session == "s-1"

    assert len(gateway.handshakes) == 3


async def test_an_ice_must_be_entered(make_ice):
    with pytest.raises(RuntimeError, match="enter the client"):
        await make_ice().wait()


async def test_a_second_ice_in_the_same_folder_is_refused(gateway, make_ice):
    async with make_ice() as first:
        await first.connected()
        with pytest.raises(FolderUnusable, match="another ice-client runs"):
            await make_ice().__aenter__()

    assert len(gateway.handshakes) == 1


async def test_bad_arguments_are_told_before_anything_is_tried(make_ice, folder):
    with pytest.raises(BadAddress):
        make_ice(gateway_url="wss://gw.example")
    with pytest.raises(PlainHttp):
        make_ice(gateway_url="http://gw.example")
    with pytest.raises(NotAToken):
        make_ice(token="hunter2")
    assert not folder.exists(), "nothing should be stored for a client that cannot be"
    with pytest.raises(IdentityProblem, match="no registration token yet"):
        await make_ice(token=None).__aenter__()


async def test_plain_http_is_warned_about_where_it_is_allowed(make_ice, events):
    async with make_ice(gateway_url="http://gw.invalid", insecure=True):
        pass

    assert events[0].kind == "warning"
    assert "plain http" in str(events[0])


async def test_an_older_token_is_kept_out_and_said_so(make_ice, token, gateway, events):
    async with make_ice() as ice:
        await ice.connected()
    async with make_ice(token=make_token(NOW - 60)) as ice:
        await ice.connected()

    assert {h.headers["Authorization"] for h in gateway.handshakes} == {f"DPoP {token}"}
    assert any("not newer" in str(event) for event in events if event.kind == "warning")


# --- what is shown -----------------------------------------------------------------------------


async def test_events_tell_the_story(run, events):
    await run(refuse("overloaded"), admit(close=(4201, "disconnected")))

    assert [event.kind for event in events] == [
        "connecting",
        "refused",
        "connecting",
        "admitted",
        "closed",
        "reconnecting",
        "connecting",
        "admitted",
    ]
    assert str(events[1]) == "refused overloaded: detail of overloaded (trying again in 1.0 s)"
    assert str(events[3]) == "admitted as lab-1 (normal), session s-1"
    assert str(events[4]) == "closed 4201 disconnected: The admin has closed this connection."
    assert str(events[5]) == "reconnecting in 2.0 s"


async def test_the_token_is_shown_nowhere(run, events, token, folder, caplog):
    caplog.set_level(logging.DEBUG)
    await run(
        refuse("overloaded"),
        refuse("proof-invalid", retry=True),
        admit(close=(1008, "not-json-rpc")),
        admit(protocols=()),
        refuse("deregistered"),
    )

    shown = caplog.text + repr(events) + (folder / "state.json").read_text()
    assert token not in shown
    assert token.split(".")[3] not in shown, "not even a part of it"


async def test_without_an_observer_events_are_logged(gateway, make_ice, caplog):
    from client.events import log_event  # noqa: PLC0415 - the default, which the fixture replaces

    caplog.set_level(logging.INFO, "client.agent")
    gateway.script.append(admit(close=(1008, "not-json-rpc")))
    async with make_ice(observe=log_event):
        await gateway.after_script()

    logged = [(r.levelname, r.getMessage()) for r in caplog.records if "1008" in r.getMessage()]
    assert logged == [("ERROR", "closed 1008 not-json-rpc: A message was not JSON-RPC 2.0.")]


async def test_an_observer_that_fails_ends_nothing(make_ice, caplog):
    def observe(event):
        raise ZeroDivisionError

    async with make_ice(observe=observe) as ice:
        await ice.connected()

    assert "the observer failed" in caplog.text


async def test_a_report_that_cannot_be_written_ends_nothing(make_ice, events, folder):
    (folder / "state.json").mkdir(parents=True)
    (folder / "state.json" / "x").write_text("")

    with pytest.raises(Exception, match="cannot be used"):
        await make_ice().__aenter__()
    (folder / "state.json" / "x").unlink()
    (folder / "state.json").rmdir()
    async with make_ice() as ice:
        (folder / "state.json").unlink()
        (folder / "state.json").mkdir()
        await ice.connected()

    assert any("cannot be used" in str(event) for event in events if event.kind == "warning")


# --- a gateway that breaks the protocol --------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [
        "hello",
        "[]",
        '{"jsonrpc": "2.0", "method": "ice.hello", "params": {}}',
        '{"jsonrpc": "2.0", "method": "ice.welcome", "params": {}}',
        '{"jsonrpc": "2.0", "method": "ice.welcome", "id": 1, "params": {}}',
        '{"jsonrpc": "2.0", "result": {}, "id": 1}',
    ],
)
async def test_the_first_frame_must_be_a_welcome(first, gateway, make_ice, time, folder):
    gateway.script.append(admit(first=first))
    async with make_ice():
        session = await gateway.session()
        assert await session.closed() == 1008, "the ICE should close with a policy violation"
        await gateway.after_script()

    assert time.delays == [1.0], "and come back after a backoff"


@pytest.mark.parametrize("method", ["send_str", "send_bytes"])
async def test_garbage_is_a_violation(method, gateway, make_ice, time, events):
    gateway.script.append(admit())
    async with make_ice():
        session = await gateway.session()
        await session.expect("ice.hello")
        await getattr(session.socket, method)("x" if method == "send_str" else b"x")
        assert await session.closed() == {"send_str": 1008, "send_bytes": 1003}[method]
        await gateway.after_script()

    assert time.delays == [1.0]
    assert any(event.kind == "closed" and event.level == logging.ERROR for event in events)


@pytest.mark.parametrize(("size", "too_big"), [(protocol.MAX_MESSAGE, False), (1048577, True)])
async def test_a_message_of_one_mebibyte_is_the_largest(size, too_big, gateway, make_ice):
    empty = json.dumps({"jsonrpc": "2.0", "method": "x.y", "params": {"pad": ""}})
    text = empty.replace('""', f'"{"x" * (size - len(empty))}"')
    assert len(text) == size
    gateway.script.append(admit())
    async with make_ice():
        session = await gateway.session()
        await session.expect("ice.hello")
        # It may leave before it has been sent the end, and its farewell be lost over that.
        with contextlib.suppress(ConnectionError):
            await session.socket.send_str(text)
        if too_big:
            assert await session.closed() in (1009, 1006)
            await gateway.after_script()
        else:
            answer = await session.request("x.y", {})
            assert answer["error"]["code"] == -32601, "the connection should have survived"


async def test_a_welcome_of_the_future_is_understood(gateway, make_ice):
    params = welcome(heartbeat=15, motto="new field", operations=["execute", "dance"])
    first = json.dumps({"jsonrpc": "2.0", "method": "ice.welcome", "params": params})
    gateway.script.append(admit(first=first))
    async with make_ice() as ice:
        assert (await ice.connected()).operations == ["execute", "dance"]
