"""The commands of schedules, on the database of a running gateway and over its API."""

from __future__ import annotations

import json
from datetime import timedelta

from gateway.core.schedule import Occurrence, SkipReason
from gateway.core.times import from_text
from gateway.store import schedules

CREATE = ("schedules", "create", "nightly", "--ice", "lab-1", "--cron", "30 2 * * *")


async def test_a_schedule_from_its_making_to_its_end(running, admin):
    await running.provision()
    made = await admin(
        *CREATE,
        *("--timezone", "Europe/Berlin", "--params", '{"suite": "a"}'),
        *("--timeout", "2h", "--grace", "5m"),
    )
    schedule_id = made.stdout.strip()
    one = (await running.admin.get(f"/schedules/{schedule_id}")).json
    assert (one["timeout"], one["grace"], one["params"]) == (7200, 300, {"suite": "a"})
    assert made.stderr == f"the next occurrence is {one['next'][0]}\n"
    assert json.loads((await admin("schedules", "list", "--json")).stdout) == [one]
    assert json.loads((await admin("schedules", "show", schedule_id, "--json")).stdout) == one
    heading, row = (await admin("schedules", "list", "--ice", "lab-1")).stdout.splitlines()
    assert heading.split("  ")[0] == "ID"
    assert one["next"][0] in row
    assert (await admin("schedules", "list", "--pool", "none", "--json")).stdout == "[]\n"
    shown = (await admin("schedules", "show", schedule_id)).stdout
    assert f"next           {', '.join(one['next'])}\n" in shown
    changed = await admin("schedules", "change", schedule_id, "--disable", "--name", "weekly")
    assert changed.output == ""
    _, row = (await admin("schedules", "list")).stdout.splitlines()
    assert "  weekly  " in row
    assert "  disabled  " in row
    assert json.loads((await admin("schedules", "occurrences", schedule_id, "--json")).stdout) == []
    refused = await admin("schedules", "run", schedule_id, status=1)
    assert "lab-1 is provisioned: only a registered ICE gets operations" in refused.stderr
    assert (await admin("schedules", "delete", schedule_id)).output == ""
    assert json.loads((await admin("schedules", "list", "--json")).stdout) == []


async def test_run_and_what_became_of_occurrences(running, admin):
    ice = await running.provision()
    await ice.connect()
    schedule_id = (await admin(*CREATE, "--disabled")).stdout.strip()
    operation = (await admin("schedules", "run", schedule_id)).stdout.strip()
    shown = (await running.admin.get(f"/operations/{operation}")).json
    assert (shown["schedule"], shown["kind"]) == (schedule_id, "schedule")

    at = from_text("2026-11-22T09:30:00Z")
    made = Occurrence(at, at, operation, None)
    missed = Occurrence(at + timedelta(minutes=1), at, None, SkipReason.MISSED, 7)
    await running.gateway.engine.write(
        lambda transaction: schedules.record(transaction, schedule_id, [made, missed])
    )
    listed = (await admin("schedules", "occurrences", schedule_id)).stdout.splitlines()
    assert [line.split() for line in listed] == [
        ["AT", "COUNT", "OPERATION", "SKIPPED"],
        ["2026-11-22T09:31:00.000000Z", "7", "-", "missed"],
        ["2026-11-22T09:30:00.000000Z", "1", operation, "-"],
    ]
    newest = await admin("schedules", "occurrences", schedule_id, "--limit", "1", "--json")
    assert [one["count"] for one in json.loads(newest.stdout)] == [7]
    _, row = (await admin("schedules", "list")).stdout.splitlines()
    assert "  missed  " in row


REFUSED = (
    (("create", "n"), 2, "Missing option '--cron'"),
    (("create", "n", "--cron", "* * * * *"), 2, "name an ICE with --ice, or a pool with --pool"),
    (("create", "n", "--ice", "none", "--cron", "* * * * *"), 1, "Not registered"),
    (("create", "n", "--pool", "none", "--cron", "* * * * *"), 1, "There is no pool none."),
    (("create", "n", "--ice", "a", "--cron", "*/61 * * * *"), 2, "minute `*/61`: a step"),
    (
        ("create", "n", "--ice", "a", "--cron", "* * * * *", "--params", "{"),
        2,
        "has to be JSON",
    ),
    (("change", "none", "--cron", "@daily"), 2, "must have five fields"),
    (("change", "none", "--grace", "0"), 2, "from 1s to "),
    (("change", "none"), 2, "say what to change"),
    (("change", "none", "--enable"), 1, "There is no such schedule."),
    (("show", "none"), 1, "There is no such schedule."),
    (("delete", "none"), 1, "There is no such schedule."),
    (("run", "none"), 1, "There is no such schedule."),
    (("occurrences", "none"), 1, "There is no such schedule."),
)


async def test_what_is_refused(admin):
    for asked, status, said in REFUSED:
        refused = await admin("schedules", *asked, status=status)
        assert said in refused.stderr
        assert refused.stdout == ""
