"""A short round of the torture of doors: that each group can be measured; how long is not judged here."""

from __future__ import annotations

import asyncio
import re
import sys

import pytest

from tests.torture.stall import GROUPS


@pytest.mark.long
async def test_each_group_is_measured():
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.torture.stall", "--at-most", "1", "--users", "10"),
        *("--bound", "60000", "--all"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    said = out.decode()
    assert process.returncode == 0, said
    [count] = re.findall(r"^(\d+) inputs, each 10 times$", said, re.MULTILINE)
    assert int(count) >= len(GROUPS), said
    rows = re.findall(r" +(\d+\.\d) +(\d+\.\d) +(\d+\.\d)$", said, re.MULTILINE)
    assert len(rows) == int(count), said
    assert all(float(number) > 0 for row in rows for number in row), said
