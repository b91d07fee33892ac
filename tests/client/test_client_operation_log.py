"""`operation.log`: the output of a handler, joined, split, held back, and never in the way."""

import asyncio
import json
import re

import pytest

from client.environment import Waits
from client.operation_log import OperationLog
from client.operations import Operation
from client.protocol import MAX_LOG_BYTES, MAX_MESSAGE
from tests.client.scripted_gateway import admit
from tests.support.ice import until

RUN = {"id": "op-1", "kind": "execute"}


class Line:
    """Takes the messages of a log."""

    def __init__(self):
        self.texts = []
        self.connected = True
        self.reads = asyncio.Event()
        self.reads.set()

    async def send(self, message):
        assert len(message) <= MAX_MESSAGE
        log = json.loads(message)
        assert (log["method"], log["params"]["id"]) == ("operation.log", "op-1")
        if self.connected:
            self.texts.append(log["params"]["text"])
        await self.reads.wait()
        return self.connected

    @property
    def sizes(self):
        return [len(text.encode()) for text in self.texts]


@pytest.fixture
def line():
    return Line()


@pytest.fixture
def log(line):
    return OperationLog("op-1", line.send, pause=0.0)


async def test_small_texts_are_joined(log, line):
    for number in range(1000):
        await log.write(f"{number}\n")
    assert line.texts == []
    await until(lambda: line.texts)
    assert line.texts == ["".join(f"{number}\n" for number in range(1000))]
    await log.write("")
    await log.close()
    assert len(line.texts) == 1, "nothing is no output"


@pytest.mark.parametrize("size", [MAX_LOG_BYTES - 1, MAX_LOG_BYTES, MAX_LOG_BYTES + 1])
async def test_no_message_is_larger_than_the_gateway_takes(size, log, line):
    await log.write("x" * size)
    await log.close()
    assert "".join(line.texts) == "x" * size
    assert line.sizes == ([size] if size <= MAX_LOG_BYTES else [MAX_LOG_BYTES, 1])


@pytest.mark.parametrize("character", ["é", "€", "😀"])
@pytest.mark.parametrize("before", range(4))
async def test_a_character_is_not_cut(character, before, log, line):
    text = "x" * before + character * (200_000 // len(character.encode()))
    await log.write(text)
    await log.close()
    assert "".join(line.texts) == text
    assert "\ufffd" not in text
    assert all(MAX_LOG_BYTES - 4 < size <= MAX_LOG_BYTES for size in line.sizes[:-1])


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("a\0b", "a\0b"),
        ("\x1b[31m", "\x1b[31m"),
        ("a\ud83db", "a\ufffdb"),
        ("\udc80", "\ufffd"),
        ("\ud83d\ude00", "😀"),
    ],
)
async def test_any_text_can_be_sent(text, sent, log, line):
    await log.write(text)
    await log.close()
    assert line.texts == [sent]


async def test_the_worst_text_fits_into_a_message(log, line):
    await log.write("\0" * MAX_LOG_BYTES)
    assert line.sizes == [MAX_LOG_BYTES]


async def test_bytes_are_no_text(log):
    with pytest.raises(TypeError):
        await log.write(b"x")


async def test_a_writer_waits_while_the_gateway_does_not_read(log, line):
    line.reads.clear()
    writers = [asyncio.create_task(log.write("x" * 50_000)) for _ in range(20)]
    await until(lambda: line.texts)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(log._pending) < 2 * MAX_LOG_BYTES
    assert sum(writer.done() for writer in writers) <= 4
    line.reads.set()
    await asyncio.gather(*writers)
    await log.close()
    assert "".join(line.texts) == "x" * 1_000_000


async def test_what_is_written_without_a_connection_is_counted(log, line):
    line.connected = False
    for _ in range(3):
        await log.write("x" * MAX_LOG_BYTES)
    line.connected = True
    await log.write("é" * MAX_LOG_BYTES)
    await log.close()
    start, count, rest = re.split(r"([\d,]+) bytes of output", "".join(line.texts))
    end = " are missing: the ICE was not connected]\n"
    assert start == "\n["
    assert rest.startswith(end)
    text = rest.removeprefix(end)
    assert int(count.replace(",", "")) + text.count("x") == 3 * MAX_LOG_BYTES
    assert text.count("é") == MAX_LOG_BYTES
    assert max(line.sizes) <= MAX_LOG_BYTES


