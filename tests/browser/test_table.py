"""The table of ICEs: live, filtered, sorted, paged; and one ICE with its timeline."""

from __future__ import annotations

import json
import re
import time

import pytest
from playwright.async_api import expect

from gateway.admin.event_streams import StreamLimits
from gateway.app import Tuning
from gateway.cli.common import open_context
from gateway.core.roles import Role
from gateway.core.search import own_text
from gateway.core.times import to_text, utc_now
from gateway.store.engine import as_json, rows_of
from gateway.store.ice_listing import IceListing
from tests.browser.admin import choose, close_token, dialog, fill, follow, more, press, row, submit
from tests.contract.domain import unguarded
from tests.support.ice import Key

EVIL = '<img src=x onerror="window.hurt=1"><script>window.hurt=1</script>\'"&{{7*7}}'


async def test_change_by_a_command_and_presence_show_by_themselves(page, running):
    ice = await running.provision("lab-1")
    await expect(row(page, "lab-1").locator(".status")).to_have_text("Provisioned")
    connection = await ice.connect()
    await expect(row(page, "lab-1").locator(".status")).to_have_text("Registered")
    await expect(row(page, "lab-1").locator(".online")).to_have_text("Connected")
    connection.hello(version="1.0")
    await expect(row(page, "lab-1").locator(".version")).to_have_text("1.0")
    connection = await ice.connect()  # a second hello within a session changes nothing
    connection.hello(version="1.1")
    await expect(row(page, "lab-1").locator(".version")).to_have_text("1.1")
    async with open_context(running.gateway.settings) as opened:
        await opened.services.provisioning.deregister(
            opened.actor, (await IceListing(opened.engine).find("lab-1")).ice
        )
    await connection.expect_dropped(4101)
    await expect(row(page, "lab-1").locator(".status")).to_have_text("Deregistered")
    await expect(row(page, "lab-1").locator(".online")).to_have_count(0)


async def test_choice_focus_and_dialog_survive_what_happens_by_itself(page, running):
    for name in ("lab-1", "lab-2"):
        await (await running.provision(name)).connect()
    await expect(row(page, "lab-2").locator(".online")).to_be_visible()
    await page.get_by_label("Choose lab-2").check()
    button = more(page, "lab-1")
    await button.focus()
    old = await row(page, "lab-1").element_handle()
    await running.provision("lab-3")
    await expect(row(page, "lab-3")).to_be_visible()
    assert not await old.evaluate("row => row.isConnected"), "the table has not been renewed"
    await expect(button).to_be_focused()
    await expect(page.get_by_label("Choose lab-2")).to_be_checked()
    await expect(page.locator("[data-chosen]")).to_have_text("1 chosen")
    await choose(page, "lab-1", "Deregister")
    await running.provision("lab-4")
    await expect(row(page, "lab-4")).to_be_visible()
    await expect(dialog(page)).to_be_visible()
    await press(page, "Cancel")
    await expect(button).to_be_focused()
    # So does an open menu.
    await button.click()
    await running.provision("lab-5")
    await expect(row(page, "lab-5")).to_be_visible()
    await page.get_by_role("menuitem", name="Deregister lab-1").click()
    await expect(dialog(page).get_by_role("heading")).to_have_text("Deregister lab-1?")


async def test_press_that_a_renewal_comes_between_counts(page, running):
    await running.provision("lab-1")
    await expect(row(page, "lab-1")).to_be_visible()
    button = row(page, "lab-1").get_by_role("button", name="Reprovision lab-1")
    await button.hover()
    await page.mouse.down()
    async with page.expect_response(lambda answer: "/admin/?" in answer.url):
        await running.provision("lab-2")
    await page.mouse.up()
    await expect(dialog(page).get_by_role("heading")).to_have_text("Reprovision lab-1?")
    await expect(row(page, "lab-2")).to_be_visible()


async def settled(admin):
    """The table, once what it asks for as it begins to listen is answered: it asks for news and no more."""
    async with admin.context.expect_event("response", lambda answer: "/admin/?" in answer.url):
        return await admin.open()


