"""HAProxy before several gateways, with `config/haproxy.cfg`: the very file that operators take."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.ice import PATIENCE

CONFIG = Path(__file__).parents[2] / "config" / "haproxy.cfg"
# Debian's is not on everybody's path.
HAPROXY = shutil.which("haproxy", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))


def configured(port: int, gateways: Sequence[tuple[str, tuple[str, int]]]) -> str:
    """The file, for this port without TLS and these gateways by name."""
    text, count = re.subn(r"bind :443 .*", f"bind 127.0.0.1:{port}", CONFIG.read_text())
    assert count == 1, f"one bind was expected in {CONFIG}"
    # As many handles as a machine of tests may have.
    text, count = re.subn(r"maxconn \d+", "maxconn 8192", text)
    assert count == 1, f"one maxconn was expected in {CONFIG}"
    text, count = re.subn(r"    server gw-.*\n", "", text)
    assert count == 3, f"three gateways were expected in {CONFIG}"
    return text + "".join(f"    server {name} {host}:{at}\n" for name, (host, at) in gateways)


@contextlib.contextmanager
def haproxy(
    folder: Path, gateways: Sequence[tuple[str, tuple[str, int]]], port: int
) -> Iterator[None]:
    """Run it on `port`."""
    assert HAPROXY is not None, "Debian's haproxy was expected"
    config = folder / "haproxy.cfg"
    config.write_text(configured(port, gateways))
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen(
            [HAPROXY, "-db", "-f", str(config)], stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        _until_it_listens(port, process, folder)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def _until_it_listens(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.02)
    raise AssertionError(f"HAProxy did not start: {(folder / 'haproxy.log').read_text()}")
