"""Pausing on the pages: the form, who may, the list with its mark, filter and count, and many at once."""

from __future__ import annotations

import re

from gateway.core.roles import Role
from tests.gateway.admin.test_ice_list import names, tallies
from tests.support.pages import said

FAR = "2126-11-22T18:00:00.000Z"


async def paused(running, name="lab-1"):
    return (await running.admin.get(f"/ices/{name}")).json["paused"]


async def test_an_admin_pauses_changes_and_resumes(running, root):
    ice = await running.provision()
    connection = await ice.connect()
    connection.hello(accepts=["scrape", "debug"])
    await running.eventually(
        "/ices/lab-1", lambda answer: (answer.json["connection"] or {}).get("accepts")
    )
    page = await root.get("ices/lab-1")
    assert "Others may send scrape, debug" in said(page)
    assert 'id="resume"' not in page.text
    asked = await root.part("ices/lab-1/pause", "dialog")
    assert "Pause lab-1" in said(asked)
    fields = {"note": "new disk\r\nsoon", "until": FAR}
    answer = await root.post("ices/lab-1/pause", fields)
    assert answer.status == 204
    assert "Paused lab-1." in answer.headers["HX-Trigger"]
    assert (await paused(running))["note"] == "new disk\nsoon"
    page = await root.get("ices/lab-1")
    assert "Until 2126-11-22 18:00:00" in said(page)
    assert "by root" in said(page)
    assert "Paused until 2126-11-22T18:00:00.000000Z: new disk" in said(page)
    asked = await root.part("ices/lab-1/pause", "dialog")
    assert "new disk" in asked.text
    assert 'value="2126-11-22T18:00:00' in asked.text
    for wrong, sentence in (
        ({"note": "", "until": "2020-01-01T00:00:00Z"}, "Until: needs a time"),
        ({"note": "x" * 1001}, "Note: "),
        ({}, "Note: "),
    ):
        answer = await root.post("ices/lab-1/pause", wrong)
        assert answer.status == 422
        assert sentence in said(answer)
        assert answer.headers["HX-Retarget"] == "#dialog-fault"
    assert (await root.post("ices/lab-1/resume")).status == 204
    assert await paused(running) is None
    assert "Resumed; root had paused it." in said(await root.get("ices/lab-1"))


async def test_what_others_may_send_is_said_in_words(running, root):
    await running.provision()
    assert "Others may send not known yet" in said(await root.get("ices/lab-1"))
    connection = await (await running.provision("lab-2")).connect()
    connection.hello(accepts=[])
    await running.eventually(
        "/ices/lab-2", lambda answer: (answer.json["connection"] or {}).get("accepts") == []
    )
    assert "Others may send nothing" in said(await root.get("ices/lab-2"))
    await running.provision("ci-1", "ci-cd")
    assert "Others may send" not in said(await root.get("ices/ci-1"))


async def test_a_member_pauses_their_own_and_resumes_no_admins(running, root, browse):
    await running.provision()
    alice = await browse(running, "alice", Role.MEMBER)
    assert (await alice.post("ices/lab-1/pause", {"note": "at lunch"})).status == 204
    page = await alice.get("ices/lab-1")
    assert 'id="resume"' in page.text
    assert (await alice.post("ices/lab-1/resume")).status == 204
    await root.post("ices/lab-1/pause", {"note": "broken"})
    page = await alice.get("ices/lab-1")
    assert "broken" in said(page)
    assert 'id="resume"' not in page.text
    assert 'id="pause"' not in page.text
    for action in ("pause", "resume"):
        answer = await alice.post(f"ices/lab-1/{action}", {"note": ""})
        assert answer.status == 403
        assert "only an admin may resume it" in said(answer)
    eve = await browse(running, "eve", Role.AUDITOR)
    assert 'id="pause"' not in (await eve.get("ices/lab-1")).text


async def test_the_list_marks_counts_and_finds_the_paused(running, root):
    for name in ("lab-1", "lab-2"):
        await running.provision(name)
    assert "Paused" not in tallies(await root.get())
    await root.post("ices/lab-1/pause", {"note": ""})
    page = await root.get()
    assert tallies(page)["Paused"] == (1, "paused=true")
    rows = re.findall(r'id="row-([^"]+)"(.*?)</tr>', page.text, re.DOTALL)
    assert [(name, 'class="paused"' in row) for name, row in rows] == [
        ("lab-1", True),
        ("lab-2", False),
    ]
    assert names(await root.get("?paused=true")) == ["lab-1"]
    assert names(await root.get("?paused=false")) == ["lab-2"]
    assert (await root.get("?paused=true")).text.count('aria-current="true"') == 1


async def test_many_are_paused_and_resumed(running, root):
    for name in ("lab-1", "lab-2", "gone"):
        await (await running.provision(name)).connect()
    await running.act("gone", "deregister")
    chosen = [("ice_names", name) for name in ("lab-1", "lab-2", "gone")]
    asked = await root.post("ices/bulk/confirm", [("action", "pause"), *chosen])
    assert "Pause 3 ICEs" in said(asked)
    wrong = [("action", "pause"), ("note", ""), ("until", "2020-01-01T00:00:00Z"), *chosen]
    assert "Until: needs" in said(await root.post("ices/bulk", wrong))
    done = await root.post("ices/bulk", [("action", "pause"), ("note", "x"), *chosen])
    assert "Pause: 2 of 3 done" in said(done)
    assert "No session was open" not in said(done)
    assert (await paused(running, "lab-2"))["note"] == "x"
    await root.post("ices/lab-1/resume")
    asked = await root.post("ices/bulk/confirm", [("action", "resume"), *chosen])
    assert "Resume 1 of 3 ICEs?" in said(asked)
    assert "nothing to do" in said(asked)
    done = await root.post("ices/bulk", [("action", "resume"), *chosen])
    assert "Resume: 2 of 3 done" in said(done)
    assert await paused(running, "lab-2") is None
    asked = await root.post("ices/bulk/confirm", [("action", "resume"), chosen[0]])
    assert "Resume: nothing to do" in said(asked)