async def test_stream_that_was_lost_leaves_nothing_out(admin, running):
    admin.may_be_cut_off = True
    page = await settled(admin)
    await running.provision("lab-1")
    await expect(row(page, "lab-1")).to_be_visible()
    await admin.context.set_offline(True)
    await running.provision("lab-2")
    await admin.context.set_offline(False)
    await expect(row(page, "lab-2")).to_be_visible()


@pytest.mark.gateway(tuning=Tuning(streams=StreamLimits(authenticate_every=0.05)))
async def test_log_that_was_replaced_renews_the_table(admin, running, monkeypatch):
    """Nothing else is news here: the reset alone tells that the table is another."""
    # The node would condemn the engine, which ends the stream first.
    monkeypatch.setattr(running.gateway.engine, "condemn", lambda _: None)
    await running.provision("lab-1")
    page = await admin.open()
    await expect(row(page, "lab-1")).to_be_attached()
    await unguarded(running.gateway.engine)

    async def restored(transaction):
        await transaction.run("DELETE FROM ice_tokens")
        await transaction.run("DELETE FROM ice_events WHERE action = 'provision'")

    await running.gateway.engine.write(restored)
    await expect(row(page, "lab-1")).not_to_be_attached()


@pytest.mark.parametrize("fault", ["cut off", pytest.param("503", marks=pytest.mark.long)])
async def test_news_that_was_not_answered_is_asked_for_again(admin, running, fault):
    admin.may_be_cut_off = fault == "cut off"
    admin.expected.add(503)
    page = await settled(admin)
    failed = []

    async def fail(route):
        failed.append(route.request.url)
        await (route.abort() if fault == "cut off" else route.fulfill(status=503))

    await page.route("**/admin/?*", fail, times=1)
    await running.provision("lab-1")
    await expect(row(page, "lab-1")).to_be_visible()
    assert failed, "the page was expected to ask for news, and to be failed once"
    await expect(page.locator("#notices")).to_have_text("")


async def test_times_are_the_viewers_with_utc_on_hover(page, running):
    await running.provision("lab-1")
    told = row(page, "lab-1").locator("time").last
    await expect(told).to_be_visible()
    moment = await told.get_attribute("datetime")
    await expect(told).to_have_text("just now")
    local = await page.evaluate(
        "moment => new Intl.DateTimeFormat(undefined, {dateStyle: 'medium', timeStyle: 'medium',"
        " timeZone: 'Asia/Tokyo'}).format(new Date(moment))",
        moment,
    )
    exact = f"{local} ({moment[:10]} {moment[11:19]} UTC)"
    await expect(told).to_have_attribute("title", exact)
    # Time goes by, and the page says so by itself.
    await page.clock.install()
    await page.reload()
    await page.clock.fast_forward("03:10")
    await expect(told).to_have_text("3 min ago")
    await page.clock.fast_forward("02:00:00")
    await expect(told).to_have_text("2 h ago")


async def many(running, count):
    """Fill the table as it would be after a year, without the year."""
    now = to_text(utc_now())
    names = [f"ice-{number:05}" for number in range(count)]

    async def unit(transaction):
        columns = (
            "ice_name, ice_type, ice_token, status, provisionedto, key_thumbprint, provisionedon,"
            " registeredon, own_text"
        )
        await transaction.run(
            f"INSERT INTO ice_tokens ({columns}, generation)"  # noqa: S608 - our own columns
            f" SELECT {columns}, 1 FROM {rows_of(1, *columns.split(', '))}",
            as_json(
                [
                    (
                        name,
                        "ci-cd" if number % 2 else "normal",
                        f"{number:064x}",
                        "registered" if number % 3 else "provisioned",
                        None if number % 2 else "alice",
                        f"{number:043}" if number % 3 else None,
                        now,
                        now if number % 3 else None,
                        own_text(name, None if number % 2 else "alice", {}, ""),
                    )
                    for number, name in enumerate(names)
                ]
            ),
        )

    await running.gateway.engine.write(unit)


