"""The API held to its document for longer, at random, by each role: `python -m tests.torture.api`."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

from gateway.roles import Role
from tests.gateway.test_api_document import hold
from tests.support.harness import harness

_CASES = {Role.ADMIN: 50, Role.AUDITOR: 15, Role.MEMBER: 15}
"""Test cases for each call, at the most."""


async def main(seed: int) -> int:
    print(f"api: seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        async with harness(Path(folder)) as running:
            ice = await running.provision("0", "ci-cd")
            await ice.connect()
            for role, cases in _CASES.items():
                caller = await running.api(f"a-{role}", role)
                options = ("--seed", str(seed), "--max-examples", str(cases))
                status, said = await hold(running.url, caller.token, folder, *options)
                print(f"api: as {role}: {said.strip().splitlines()[-1].strip('= ')}", flush=True)
                if status:
                    print(said)
                    return 1
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    sys.exit(asyncio.run(main(parser.parse_args().seed)))
