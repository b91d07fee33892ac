"""The pages of schedules over HTTP: made, shown, changed, run and deleted, and who sees what."""

from __future__ import annotations

import json
from datetime import timedelta

from gateway.core.roles import Role
from gateway.core.schedule import Occurrence, SkipReason
from gateway.core.times import from_text
from gateway.store import schedules
from tests.support.pages import said
from tests.support.work import connected

NIGHTLY = {
    "name": "nightly",
    "cron": "30 2 * * MON-FRI",
    "timezone": "Europe/Berlin",
    "params": '{"suite": "all"}',
    "timeout": "2h",
    "grace": "10m",
}
OF_ICE = NIGHTLY | {"ice_name": "lab-1"}


def told(answer):
    """What the page's script is told in a header."""
    return json.loads(answer.headers["HX-Trigger"])


async def only(running):
    """The only schedule, as the API has it."""
    [found] = (await running.admin.get("/schedules")).json["items"]
    return found


async def test_a_schedule_from_its_making_to_its_end(running, root):
    assert "There is no schedule." in said(await root.get("schedules"))
    ice = await connected(running)
    made = await root.post("schedules", OF_ICE)
    assert told(made)["toast"] == {"sentence": "The schedule nightly is made."}
    assert "schedules-changed" in told(made)
    one = await only(running)
    assert (one["timeout"], one["params"], one["requested_by"]) == (7200, {"suite": "all"}, "root")
    page, path = await root.get("schedules"), f"schedules/{one['id']}"
    for part in ("nightly", "lab-1", "30 2 * * MON-FRI", "Europe/Berlin", "1 schedule"):
        assert part in said(page), part
    shown = await root.get(path)
    for part in ("At 02:30 on Monday through Friday.", " 02:30 CE", "2h after", "at most 10m late"):
        assert part in said(shown), part
    assert shown.text.count("02:30 CE") == 5
    assert "None of its times has come yet." in said(shown)
    form = await root.get(f"{path}/change")
    for part in ('value="nightly"', 'value="2h"', 'value="10m"', "{&#34;suite&#34;"):
        assert part in form.text, part
    changed = await root.post(f"{path}/change", NIGHTLY | {"name": "weekly", "grace": "90s"})
    assert told(changed)["toast"] == {"sentence": "The schedule nightly is changed."}
    assert (await only(running))["grace"] == 90
    run = told(await root.post(f"{path}/run"))["toast"]["sentence"]
    operation = (await ice.message())["params"]["id"]
    assert run == f"Operation {operation} is requested."
    assert operation in (await root.get(f"operations?schedule={one['id']}")).text
    for what, enabled in (("disable", False), ("enable", True)):
        switched = told(await root.post(f"{path}/{what}"))["toast"]
        assert switched == {"sentence": f"The schedule weekly is {what}d."}
        assert (await only(running))["enabled"] is enabled
    assert "Delete weekly?" in said(await root.get(f"{path}/delete"))
    deleted = await root.post(f"{path}/delete")
    assert (deleted.status, deleted.headers["HX-Redirect"]) == (204, "./schedules")
    assert (await root.get(path)).status == 404


async def test_what_the_form_says_while_one_types(running, root):
    query = "schedule-times?cron=30+2+*+*+1&timezone=Europe/Berlin"
    times = await root.part(query)
    assert "At 02:30 on Monday." in said(times)
    assert times.text.count("Mon ") == 5
    wrong = said(await root.part("schedule-times?cron=*/61+*+*+*+*"))
    assert "cron: minute `*/61`: a step is 1 to 59" in wrong
    assert "timezone: must be an IANA name" in said(
        await root.part("schedule-times?cron=*+*+*+*+*&timezone=x")
    )
    assert said(await root.part("schedule-times")) == ""


async def test_a_refusal_appears_in_the_form(running, root):
    await running.provision()
    for field, how in (
        ("cron", {"cron": "0 0 30 2 *"}),
        ("timezone", {"timezone": "Mars"}),
        ("params", {"params": "{"}),
        ("timeout", {"timeout": "soon"}),
        ("grace", {"grace": "0s"}),
        ("name", {"name": ""}),
        ("ice_name", {"ice_name": ""}),
        ("ice_name", {"ice_name": "none"}),
        ("pool", {"ice_name": "", "pool": "none"}),
    ):
        answer = await root.post("schedules", OF_ICE | how)
        assert answer.status in (404, 422), answer
        assert answer.headers["HX-Retarget"] == "#dialog-fault"
        assert told(answer)["form-fault"]["field"] == f"schedule_{field}"
    assert (await running.admin.get("/schedules")).json["items"] == []


async def test_history_says_why_in_words(running, root):
    await running.provision()
    await root.post("schedules", OF_ICE)
    one = await only(running)
    at = from_text("2026-11-22T09:30:00Z")
    rows = [Occurrence(at, at, "made-1", None)]
    rows += [Occurrence(at + timedelta(hours=1), at, None, reason) for reason in SkipReason]
    rows += [
        Occurrence(at + timedelta(hours=2), at, None, SkipReason.MISSED, count)
        for count in (7, 100)
    ]
    await running.gateway.engine.write(
        lambda transaction: schedules.record(transaction, one["id"], rows)
    )
    shown = said(await root.get(f"schedules/{one['id']}"))
    for part in (
        *("operation made-1", "the ICE was paused", "the ICE was not registered"),
        *("the operation before had not finished", "too much waited already"),
        *(
            "the requester may not operate it any more",
            "and on, 7 left out",
            "100 or more left out",
        ),
    ):
        assert part in shown, part
    assert "100 or more left out" in said(await root.get("schedules"))


async def test_one_that_cannot_be_due_says_why(running, root):
    await running.provision()
    await root.post("schedules", OF_ICE)
    one = await only(running)

    async def unit(transaction):
        await transaction.run("UPDATE ice_schedules SET timezone = 'Europe/Atlantis'")

    await running.gateway.engine.write(unit)
    fault = "timezone must be an IANA name"
    assert fault in said(await root.get("schedules"))
    assert fault in said(await root.get(f"schedules/{one['id']}"))
    listed = await only(running)
    assert (listed["next"], listed["fault"][:8]) == ([], "timezone")


async def test_members_have_those_of_their_own_ices(running, root, browse):
    await running.provision()
    await running.provision("lab-2", "ci-cd")
    alice = await browse(running, "alice", Role.MEMBER)
    eve = await browse(running, "eve", Role.AUDITOR)
    await root.post("schedules", OF_ICE | {"ice_name": "lab-2", "name": "other"})
    other = await only(running)
    assert "There is no schedule." in said(await alice.get("schedules"))
    assert (await alice.get(f"schedules/{other['id']}")).status == 404
    assert (await alice.post("schedules", OF_ICE | {"ice_name": "lab-2"})).status == 404
    assert (await alice.post("schedules", OF_ICE)).status == 204
    mine = (await (await running.api("alice")).get("/schedules")).json["items"][0]
    assert mine["requested_by"] == "alice"
    page = await alice.get("schedules?ice_name=lab-1")
    assert "Make a schedule" in said(page)
    assert 'hx-get="new-schedule?ice_name=lab-1"' in page.text
    assert "Schedule operations of lab-1" in said(await alice.get("new-schedule?ice_name=lab-1"))
    assert "schedules?ice_name=lab-1" in (await alice.get("ices/lab-1")).text
    seen = await eve.get(f"schedules/{mine['id']}")
    assert (seen.status, "Run now" in said(seen)) == (200, False)
    assert "Make a schedule" not in said(await eve.get("schedules"))
    assert (await eve.post(f"schedules/{mine['id']}/run")).status == 403
