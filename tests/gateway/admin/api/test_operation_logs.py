"""What an ICE logs of an operation: kept, shown, streamed (contract sections 6 and 9)."""

from __future__ import annotations

import json

import pytest
from websockets.frames import Opcode

from client.protocol import MAX_LOG_BYTES
from gateway.store.engine import StoreUnavailable
from tests.support.harness import expect_refused, harness, hold_to_description
from tests.support.work import (
    asked,
    connected,
    expect_cancel,
    finish,
    finished,
    follow,
    greeted,
    log,
    stored,
    take,
)


@pytest.fixture(autouse=True)
def described(monkeypatch):
    hold_to_description(monkeypatch)


@pytest.fixture
async def ice(running):
    return await connected(running)


async def working(running, ice):
    """An operation that the ICE works on."""
    operation = await asked(running.admin)
    await take(ice)
    return operation


async def shown(api, operation):
    answer = await api.get(f"/operations/{operation}/log")
    assert answer.status == 200, answer
    return answer.body.decode()


async def test_a_log_is_shown_as_it_was_sent(running, ice):
    operation = await working(running, ice)
    for text in ("first\n", "é\U0001f600\x1b[31m", "\0", "\r\nlast"):
        log(ice, operation, text)
    await finished(ice, operation)
    answer = await running.admin.get(f"/operations/{operation}/log")
    assert answer.body.decode() == "first\né\U0001f600\x1b[31m\ufffd\r\nlast"
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    head = await running.admin.call("HEAD", f"/operations/{operation}/log")
    assert (head.status, head.body) == (200, b"")


