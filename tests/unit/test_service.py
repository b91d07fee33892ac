"""The systemd units: hardened, and in agreement with what the gateway does.

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
import yaml

from gateway.cli import main
from gateway.runtime.setting_sources import load

CONFIG = Path(__file__).parents[2] / "config"
UNIT = CONFIG / "ice-gateway.service"
TEMPLATE = CONFIG / "ice-gateway@.service"
BOTH = pytest.mark.parametrize("unit", [UNIT, TEMPLATE], ids=lambda unit: unit.name)
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


@BOTH
def test_it_is_exposed_as_little_as_can_be(analyze, unit):
    done = analyze("security", "--offline=yes", unit)
    overall = re.search(r"Overall exposure level for \S+: (\d+\.\d+) ", done.stdout)
    assert overall, f"{done.stdout} {done.stderr}"
    assert float(overall[1]) <= 2.0, done.stdout


@BOTH
def test_systemd_understands_every_line(analyze, tmp_path, unit):
    text, found = re.subn("/opt/ice-gateway/bin/ice-gateway", sys.executable, unit.read_text())
    assert found == 1
    copy = tmp_path / unit.name.replace("@", "@1")
    copy.write_text(text)
    done = analyze("verify", "--man=no", "--recursive-errors=no", copy)
    assert done.returncode == 0, done.stderr
    assert copy.name not in done.stderr, done.stderr


@BOTH
def test_it_leaves_the_gateway_what_it_needs(unit):
    given = dict(re.findall(r"(?m)^(\w+)=(.*)$", unit.read_text()))
    assert int(given["TimeoutStopSec"]) > 10, "as long as the gateway may take to stop"
    assert int(given["LimitNOFILE"]) > load(None, {}).ice_max_connections
    final = given["RestartPreventExitStatus"].split()
    assert final == ["2", str(os.EX_CONFIG)], "what a restart does not mend"
    assert given["Type"] == "notify"
    assert int(given["WatchdogSec"]) >= 30, "a busy machine is no hung one"
    assert given["LimitCORE"] == "0", "the watchdog's signal must not write the keys to a disk"
    assert given["WorkingDirectory"] == f"/var/lib/{given['StateDirectory']}"
    assert "-HUP" in given["ExecReload"]
    _, name, *options = given["ExecStart"].split()
    assert main.commands[name].make_context(name, options).params["config"].is_absolute()


def test_a_node_of_several_is_hardened_as_one_alone():
    alone, several = (
        unit.read_text().partition("# A handle for each ICE")[2] for unit in (UNIT, TEMPLATE)
    )
    assert several == alone


def test_a_node_of_several_is_told_apart_by_its_instance():
    found = re.findall(r"(?m)^Environment=(ICE_GATEWAY_\w+)=(.*)$", TEMPLATE.read_text())
    settings = load(
        None, {name: value.replace("%i", "2").replace("%l", "lab") for name, value in found}
    )
    assert (settings.node_name, settings.server_port) == ("lab-2", 8442)
    assert settings.metrics_listen == ("127.0.0.1", 9520)


def test_the_containers_have_the_settings_of_a_cluster():
    composed = yaml.safe_load((CONFIG / "compose.yaml").read_text())
    nodes = {name: one for name, one in composed["services"].items() if name.startswith("gw-")}
    proxy = composed["configs"]["haproxy"]["content"]
    trusted = composed["services"]["haproxy"]["networks"]["default"]["ipv4_address"]
    for name, node in nodes.items():
        environ = {key: str(value) for key, value in node["environment"].items()}
        environ["ICE_GATEWAY_SERVER__PUBLIC_URL"] = "https://gateway.example"
        settings = load(None, environ)
        settings.check_exposure()
        assert settings.node_name == name
        assert str(settings.server_trusted_proxies[0]) == f"{trusted}/32"
        assert f"server {name} {name}:{settings.server_port}\n" in proxy


def test_haproxy_in_containers_is_the_one_of_machines():
    composed = yaml.safe_load((CONFIG / "compose.yaml").read_text())
    shipped = {
        line.partition("#")[0].strip() for line in (CONFIG / "haproxy.cfg").read_text().splitlines()
    }
    for line in composed["configs"]["haproxy"]["content"].splitlines():
        words = line.strip().removesuffix(" resolvers docker init-addr none")
        if not words.startswith(("server ", "bind ", "resolvers ", "nameserver ")):
            assert words in shipped, f"config/haproxy.cfg was expected to have {words!r}"
