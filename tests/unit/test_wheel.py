"""What a release ships: all of the two packages and the client's services, under the version of `client/__init__.py`, and nothing else.

The wheel is built here as `python -m build` builds it; `make dist` has its own checked, which ICE_WHEEL names.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from fnmatch import fnmatch
from pathlib import Path

import pytest

import gateway

ROOT = Path(__file__).parents[2]
PACKAGES = ("gateway", "client")
SERVICES = [ROOT / f"config/ice-client.{kind}" for kind in ("plist", "service", "xml")]
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if named := os.environ.get("ICE_WHEEL"):
        path = ROOT / named
    else:
        # setuptools would take what an earlier build left behind in the source tree.
        source = tmp_path_factory.mktemp("source")
        for package in PACKAGES:
            leave = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / package, source / package, ignore=leave)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        (source / "config").mkdir()
        for path in SERVICES:
            shutil.copy(path, source / "config")
        built = tmp_path_factory.mktemp("built")
        command = [sys.executable, "-c", BUILD, str(built)]
        done = subprocess.run(command, cwd=source, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr.decode()
        [path] = built.glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


def test_a_wheel_has_every_file_of_the_packages_and_no_other(wheel):
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    data = f"ice_gateway-{gateway.__version__}.data/data/share/ice-client"
    expected |= {f"{data}/{path.name}" for path in SERVICES}
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == expected


def test_a_wheel_says_what_it_is(wheel):
    info = f"ice_gateway-{gateway.__version__}.dist-info"
    metadata = HeaderParser().parsestr(wheel.read(f"{info}/METADATA").decode())
    assert (metadata["Name"], metadata["Version"]) == ("ice-gateway", gateway.__version__)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
    assert set(metadata.get_all("Provides-Extra")) == {"server", "postgres", "scrape"}
    commands = wheel.read(f"{info}/entry_points.txt").decode()
    assert "ice-gateway = gateway.__main__:main" in commands
    assert "ice-client = client.__main__:main" in commands


def test_an_image_can_be_built_of_what_docker_gets():
    """`config/compose.yaml` builds in a context without what `.dockerignore` leaves out."""
    kept = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text("utf-8"), re.MULTILINE)
    needed = ["pyproject.toml", "README.md", "LICENSE", *(f"{one}/__init__.py" for one in PACKAGES)]
    needed += [path.relative_to(ROOT).as_posix() for path in SERVICES]
    assert not [name for name in needed if not any(fnmatch(name, one) for one in kept)]