async def test_what_is_not_as_described_is_ignored(running, ice):
    operation = await working(running, ice)
    log(ice, operation, "x" * MAX_LOG_BYTES)
    log(ice, operation, "y" * (MAX_LOG_BYTES + 1))
    log(ice, operation, "é" * (MAX_LOG_BYTES // 2) + "y")
    log(ice, "another", "y")
    for params in ({"id": operation}, {"id": operation, "text": 5}, {"text": "y"}, []):
        ice.send({"jsonrpc": "2.0", "method": "operation.log", "params": params})
    await finished(ice, operation)
    log(ice, operation, "after the finish")
    await ice.round_trip()
    assert await shown(running.admin, operation) == "x" * MAX_LOG_BYTES
    ignored = running.gateway.node._meters.ignored_logs.labels("too-long")
    assert ignored._value.get() == 2


async def test_what_comes_right_after_the_finish_is_ignored(running, ice):
    operation = await working(running, ice)
    log(ice, operation, "before")
    params = {"id": operation, "outcome": "succeeded", "result": None}
    ice.send({"jsonrpc": "2.0", "id": 1, "method": "operation.finish", "params": params})
    log(ice, operation, "after")
    assert (await ice.message())["result"] == {}
    assert await shown(running.admin, operation) == "before"


@pytest.mark.parametrize(
    ("escaped", "kept"),
    [
        (r"a\ud83db", "a\ufffdb"),
        (r"\ude00\ud83d", "\ufffd\ufffd"),
        (r"\ud83d\ude00 \\ud83d \"\u0041", '\U0001f600 \\ud83d "A'),
        (r"\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        (r"\\\ud83d\n", "\\\ufffd\n"),
    ],
)
async def test_half_a_character_is_replaced(running, ice, escaped, kept):
    operation = await working(running, ice)
    params = f'{{"id":"{operation}","text":"{escaped} \\ud83d"}}'
    message = f'{{"jsonrpc":"2.0","method":"operation.log","params":{params}}}'
    ice.send_frame(Opcode.TEXT, message.encode())
    await finished(ice, operation)
    assert await shown(running.admin, operation) == f"{kept} \ufffd"


@pytest.mark.parametrize("half", [r"\ud83d", r"\uDE00", r"\\\ud83d"])
async def test_a_text_that_is_too_long_is_ignored_with_halves_in_it(running, ice, half):
    operation = await working(running, ice)
    params = f'{{"id":"{operation}","text":"{half * 100_000}"}}'
    message = f'{{"jsonrpc":"2.0","method":"operation.log","params":{params}}}'
    ice.send_frame(Opcode.TEXT, message.encode())
    log(ice, operation, "kept")
    await finished(ice, operation)
    assert await shown(running.admin, operation) == "kept"


async def test_half_a_character_in_utf_8_is_a_violation(running, ice):
    operation = await working(running, ice)
    message = {"jsonrpc": "2.0", "method": "operation.log", "params": {"id": operation, "text": ""}}
    whole = json.dumps(message).encode()
    ice.send_frame(Opcode.TEXT, whole.replace(b'"text": ""', b'"text": "\xc3"'))
    await ice.expect_dropped(1007)


async def test_a_stream_has_the_log_from_its_beginning_and_as_it_comes(running, ice):
    operation = await working(running, ice)
    log(ice, operation, "first\n")
    await running.eventually(f"/operations/{operation}/log", lambda answer: answer.body)
    async with follow(running.admin, operation) as reader:
        assert await reader.event() == ("log", {"text": "first\n"})
        place = reader.place
        while (await reader.event())[1]["state"] != "running":
            pass
        log(ice, operation, "\n\nevent: forged\né")
        assert await reader.event() == ("log", {"text": "\n\nevent: forged\né"})
        log(ice, operation, "last")
        await finished(ice, operation)
        names = []
        while (event := await reader.event()) is not None:
            names.append(event[0])
        assert names == ["log", "state", "result"]
    async with follow(running.admin, operation, **{"Last-Event-ID": place}) as reader:
        assert await reader.event() == ("log", {"text": "\n\nevent: forged\nélast"})
    async with follow(running.admin, operation, **{"Last-Event-ID": "9" * 18}) as reader:
        assert (await reader.event())[0] == "state"


async def test_a_stream_has_a_long_log_in_many_events(running, ice):
    operation = await working(running, ice)
    written = ["é" * 32_000, "\x1b" * 65_000, "last"]
    for text in written:
        log(ice, operation, text)
    await finished(ice, operation)
    whole = "".join(written)
    async with follow(running.admin, operation) as reader:
        name, first = await reader.event()
        place = reader.place
        texts = [first["text"]]
        while (event := await reader.event())[0] == "log":
            texts.append(event[1]["text"])
    assert (name, "".join(texts)) == ("log", whole)
    assert max(map(len, texts)) <= 16 * 1024
    async with follow(running.admin, operation, **{"Last-Event-ID": place}) as reader:
        assert (await reader.event())[1]["text"] == texts[1]


@pytest.mark.parametrize("place", ["", "x", "-1", "9" * 19, "1-abc"])
async def test_a_place_that_is_none_is_refused(running, ice, place):
    operation = await working(running, ice)
    answer = await running.admin.get(
        f"/operations/{operation}/stream", headers={"Last-Event-ID": place}
    )
    expect_refused(answer, 422, "invalid")


@pytest.mark.gateway(operations__log_kept=10)
async def test_only_the_newest_is_shown_from_a_whole_character_on(running, ice):
    operation = await working(running, ice)
    log(ice, operation, "0123456789")
    log(ice, operation, "ééééé€")
    await finished(ice, operation)
    assert await shown(running.admin, operation) == "ééé€"


async def test_a_log_waits_for_the_store_and_for_the_next_session(running):
    ice = await running.provision()
    connection = await greeted(ice)
    operation = await asked(running.admin)
    await take(connection)
    engine = running.gateway.engine
    write = engine.write

    async def unavailable(_):
        raise StoreUnavailable("a test")

    engine.write = unavailable
    log(connection, operation, "kept ")
    await connection.round_trip()
    engine.write = write
    newer = await greeted(ice, operation)
    # The lane notes that the ICE works on it when it has read the table.
    while (await shown(running.admin, operation)) != "kept again":
        log(newer, operation, "again")
        await running.settled()
        if "again" in await shown(running.admin, operation):
            break
    await finished(newer, operation)
    assert (await shown(running.admin, operation)).startswith("kept again")


async def test_who_sees_an_operation_sees_its_log(running, ice):
    operation = await working(running, ice)
    log(ice, operation, "a secret")
    await finished(ice, operation)
    alice, eve = await running.api("alice"), await running.api("eve", role="member")
    assert await shown(alice, operation) == "a secret"
    expect_refused(await eve.get(f"/operations/{operation}/log"), 404, "not-found")
    expect_refused(await running.admin.get("/operations/nothing/log"), 404, "not-found")
    # As an operation of a pool that ran on her ICE.
    await stored(running, operation, "pool", "lab")
    expect_refused(await alice.get(f"/operations/{operation}/log"), 404, "not-found")
    async with follow(alice, operation) as reader:
        assert (await reader.event())[0] == "state"
    assert await shown(running.admin, operation) == "a secret"


async def test_a_log_outlives_a_restart(tmp_path):
    async with harness(tmp_path) as running:
        connection = await connected(running)
        operation = await working(running, connection)
        log(connection, operation, "all of it")
        await connection.round_trip()
    async with harness(tmp_path) as running:
        assert await shown(running.admin, operation) == "all of it"


async def test_a_cancelled_operation_keeps_what_was_logged(running, ice):
    operation = await working(running, ice)
    log(ice, operation, "before")
    await running.eventually(f"/operations/{operation}/log", lambda answer: answer.body)
    await running.admin.post(f"/operations/{operation}/cancel")
    log(ice, operation, "after")
    await expect_cancel(ice, operation)
    await finish(ice, operation)
    assert await shown(running.admin, operation) == "before"
