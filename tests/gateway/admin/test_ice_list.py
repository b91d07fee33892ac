"""The list of ICEs as HTTP: its counts, its filter, its addresses, and what it says when it is empty."""

from __future__ import annotations

import html
import re
from urllib.parse import urlencode

from gateway.core.roles import Role
from gateway.services.bulk_actions import MAX_BULK
from tests.browser.test_table import many
from tests.support.clock import RunningClock
from tests.support.harness import ADMIN, harness
from tests.support.ice import Key
from tests.support.pages import has_password, said


def names(answer):
    return re.findall(r'<tr role="row" id="row-([^"]+)"', answer.text)


def tallies(answer):
    """The counts by name, and the addresses of their links."""
    found = re.findall(
        r'id="count-\d+" href="\./\?([^"]*)".*?</span>([^<]+)</span> <strong>([\d,]+)<', answer.text
    )
    return {name: (int(number.replace(",", "")), address) for address, name, number in found}


async def test_counts_lead_to_what_they_count(tmp_path, browse):
    clock = RunningClock()
    async with harness(tmp_path, clock=clock) as running:
        await has_password(running, "root")
        root = await browse(running)
        await root.log_in()
        page = await root.get()
        assert "No ICE yet." in said(page)
        assert "first-steps" in page.text
        assert re.search(r'id="provision-panel"[^>]*(?<!hidden)>', page.text), "open by itself"
        await running.provision("late")
        clock.skip(days=8)
        await root.log_in()
        online = await running.provision("online")
        await online.connect(iat=clock().timestamp())
        offline = await running.provision("offline")
        connection = await offline.connect(iat=clock().timestamp())
        connection.hello(version="1.2", hostname="desk-9")
        await connection.round_trip()
        await connection.leave()
        await running.ice(offline.token, Key()).refused(iat=clock().timestamp())
        gone = await running.provision("gone", "ci-cd")
        await gone.connect(iat=clock().timestamp())
        await running.act("gone", "deregister")
        await running.settled()
        page = await root.get()
        assert {name: number for name, (number, _) in tallies(page).items()} == {
            "Connected": 1,
            "Offline": 1,
            "Waiting for first start": 1,
            "Token expired": 1,
            "Deregistered": 1,
            "Needs attention": 2,
            "Refused": 1,
        }
        for name, (number, address) in tallies(page).items():
            answer = await root.get(f"?{address}")
            assert len(names(answer)) == number, f"{name} leads to {names(answer)}"
            assert answer.text.count('aria-current="true"') == 1, name
        assert re.search(r'id="provision-panel"[^>]* hidden>', page.text)
        # What was known of an offline ICE, and how long it was not seen.
        clock.skip(hours=2)
        await root.log_in()
        for query, expected in [
            ("?unseen=1h&presence=offline", ["offline"]),
            ("?unseen=1d", []),
            ("?version_below=1.3", ["offline"]),
            ("?q=desk-9", ["offline"]),
            ("?connected=true", ["online"]),
            ("?attention=refused", ["offline"]),
            ("?status=deregistered&presence=offline", ["gone"]),
        ]:
            answer = await root.get(query)
            assert names(answer) == expected, query
        assert "1.2" in said(await root.get("?q=offline"))


async def test_inactive_outdated_and_copied_ices_are_shown_counted_and_found(tmp_path, browse):
    clock = RunningClock()
    options = {"ice__recommended_version": "2.4", "ice__inactive_after": "30d"}
    async with harness(tmp_path, clock=clock, **options) as running:
        await has_password(running, "root")
        idle = await running.provision("idle")
        connection = await idle.connect(iat=clock().timestamp())
        connection.hello(version="2.3")
        await connection.round_trip()
        await connection.leave()
        await running.settled()
        clock.skip(days=31)
        original = await running.provision("copied")
        copied = running.ice(original.token, original.key)
        for number, ice in enumerate((original, copied) * 2):
            clock.skip(minutes=1)
            connection = await ice.connect(iat=clock().timestamp())
            name = ("desk", "clone")[number % 2]
            connection.hello(version="2.4", hostname=name, instance=name)
            await connection.round_trip()
        await running.settled()
        root = await browse(running)
        await root.log_in()
        page = await root.get()
        assert {name: number for name, (number, _) in tallies(page).items() if number} == {
            "Connected": 1,
            "Offline": 1,
            "Inactive": 1,
            "Needs attention": 2,
            "Duplicate": 1,
            "Outdated": 1,
        }
        for name, (number, address) in tallies(page).items():
            answer = await root.get(f"?{address}")
            assert len(names(answer)) == number, f"{name} leads to {names(answer)}"
            assert answer.text.count('aria-current="true"') == 1, name
        for query in ("inactive=true", "attention=outdated", "inactive=true&attention=outdated"):
            assert names(await root.get(f"?{query}")) == ["idle"], query
            items = (await running.admin.get(f"/ices?{query}")).json["items"]
            assert [(one["ice_name"], one["inactive"]) for one in items] == [("idle", True)]
        assert "Inactive seen" in said(await root.get("?q=idle"))
        shown = said(await root.get("ices/idle"))
        assert "Inactive. Last seen" in shown
        assert "Its version is below the recommended one" in shown
        shown = said(await root.get("ices/copied"))
        both = "from 127.0.0.1 (clone) and from 127.0.0.1 (desk)"
        assert f"Two copies of it run, {both}: a state folder or an image was copied." in shown
        assert f"Two copies of it run: {both}." in shown, "the timeline was expected to say so"
        assert 'id="attention-reregister"' in (await root.get("ices/copied")).text
        counts = (await running.admin.get("/ice-counts")).json
        assert (counts["inactive"], counts["attention"]["duplicate"]) == (1, 1)
        await running.act("copied", "reregister")
        answer = await running.admin.get("/ices/copied")
        assert answer.json["attention"] == []
        listed = await running.admin.get("/events?action=duplicate")
        assert len(listed.json["items"]) == 1


