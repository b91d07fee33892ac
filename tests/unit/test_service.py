"""The systemd unit: hardened, and in agreement with what the gateway does.

Without systemd-analyze it is skipped and says so; where it has to be there (CI, or
ICE_REQUIRE_SYSTEMD=1) it fails.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.settings import load

UNIT = Path(__file__).parents[2] / "config" / "ice-gateway.service"
REQUIRED = bool(os.environ.get("CI")) or os.environ.get("ICE_REQUIRE_SYSTEMD") == "1"


@pytest.fixture
def analyze():
    program = shutil.which("systemd-analyze")
    if program is None:
        missing = "there is no systemd-analyze (Debian: apt install systemd)"
        if REQUIRED:
            pytest.fail(missing)
        pytest.skip(missing)

    def run(*args):
        return subprocess.run(
            [program, *map(str, args)], capture_output=True, text=True, timeout=60, check=False
        )

    return run


def test_it_is_exposed_as_little_as_can_be(analyze):
    done = analyze("security", "--offline=yes", UNIT)
    overall = re.search(r"Overall exposure level for \S+: (\d+\.\d+) ", done.stdout)
    assert overall, f"{done.stdout} {done.stderr}"
    assert float(overall[1]) <= 2.0, done.stdout


def test_systemd_understands_every_line(analyze, tmp_path):
    text, found = re.subn("/opt/ice-gateway/bin/ice-gateway", sys.executable, UNIT.read_text())
    assert found == 1
    copy = tmp_path / UNIT.name
    copy.write_text(text)
    done = analyze("verify", "--man=no", "--recursive-errors=no", copy)
    assert done.returncode == 0, done.stderr
    assert UNIT.name not in done.stderr, done.stderr


def test_it_leaves_the_gateway_what_it_needs():
    given = dict(re.findall(r"(?m)^(\w+)=(.*)$", UNIT.read_text()))
    assert int(given["TimeoutStopSec"]) > 10, "as long as the gateway may take to stop"
    assert int(given["LimitNOFILE"]) > load(None, {}).ice_max_connections
    assert given["WorkingDirectory"] == f"/var/lib/{given['StateDirectory']}"
    assert "-HUP" in given["ExecReload"]
    _, name, *options = given["ExecStart"].split()
    assert main.commands[name].make_context(name, options).params["config"].is_absolute()
