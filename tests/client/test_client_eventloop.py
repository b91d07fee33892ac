"""The loop that runs `ice-client`: what handlers start neither ends it nor keeps it from ending."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.client.scripted_gateway import admit
from tests.support.ice import until

HANDLERS = """
import asyncio, dataclasses, multiprocessing, pathlib, signal, sys, threading

async def task(operation, report):
    async def child():
        raise (SystemExit if operation.params == "exit" else KeyboardInterrupt)(0)
    await asyncio.create_task(child())

async def callback(operation, report):
    asyncio.get_running_loop().call_soon(sys.exit)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return "goes on"

async def direct(operation, report):
    sys.exit(0)

async def thread(operation, report):
    def wait():
        pathlib.Path(operation.params).touch()
        threading.Event().wait()
    await asyncio.to_thread(wait)

async def stubborn(operation, report):
    while True:
        try:
            pathlib.Path(operation.params).touch()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

async def fork(operation, report):
    def child():
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        signal.pause()
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    if operation.params == "end it":
        process.terminate()
        await asyncio.to_thread(process.join)
        return process.exitcode
    return process.pid

def register(ice, settings):
    @ice.operation("execute")
    async def execute(operation, report):
        name, params = operation.params
        return await globals()[name](dataclasses.replace(operation, params=params), report)
"""


def work(operation, name, params=None):
    """The params of `operation.run` for one of these handlers."""
    return {"id": operation, "kind": "execute", "params": [name, params]}


@pytest.fixture
async def start(gateway, folder, token, tmp_path):
    """Start a process of `ice-client run` with these handlers; it, and its session."""
    (tmp_path / "mine.py").write_text(HANDLERS)
    (tmp_path / "t").write_text(token)
    started = []

    async def start():
        gateway.script.append(admit())
        process = await _process(gateway, folder, tmp_path)
        started.append(process)
        session = await gateway.session()
        await session.expect("ice.hello")
        return process, session

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
        process._transport.close()


@pytest.fixture
async def client(start):
    return await start()


async def _process(gateway, folder, tmp_path):
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "client", "run", "--gateway", gateway.url, "--state-dir", folder),
        *("--token-file", tmp_path / "t", "--handlers", tmp_path / "mine.py"),
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def ended(process):
    """The exit status, and whether the client said that it stopped: its log may have lines behind that."""
    async with asyncio.timeout(30):
        out, _ = await process.communicate()
    lines = out.decode().splitlines()
    return process.returncode, any(line.endswith(" stopped on request") for line in lines)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_what_handlers_raise_does_not_end_the_client_and_ctrl_c_does(client, number):
    process, session = client
    for at, (name, params, says) in enumerate(
        [
            ("direct", None, "SystemExit: 0"),
            ("task", "exit", "SystemExit: 0"),
            ("task", "interrupt", "KeyboardInterrupt: 0"),
            ("callback", None, None),
        ]
    ):
        run = work(f"op-{at}", name, params)
        assert "result" in await session.request("operation.run", run)
        finish = (await session.expect("operation.finish"))["params"]
        assert finish.get("error", {}).get("message") == says
        await session.send(id=run["id"], result={})
    process.send_signal(number)
    ended_well = await ended(process)
    assert ended_well == (0, True)
    assert await session.closed() == 1000


@pytest.mark.parametrize("name", ["thread", pytest.param("stubborn", marks=pytest.mark.long)])
async def test_what_does_not_end_does_not_keep_the_client(client, tmp_path, name):
    process, session = client
    run = work("op-1", name, str(tmp_path / "began"))
    await session.request("operation.run", run)
    await until((tmp_path / "began").exists)
    process.terminate()
    finish = await asyncio.wait_for(session.inbox.get(), 30)
    assert finish["params"]["error"]["code"] == "interrupted"
    await session.send(id=finish["id"], result={})
    ended_well = await ended(process)
    assert ended_well == (0, True)


async def finished(session, params):
    """The result of an operation that forks."""
    await session.request("operation.run", work(str(params), "fork", params))
    finish = (await session.expect("operation.finish"))["params"]
    await session.send(id=finish["id"], result={})
    assert "result" in finish, finish
    return finish["result"]


async def test_a_signal_to_a_process_that_a_handler_forked_is_not_the_clients(client):
    process, session = client
    assert await finished(session, "end it") == -signal.SIGTERM, "it should end the child"
    assert "error" in await session.request("x.y", {}), "and not the client"
    process.terminate()
    ended_well = await ended(process)
    assert ended_well == (0, True)


async def test_a_process_that_a_handler_forked_holds_neither_lock_nor_connection(client, start):
    process, session = client
    child = await finished(session, None)
    assert "error" in await session.request("x.y", {}), "it has read everything"
    try:
        process.kill()
        await session.closed()
        again, session = await start()
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)
    again.terminate()
    assert await again.wait() == 0
