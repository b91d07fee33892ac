"""A gateway's API held to its own document by schemathesis, in a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import aiohttp

from gateway.admin.api.operations import MAX_WAIT
from tests.support.harness import Harness

CONFIG = Path(__file__).with_name("schemathesis.toml")
_ROOT = Path(__file__).parents[2]


async def seed(running: Harness) -> None:
    """ICEs in every status, most of them connected, under the names that the settings know."""
    connected = (
        ("machine", "ci-cd"),
        ("desktop", "normal"),
        ("laptop", "normal"),
        ("runner", "ci-cd"),
    )
    for name, ice_type in (*connected, ("gone", "normal")):
        await (await running.provision(name, ice_type)).connect()
    await running.act("gone", "deregister")
    await running.provision("new")
    await running.provision("newer")


async def hold(
    url: str,
    token: str,
    folder: Path,
    *options: str,
    settings: str = "",
    hooks: str = "tests.api.exceptions",
) -> tuple[int | None, str]:
    """Run schemathesis as the bearer of `token`, whose id `exceptions` needs; returns its status and what it said.

    `settings` are TOML after those of `schemathesis.toml`; `hooks` is the module that has the exceptions.
    """
    config = folder / "schemathesis.toml"
    config.write_text(f'hooks = "{hooks}"\n{CONFIG.read_text()}{settings}')
    me, bearer = f"{url}/admin/api/v1/me", {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession() as session, session.get(me, headers=bearer) as answer:
        own = (await answer.json())["api_token"]["id"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
        *("--config-file", str(config), "run", f"{url}/admin/api/v1/openapi.json"),
        *("--header", f"Authorization: Bearer {token}", "--no-color", *options),
        cwd=folder,  # where it leaves what it remembers
        env=os.environ
        | {"PYTHONPATH": str(_ROOT), "HELD_OWN_TOKEN": own, "HELD_MAX_WAIT": str(MAX_WAIT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()
