"""Streams that nobody takes anything from, or that the parent has closed."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import subprocess
import sys
import termios
import time

import pytest

from gateway.runtime.standard_streams import (
    LINE,
    DecoupledStream,
    Unwritable,
    coupled,
    lost_lines,
    writing,
)
from tests.support.ice import PATIENCE, PROCESS_PATIENCE


def test_what_is_written_is_flushed_by_its_writer_and_nothing_is_raised():
    stream = io.StringIO()
    with writing(stream):
        stream.write("text")
    assert stream.getvalue() == "text"


def test_a_stream_that_is_not_there_cannot_be_written():
    with pytest.raises(Unwritable, match="Bad file descriptor"), writing(None):
        pytest.fail("nothing is to be written")


def test_a_stream_that_cannot_be_written_says_why_and_is_given_up(tmp_path):
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a stream is wanted
        with pytest.raises(Unwritable, match="No space left on device"), writing(full):
            print("lost", file=full, flush=True)
        print("goes nowhere", file=full, flush=True)
    with (
        (tmp_path / "ascii").open("w", encoding="ascii") as stream,
        pytest.raises(Unwritable, match="can't encode"),
        writing(stream),
    ):
        stream.write("é")


STORY = """
import os, sys
from gateway.runtime.standard_streams import open_missing
open_missing()
open_missing()  # changes nothing
taken = os.open(os.devnull, os.O_RDONLY)
assert taken > 2, taken
assert sys.stdin.read() == "" and not sys.stdin.isatty()
print("nowhere", file=sys.stderr, flush=True)
sys.exit(7 if sys.stdout is None else 8)
"""


@pytest.mark.parametrize(("closed", "status"), [("<&- 2>&-", 8), ("<&- >&- 2>&-", 7)])
def test_no_file_gets_the_number_of_a_closed_stream(closed, status):
    script = f'exec "$0" -c "$1" {closed}'
    done = subprocess.run(
        ["/bin/sh", "-c", script, sys.executable, STORY],
        stdin=subprocess.DEVNULL,
        timeout=PROCESS_PATIENCE,
        check=False,
    )
    assert done.returncode == status


# --- decoupled -----------------------------------------------------------------------------------


@contextlib.contextmanager
def pipe(**options):
    """A decoupled stream into a pipe of 4 KiB, and the end to read it from."""
    reading, writing_end = os.pipe()
    fcntl.fcntl(writing_end, fcntl.F_SETPIPE_SZ, 4096)
    with (
        os.fdopen(reading, encoding="utf-8") as reader,
        os.fdopen(writing_end, "w", encoding="utf-8") as stream,
    ):
        yield DecoupledStream(stream, **options), reader


def test_what_is_written_arrives_as_it_is_and_in_order():
    with pipe() as (stream, reader):
        stream.write("é 1\n")
        stream.write("")
        stream.write("\udcff 2\n")
        assert [reader.readline() for _ in range(2)] == ["é 1\n", "\\udcff 2\n"]
        assert stream.drain(PATIENCE)
        assert (stream.encoding, stream.isatty(), stream.lost) == ("utf-8", False, 0)
        with pytest.raises(AttributeError):
            stream.write(b"")  # by which click tells text from bytes


def until_full(reader):
    """Wait until the pipe takes no more: then its writer hangs."""
    deadline = time.monotonic() + PATIENCE
    while fcntl.ioctl(reader, termios.FIONREAD, bytes(4)) != (4096).to_bytes(4, sys.byteorder):
        assert time.monotonic() < deadline, "the pipe was expected to be filled"
        time.sleep(0.001)


def test_a_reader_that_hangs_holds_up_nobody_and_is_told_what_it_missed():
    with pipe(max_waiting=100_000) as (stream, reader):
        first, line = "y" * 5000 + "\n", "x" * 799 + "\n"
        stream.write(first)
        until_full(reader)
        for _ in range(500):
            stream.write(line)
        lost, kept = stream.lost, 100_000 // (800 + LINE)
        assert lost == 500 - kept, "100,000 bytes wait"
        assert not stream.drain(0), "nobody has read"
        assert reader.readline() == first
        assert [reader.readline() for _ in range(kept)] == [line] * kept
        said = f"ice-gateway: {lost} lines could not be written here\n"
        assert reader.readline() == said
        stream.write("again\n")
        assert reader.readline() == "again\n"
        assert stream.lost == lost


def test_a_full_disk_loses_lines_and_the_next_begins_on_a_line_of_its_own(monkeypatch):
    written, room = [], [3]

    def write(_, data):
        count = min(len(data), room[0])
        if not count:
            raise OSError(28, "No space left on device")
        room[0] -= count
        written.append(bytes(data[:count]))
        return count

    monkeypatch.setattr(os, "write", write)
    with pipe() as (stream, _):
        stream.describe = "lost {}".format
        for text in ("first\n", "second\n"):
            stream.write(text)
            assert stream.drain(PATIENCE)
        assert stream.lost == 2
        room[0] = 1000
        stream.write("third\n")
        assert stream.drain(PATIENCE)
        assert b"".join(written) == b"fir\nthird\nlost 2\n"


def test_a_dialogue_is_held_on_the_streams_themselves(monkeypatch):
    with pipe() as (stream, reader):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        sys.stdout.write("before\n")
        with coupled():
            assert sys.stdout is sys.stderr is stream.stream
            sys.stdout.write("asked\n")
            sys.stdout.flush()
        sys.stdout.write("after\n")
        assert [reader.readline() for _ in range(3)] == ["before\n", "asked\n", "after\n"]
        stream.lost = 2
        assert lost_lines() == 4, "of both"
        monkeypatch.undo()


EXIT = """
import sys
from gateway.runtime.standard_streams import decouple
decouple()
decouple()
print("x" * 100_000)
raise ValueError("the last words")
"""


def test_a_process_ends_although_nobody_reads_and_its_last_words_are_written():
    with subprocess.Popen(
        [sys.executable, "-c", EXIT], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.wait(PROCESS_PATIENCE) == 1, "stdout stays full"
        assert process.stderr.read().endswith(b"\nValueError: the last words\n")
