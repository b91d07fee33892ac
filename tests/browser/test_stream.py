"""The stream that all tabs of a browser share, and what the page says of its freshness."""

from __future__ import annotations

import asyncio
import re

import pytest
from playwright.async_api import expect

from gateway.admin.event_streams import StreamLimits
from gateway.app import Tuning
from tests.browser.admin import Admin, choose, dialog, fill, follow, hide, press, row
from tests.support.harness import harness
from tests.support.ice import PATIENCE, Key
from tests.support.machine import KEY, Machine, new_key

QUICK = Tuning(streams=StreamLimits(authenticate_every=0.05))
"""A stream notices soon that its login has ended."""


async def streams(running, number):
    """Wait until the gateway serves so many streams."""
    async with asyncio.timeout(PATIENCE):
        while running.gateway.admin.streams.subscribers != number:  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.01)


async def test_hidden_tabs_have_no_stream_and_the_others_share_one(admin, running):
    one, two = await admin.open(), await admin.open("users")
    await streams(running, 1)
    await hide(one)
    await hide(two)
    await streams(running, 0)
    await running.provision("lab-1")
    await hide(one, hidden=False)
    await expect(row(one, "lab-1")).to_be_visible()
    await streams(running, 1)
    await two.close()
    await running.provision("lab-2")
    await expect(row(one, "lab-2")).to_be_visible()


@pytest.mark.long
async def test_twelve_tabs_work(admin, running):
    connection = await (await running.provision("lab-1")).connect()
    pages = [await admin.open() for _ in range(12)]
    await streams(running, 1)
    await running.provision("lab-2")
    await asyncio.gather(*(row(page, "lab-2").wait_for() for page in pages))
    await choose(pages[-1], "lab-1", "Deregister")
    await press(pages[-1], "Deregister")
    await connection.expect_dropped(4101)
    await expect(dialog(pages[-1]).get_by_role("heading")).to_have_text("lab-1 deregistered")
    await streams(running, 1)


@pytest.mark.long
async def test_what_happens_is_shown_within_a_second(admin, running):
    """Elsewhere the tests wait longer: a busy machine takes longer."""
    _, secret = await new_key(running, KEY, approval=True, max_uses=9)
    ice = await running.provision("lab-1")
    await (await ice.connect()).leave()
    enrolment, one_ice = await admin.open("enrolment"), await admin.open("ices/lab-1")
    await Machine(running.session, running.url, secret, "pc-1").ask()
    heading = enrolment.get_by_role("rowheader", name="lab-pc-1")
    await expect(heading).to_be_visible(timeout=1000)
    assert (await running.ice(ice.token, Key()).refused()).code == "key-mismatch"
    reason = one_ice.locator("[data-reason]")
    await expect(reason).to_contain_text("Another machine", timeout=1000)


async def test_without_shared_workers_each_visible_tab_has_a_stream(admin, running):
    await admin.context.add_init_script("delete globalThis.SharedWorker")
    pages = [await admin.open(), await admin.open()]
    await streams(running, 2)
    await running.provision("lab-1")
    for page in pages:
        await expect(row(page, "lab-1")).to_be_visible()


async def test_the_stream_is_asked_for_again_where_it_could_not_be_fetched(admin, running):
    """The gateway was away at that moment."""
    admin.may_be_cut_off = True
    asked = []

    async def fail_at_first(route):
        asked.append(route.request.url)
        await (route.abort() if len(asked) == 1 else route.continue_())

    await admin.context.add_init_script("delete globalThis.SharedWorker")
    await admin.context.route("**/stream_worker.js*", fail_at_first)
    await admin.context.clock.install()
    page = await admin.open()
    while len(asked) < 2:
        await page.clock.run_for(500)
    await streams(running, 1)


async def test_gateway_that_stops_and_starts_beneath_a_page(browser, tmp_path):
    """The table is the one that the filter asks for, and what was typed is kept."""
    context = await browser.new_context()
    async with harness(tmp_path) as running:
        admin = Admin(context, running)
        admin.may_be_cut_off = True
        await admin.log_in()
        page = await admin.open()
        connection = await (await running.provision("lab-0")).connect()
        await running.provision("lab-1")
        await expect(row(page, "lab-1")).to_be_visible()
        await fill(page, "half-typed")
        running.gateway.node.close_sessions()
        await connection.expect_dropped(1012)
        port = int(running.url.rpartition(":")[2])
    freshness = page.locator("#freshness")
    lost = re.compile(r"^Connection lost, as of \d\d:\d\d:\d\d, trying again$")
    await expect(freshness).to_have_text(lost)
    await page.get_by_label("Status", exact=True).select_option("registered")
    await expect(page.locator("#table")).to_have_attribute("aria-busy", "true")
    await expect(row(page, "lab-1")).to_be_visible()
    async with harness(tmp_path, server__port=port) as running:
        await expect(freshness).to_have_text("Live")
        await expect(row(page, "lab-1")).to_have_count(0)
        await expect(page.locator("#table")).to_have_attribute("aria-busy", "false")
        await expect(page).to_have_url(re.compile(r"\?status=registered$"))
        await expect(page.get_by_label("ICE name")).to_have_value("half-typed")
        await (await running.provision("lab-2")).connect()
        await expect(row(page, "lab-2")).to_be_visible()
        await follow(page, page.locator("#link-lab-0"))
        told = re.compile(r"It was told to come back in [12] s\.")
        await expect(page.locator("[data-reason]")).to_have_text(told)
        await expect(page.locator(".timeline .closed")).to_have_text(told)
    assert admin.faults == []
    await context.close()


@pytest.mark.gateway(tuning=Tuning(streams=StreamLimits(poll_every=0.2)))
async def test_page_of_a_member_renews_itself_without_a_stream(new_admin, running):
    ice = await running.provision("lab-1")
    member = await new_admin("alice")
    page = await member.open()
    connection = await ice.connect()
    await expect(row(page, "lab-1").locator(".online")).to_have_text("Connected")
    await follow(page, row(page, "lab-1").get_by_role("link", name="lab-1"))
    await expect(page.locator("#freshness")).to_have_text("Live")
    await connection.leave()
    await expect(page.locator("[data-reason]")).to_contain_text("is it running?")
    await streams(running, 0)


@pytest.mark.gateway(tuning=QUICK)
async def test_login_that_ends_is_told_and_a_new_one_goes_on(admin, page, running):
    admin.expected = {401}
    await fill(page, "half-typed")
    await admin.end_logins()
    await expect(dialog(page).get_by_role("alert")).to_contain_text("Your login has ended.")
    freshness = page.locator("#freshness")
    await expect(freshness).to_have_text(re.compile(r"^Login ended, as of \d\d:\d\d:\d\d$"))
    await admin.log_in()
    await press(page, "Ok")
    await expect(freshness).to_have_text("Live")
    await running.provision("lab-1")
    await expect(row(page, "lab-1")).to_be_visible()
    await expect(page.get_by_label("ICE name")).to_have_value("half-typed")
