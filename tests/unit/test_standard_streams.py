"""Streams that nobody takes anything from, or that the parent has closed."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from gateway.standard_streams import Unwritable, writing
from tests.support.ice import PATIENCE


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
from gateway.standard_streams import fill
fill()
fill()  # changes nothing
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
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == status
