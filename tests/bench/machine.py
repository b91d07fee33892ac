"""The machine and the versions that figures were measured with."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import subprocess
from importlib.metadata import version
from pathlib import Path

from cryptography.hazmat.backends.openssl import backend

import gateway
from tests.bench.toolchain import Peers

_OURS = ("aiohttp", "uvloop", "websockets", "msgspec", "cryptography")
_PEERS = ("aiohttp", "uvloop", "python-socketio", "python-engineio")
_NODE = ("socket.io", "engine.io", "ws")


def machine(folder: Path) -> dict[str, str]:
    """The machine, without its name; `folder` is where the databases were."""
    memory = _field("/proc/meminfo", "MemTotal", ":") or "0"
    filesystem = _output("stat", "--file-system", "--format=%T", str(folder))
    return {
        "CPU": _field("/proc/cpuinfo", "model name", ":") or platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{int(memory.split()[0]) / 2**20:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "OS": (_field("/etc/os-release", "PRETTY_NAME", "=") or "unknown").strip('"'),
        "filesystem of the databases": "ext4" if filesystem == "ext2/ext3" else filesystem,
    }


def versions(peers: Peers) -> dict[str, str]:
    """What ran, ours and the peers'."""
    listed = _output(
        str(peers.python),
        "-c",
        "import json, sys; from importlib.metadata import version;"
        " print(json.dumps({name: version(name) for name in sys.argv[1:]}))",
        *_PEERS,
    )
    return {
        "ICE gateway": gateway.__version__,
        "Python": platform.python_version(),
        **{name: version(name) for name in _OURS},
        "OpenSSL of cryptography": backend.openssl_version_text().split()[1],
        "SQLite": sqlite3.sqlite_version,
        "Node": _output("node", "--version").removeprefix("v"),
        **{f"{name} (peers)": found for name, found in json.loads(listed).items()},
        **{f"{name} (Node)": _node_version(peers.modules, name) for name in _NODE},
    }


def _node_version(modules: Path, name: str) -> str:
    package = json.loads((modules / "node_modules" / name / "package.json").read_text())
    return str(package["version"])


def _field(file: str, name: str, separator: str) -> str | None:
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return None
    found = (line.split(separator, 1) for line in lines if separator in line)
    return next((value.strip() for key, value in found if key.strip() == name), None)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
