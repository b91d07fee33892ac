"""Sessions of contract section 6 on real sockets: messages, violations, heartbeat, drops, the drain."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest
from prometheus_client import generate_latest
from structlog.testing import capture_logs
from websockets.frames import Opcode

from gateway import __version__
from gateway.app import Tuning, run_gateway
from gateway.core.ice import IceType
from gateway.node.node import NodeLimits
from gateway.web.metrics import Metrics
from gateway.web.websocket import Limits
from tests.support.harness import ADMIN, harness, settings_for
from tests.support.ice import Ice, until

MIB = 1024 * 1024


@pytest.fixture
async def connection(running):
    """A connection of lab-1 that has been welcomed."""
    return await (await running.provision()).connect()


def session_of(running, name="lab-1"):
    return running.gateway.node.hub.get(name)


async def closures(running, name="lab-1"):
    """The codes with which sessions of an ICE were closed, once there is one, the newest first."""
    answer = await running.eventually(
        f"/ices/{name}/connections",
        lambda answer: any(item["event"] == "closed" for item in answer.json["items"]),
    )
    return [item["code"] for item in answer.json["items"] if item["event"] == "closed"]


async def connection_of(running, holds=lambda connection: connection is not None, name="lab-1"):
    """What the admin API tells of an ICE's connection, once it `holds`."""
    answer = await running.eventually(
        f"/ices/{name}", lambda answer: holds(answer.json["connection"])
    )
    return answer.json["connection"]


