"""What a measurement needs beside the gateway: programs of the system, and the peers' packages."""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".bench"
"""All that is built, installed and measured; `make clean` removes it."""
_PEERS = Path(__file__).with_name("peers")
_PACKAGES = {"gcc": "gcc", "node": "nodejs", "npm": "npm", "taskset": "util-linux"}


class Missing(Exception):
    """Something that is needed is not there; the text names it."""


@dataclass(frozen=True)
class Peers:
    """Where the peers' packages are."""

    python: Path
    modules: Path


def check(handles: int) -> None:
    """Raise Missing where a measurement cannot be made; `handles` are a process's open files."""
    lacking = [name for name in _PACKAGES if shutil.which(name) is None]
    packages = [_PACKAGES[name] for name in lacking]
    if "gcc" not in lacking and not _has_openssl_headers():
        lacking.append("the headers of OpenSSL")
        packages.append("libssl-dev")
    if lacking:
        raise Missing(
            f"{', '.join(lacking)} (Debian and Ubuntu: apt install {' '.join(dict.fromkeys(packages))})"
        )
    if not {0, 1} <= os.sched_getaffinity(0):
        raise Missing(
            "a second core: the server is measured on core 0, the generator runs on core 1"
        )
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < handles:
        raise Missing(f"file handles: {handles} are needed, the hard limit is {most} (ulimit -Hn)")
    # Our children inherit it; not every server raises it by itself.
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _has_openssl_headers() -> bool:
    done = subprocess.run(
        ["gcc", "-E", "-x", "c", "-"],
        input="#include <openssl/ssl.h>\n",
        text=True,
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def peers_python() -> Path:
    """The Python that has the Python peers and what draws the charts, installed if it is not there."""
    folder = HOME / "peers"
    wanted = _PEERS / "requirements.txt"
    digest = _digest(platform.python_version(), wanted)
    if not _is(folder, digest):
        print("installing the Python peers into .bench/peers (once)", flush=True)
        _run(sys.executable, "-m", "venv", "--clear", str(folder))
        pip = (str(folder / "bin/python"), "-m", "pip", "--disable-pip-version-check", "--quiet")
        _run(*pip, "install", "--requirement", str(wanted))
        _mark(folder, digest)
    return folder / "bin/python"


def node_modules() -> Path:
    """The folder with the Node peer and what it needs, installed if it is not there."""
    folder = HOME / "node"
    files = [_PEERS / name for name in ("package.json", "package-lock.json", "socketio_node.mjs")]
    digest = _digest("", *files)
    if not _is(folder, digest):
        print("installing the Node peer into .bench/node (once)", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file in files:
            shutil.copy(file, folder)
        _run("npm", "ci", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder))
        _mark(folder, digest)
    return folder


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()
        raise Missing(f"{Path(command[0]).name} could not install the peers: {said[-1]}")


def _digest(more: str, *files: Path) -> str:
    found = hashlib.sha256(more.encode())
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()


def _is(folder: Path, digest: str) -> bool:
    mark = folder / ".installed"
    return mark.exists() and mark.read_text() == digest


def _mark(folder: Path, digest: str) -> None:
    (folder / ".installed").write_text(digest)
