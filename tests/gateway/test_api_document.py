"""The served API is held to its own OpenAPI document by schemathesis; see `schemathesis.toml`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from gateway.ice import Action

CONFIG = Path(__file__).with_name("schemathesis.toml")


async def hold(url, token, folder, *options):
    """Run schemathesis against a gateway; returns its status and what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
        *("--config-file", str(CONFIG), "run", f"{url}/admin/api/v1/openapi.json"),
        *("--header", f"Authorization: Bearer {token}", "--no-color", *options),
        cwd=folder,  # where it leaves what it remembers
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()


async def test_api_does_what_its_document_says(running, tmp_path):
    # A name that is among the first to be tried, so that no call meets 404 alone.
    ice = await running.provision("0", "ci-cd")
    await ice.connect()
    status, said = await hold(
        running.url,
        running.admin.token,
        tmp_path,
        "--generation-deterministic",
        "--max-examples",
        "12",
    )
    assert status == 0, said
    assert "Selected: 13/14" in said, f"all calls but the stream were to be tested: {said}"
    done = {event.event.action for event in await running.gateway.tail._events.after(0, 10_000)}
    assert done > {*Action, "disconnect"}, f"each action was to be done, not only refused: {done}"
