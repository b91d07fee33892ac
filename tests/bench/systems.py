"""What is measured: servers as processes of their own, on the first core."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import goals
from tests.bench.fleet import database_in

SERVER_CORE, OTHER_CORE, BOTH_CORES = "0", "1", "0,1"
PATIENCE = 60.0
_HERE = Path(__file__).parent
# Of an unknown request every session layer has to make an answer; ours refuses it (JSON-RPC 2.0).
JSON_RPC = (
    "--echo-prefix",
    '{"jsonrpc":"2.0","method":"echo","id":"',
    "--echo-suffix",
    '"}',
)


@dataclass(frozen=True)
class System:
    """A server under measurement: how it is started and how the load generator talks to it."""

    name: str
    command: tuple[str, ...]
    path: str
    options: tuple[str, ...] = ()
    echo: tuple[str, ...] = ()
    kick: str = "/kick/{i}"


@dataclass
class Running:
    """A started server."""

    port: int
    process: subprocess.Popen[str]
    url: str = field(init=False)

    def __post_init__(self) -> None:
        self.url = f"http://127.0.0.1:{self.port}"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def started(
    command: Sequence[str],
    port: int,
    ready: str,
    log: Path,
    *,
    core: str = SERVER_CORE,
    **environment: str,
) -> Iterator[Running]:
    """A server that has said `ready` on its first lines; it is killed in the end."""
    pinned = ("taskset", "-c", core, *command)
    with log.open("a") as errors:
        process = subprocess.Popen(
            pinned,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**_environment(), **environment},
        )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if ready in line:
                break
        else:
            raise RuntimeError(f"{command[0]} did not start: {log.read_text()[-2000:]}")
        yield Running(port, process)
    finally:
        process.kill()
        process.wait(PATIENCE)
        process.stdout.close()


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("ICE_GATEWAY_")}


def gateway_command(folder: Path, port: int) -> tuple[str, ...]:
    """`ice-gateway serve` with its defaults."""
    return (
        *(sys.executable, "-m", "gateway", "serve"),
        *("--port", str(port), "--database", database_in(folder)),
    )


def gateway(
    folder: Path, port: int, log: Path, *, core: str = SERVER_CORE, **environment: str
) -> contextlib.AbstractContextManager[Running]:
    """A gateway on the database in `folder`."""
    command = gateway_command(folder, port)
    return started(command, port, " serves ", log, core=core, **environment)


SESSION_LAYER = System(
    goals.SESSION_LAYER,
    (sys.executable, "-m", "tests.bench.echo", "--welcome", "--port"),
    "/{i}",
    ("--ready-msgs", "1", "--header", "Sec-WebSocket-Protocol: ice.v1"),
    kick="",
)


def peers(python: Path, modules: Path) -> tuple[System, ...]:
    """The others, which check nothing; `python` and `modules` have what they need."""
    socketio = ("--first", "40", "--ready-msgs", "2", "--eio")
    event = ("--echo-prefix", '42["echo","', "--echo-suffix", '"]')
    path = "/socket.io/?EIO=4&transport=websocket&number={i}"
    return (
        System(
            goals.BARE_AIOHTTP,
            (str(python), str(_HERE / "peers/bare_aiohttp.py")),
            "/ws/{i}",
            ("--ready-msgs", "1"),
        ),
        System(
            goals.PYTHON_SOCKETIO,
            (str(python), str(_HERE / "peers/socketio_aiohttp.py")),
            path,
            socketio,
            event,
        ),
        System(
            goals.NODE_SOCKETIO, ("node", str(modules / "socketio_node.mjs")), path, socketio, event
        ),
    )
