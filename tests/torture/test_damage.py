"""Flipped bits and cut files: some trials here, 3,000 by `make torture`."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.torture.damage import Damage, prepare, report, torture


@pytest.mark.long
def test_damage_is_refused_or_does_no_harm(tmp_path):
    machine = asyncio.run(prepare(tmp_path))
    done = torture(machine, 5, list(range(150)))
    assert {"refused", "harmless"} <= {trial.outcome for trial in done}
    assert not [trial for trial in done if trial.outcome == "fault"], report(done, 5)


@pytest.mark.long
async def test_without_the_record_of_commits_a_cut_log_admits_a_deregistered_ice(tmp_path):
    """Or else the trials would prove nothing."""
    machine = await prepare(tmp_path)
    folder = machine.folder / "gw"
    os.truncate(folder / "ice.db-wal", 50_000)
    assert (await Damage(machine, 1).start("gw", folder))[0] == "refused"
    (folder / "ice.db.head").unlink()
    assert await Damage(machine, 1).start("gw", folder) == (
        "fault",
        "WRONG ADMISSION: deregistered",
    )
