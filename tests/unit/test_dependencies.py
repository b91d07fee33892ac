"""What an installation brings: the client alone, with `[server]` the gateway, with `[postgres]` its other engine.

A folder that has only the packages of an extra stands for the installation; Python sees no other (`-S`).
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXAMPLES = {"playwright", "pytest"}
"""What examples of handlers import, which say what to install."""


def name_of(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def brought_by(*extras: str) -> set[str]:
    """The distributions that `pip install 'ice-gateway[extras]'` brings besides itself."""
    found: set[str] = set()
    waiting = [*PROJECT["dependencies"]]
    for extra in extras:
        waiting += PROJECT["optional-dependencies"][extra]
    while waiting:
        needed = Requirement(waiting.pop())
        if needed.name == PROJECT["name"]:
            waiting += [
                line for extra in needed.extras for line in PROJECT["optional-dependencies"][extra]
            ]
            continue
        applies = [
            extra
            for extra in ("", *needed.extras)
            if needed.marker is None or needed.marker.evaluate({"extra": extra})
        ]
        if applies and name_of(needed.name) not in found:
            found.add(name_of(needed.name))
            for line in metadata.requires(needed.name) or ():
                marker = Requirement(line).marker
                if marker is None or any(
                    marker.evaluate({"extra": extra}) for extra in ("", *needed.extras)
                ):
                    waiting.append(line)
    return found


def imported(package: str) -> set[str]:
    """The top-level names of others that the modules of a package import."""
    names = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(str(node.module).partition(".")[0])
    return names - sys.stdlib_module_names - {"client", "gateway", "_typeshed"}


@pytest.mark.parametrize(
    ("package", "extras"), [("client", ()), ("gateway", ("postgres",))], ids=["client", "gateway"]
)
def test_an_installation_brings_all_that_its_package_imports(package, extras):
    homes = metadata.packages_distributions()
    brought = brought_by(*extras)
    missing = {
        name
        for name in imported(package) - EXAMPLES
        if not {name_of(one) for one in homes[name]} & brought
    }
    assert not missing


def test_a_client_brings_no_server():
    assert brought_by() < brought_by("server") < brought_by("postgres")
    assert not brought_by() & {"jinja2", "structlog", "aiosqlite", "uvloop", "rich", "websockets"}
    assert brought_by("postgres") - brought_by("server") == {"asyncpg"}


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """Makes what a machine has on which ice-gateway is installed with these extras: a folder for PYTHONPATH."""

    def machine(*extras: str) -> Path:
        folder = tmp_path_factory.mktemp("machine")
        for name in brought_by(*extras):
            tops = {Path(file).parts[0] for file in metadata.files(name) or ()} - {
                "..",
                "__pycache__",
            }
            for top in tops:
                (folder / top).symlink_to(metadata.distribution(name).locate_file(top))
        for package in ("client", "gateway"):
            (folder / package).symlink_to(ROOT / package)
        return folder

    return machine


def run(machine: Path, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ICE_")}
    environment = kept | {"PYTHONPATH": str(machine)}
    command = [sys.executable, "-S", *words]
    return subprocess.run(
        command,
        env=environment,
        cwd=cwd or machine,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


CLIENT_ALONE = (
    "ice-gateway: the gateway is not installed here, the client alone (no structlog):"
    " pip install 'ice-gateway[server]'\n"
)


@pytest.fixture(scope="module")
def ice_machine(machines):
    """A machine of an ICE: `pip install ice-gateway`."""
    return machines()


def test_a_client_needs_no_more_than_its_installation(ice_machine):
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "client").rglob("*.py"))
        if path.stem not in ("__main__", "pytest_failure")  # a program that imports pytest
    ]
    code = "\n".join(f"import {module}" for module in modules)
    done = run(ice_machine, "-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "words",
    [
        ("serve",),
        *(pytest.param(one, marks=pytest.mark.long) for one in (("--help",), ("ices", "list"), ())),
    ],
)
def test_a_command_of_the_gateway_says_on_an_ices_machine_what_to_install(ice_machine, words):
    done = run(ice_machine, "-m", "gateway", *words)
    assert (done.returncode, done.stdout, done.stderr) == (78, "", CLIENT_ALONE)


def test_the_version_is_known_on_an_ices_machine(ice_machine):
    done = run(ice_machine, "-m", "gateway", "--version")
    version = metadata.version(PROJECT["name"])
    assert (done.returncode, done.stdout) == (0, f"ice-gateway, version {version}\n")


def test_a_command_of_the_gateway_says_on_windows_where_it_runs(ice_machine):
    code = "import sys; sys.platform = 'win32'; from gateway.__main__ import main; main()"
    done = run(ice_machine, "-c", code)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("ice-gateway: the gateway and its commands need Linux or macOS")


POSTGRESQL = "postgresql://ice@127.0.0.1:9/ice"


@pytest.fixture(scope="module")
def file_machine(machines):
    """A machine of a gateway on SQLite: `pip install 'ice-gateway[server]'`."""
    return machines("server")


@pytest.mark.parametrize(
    "words",
    [
        ("users", "list", "--database", POSTGRESQL),
        *(
            pytest.param(one, marks=pytest.mark.long)
            for one in (
                ("serve", "--database", POSTGRESQL),
                ("migrate-store", "--from", "sqlite:///empty.db", "--to", POSTGRESQL),
            )
        ),
    ],
    ids=lambda words: words[0],
)
def test_a_gateway_on_postgresql_says_what_to_install(file_machine, tmp_path, words):
    (tmp_path / "empty.db").touch()
    done = run(file_machine, "-m", "gateway", *words, cwd=tmp_path)
    wanted = (
        "ice-gateway: a database on PostgreSQL needs asyncpg: pip install 'ice-gateway[postgres]'\n"
    )
    assert (done.returncode, done.stderr) == (78, wanted)


@pytest.mark.long
def test_doctor_says_that_postgresql_needs_more(file_machine, tmp_path):
    done = run(file_machine, "-m", "gateway", "doctor", "--database", POSTGRESQL, cwd=tmp_path)
    assert "needs asyncpg: pip install 'ice-gateway[postgres]'" in done.stdout


def test_a_gateway_does_not_hold_the_modules_that_draw_on_a_terminal():
    """Loaded at once they would take 3 MiB of every gateway; a command loads them when it draws."""
    command = (
        "import sys; from gateway.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "import gateway.app, structlog\n"
        "print({'rich', 'pygments', 'structlog'} & sys.modules.keys())\n"
        "from gateway.cli.output import show_table; from rich.console import Console"
    )
    done = subprocess.run(
        [sys.executable, "-c", command, "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "{'structlog'}"