async def test_filters_sorting_and_page_stay_in_the_address(admin, running):
    await running.provision("zebra")  # makes the key that seals tokens
    await many(running, 130)
    page = await admin.open()
    pages = page.get_by_role("navigation", name="Pages")
    await expect(pages).to_contain_text("131 ICEs, page 1 of 3")
    await page.get_by_role("link", name="Name", exact=True).click()
    await expect(page.locator("tbody tr").first).to_have_id("row-zebra")
    await page.get_by_label("Status", exact=True).select_option("registered")
    await expect(pages).to_contain_text("86 ICEs, page 1 of 2")
    await expect(page.locator("tbody tr").first).to_have_id("row-ice-00128")
    await expect(page).to_have_url(re.compile(r"\?status=registered&desc=true$"))
    await expect(page.locator("#found")).to_have_text("86 ICEs match, sorted by name.")
    # The header stays in sight, and the next page begins at its top.
    await pages.scroll_into_view_if_needed()
    await expect(page.get_by_role("link", name="Name", exact=True)).to_be_in_viewport()
    await pages.get_by_role("link", name="Next").click()
    await expect(pages).to_contain_text("page 2 of 2")
    await expect(page.locator("tbody tr").first).to_be_in_viewport()
    wanted = page.url
    assert "page=2" in wanted
    # What happens by itself keeps to what is shown; what the admin provisions is shown besides.
    await running.provision("another")
    await expect(page.locator("#count-3")).to_have_text("Waiting for first start 46")
    await fill(page, "mine", None)
    await submit(page)
    await press(page, "Ok")
    await close_token(page)
    await expect(page.locator("tbody tr").first).to_have_id("row-mine")
    await expect(row(page, "mine")).to_contain_text("New")
    await expect(page).to_have_url(wanted)
    await expect(page.locator("[data-chosen]")).to_be_hidden()
    await expect(pages).to_contain_text("86 ICEs, page 2 of 2")
    await page.reload()
    await expect(page).to_have_url(wanted)
    await expect(pages).to_contain_text("86 ICEs, page 2 of 2")
    await expect(page.get_by_label("Status", exact=True)).to_have_value("registered")
    await page.go_back()
    await expect(pages).to_contain_text("86 ICEs, page 1 of 2")
    await page.go_back()
    await expect(pages).to_contain_text("133 ICEs, page 1 of 3")
    await expect(page.locator("tr.new")).to_have_count(0)
    await expect(page.get_by_label("Status", exact=True)).to_have_value("")
    first = page.locator("tbody tr").first
    await expect(first).to_have_id("row-zebra")
    # A page that has come back is as live as before, and its times are the viewer's.
    await expect(first.locator("time").last).not_to_contain_text("UTC")
    await running.provision("zulu")
    await expect(page.locator("tbody tr").first).to_have_id("row-zulu")
    await follow(page, page.locator("#link-zulu"))
    await page.go_back()
    await expect(page.locator("tbody tr").first).to_have_id("row-zulu")


@pytest.mark.long
async def test_filter_that_finds_nothing_can_be_cleared(admin, page, running):
    admin.expected = {422}
    await running.provision("lab-1")
    await running.provision("build-2", "ci-cd")
    await expect(page.locator("tbody tr")).to_have_count(2)
    await page.get_by_text("More filters").click()
    await page.get_by_role("search").get_by_label("User", exact=True).fill("ALICE")
    await expect(page.locator("tbody tr")).to_have_count(1)
    version = page.get_by_label("Version below")
    await version.fill("7.")
    await expect(page.locator("#filter-fault")).to_contain_text("Version below: needs a version")
    await expect(page).to_have_url(re.compile(r"\?user=ALICE$"))
    await version.fill("7.1")
    await expect(page.locator("tbody")).to_contain_text("No ICE matches.")
    await expect(page.locator("#filter-fault")).to_be_empty()
    await page.get_by_role("link", name="Clear the filter").click()
    await expect(page.locator("tbody tr")).to_have_count(2)
    await expect(version).to_have_value("")


