"""How soon an ICE sees 4101 after the admin's call, with many others connected.

    python -m tests.bench.drop [--others 1000] [--rounds 100]

The gateway is a process of its own, `ice-gateway serve` with its defaults: the change is durable
before anybody is told. The ICEs are this process, which also plays the admin. What is timed is one
deregistration at a time, from the call's first byte to the close frame's arrival at the ICE.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

from tests.support.ice import Ice

API = "/admin/api/v1"


def command(database: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *arguments, "--database", database],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


async def measure(
    url: str, token: str, others: int, rounds: int
) -> tuple[list[float], list[float]]:
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as admin:

        async def ice(number: int) -> Ice:
            body = {"ice_name": f"ice-{number}", "ice_type": "ci-cd"}
            async with admin.post(f"{url}{API}/ices", json=body) as answer:
                return Ice(url, (await answer.json())["token"])

        ices = []
        for number in range(others + rounds):
            ices.append(await ice(number))
            await ices[-1].connect()
        seen, told = [], []
        for number in range(others, others + rounds):
            [connection] = ices[number].connections
            began = time.perf_counter()

            async def dropped(connection=connection, began=began) -> float:
                await connection.expect_dropped(4101)
                return time.perf_counter() - began

            waiting = asyncio.ensure_future(dropped())
            async with admin.post(f"{url}{API}/ices/ice-{number}/deregister") as answer:
                told.append((await answer.json())["dropped"][0]["elapsed_ms"])
            seen.append(await waiting * 1000)
        return seen, told


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, round(part * (len(values) - 1)))]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--others", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = f"sqlite:///{folder}/bench.db"
        command(database, "users", "add", "admin", "--role", "admin", "--no-password")
        token = command(database, "api-tokens", "create", "--user", "admin", "--name", "bench")
        with (
            Path(folder, "log").open("w") as log,
            subprocess.Popen(
                [sys.executable, "-m", "gateway", "serve", "--port", "0", "--database", database],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            ) as gateway,
        ):
            assert gateway.stdout is not None
            url = gateway.stdout.readline().split(" serves ")[1].split()[0]
            try:
                seen, told = asyncio.run(measure(url, token, options.others, options.rounds))
            finally:
                gateway.terminate()
    for name, values in (("seen by the ICE", seen), ("told to the admin", told)):
        line = ", ".join(
            f"p{part} {percentile(values, part / 100):.2f} ms" for part in (50, 90, 99)
        )
        print(
            f"{name}: {line}, max {max(values):.2f} ms ({len(values)} drops, {options.others} others)"
        )


if __name__ == "__main__":
    main()