async def test_nothing_follows_the_end(log, line):
    await log.write("before")
    await log.close()
    await log.write("after")
    await log.close()
    assert line.texts == ["before"]


async def test_a_flood_leaves_others_their_turn(log):
    async def flood():
        while True:
            await log.write("x" * 1000)

    async def other():
        for _ in range(20):
            await asyncio.sleep(0)

    flooding = asyncio.create_task(flood())
    await asyncio.wait_for(other(), 5)
    await log.close()
    await asyncio.wait_for(other(), 5)
    flooding.cancel()


# --- with a client -----------------------------------------------------------------------------


@pytest.fixture
def connect(gateway, make_ice):
    """A client with this handler, and the gateway's end of its session."""

    def connect(handler, answers=0.0):
        gateway.script.extend([admit(), admit()])
        return make_ice(handlers={"execute": handler}, waits=Waits(answers=answers))

    return connect


async def started(gateway):
    session = await gateway.session()
    await session.expect("ice.hello")
    await session.request("operation.run", RUN)
    return session


async def test_output_comes_before_the_finish(connect, gateway):
    async def handler(operation, report):
        await operation.log("one\n")
        await operation.log("two\n")

    async with connect(handler):
        session = await started(gateway)
        log = await session.expect("operation.log")
        await session.expect("operation.finish")
    assert log["params"] == {"id": "op-1", "text": "one\ntwo\n"}
    assert "id" not in log, "a log is a notification"


async def test_output_comes_before_the_finish_of_a_client_that_stops(connect, gateway):
    async def handler(operation, report):
        try:
            await asyncio.Event().wait()
        finally:
            await operation.log("cleaned up")

    async with connect(handler, answers=5.0) as ice:
        session = await started(gateway)
        ice.stop()
        assert (await session.expect("operation.log"))["params"]["text"] == "cleaned up"
        finish = await session.expect("operation.finish")
        await session.send(id=finish["id"], result={})


async def test_output_goes_on_after_a_reconnection_and_is_not_repeated(connect, gateway, time):
    again = asyncio.Event()

    async def handler(operation, report):
        await operation.log("first")
        await again.wait()
        await operation.log("second")

    async with connect(handler):
        session = await started(gateway)
        assert (await session.expect("operation.log"))["params"]["text"] == "first"
        await session.socket.close(code=1012)
        session = await gateway.session()
        await session.expect("ice.hello")
        again.set()
        assert (await session.expect("operation.log"))["params"]["text"] == "second"
        await session.expect("operation.finish")


@pytest.mark.parametrize("output", ["log", "progress"])
async def test_cancelling_a_handler_that_waits_to_send_disturbs_no_other_message(
    output, connect, gateway
):
    sent = 0

    async def handler(operation, report):
        nonlocal sent
        try:
            while True:
                if output == "log":
                    await operation.log("\0" * MAX_LOG_BYTES)
                else:
                    await report(data="x" * 400_000)
                sent += 1
        except asyncio.CancelledError:
            return "x" * 900_000

    async with connect(handler) as ice:
        session = await started(gateway)
        transport = session.socket._req.transport
        transport.pause_reading()
        before = -1
        while sent != before:  # until it waits
            before = sent
            await asyncio.sleep(0.1)
        await session.send(method="operation.cancel", params={"id": "op-1"})
        await until(lambda: not ice._operations.running)
        # Both answers are sent by the task that receives, behind the handler's frames.
        await session.send(method="operation.run", params=RUN, id="again")
        await session.socket.ping(b"?")
        transport.resume_reading()
        assert await asyncio.wait_for(session.pongs.get(), 5) == b"?"
        methods = [(await session.receive()).get("method") for _ in range(session.inbox.qsize())]
        assert methods[-3:] == ["operation.finish", None, "operation.finish"]
        assert set(methods[:-3]) == {f"operation.{output}"}
        assert ice.welcome is not None, "the client is still connected"


async def test_an_operation_of_a_test_takes_output():
    await Operation(id="op-1", kind="debug").log("x")