async def test_login_that_ends_while_the_back_button_is_pressed(admin, page, running):
    admin.expected = {401}
    await page.get_by_label("Status", exact=True).select_option("registered")
    await expect(page).to_have_url(re.compile("status=registered"))
    await admin.end_logins()
    await page.go_back()
    await expect(page.get_by_label("Password")).to_be_visible()
    faults, admin.faults = admin.faults, []
    assert all("htmx:historyCacheMissLoadError" in fault for fault in faults), faults


async def test_search_for_a_missing_name_offers_to_provision_it(page, running):
    await running.provision("lab-1")
    await page.get_by_label("Search ICEs").fill("lab-2")
    told = page.locator("tbody")
    await expect(told).to_contain_text("lab-2: Not registered: no token has been provisioned")
    await told.get_by_role("button", name="Provision lab-2").click()
    await expect(page.get_by_label("ICE name")).to_have_value("lab-2")
    await expect(page.locator("#provisionedto")).to_be_focused()
    await page.keyboard.type("alice")
    await page.keyboard.press("Enter")
    await press(page, "Ok")
    await close_token(page)
    await expect(row(page, "lab-2")).to_be_visible()


@pytest.mark.long
async def test_ten_thousand_ices_stay_usable(admin, page, running):
    await running.provision("zebra")
    await many(running, 10_000)
    began = time.perf_counter()
    await page.reload()
    await expect(page.locator("tbody tr")).to_have_count(50)
    print(f"first page of 10,000: {(time.perf_counter() - began) * 1000:.0f} ms in the browser")  # noqa: T201
    for query in ("", "?page=200", "?sort=version&desc=true", "?q=ice-0999"):
        began = time.perf_counter()
        answer = await page.request.get(f"{running.url}/admin/{query}")
        print(f"/admin/{query}: {(time.perf_counter() - began) * 1000:.0f} ms")  # noqa: T201
        assert answer.ok
        assert len(await answer.body()) <= 150 * 1024
    # All of them are chosen, asked about, and acted on.
    await page.goto(f"{running.url}/admin/?q=ice-")
    await page.get_by_label("Choose all on this page").check()
    bulk = page.get_by_role("group", name="Chosen ICEs")
    await bulk.get_by_role("button", name="Choose all 10,000 that match").click()
    await expect(bulk).to_contain_text("10,000 chosen")
    began = time.perf_counter()
    await bulk.get_by_role("button", name="Deregister…").click()
    await expect(dialog(page).get_by_role("heading")).to_have_text(
        "Deregister 6,666 of 10,000 ICEs?"
    )
    print(f"asked about 10,000: {(time.perf_counter() - began) * 1000:.0f} ms")  # noqa: T201
    await dialog(page).get_by_label("Type 6666 to confirm").fill("6,666")
    began = time.perf_counter()
    await press(page, "Deregister")
    await expect(dialog(page).get_by_role("heading")).to_have_text(
        "Deregister: 6,666 of 10,000 done", timeout=30_000
    )
    print(f"deregistered 6,666: {(time.perf_counter() - began) * 1000:.0f} ms")  # noqa: T201
    await press(page, "Ok")
    await page.get_by_label("Search ICEs").fill("ice-09999")
    await expect(page.locator("tbody tr")).to_have_count(1)
    await choose(page, "ice-09999", "Reprovision")
    await press(page, "Reprovision")
    await expect(dialog(page).get_by_role("heading")).to_have_text("ICE reprovisioned")


# --- one ICE ---------------------------------------------------------------------------------------


