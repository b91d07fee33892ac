"""`ice-gateway demo`: it ends well only if every step was observed."""

from __future__ import annotations

import subprocess
import sys

from gateway.cli import demo_story


def test_every_step_is_observed():
    demo = subprocess.run(
        [sys.executable, "-m", "gateway", "demo"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    lines = demo.stdout.splitlines()
    assert (demo.returncode, demo.stderr) == (0, ""), demo.stdout
    assert lines[-1].endswith("demo     all of it happened")
    for step in ("admitted as lab-1", "key-mismatch", "closed 4101", "stopped on SIGTERM"):
        assert any(step in line for line in lines), f"{step} is not told"


def test_a_step_that_fails_ends_it_with_status_1(monkeypatch, capsys):
    async def fails(story, folder, options):
        story.require("the status of lab-1", "registered", "provisioned")
        raise AssertionError("the story goes on")

    monkeypatch.setattr(demo_story, "_story", fails)
    assert demo_story.run_demo() == 1
    assert capsys.readouterr().out.endswith(
        "FAILED: the status of lab-1: expected 'registered', observed 'provisioned'\n"
    )
