"""What strangers cause cannot fill the disk with log lines, forge one, or steer a terminal."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter

import pytest
import structlog

from gateway.runtime.logs import (
    ICE_LINES_A_MINUTE,
    LINES_A_MINUTE,
    MAX_KINDS,
    MAX_VALUE,
    NAMED_A_MINUTE,
    TRACEBACKS_A_MINUTE,
    LineLimit,
)


class Limit(LineLimit):
    """At a time that the test says."""

    def __init__(self):
        self.now = 0.0
        super().__init__(lambda: self.now)

    def said(self, **line):
        try:
            return self(None, "info", line)
        except structlog.DropEvent:
            return None


@pytest.mark.parametrize("event", ["refused", "malformed request", "store unavailable"])
def test_lines_of_strangers_are_bounded_and_the_rest_is_counted(event):
    limit = Limit()
    lines = [limit.said(event=event, address="192.0.2.1") for _ in range(LINES_A_MINUTE + 50)]
    assert lines.count(None) == 50
    assert lines[0] == {"event": event, "address": "192.0.2.1"}
    limit.now = 60.0
    assert limit.said(event=event) == {"event": event, "unsaid": 50}
    assert limit.said(event=event) == {"event": event}


@pytest.mark.parametrize("event", ["refused", "admitted", "closed", "client gone"])
def test_lines_of_an_ice_are_bounded_and_the_rest_is_counted(event):
    limit = Limit()
    lines = [limit.said(event=event, ice="lab-1") for _ in range(ICE_LINES_A_MINUTE + 7)]
    assert lines.count(None) == 7
    other = limit.said(event=event, ice="lab-2")
    assert other == {"event": event, "ice": "lab-2", "unsaid": 7}, "one ICE silences no other"
    limit.now = 60.0
    assert limit.said(event=event, ice="lab-1") == {"event": event, "ice": "lab-1"}


def test_lines_of_all_ices_together_are_bounded():
    limit = Limit()
    for number in range(NAMED_A_MINUTE):
        assert limit.said(event="refused", ice=f"lab-{number}")
    assert limit.said(event="refused", ice="lab-x") is None
    assert limit.said(event="admitted", ice="lab-x"), "one kind silences no other"
    limit.now = 60.0
    assert limit.said(event="refused", ice="lab-x")["unsaid"] == 1


def test_strangers_and_ices_do_not_silence_each_other():
    limit = Limit()
    for _ in range(LINES_A_MINUTE + 1):
        limit.said(event="refused", ice=None)
    assert limit.said(event="refused", ice="lab-1")
    limit = Limit()
    for number in range(NAMED_A_MINUTE + 1):
        limit.said(event="refused", ice=f"lab-{number}")
    assert limit.said(event="refused", ice=None)


def test_tracebacks_are_fewer():
    limit = Limit()
    lines = [limit.said(event="unexpected error", exc_info=True) for _ in range(100)]
    assert lines.count(None) == 100 - TRACEBACKS_A_MINUTE


def test_what_is_counted_takes_bounded_memory():
    limit = Limit()
    for number in range(20 * MAX_KINDS):
        limit.said(event=f"{number}", ice=f"lab-{number}")
        limit.said(event=f"{number}")
    assert len(limit._suppressed) == MAX_KINDS + 1
    limit.now = 60.0
    limit.said(event="new")
    assert len(limit._suppressed) == 2, "what owes nothing is forgotten"
    for number in range(2 * NAMED_A_MINUTE):
        limit.said(event="refused", ice=f"lab-{number}")
    before = len(limit._written)
    for number in range(2 * NAMED_A_MINUTE):
        limit.said(event="refused", ice=f"more-{number}")
    assert len(limit._written) == before, "who may say no more is not counted"


NASTY = [
    "a\r\nb",
    '{"event":"forged"}\n{"event":"forged"}',
    "\x1b[2J\x1b]0;x\x07",
    "\x9b31m\x85\x7f\x00",
    "\u202ertl\u2066\u200b\u2028",
    "\U000e0041\ufeff",
    "\udcff",  # what aiohttp makes of a byte that is no UTF-8
]
STORY = """
import json, logging, sys, warnings, structlog
from gateway.runtime.logs import configure
from gateway.runtime.standard_streams import decouple
decouple()
configure(sys.argv[1], "info")
log = structlog.get_logger()
for text in json.loads(sys.stdin.read()):
    log.info("said", text=text, inside={"list": [text]})
    logging.getLogger("aiohttp.server").error("by a library: %s", text)
    logging.getLogger("asyncio").error("short")
    try:
        raise ValueError(text)
    except ValueError:
        log.exception("caught")
        logging.getLogger("asyncio").exception("caught by a library")
log.info("said", text="x" * 1_000_000)
warnings.warn("a warning")
"""


def tell(form):
    done = subprocess.run(
        [sys.executable, "-c", STORY, form],
        input=json.dumps(NASTY),
        capture_output=True,
        check=True,
        text=True,
        encoding="utf-8",
    )
    assert done.stdout == ""
    return done.stderr


def test_every_line_is_one_json_object_whoever_writes_it():
    lines = tell("json").splitlines()
    assert len(lines) == 5 * len(NASTY) + 2
    for line in lines:
        assert json.loads(line)["event"] != "forged"
        assert line.isascii(), line
        assert line.isprintable(), line
    assert len(json.loads(lines[-2])["text"]) == MAX_VALUE


FLOOD = """
import logging, structlog
from gateway.runtime.logs import configure
from gateway.runtime.standard_streams import decouple
decouple()
configure("json", "info")
for _ in range(500):
    structlog.get_logger().info("refused", ice="lab-1")
    logging.getLogger("websockets.server").error("message not taken")
    try:
        raise ValueError("deep")
    except ValueError:
        logging.getLogger("asyncio").exception("caught by a library")
"""


def test_lines_of_libraries_are_bounded_too():
    done = subprocess.run([sys.executable, "-c", FLOOD], capture_output=True, check=True, text=True)
    events = Counter(json.loads(line)["event"] for line in done.stderr.splitlines())
    assert events == {
        "refused": ICE_LINES_A_MINUTE,
        "message not taken": LINES_A_MINUTE,
        "caught by a library": TRACEBACKS_A_MINUTE,
    }


LOSS = """
import sys
from gateway.runtime.logs import configure
from gateway.runtime.standard_streams import decouple
decouple()
configure("json", "info")
print(sys.stderr.describe(7))
"""


def test_lost_lines_are_told_in_a_line_like_the_others():
    done = subprocess.run([sys.executable, "-c", LOSS], capture_output=True, check=True, text=True)
    line = json.loads(done.stdout)
    assert line.pop("timestamp")
    assert line == {"event": "log lines lost", "lines": 7, "level": "warning"}


def test_no_text_steers_the_terminal_that_the_log_is_shown_on():
    shown = tell("text")
    # The colours are ours.
    plain = re.sub(r"\x1b\[\d*m", "", shown)
    assert plain != shown
    lines = plain.split("\n")
    assert all(line.isprintable() for line in lines), [x for x in lines if not x.isprintable()]
    # What is in a traceback never stands at the begin of a line.
    assert not [line for line in lines if line.startswith(("b", '{"event"'))]
