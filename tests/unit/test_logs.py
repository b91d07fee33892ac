"""What strangers cause cannot fill the disk with log lines, forge one, or steer a terminal."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import structlog

from gateway.logs import LINES_A_MINUTE, MAX_VALUE, STRANGERS, Sparing


def said(sparing, **line):
    try:
        return sparing(None, "info", line)
    except structlog.DropEvent:
        return None


@pytest.mark.parametrize("event", STRANGERS)
def test_lines_of_strangers_are_bounded_and_the_rest_is_counted(event):
    now = [0.0]
    sparing = Sparing(lambda: now[0])
    lines = [said(sparing, event=event, address="192.0.2.1") for _ in range(LINES_A_MINUTE + 50)]
    assert lines.count(None) == 50
    assert lines[0] == {"event": event, "address": "192.0.2.1"}
    now[0] = 60.0
    assert said(sparing, event=event) == {"event": event, "unsaid": 50}
    assert said(sparing, event=event) == {"event": event}


def test_what_names_an_ice_and_what_else_happens_is_always_said():
    sparing = Sparing(lambda: 0.0)
    for _ in range(LINES_A_MINUTE + 1):
        said(sparing, event="refused", ice=None)
    for line in ({"event": "refused", "ice": "lab-1"}, {"event": "admitted", "ice": "lab-1"}):
        assert [said(sparing, **line)] * (LINES_A_MINUTE + 1) == [line] * (LINES_A_MINUTE + 1)
    assert said(sparing, event="refused", ice=None) is None


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
from gateway.logs import configure
from gateway.standard_streams import decouple
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


LOSS = """
import sys
from gateway.logs import configure
from gateway.standard_streams import decouple
decouple()
configure("json", "info", node="node-a")
print(sys.stderr.describe(7))
"""


def test_lost_lines_are_told_in_a_line_like_the_others():
    done = subprocess.run([sys.executable, "-c", LOSS], capture_output=True, check=True, text=True)
    line = json.loads(done.stdout)
    assert line.pop("timestamp")
    assert line == {"event": "log lines lost", "lines": 7, "level": "warning", "node": "node-a"}


def test_no_text_steers_the_terminal_that_the_log_is_shown_on():
    shown = tell("text")
    # The colours are ours.
    plain = re.sub(r"\x1b\[\d*m", "", shown)
    assert plain != shown
    lines = plain.split("\n")
    assert all(line.isprintable() for line in lines), [x for x in lines if not x.isprintable()]
    # What is in a traceback never stands at the begin of a line.
    assert not [line for line in lines if line.startswith(("b", '{"event"'))]
