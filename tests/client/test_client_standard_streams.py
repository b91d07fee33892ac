"""stdout and stderr that nobody reads, that cannot be written, or that are not there: the client goes on."""

import asyncio
import contextlib
import fcntl
import io
import json
import os
import re
import signal
import sys
import threading
from pathlib import Path

import pytest

from client.standard_streams import DecoupledStream, decoupled
from tests.client.scripted_gateway import admit

ROOT = Path(__file__).parents[2]
PATIENCE = 30
NULL = Path(os.devnull).stat()


@contextlib.contextmanager
def pipe(**options):
    """A decoupled stream into a pipe of 4 KiB, and the end to read it from."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    with (
        os.fdopen(reading, "rb", buffering=0) as reader,
        os.fdopen(writing, "w", encoding="utf-8") as stream,
    ):
        yield DecoupledStream(stream, stream.buffer.raw, **options), reader


class Disk:
    """A raw stream that takes so many bytes, and then has no room; `tried` is set at each failure."""

    def __init__(self, room):
        self.room = room
        self.data = b""
        self.tried = threading.Semaphore(0)

    def write(self, data):
        taken = bytes(data[: self.room])
        if not taken:
            self.tried.release()
            raise OSError(28, "No space left on device")
        self.room -= len(taken)
        self.data += taken
        return len(taken)


def test_lines_are_written_in_their_order():
    with pipe() as (stream, reader):
        for number in range(3):
            print("line", number, file=stream)
        stream.drain(PATIENCE)
        assert reader.read(1000) == b"line 0\nline 1\nline 2\n"


LOST = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ice-client: (\d+) lines could not be written here"
)


def test_what_nobody_reads_holds_nobody_up_and_what_is_lost_is_counted():
    """The thread that writes may begin late: what is lost is then told between the lines."""
    with pipe(max_waiting=10_000) as (stream, reader):
        for number in range(2000):
            stream.write(f"{number:099}\n")
        lines, lost = [], 0
        while len(lines) + lost < 2000:
            line = reader.readline().decode().rstrip("\n")
            told = LOST.fullmatch(line)
            if told is None:
                lines.append(line)
            else:
                lost += int(told[1])
    numbers = [int(line) for line in lines]
    assert lines == [f"{number:099}" for number in numbers]
    assert numbers == sorted(set(numbers))
    assert (len(lines) + lost, lost > 0) == (2000, True)


def test_a_line_that_was_cut_off_is_ended_once_there_is_room():
    disk = Disk(room=7)
    stream = DecoupledStream(io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), disk)
    stream.write("one\ntwo three\nfour\n")
    stream.drain(PATIENCE)
    assert disk.data == b"one\ntwo"
    stream.write("five\n")
    stream.drain(PATIENCE)
    disk.room = 1000
    stream.write("six\n")
    stream.drain(PATIENCE)
    first, cut, six, told = disk.data.decode().splitlines()
    assert (first, cut, six) == ("one", "two", "six")
    assert told.endswith(" ice-client: 3 lines could not be written here")


def test_a_descriptor_that_never_blocks_is_tried_again():
    with pipe() as (stream, reader):
        os.set_blocking(stream.fileno(), False)
        text = "x" * 20_000
        stream.write(f"{text}\n")
        read = b""
        while not read.endswith(b"\n"):
            read += reader.read(4096)
    assert read.decode() == f"{text}\n"


def test_a_character_that_the_encoding_lacks_is_an_escape():
    raw = io.BytesIO()
    stream = DecoupledStream(io.TextIOWrapper(io.BytesIO(), encoding="ascii"), raw)
    stream.write("b\udcfcro ü\n")
    stream.drain(PATIENCE)
    assert raw.getvalue() == b"b\\udcfcro \\xfc\n"


def test_the_streams_come_back_and_those_without_a_descriptor_stay(monkeypatch):
    ours = io.StringIO()
    with open(os.devnull, "w") as null:  # noqa: PTH123 - a stream is wanted
        monkeypatch.setattr(sys, "stdout", ours)
        monkeypatch.setattr(sys, "stderr", null)
        with decoupled():
            assert sys.stdout is ours
            assert isinstance(sys.stderr, DecoupledStream)
        assert (sys.stdout, sys.stderr) == (ours, null)


# --- the command -------------------------------------------------------------------------------


@contextlib.contextmanager
def full_pipe():
    """A pipe that takes nothing more, as when its reader stands still."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    yield writing
    os.close(writing)
    os.close(reading)


