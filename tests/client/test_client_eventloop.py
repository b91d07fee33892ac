"""The loop that runs `ice-client`: what handlers start neither ends it nor keeps it from ending."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest
from scripted_gateway import admit

from tests.support.ice import until

HANDLERS = """
import asyncio, pathlib, sys, threading

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

def register(ice, settings):
    for kind in (task, callback, direct, thread, stubborn):
        ice.operation(kind.__name__)(kind)
"""


@pytest.fixture
async def client(gateway, folder, token, tmp_path):
    """A process of `ice-client run` with these handlers, and its session."""
    (tmp_path / "mine.py").write_text(HANDLERS)
    (tmp_path / "t").write_text(token)
    gateway.script.append(admit())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "client", "run", "--gateway", gateway.url, "--state-dir", folder),
        *("--token-file", tmp_path / "t", "--handlers", tmp_path / "mine.py"),
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    session = await gateway.session()
    await session.expect("ice.hello")
    yield process, session
    if process.returncode is None:
        process.kill()
    await process.communicate()


async def ended(process):
    """The exit status and the last line."""
    async with asyncio.timeout(30):
        out, _ = await process.communicate()
    return process.returncode, out.decode().splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_what_handlers_raise_does_not_end_the_client_and_ctrl_c_does(client, number):
    process, session = client
    for at, (kind, params, says) in enumerate(
        [
            ("direct", None, "SystemExit: 0"),
            ("task", "exit", "SystemExit: 0"),
            ("task", "interrupt", "KeyboardInterrupt: 0"),
            ("callback", None, None),
        ]
    ):
        run = {"id": f"op-{at}", "kind": kind, "params": params}
        assert "result" in await session.request("operation.run", run)
        finish = (await session.expect("operation.finish"))["params"]
        assert finish.get("error", {}).get("message") == says
        await session.send(id=run["id"], result={})
    process.send_signal(number)
    assert await ended(process) == (0, "stopped, as asked")
    assert await session.closed() == 1000


@pytest.mark.parametrize("kind", ["thread", "stubborn"])
async def test_what_does_not_end_does_not_keep_the_client(client, tmp_path, kind):
    process, session = client
    run = {"id": "op-1", "kind": kind, "params": str(tmp_path / "began")}
    await session.request("operation.run", run)
    await until((tmp_path / "began").exists)
    process.terminate()
    finish = await asyncio.wait_for(session.inbox.get(), 30)
    assert finish["params"]["error"]["code"] == "interrupted"
    await session.send(id=finish["id"], result={})
    assert await ended(process) == (0, "stopped, as asked")
