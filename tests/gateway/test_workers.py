"""`ice-gateway serve --workers`: several gateways on one SQLite file and one port, started by one parent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from gateway import workers as workers_module
from gateway.cli.common import desk
from gateway.roles import Role
from gateway.settings import BadSetting
from gateway.sockets import bind
from gateway.store.setup import held
from gateway.workers import run_workers
from tests.support.harness import API, settings_for
from tests.support.ice import PATIENCE, until
from tests.support.served import command, environment, serving

pytestmark = pytest.mark.sqlite


@pytest.fixture
def metrics():
    """A free port, and as many behind it as there are workers."""
    while True:
        with contextlib.suppress(OSError, OverflowError), contextlib.ExitStack() as stack:
            port = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            for number in (1, 2):
                stack.enter_context(socket.create_server(("127.0.0.1", port + number)))
            return port


@pytest.fixture
async def served(tmp_path, metrics):
    settings = {
        "ICE_GATEWAY_NODE__NAME": "gw",
        "ICE_GATEWAY_METRICS__LISTEN": f"127.0.0.1:{metrics}",
    }
    with serving(tmp_path, "--workers", "2", **settings) as running:
        running.metrics = metrics
        yield running
        for connection in (one for ice in running.ices for one in ice.connections):
            await connection.close()


def read(request):
    with urllib.request.urlopen(request) as answer:  # noqa: S310 - our own
        return answer.read()


def told(served):
    """What the parent tells of its workers, by name."""
    document = json.loads(read(f"http://127.0.0.1:{served.metrics}/healthz"))
    assert document["status"] == "alive"
    return {worker["name"]: worker for worker in document["workers"]}


async def until_told(served, holds, what):
    try:
        async with asyncio.timeout(PATIENCE):
            while not holds(workers := await asyncio.to_thread(told, served)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{what} was expected, the parent tells {workers}") from None
    return workers


async def held_by_both(served, count=16):
    """Connections of several ICEs, some at each worker: by the name of their ICE and of their node."""
    connections = {}
    for number in range(count):
        ice = await served.provision(f"lab-{number}")
        connections[f"lab-{number}"] = await ice.connect()
    await until_told(
        served,
        lambda workers: sum(worker["connected"] for worker in workers.values()) == count,
        f"{count} connections",
    )
    nodes = await nodes_of(served, count)
    assert set(nodes.values()) == {"gw-1", "gw-2"}, f"both were to get some of {count}: {nodes}"
    return connections, nodes


async def nodes_of(served, count):
    """Who holds each of `count` ICEs, all of which are connected."""
    async with asyncio.timeout(PATIENCE):
        while True:
            listed = json.loads(await served.run("ices", "list", "--json"))
            nodes = {
                ice["ice_name"]: ice["connection"]["node"] for ice in listed if ice["connection"]
            }
            if len(nodes) == count:
                return nodes


async def act(served, path):
    """An action over the API at whichever worker takes it."""
    async with desk(served.settings) as opened:
        if await opened.accounts.user("root") is None:
            await opened.accounts.add_user(opened.actor, "root", Role.ADMIN, None)
        made = await opened.accounts.create_token(opened.actor, "root", "test", 0)
    request = urllib.request.Request(  # noqa: S310
        served.url + API + path,
        method="POST",
        headers={"Authorization": f"Bearer {made.secret.reveal()}"},
    )
    return json.loads(await asyncio.to_thread(read, request))


async def test_they_share_the_work_and_what_is_done_at_one_counts_at_both(served, tmp_path):
    served.out.expect(r"2 workers run with .* each for 100,000 ICEs at the most")
    connections, nodes = await held_by_both(served)
    workers = await until_told(
        served, lambda workers: all(w["state"] == "ready" for w in workers.values()), "readiness"
    )
    assert {name: worker["faults"] for name, worker in workers.items()} == {"gw-1": {}, "gw-2": {}}
    for number in (1, 2):
        url = f"http://127.0.0.1:{served.metrics + number}/metrics"
        assert b"ice_gateway_" in await asyncio.to_thread(read, url)

    # One that is drained leaves the port to the other, until it resumes.
    await served.run("nodes", "drain", "gw-2")
    for name in (name for name, node in nodes.items() if node == "gw-2"):
        await connections[name].expect_dropped(1012)
    await until_told(served, lambda workers: "pause" in workers["gw-2"]["faults"], "a drained gw-2")
    for _ in range(10):
        assert await asyncio.to_thread(served.get, "/readyz") == 200, "gw-1 was to get all"
    await served.run("nodes", "resume", "gw-2")
    await until_told(served, lambda workers: not workers["gw-2"]["faults"], "a gw-2 that serves")
    for name in (name for name, node in nodes.items() if node == "gw-2"):
        ice = next(ice for ice in served.ices if ice.connections[0] is connections[name])
        connections[name] = await ice.connect()
    nodes = await nodes_of(served, len(nodes))

    # Each of six actions comes to whichever.
    *names, last = nodes
    for name in names[:6]:
        done = await act(served, f"/ices/{name}/deregister")
        assert [drop["node"] for drop in done["dropped"]] == [nodes[name]]
        assert done["unconfirmed"] == []
        await connections[name].expect_dropped(4101)
    await served.run("ices", "deregister", last)
    await connections[last].expect_dropped(4101)
    listed = json.loads(await served.run("nodes", "list", "--json"))
    assert [(node["name"], node["state"]) for node in listed] == [
        ("gw-1", "serves"),
        ("gw-2", "serves"),
    ]

    served.process.send_signal(signal.SIGHUP)
    for node in ("gw-1", "gw-2"):
        await asyncio.to_thread(served.err.expect, f"nothing to read again.*{node}")

    served.process.send_signal(signal.SIGTERM)
    await connections[names[-1]].expect_dropped(1012)
    assert await asyncio.to_thread(served.process.wait, PATIENCE) == 0
    for worker in workers.values():
        await asyncio.to_thread(until_gone, worker["pid"])
    assert not list(tmp_path.glob("*.proofs*")), "the proofs were to be removed"
    assert "ice-gateway stopped" in served.out.end()


async def test_a_worker_that_dies_is_started_again_and_all_end_with_their_parent(served, tmp_path):
    connections, nodes = await held_by_both(served)
    before = await asyncio.to_thread(told, served)
    os.kill(before["gw-2"]["pid"], signal.SIGKILL)
    workers = await until_told(
        served,
        lambda workers: (
            workers["gw-2"]["state"] == "ready" and workers["gw-2"]["pid"] != before["gw-2"]["pid"]
        ),
        "another gw-2",
    )
    assert workers["gw-1"]["pid"] == before["gw-1"]["pid"]
    served.err.expect(r"gw-2.*worker died")
    # It is known at once that nothing of the dead one goes on.
    name = next(name for name, node in nodes.items() if node == "gw-2")
    done = await act(served, f"/ices/{name}/deregister")
    assert (done["dropped"], done["unconfirmed"]) == ([], [])
    survivor = next(name for name, node in nodes.items() if node == "gw-1")
    await connections[survivor].round_trip()

    served.process.kill()
    await connections[survivor].expect_dropped(1012)
    for worker in workers.values():
        await asyncio.to_thread(until_gone, worker["pid"])
    # Nobody holds the file any more.
    with serving(tmp_path) as alone:
        assert alone.get("/readyz") == 200


def until_gone(pid):
    until = time.monotonic() + PATIENCE
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < until, f"process {pid} was to end with its parent"
        time.sleep(0.02)


@pytest.mark.parametrize("taken", ["file", "port"])
async def test_a_second_gateway_on_file_or_port_is_refused(taken, tmp_path):
    database = tmp_path / "ice.db"
    with contextlib.ExitStack() as stack:
        [share] = bind(["127.0.0.1"], 0, 1)
        stack.callback(share.close)
        for one in share.take():
            port = stack.enter_context(one).getsockname()[1]
        if taken == "file":
            stack.enter_context(held(database))
            options, expected = ("--port", "0"), "another gateway already serves"
        else:
            options, expected = ("--port", str(port)), f"cannot listen on 127.0.0.1:{port}"
        arguments = ("serve", *options, "--database", str(database), "--workers", "2")
        done = await asyncio.to_thread(refused, *arguments)
    assert done.returncode == 1, f"{arguments} gave {done.returncode}"
    assert expected in done.stderr


def test_what_a_worker_refuses_the_parent_says(tmp_path):
    (tmp_path / "cert.pem").write_text("no certificate")
    settings = {
        f"ICE_GATEWAY_SERVER__TLS_{name}": str(tmp_path / "cert.pem")
        for name in ("CERTIFICATE", "KEY")
    }
    database = str(tmp_path / "ice.db")
    done = refused("serve", "--workers", "2", "--port", "0", "--database", database, **settings)
    assert done.returncode == 78
    [line] = [line for line in done.stderr.splitlines() if line.startswith("ice-gateway: ")][-1:]
    assert "server.tls_certificate" in line


def refused(*arguments, **settings):
    return subprocess.run(
        command(*arguments),
        env=environment(ICE_GATEWAY_METRICS__LISTEN="", **settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


async def test_a_worker_that_hangs_is_killed_and_started_again(tmp_path, monkeypatch):
    monkeypatch.setattr(workers_module, "SILENCE", 0.5)
    settings = replace(settings_for(tmp_path), server_workers=2, node_lease=1.0)
    async with run_workers(settings) as running:
        await running.start()
        first, second = running.all
        os.kill(second.process.pid, signal.SIGSTOP)
        hanging = second.process
        async with asyncio.timeout(PATIENCE):
            assert await hanging.wait() == -signal.SIGKILL
        await until(lambda: second.process is not hanging and second.told()["state"] == "ready")
        assert first.told()["state"] == "ready"


async def test_nonces_begin_anew_where_used_proofs_are_forgotten(tmp_path):
    """Or else a proof with a nonce would be good again after a restart."""
    settings = replace(settings_for(tmp_path), server_workers=2)
    keys = set()
    for _ in range(2):
        async with contextlib.AsyncExitStack() as stack:
            keys.add((await workers_module._prepare(settings, stack)).nonce_key)
            assert (tmp_path / "ice.db.proofs").stat().st_mode & 0o777 == 0o600
    assert len(keys) == 2, "each start was to have a key of its own"
    assert None not in keys


@pytest.mark.parametrize("port", [0, 65_534])
async def test_metrics_have_a_port_for_each(port, tmp_path):
    settings = settings_for(tmp_path, metrics__listen=f"127.0.0.1:{port}", server__workers=2)
    with pytest.raises(BadSetting, match="from 1 to 65533"):
        async with run_workers(settings):
            pass


async def test_sigterm_counts_while_workers_start(tmp_path):
    database = tmp_path / "ice.db"
    process = await asyncio.create_subprocess_exec(
        *command("serve", "--workers", "2", "--port", "0", "--database", str(database)),
        env=environment(ICE_GATEWAY_METRICS__LISTEN=""),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        # Made before the first of them is started, which takes the longest of all.
        await until((tmp_path / "ice.db.proofs").exists)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            assert await process.wait() == 0, "SIGTERM was to end it, whatever has started"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert not list(tmp_path.glob("*.proofs*")), "what it had begun with was to be removed"