@pytest.mark.parametrize(
    "redirected",
    [
        *("unread", ">/dev/full 2>&1", "<&- >&- 2>&-"),
        *(pytest.param(one, marks=pytest.mark.long) for one in (">/dev/full", "2>/dev/full")),
    ],
)
async def test_the_client_goes_on_and_ends_in_good_order(redirected, gateway, folder, token):
    handlers = folder.with_name("handlers.py")
    handlers.write_text(
        "import logging, os\n"
        "def register(ice, settings):\n"
        "    @ice.operation('execute')\n"
        "    async def execute(operation, report):\n"
        "        print('x' * 100_000)\n"
        "        logging.warning('from a handler')\n"
        "        return [os.fstat(number).st_rdev for number in range(3)]\n"
    )
    file = folder.with_name("token")
    file.write_text(token)
    gateway.script += [admit(), admit()]
    run = (
        *(sys.executable, "-m", "client", "run", "--gateway", gateway.url, "--insecure"),
        *("--state-dir", folder, "--token-file", file, "--handlers", handlers),
    )
    with full_pipe() as pipe:
        streams = {"stdin": None, "stdout": pipe, "stderr": pipe}
        if redirected != "unread":
            run = ("/bin/sh", "-c", f'exec "$0" "$@" {redirected}', *run)
            streams = dict.fromkeys(streams, asyncio.subprocess.DEVNULL)
        process = await asyncio.create_subprocess_exec(*map(str, run), cwd=ROOT, **streams)
        try:
            async with asyncio.timeout(PATIENCE):
                first = await gateway.sessions.get()
                await first.socket.close(code=4201)
                session = await gateway.sessions.get()
            await session.expect("ice.hello")
            params = {"id": "op-1", "kind": "execute"}
            assert "result" in await session.request("operation.run", params)
            finish = (await session.expect("operation.finish"))["params"]
            assert finish["outcome"] == "succeeded", finish
            if ">&-" in redirected:
                assert finish["result"] == [NULL.st_rdev] * 3
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(PATIENCE):
                assert await process.wait() == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def test_every_line_begins_with_its_time(gateway, fork, folder, token):
    """Those of handlers' loggers, too."""
    handlers = folder.with_name("handlers.py")
    handlers.write_text(
        "import logging\n"
        "def register(ice, settings):\n"
        "    logging.getLogger('a').warning('too early')\n"
        "    @ice.operation('execute')\n"
        "    async def execute(operation, report):\n"
        "        logging.getLogger('a').warning('from a handler')\n"
    )
    gateway.script.append(admit())
    process = await fork.start(
        *("run", "--gateway", gateway.url, "--state-dir", folder, "--token-file", "-"),
        *("--handlers", handlers),
        stdin=token,
    )
    session = await gateway.session()
    await session.expect("ice.hello")
    await session.request("operation.run", {"id": "op-1", "kind": "execute"})
    await session.expect("operation.finish")
    os.kill(process, signal.SIGTERM)
    ended = await fork.end(process)

    early, line = ended.err.splitlines()
    assert early == "too early"
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    assert re.fullmatch(f"{time} ice-client: WARNING: from a handler", line)
    lines = ended.out.splitlines()
    assert len(lines) == 3
    assert all(re.match(f"{time} ", line) for line in lines), json.dumps(lines)


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        *(pytest.param(one, marks=pytest.mark.long) for one in (("status", "--json"), ("--help",))),
    ],
)
def test_an_answer_that_cannot_be_written_has_failed(words, fork, folder):
    folder.mkdir(mode=0o700)
    options = ("--state-dir", folder) if "status" in words else ()
    ended = fork.run_blocking(*words, *options, streams={"out": "/dev/full"})
    assert (ended.status, ended.err) == (
        1,
        "ice-client: standard output cannot be written: No space left on device\n",
    )
