"""The client where the POSIX calls are absent, as on Windows: a registration at a real gateway, lock, status, Ctrl-C."""

import os
import signal

import pytest

from tests.support.forks import forks

CTRL_BREAK = signal.SIGUSR1  # which plays it in `tests.support.windows`


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    with forks(tmp_path_factory.mktemp("forks"), prepare="tests.support.windows") as started:
        yield started


@pytest.fixture
def client(windows, running, tmp_path):
    """Start a command of the client, with the state folder in its usual place."""

    async def start(command, *options):
        environ = {"LOCALAPPDATA": str(tmp_path / "Local")}
        where = ("--gateway", running.url) if command == "run" else ()
        return await windows.start(command, *where, *options, environ=environ)

    return start


async def connected(running, after=None):
    """Wait until the gateway has heard the ICE's hello, in another session than `after`; returns the session."""

    def greeted(answer):
        connection = answer.json["connection"] or {}
        return connection.get("version") and connection["session"] != after

    return (await running.eventually("/ices/lab-1", greeted)).json["connection"]["session"]


@pytest.mark.parametrize("stop", [signal.SIGINT, CTRL_BREAK])
async def test_a_registration_lock_status_and_stop(stop, client, windows, running, tmp_path):
    ice = await running.provision()
    (tmp_path / "token").write_bytes(b"\xff\xfe" + f"{ice.token}\r\n".encode("utf-16-le"))

    first = await client("run", "--token-file", tmp_path / "token")
    await connected(running)
    second = await windows.end(await client("run"))
    status = await windows.end(await client("status"))
    os.kill(first, stop)
    ended = await windows.end(first)

    folder = tmp_path / "Local" / "ice-client"
    assert second.status == 1, f"another client has the folder: {second}"
    assert f"another ice-client runs with the state folder {folder}" in second.err
    assert status.status == 0, f"the client is connected: {status}"
    assert f"connected to {running.url} since " in status.out
    assert (ended.status, ended.err) == (0, ""), ended
    assert ended.out.endswith("Z stopped on request\n")
    assert sorted(path.name for path in folder.iterdir()) == [
        *("key.pem", "lock", "operations.db", "state.json", "token")
    ]


async def test_a_client_that_was_killed_is_admitted_again(client, windows, running, tmp_path):
    ice = await running.provision()
    (tmp_path / "token").write_text(ice.token)
    first = await client("run", "--token-file", tmp_path / "token")
    before = await connected(running)
    os.kill(first, signal.SIGKILL)
    assert (await windows.end(first)).status == -signal.SIGKILL
    status = await windows.end(await client("status"))
    assert status.status == 1, f"nobody runs: {status}"
    assert "no client is running" in status.out
    again = await client("run", "--token-file", tmp_path / "deleted")
    await connected(running, after=before)
    os.kill(again, signal.SIGTERM)
    assert (await windows.end(again)).status == 0