async def test_one_ice_answers_why_it_is_offline(admin, running):
    ice = await running.provision("lab-1")
    page = await admin.open("ices/lab-1")
    reason = page.locator("[data-reason]")
    await expect(reason).to_contain_text("has not been started with its newest token")
    connection = await ice.connect()
    connection.hello(version="7.1", platform="Linux", hostname="desk-9")
    session = page.get_by_role("article", name="Session")
    await expect(session).to_contain_text("Connected")
    await expect(session).to_contain_text("desk-9")
    await expect(reason).to_have_count(0)
    # Another machine tries, while this one is connected: it is shown by itself.
    thief = running.ice(ice.token, Key())
    assert (await thief.refused()).code == "key-mismatch"
    await expect(reason).to_contain_text("Another attempt was refused since.")
    await expect(page.locator(".timeline .refused")).to_contain_text("key-mismatch")
    await expect(session).to_contain_text("Connected")
    await connection.leave()
    await expect(session).to_contain_text("Not connected.")
    await expect(reason).to_contain_text("is it running?")
    # It tries again: told with its reason, and the remedy is a button.
    assert (await thief.refused()).code == "key-mismatch"
    await expect(reason).to_contain_text("Another machine")
    timeline = page.locator(".timeline")
    await expect(timeline.locator(".refused")).to_contain_text("key-mismatch")
    await expect(timeline.locator(".refused")).to_contain_text("2 times since")
    await expect(timeline.locator(".admitted")).to_have_count(1)
    await expect(timeline.locator(".closed")).to_contain_text("The ICE closed the connection.")
    await expect(timeline).to_contain_text("provision (generation 1)")
    await session.get_by_role("button", name="Reregister").click()
    await press(page, "Reregister")
    await press(page, "Ok")
    token = await page.locator("#token").input_value()
    await close_token(page)
    await expect(timeline).to_contain_text("reregister (generation 2)")
    await running.ice(token).connect()
    await expect(session).to_contain_text("Connected")


async def expect_inert(page):
    """No script of what an ICE or a user wrote has run, and none stands in the page."""
    assert await page.evaluate("window.hurt") is None
    assert await page.locator("main img, main script").count() == 0


async def test_script_is_inert_wherever_it_may_stand(admin, running):
    user = EVIL[:128].replace("/", "")  # which a user's name may not hold
    await running.add_user(user, Role.MEMBER)
    answer = await running.admin.post(
        "/ices", {"ice_name": "lab-1", "ice_type": "normal", "provisionedto": user}
    )
    connection = await running.ice(answer.json["token"]).connect()
    connection.hello(version=EVIL, platform=EVIL, hostname=EVIL)
    shown = await running.eventually(
        "/ices/lab-1", lambda told: (told.json["connection"] or {}).get("version")
    )
    assert "<script>" in shown.json["connection"]["version"]
    page = await admin.open("ices/lab-1")
    await expect(page.locator("main")).to_contain_text("<script>window.hurt=1</script>")
    await page.locator("#deregister-lab-1").click()
    await expect(dialog(page)).to_contain_text("running version <img src=x")
    await press(page, "Cancel")
    await expect_inert(page)
    await page.goto(f"{running.url}/admin/")
    await expect(page.locator("main")).to_contain_text("<script>window.hurt=1</script>")
    await choose(page, "lab-1", "Deregister")
    await expect(dialog(page)).to_contain_text("running version <img src=x")
    await press(page, "Deregister")
    await expect(dialog(page).get_by_role("heading")).to_have_text("lab-1 deregistered")
    await press(page, "Ok")
    await page.get_by_label("Search ICEs").fill(EVIL)
    await expect(page).to_have_url(re.compile(r"\?q="))
    await page.reload()
    await expect(row(page, "lab-1")).to_be_visible()
    await expect(page.get_by_label("Search ICEs")).to_have_value(EVIL)
    await expect_inert(page)


async def test_refused_name_is_shown_inert(admin, page):
    admin.expected = {422}
    await page.locator("#provision").evaluate("form => { form.noValidate = true; }")
    await fill(page, EVIL[:64], EVIL)
    await submit(page)
    await expect(page.locator("#form-fault")).not_to_be_empty()
    assert await page.evaluate("window.hurt") is None
    assert json.loads(await page.evaluate("JSON.stringify([...document.images].length)")) == 0