async def test_address_says_what_is_shown(running, root):
    await running.provision("zebra")
    await many(running, 60)
    answer = await root.get("?q=ice-&page=9")
    assert (answer.status, answer.headers["Location"]) == (302, "./?q=ice-&page=2")
    part = await root.part("?q=ice-&page=9")
    assert part.headers["HX-Push-Url"] == "./?q=ice-&page=2"
    assert len(names(part)) == 10
    assert "60 ICEs match." in said(part)
    part = await root.get(
        "?page=7&new=zebra",
        headers={"HX-Request": "true", "HX-Target": "table", "HX-Trigger": "table"},
    )
    assert part.headers["HX-Replace-Url"] == "./?page=2"
    assert "match." not in said(part), "what happens by itself is not announced"
    assert names(part)[0] == "zebra"
    assert names(part).count("zebra") == 1
    assert "zebra New" in said(part)
    answer = await root.get("?q=nothing+at+all")
    assert "No ICE matches. Clear the filter" in said(answer)
    listed = await root.get("ice-names?q=ice-000&page=7")
    assert len(listed.body.decode().split(",")) == 60


async def test_filter_that_cannot_be_read_is_told_beside_its_field(running, root):
    await running.provision("lab-1")
    labels = {"os": "windows", "room": "4"}
    await running.label("lab-1", **labels)
    asked = {"HX-Request": "true", "HX-Target": "table", "HX-Trigger": "filter"}
    for query, sentence in [
        ("?labels=os", "Labels: os is not key=value"),
        ("?version_below=7.", "Version below: needs a version"),
        ("?q=" + "+".join("abcdefghijklmnopq"), "Search: at most 16 words"),
    ]:
        answer = await root.get(query, headers=asked)
        assert answer.status == 422
        assert answer.headers["HX-Retarget"] == "#filter-fault"
        assert answer.headers["HX-Push-Url"] == "false"
        assert sentence in said(answer)
    answer = await root.get("?labels=os%3Dwindows%3B+room%3D4", headers=asked)
    assert answer.headers["HX-Push-Url"] == "./?label=os%3Dwindows&label=room%3D4"
    assert names(answer) == ["lab-1"]
    assert names(await root.get("?label=os%3Dlinux")) == []
    await running.label("lab-1", room='4; "east"')
    written = 'room="4; ""east"""'
    answer = await root.get("?" + urlencode({"labels": written}), headers=asked)
    address = answer.headers["HX-Push-Url"]
    assert address == "./?" + urlencode({"label": 'room=4; "east"'})
    assert names(answer) == ["lab-1"]
    assert f'value="{written}"' in html.unescape((await root.get(address)).text)
    assert (await root.get("?condition=bored")).status == 422


async def test_missing_user_is_offered_and_added(running, root):
    fields = {"ice_name": "lab-1", "ice_type": "normal", "provisionedto": "Zoë"}
    answer = await root.post("ices", fields)
    assert "User: there is no user of this name" in said(answer)
    assert "Add Zoë as a member without a password" in said(answer)
    assert (await root.post("ices/owner", fields)).status == 200
    user = await running.gateway.services.accounts.user("zoë")
    assert (user.role, user.password_hash) == (Role.MEMBER, None)
    assert (await root.post("ices", fields)).status == 200
    await running.gateway.services.accounts.disable(ADMIN, "Zoë")
    answer = await root.post("ices", fields | {"ice_name": "lab-2"})
    assert "User: this user is disabled" in said(answer)
    assert "Add Zoë" not in said(answer)
    answer = await root.post("ices", fields | {"ice_name": "x" * 70})
    assert "ICE name: needs 1 to 64 characters" in said(answer)


async def test_bulk_is_asked_about_and_fenced(running, root):
    ice = await running.provision("lab-1")
    await running.provision("lab-2")
    chosen = {"action": "deregister", "ice_names": ["lab-1", "lab-2", "none"]}
    answer = await root.post("ices/bulk/confirm", chosen)
    assert "Deregister: nothing to do" in said(answer)
    assert "2 : each is provisioned, so it cannot be deregistered" in said(answer)
    assert 'type="submit"' not in answer.text
    await ice.connect()
    answer = await root.post("ices/bulk/confirm", chosen)
    assert "Deregister 1 of 3 ICEs?" in said(answer)
    generations = re.search(r'name="generations" value="([^"]*)"', answer.text)[1]
    assert generations == "1 1 0"
    await running.act("lab-1", "reregister")
    answer = await root.post("ices/bulk", chosen | {"generations": generations})
    assert "Deregister: 0 of 3 done" in said(answer)
    assert "The entry has changed" in said(answer)
    for wrong in ("1 1", "1 1 x"):
        answer = await root.post("ices/bulk", chosen | {"generations": wrong})
        assert answer.status == 422
    many_names = {"ice_names": [f"n-{number}" for number in range(1001)]}
    answer = await root.post("ices/bulk/confirm", many_names | {"action": "reregister"})
    assert "Reregister takes at most 1,000 ICEs at once; 1,001 are chosen." in said(answer)
    assert MAX_BULK > 1001
