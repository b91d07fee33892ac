"""The API held to its document for two minutes, at random, by each role: `python -m tests.torture.api`."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

from gateway.core.roles import Role
from tests.api.held import hold, seed
from tests.support.harness import harness

_SECONDS = {Role.ADMIN: 70, Role.AUDITOR: 20, Role.MEMBER: 20}


async def main(seed_: int) -> int:
    print(f"api: seed {seed_}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        async with harness(Path(folder)) as running:
            await seed(running)
            for role, seconds in _SECONDS.items():
                caller = await (
                    running.api("alice") if role is Role.MEMBER else running.api(f"a-{role}", role)
                )
                options = ("--seed", str(seed_), "--max-examples", "200", "--warnings", "off")
                status, said = await hold(
                    running.url, caller.token, Path(folder), "--max-time", str(seconds), *options
                )
                cases = [line.strip() for line in said.splitlines() if " generated, " in line]
                print(f"api: as {role}: {' '.join(cases)}", flush=True)
                if status:
                    print(said)
                    return 1
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    sys.exit(asyncio.run(main(parser.parse_args().seed)))