def frame(first, payload, *, mask=b"\x01\x02\x03\x04"):
    """A frame with any first byte: FIN, the reserved bits, the opcode. No mask if None."""
    if len(payload) < 126:
        length = bytes([len(payload)])
    elif len(payload) < 65536:
        length = b"\x7e" + len(payload).to_bytes(2, "big")
    else:
        length = b"\x7f" + len(payload).to_bytes(8, "big")
    if mask is None:
        return bytes([first]) + length + payload
    key = int.from_bytes((mask * (len(payload) // 4 + 1))[: len(payload)], "big")
    masked = (int.from_bytes(payload, "big") ^ key).to_bytes(len(payload), "big")
    return bytes([first, 0x80 | length[0]]) + length[1:] + mask + masked


def encoded(message):
    return json.dumps(message).encode()


def padded(size):
    """A request of exactly `size` bytes."""
    message = {"jsonrpc": "2.0", "method": "pad", "id": "big", "params": [""]}
    message["params"] = ["x" * (size - len(encoded(message)))]
    return encoded(message)


# --- welcome and hello -------------------------------------------------------------------------------

ALL = ["scrape", "debug", "execute", "remote-execute", "schedule"]


async def test_the_welcome(tmp_path):
    async with harness(tmp_path, ice__heartbeat="7s") as running:
        for ice_type, user, operations in (
            ("normal", "alice", ALL),
            ("ci-cd", None, ["remote-execute", "schedule"]),
        ):
            ice = await running.provision(f"Lab.{ice_type}", ice_type)
            connection = await ice.connect()  # fails unless the welcome is the first frame
            session = connection.welcome["session"]
            assert connection.welcome == {
                "ice_name": f"Lab.{ice_type}",
                "ice_type": ice_type,
                "provisionedto": user,
                "status": "registered",
                "generation": 1,
                "session": session,
                "operations": operations,
                "heartbeat": 7,
                "server": f"ice-gateway/{__version__}",
            }
            shown = await connection_of(running, name=f"Lab.{ice_type}")
            assert shown["session"] == session
            again = await ice.connect()
            assert again.welcome == {**connection.welcome, "session": again.welcome["session"]}
            assert again.welcome["session"] != session


async def test_hello_is_shown(running, connection):
    connection.hello(version="1.2", platform="Linux", hostname="lab", running=[])
    shown = await connection_of(running, lambda shown: shown and shown["version"])
    assert set(shown) == {
        *("session", "node", "since", "address"),
        *("version", "platform", "hostname", "accepts"),
    }
    assert shown["session"] == connection.welcome["session"]
    assert shown["address"] == "127.0.0.1"
    assert (shown["version"], shown["platform"], shown["hostname"]) == ("1.2", "Linux", "lab")
    session = session_of(running)
    connection.hello(version="1.3", running=["another"])
    await connection.round_trip()
    assert (session.hello.version, session.running) == ("1.2", frozenset()), "a second one counts"


async def test_hello_is_tamed(running, connection):
    connection.hello(version="1\x00\x1b[31m\n\u202e", platform="p" * 10_000, hostname="büro-3")
    shown = await connection_of(running, lambda shown: shown and shown["version"])
    assert shown["version"] == "1??[31m??"
    assert shown["platform"] == "p" * 255
    assert shown["hostname"] == "büro-3"


# --- what an ICE accepts -----------------------------------------------------------------------------


def says(connection, **params):
    connection.send({"jsonrpc": "2.0", "method": "ice.accepts", "params": params})


async def test_the_word_of_a_hello_is_shown_and_kept(running):
    ice = await running.provision()
    connection = await ice.connect()
    assert (await connection_of(running))["accepts"] is None
    connection.hello(version="1.2", accepts=["scrape", "dance"])
    await connection_of(running, lambda shown: shown["accepts"] == ["scrape"])
    again = await ice.connect()
    shown = await connection_of(running, lambda shown: shown["session"] == again.welcome["session"])
    assert shown["accepts"] == ["scrape"], "the last known word was expected before the hello"
    assert "; others may send: scrape\n" in (await running.command("ices", "show", "lab-1")).stdout
    again.hello(version="1.2")
    await connection_of(running, lambda shown: shown["version"] and shown["accepts"] is None)
    assert "others may send" not in (await running.command("ices", "show", "lab-1")).stdout


async def test_of_words_in_quick_succession_the_last_counts(running, connection, monkeypatch):
    told = []
    session = session_of(running)
    monkeypatch.setattr(running.gateway.node.dispatcher, "accepts_changed", told.append)
    connection.hello(version="1.2", accepts=["scrape"])
    for accepts in ([], ["debug"], [], ["execute"]):
        says(connection, accepts=accepts)
    await connection.round_trip()
    assert (session.accepts, told) == (frozenset(), [session]), "one at once, the others later"
    await connection.close()
    await closures(running)
    assert (session.accepts, told) == ({"execute"}, [session] * 2), "lost at the end"
    [(word,)] = await running.gateway.engine.fetch("SELECT accepts FROM ice_tokens")
    assert word == '["execute"]'


async def test_a_word_that_waited_is_taken_over(running, connection):
    says(connection, accepts=[])
    says(connection)
    says(connection, accepts=["debug"])
    await connection_of(running, lambda shown: shown and shown["accepts"] == ["debug"])
    connection.hello(version="1.2", accepts=["scrape"])
    await connection_of(running, lambda shown: shown["accepts"] == ["scrape"])


async def test_a_new_generation_forgets_the_word(running, connection):
    connection.hello(accepts=[])
    await connection_of(running, lambda shown: shown and shown["accepts"] == [])
    await running.act("lab-1", "reregister")
    await running.settled()
    [(word,)] = await running.gateway.engine.fetch("SELECT accepts FROM ice_tokens")
    assert word is None


# --- messages ----------------------------------------------------------------------------------------

IGNORED = [
    {"method": "no.such.notification"},
    {"method": "no.such.notification", "params": {"a": 1}},
    {"method": "no.such.notification", "params": [1]},
    {"method": "ice.hello", "params": {"version": 1}},
    {"method": "ice.hello", "params": []},
    {"method": "ice.hello", "params": {"version": "1", "accepts": "all"}},
    {"method": "ice.accepts", "params": {"accepts": [1]}},
    {"method": "ice.welcome", "params": {}},
    {"id": 7, "result": {}},
    {"id": None, "error": {"code": -32700, "message": "parse error"}},
]


async def test_what_is_ignored(running, connection):
    for message in IGNORED:
        connection.send({"jsonrpc": "2.0", **message})
    await connection.round_trip()
    assert (await connection_of(running))["version"] is None


async def test_unknown_requests_are_answered_with_the_same_id(connection):
    for request_id in ("a", "", "ü\u0000", 0, -1, 2**60, None):
        for params in ({}, {"params": {"a": 1}}, {"params": [1]}):
            request = {"jsonrpc": "2.0", "method": "no.such", "id": request_id, **params}
            connection.send(request)
            answer = await connection.message()
            assert answer.pop("error")["code"] == -32601
            assert answer == {"jsonrpc": "2.0", "id": request_id}


async def test_pings_are_answered(connection):
    for data in (b"", b"x" * 125):
        connection.send_frame(Opcode.PING, data)
        answer = await connection.frame()
        assert (answer.opcode, bytes(answer.data)) == (Opcode.PONG, data)
    connection.send_frame(Opcode.PONG, b"unasked for")
    await connection.round_trip()


async def test_fragments_with_pings_between_them(connection):
    text = encoded({"jsonrpc": "2.0", "method": "ünïcödé", "id": "ü"}).decode("unicode-escape")
    data = text.encode()
    cut = data.index("ü".encode()) + 1  # within a character
    connection.send_frame(Opcode.TEXT, data[:cut], fin=False)
    connection.send_frame(Opcode.PING, b"between")
    connection.send_frame(Opcode.CONT, b"", fin=False)
    connection.send_frame(Opcode.CONT, data[cut:])
    assert (await connection.frame()).opcode is Opcode.PONG
    assert (await connection.message())["id"] == "ü"


async def test_a_message_of_one_mebibyte(connection):
    data = padded(MIB)
    connection.send_frame(Opcode.TEXT, data)
    assert (await connection.message())["id"] == "big"
    connection.send_frame(Opcode.TEXT, data[: MIB // 2], fin=False)
    connection.send_frame(Opcode.CONT, data[MIB // 2 :])
    assert (await connection.message())["id"] == "big"


# --- violations --------------------------------------------------------------------------------------

TEXT, BINARY, CLOSE, PING = 0x81, 0x82, 0x88, 0x89
REQUEST = {"jsonrpc": "2.0", "method": "x", "id": 1}

VIOLATIONS = {
    "binary": (1003, frame(BINARY, b"{}")),
    "binary in fragments": (1003, frame(0x02, b"{") + frame(0x80, b"}")),
    "not UTF-8": (1007, frame(TEXT, b'"\xff"')),
    "not UTF-8, in fragments": (1007, frame(0x01, b'"\xc3') + frame(0x80, b'"')),
    "a surrogate": (1007, frame(TEXT, b'"\xed\xa0\x80"')),
    "a close reason that is not UTF-8": (1007, frame(CLOSE, b"\x03\xe8\xff")),
    "empty": (1008, frame(TEXT, b"")),
    "not JSON": (1008, frame(TEXT, b"{")),
    "two messages": (1008, frame(TEXT, encoded(REQUEST) * 2)),
    "a batch": (1008, frame(TEXT, encoded([REQUEST]))),
    "an array": (1008, frame(TEXT, b"[]")),
    "a number": (1008, frame(TEXT, b"7")),
    "null": (1008, frame(TEXT, b"null")),
    "an empty object": (1008, frame(TEXT, b"{}")),
    "no version": (1008, frame(TEXT, encoded({"method": "x"}))),
    "another version": (1008, frame(TEXT, encoded({**REQUEST, "jsonrpc": "1.0"}))),
    "the version as a number": (1008, frame(TEXT, encoded({**REQUEST, "jsonrpc": 2.0}))),
    "a method that is no text": (1008, frame(TEXT, encoded({**REQUEST, "method": 1}))),
    "params that are a text": (1008, frame(TEXT, encoded({**REQUEST, "params": "x"}))),
    "params that are null": (1008, frame(TEXT, encoded({**REQUEST, "params": None}))),
    "an id that is an object": (1008, frame(TEXT, encoded({**REQUEST, "id": {}}))),
    "an id that is a truth value": (1008, frame(TEXT, encoded({**REQUEST, "id": True}))),
    "call and answer in one": (1008, frame(TEXT, encoded({**REQUEST, "result": 1}))),
    "neither call nor answer": (1008, frame(TEXT, encoded({"jsonrpc": "2.0", "id": 1}))),
    "nested beyond measure": (1008, frame(TEXT, b"[" * 100_000)),
    "1 MiB and a byte": (1009, frame(TEXT, padded(MIB + 1))),
    "1 MiB and a byte in fragments": (
        1009,
        frame(0x01, padded(MIB + 1)[:MIB]) + frame(0x80, b"}"),
    ),
    "not masked": (1002, frame(TEXT, encoded(REQUEST), mask=None)),
    "a reserved opcode": (1002, frame(0x83, b"")),
    "a reserved control opcode": (1002, frame(0x8B, b"")),
    "RSV1": (1002, frame(0xC1, encoded(REQUEST))),
    "RSV2": (1002, frame(0xA1, encoded(REQUEST))),
    "RSV3": (1002, frame(0x91, encoded(REQUEST))),
    "a ping in fragments": (1002, frame(0x09, b"")),
    "a ping too long": (1002, frame(PING, b"x" * 126)),
    "a continuation of nothing": (1002, frame(0x80, b"")),
    "a message within another": (1002, frame(0x01, b"{") + frame(TEXT, b"{}")),
    "a close code of one byte": (1002, frame(CLOSE, b"\x03")),
    "a close code that must not be sent": (1002, frame(CLOSE, (1006).to_bytes(2, "big"))),
}


async def test_violations(running, subtests):
    ice = await running.provision()
    for name, (code, data) in VIOLATIONS.items():
        with subtests.test(name):
            connection = await ice.connect()
            # The hello behind the violation is not acted on.
            connection.writer.write(data)
            connection.hello(version="too late")
            await connection.expect_dropped(code)
            assert "lab-1" not in running.gateway.node.hub
            await connection.close()
    await connection_of(running, lambda shown: shown is None)


HELLO = frame(TEXT, encoded({"jsonrpc": "2.0", "method": "ice.hello", "params": {"version": "1"}}))
FAREWELL = frame(CLOSE, (1000).to_bytes(2, "big"))


async def test_messages_with_a_close_behind_them(running, connection):
    """All in one segment: they are acted on and answered before the session ends."""
    session = session_of(running)
    connection.writer.write(HELLO + frame(TEXT, encoded(REQUEST)) + FAREWELL)
    assert (await connection.message())["id"] == REQUEST["id"]
    await connection.expect_dropped(1000)
    assert session.hello.version == "1"
    assert await closures(running) == [1000]


@pytest.mark.parametrize("behind", [HELLO + FAREWELL, b"\xff" * 100], ids=["close", "garbage"])
async def test_of_two_reasons_to_close_the_first_counts(running, connection, behind):
    session = session_of(running)
    connection.writer.write(frame(BINARY, b"") + behind)
    await connection.expect_dropped(1003)
    assert session.hello.version is None
    assert await closures(running) == [1003]


# --- heartbeat ---------------------------------------------------------------------------------------


def later(seconds):
    return asyncio.get_running_loop().time() + seconds


async def test_pings_come_by_themselves(tmp_path):
    async with harness(tmp_path, ice__heartbeat="0.3s") as running:
        connection = await (await running.provision()).connect()
        for _ in range(2):
            await connection.expect_ping()
        await connection.round_trip()


async def test_a_session_is_pinged_once_in_a_heartbeat(running, connection):
    heartbeat = running.gateway.node.heartbeat
    for passed in (10, 30.1, 30.2, 59.9):
        heartbeat.sweep(later(passed))
    await connection.expect_ping()
    await connection.round_trip()
    assert later(0) - session_of(running).transport.heard < 1


async def test_a_silent_session_is_dropped(tmp_path):
    async with harness(tmp_path, ice__heartbeat="0.1s") as running:
        connection = await (await running.provision()).connect()
        connection.answers_pings = False
        assert await connection.expect_dropped(4203) == "heartbeat-timeout"
        assert await closures(running) == [4203]


async def test_any_frame_counts_as_life(running, connection):
    heartbeat = running.gateway.node.heartbeat
    wire = session_of(running).transport
    for send in (
        lambda: connection.send_frame(Opcode.PONG, b""),
        lambda: connection.send({"jsonrpc": "2.0", "method": "any.notification"}),
        lambda: connection.send_frame(Opcode.TEXT, b"{", fin=False),
    ):
        wire.heard = heard = later(-30)
        send()
        await until(lambda heard=heard: wire.heard > heard)
        heartbeat.sweep(later(59))  # or else it would have been silent for 89 s
        assert session_of(running) is not None
    heartbeat.sweep(wire.heard + 60)
    assert await connection.expect_dropped(4203) == "heartbeat-timeout"


# --- slow consumers ----------------------------------------------------------------------------------


SMALL_BUFFER = pytest.mark.gateway(tuning=Tuning(websocket=Limits(max_buffer=100_000)))


@SMALL_BUFFER
async def test_a_slow_consumer_is_dropped(running, connection):
    session = session_of(running)
    request = frame(TEXT, encoded({**REQUEST, "id": "x" * 50_000}))
    # It asks on and on, and reads nothing.
    while session_of(running) is session:
        connection.writer.write(request)
        await asyncio.sleep(0)
    assert await closures(running) == [4202]


@SMALL_BUFFER
async def test_a_slow_consumer_that_reads_again_learns_why(running, connection):
    session = session_of(running)
    request = frame(TEXT, encoded({**REQUEST, "id": "x" * 50_000}))
    while session_of(running) is session:
        connection.writer.write(request)
        await asyncio.sleep(0)
    assert await connection.expect_dropped(4202) == "slow-consumer"


# --- drops -------------------------------------------------------------------------------------------


async def test_a_newer_session_supersedes_the_older(running):
    ice = await running.provision()
    connections = [await ice.connect() for _ in range(3)]
    for older in connections[:2]:
        assert await older.expect_dropped(4103) == "superseded"
    await connections[2].round_trip()
    assert session_of(running).id == connections[2].welcome["session"]
    newest = connections[2].welcome["session"]
    await connection_of(running, lambda shown: shown and shown["session"] == newest)
    assert await closures(running) == [4103, 4103]


@pytest.mark.parametrize(
    ("action", "code", "reason"),
    [
        ("deregister", 4101, "deregistered"),
        ("reregister", 4102, "token-replaced"),
        ("disconnect", 4201, "disconnected"),
    ],
)
async def test_after_a_drop_nothing_is_acted_on(running, connection, action, code, reason):
    connection.answers_close = False
    session = session_of(running)
    answer = await running.act("lab-1", action)
    assert [drop["session"] for drop in answer["dropped"]] == [session.id]
    connection.hello(version="too late")
    connection.send(REQUEST)
    assert await connection.expect_dropped(code) == reason
    connection.send_frame(Opcode.CLOSE, code.to_bytes(2, "big"))
    assert await connection.frame() is None, "nothing comes behind the close frame"
    await connection.close()
    await session.transport.lost
    assert session.hello.version is None
    assert await closures(running) == [code]


async def test_an_ice_that_leaves(running):
    ice = await running.provision()
    codes = [1000, 1001, 4999, None]
    for code in codes:
        connection = await ice.connect()
        session = session_of(running)
        connection.send_frame(Opcode.CLOSE, b"" if code is None else code.to_bytes(2, "big"))
        await connection.expect_dropped(code or 1005)  # RFC 6455 section 7.1.5: none was given
        assert "lab-1" not in running.gateway.node.hub
        assert await connection.frame() is None
        await connection.close()
        await session.transport.lost
        assert await connection_of(running, lambda shown: shown is None) is None
    answer = await running.eventually(
        "/ices/lab-1/connections", lambda answer: len(answer.json["items"]) == 2 * len(codes)
    )
    closed = [item["code"] for item in answer.json["items"] if item["event"] == "closed"]
    assert closed == [1005, 4999, 1001, 1000]


@pytest.mark.gateway(tuning=Tuning(websocket=Limits(close_timeout=0.05)))
async def test_a_peer_that_never_answers_the_close_frame_is_aborted(running, connection):
    connection.answers_close = False
    session = session_of(running)
    await running.act("lab-1", "disconnect")
    assert not session.transport.lost.done()
    await session.transport.lost
    # It sees why all the same.
    await connection.expect_dropped(4201)
    assert await connection.frame() is None


# --- the drain ---------------------------------------------------------------------------------------


@pytest.mark.gateway(tuning=Tuning(node=NodeLimits(returns_per_second=4)))
async def test_the_drain(running):
    ices = [await running.provision(f"lab-{number}") for number in range(12)]
    connections = [await ice.connect() for ice in ices]
    silent = connections[0]
    silent.answers_close = False

    draining = asyncio.ensure_future(running.gateway.node.drain(1))
    waits = []
    for connection in connections:
        waits.append(json.loads(await connection.expect_dropped(1012)))
        if connection is not silent:
            await connection.close()
    assert not draining.done(), "one has not answered its close frame yet"
    assert (await ices[0].refused()).code == "draining"
    for path, status in (("readyz", 503), ("healthz", 200)):
        async with running.session.get(f"{running.url}/{path}") as response:
            assert response.status == status
    assert (await running.admin.get("/ices")).status == 200
    await silent.close()
    await draining
    assert list(running.gateway.node.hub) == []

    assert all(list(wait) == ["retry_after"] for wait in waits)
    seconds = sorted(wait["retry_after"] for wait in waits)
    assert len(set(seconds)) == 12
    # 1 s for every 4 sessions here, 200 by the contract, from 1 s on.
    assert seconds == [round(1 + number / 4, 4) for number in range(12)]


async def test_a_gateway_that_stops_drains_and_remembers(tmp_path):
    settings = settings_for(tmp_path)
    async with run_gateway(settings) as stopping:
        ice = Ice(stopping.url, await provision(stopping))
        dropped = asyncio.ensure_future(drop_of(await ice.connect()))
    assert json.loads(await dropped) == {"retry_after": 1}
    async with harness(tmp_path) as running:
        assert await closures(running) == [1012]
        assert (await running.admin.get("/ices/lab-1")).json["connection"] is None
        await running.ice(ice.token, ice.key).connect()


async def test_handshakes_are_answered_while_it_lingers(tmp_path):
    """As after SIGTERM: `draining`, and then nobody listens."""
    async with run_gateway(settings_for(tmp_path), linger=0.2) as stopping:
        ice = Ice(stopping.url, await provision(stopping))
        late = asyncio.ensure_future(ice.refused())
    assert (await late).code == "draining"
    with pytest.raises(ConnectionRefusedError):
        await ice.dial()


async def drop_of(connection):
    """Wait for a 1012, and close as a client does; returns the reason."""
    reason = await connection.expect_dropped(1012)
    await connection.close()
    return reason


async def provision(gateway):
    issued = await gateway.services.provisioning.provision(ADMIN, "lab-1", IceType.CI_CD, None)
    return issued.token.reveal()


# --- metrics -----------------------------------------------------------------------------------------


async def test_the_metrics(running):
    ice, machine = await running.provision(), await running.provision("ci-1", "ci-cd")
    connection = await ice.connect()
    await (await machine.connect()).leave()
    for code in (3000, 4999):
        await (await machine.connect()).leave(code)
    await machine.connect()
    await ice.refused(ath="wrong")
    await running.act("lab-1", "deregister")
    await connection.expect_dropped(4101)
    await ice.refused()
    text = generate_latest(running.gateway.node._meters.registry).decode()
    for line in (
        'ice_gateway_sessions{ice_type="ci-cd"} 1.0',
        'ice_gateway_sessions{ice_type="normal"} 0.0',
        'ice_gateway_admissions_total{ice_type="ci-cd"} 4.0',
        'ice_gateway_admissions_total{ice_type="normal"} 1.0',
        'ice_gateway_refusals_total{code="proof-invalid"} 1.0',
        'ice_gateway_refusals_total{code="deregistered"} 1.0',
        'ice_gateway_closures_total{code="1000"} 1.0',
        'ice_gateway_closures_total{code="4101"} 1.0',
        # However many codes of its own an ICE may think of, they are one series.
        'ice_gateway_closures_total{code="other"} 2.0',
        "ice_gateway_drop_seconds_count 1.0",
        "ice_gateway_admission_seconds_count 5.0",
        "ice_gateway_tail_current 1.0",
    ):
        assert line in text.splitlines()


async def test_the_metrics_have_a_listener_of_their_own(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        # A port already taken is a warning, no more.
        with capture_logs() as said:
            assert await Metrics().expose(("127.0.0.1", port)) is None
        assert [line["log_level"] for line in said] == ["warning"]
    async with harness(tmp_path, metrics__listen=f"127.0.0.1:{port}") as running:
        await (await running.provision()).connect()
        async with running.session.get(f"http://127.0.0.1:{port}/metrics") as response:
            assert response.status == 200
            assert response.headers["Content-Type"].startswith("text/plain")
            assert 'ice_gateway_sessions{ice_type="normal"} 1.0' in await response.text()
        async with running.session.get(f"{running.url}/metrics") as response:
            assert response.status == 404
