"""Pools before an admin: one is made, fills, works, is changed, and is deleted."""

from __future__ import annotations

import asyncio

from playwright.async_api import expect

from tests.browser.admin import dialog, follow, press
from tests.support.work import connected, expect_cancel, take


async def test_a_pool_is_made_fills_is_changed_and_deleted(admin, running):
    admin.expected = {404, 422}  # the page of a deleted pool may ask for it once more
    await connected(running, "here", "ci-cd")
    page = await admin.open("pools")
    await expect(page.get_by_text("There is no pool.")).to_be_visible()
    await page.get_by_role("button", name="Make a pool").click()
    form = dialog(page)
    await expect(form.locator("#pool_name")).to_be_focused()
    await form.locator("#pool_name").fill("gpu")
    await form.locator("#pool_labels").fill("GPU")
    await press(page, "Make the pool")
    await expect(form.get_by_role("alert")).to_contain_text("Labels: GPU is not key=value")
    await expect(form.locator("#pool_labels")).to_be_focused()
    await form.locator("#pool_labels").fill("gpu=yes")
    await press(page, "Make the pool")
    await expect(page.locator("#notices")).to_contain_text("The pool gpu is made.")
    row = page.get_by_role("row", name="gpu")
    await expect(row).to_contain_text("gpu=yes")
    await running.label("here", gpu="yes")
    await expect(row.get_by_role("link", name="1 ICE of gpu")).to_be_visible()
    await follow(page, row.get_by_role("link", name="1 ICE of gpu"))
    await expect(page.get_by_role("rowheader", name="here")).to_be_visible()
    await expect(page.locator("#filter-pool")).to_have_value("gpu")
    page = await admin.open("pools/gpu")
    await page.get_by_role("button", name="Change…").click()
    form = dialog(page)
    await expect(form.locator("#pool_labels")).to_have_value("gpu=yes")
    await form.locator("#pool_type").select_option("Normal")
    await press(page, "Change")
    await expect(page.locator("#notices")).to_contain_text("0 ICEs belong to it.")
    await expect(page.get_by_text("none: no ICE has all these labels")).to_be_visible()
    await page.get_by_role("button", name="Delete…").click()
    await press(page, "Delete")
    await expect(page).to_have_url(f"{running.url}/admin/pools")
    await expect(page.get_by_text("There is no pool.")).to_be_visible()


async def test_an_operation_of_a_pool_is_requested_watched_and_cancelled(admin, running):
    await running.make_pool("gpu", {"gpu": "yes"})
    page = await admin.open("pools/gpu")
    await page.get_by_role("button", name="Run an operation").click()
    await expect(dialog(page)).to_contain_text("Run an operation in the pool gpu")
    await dialog(page).locator("#operation-kind").select_option("remote-execute")
    await press(page, "Run")
    await expect(dialog(page)).to_contain_text("Operation requested")
    await press(page, "Ok")
    region = page.locator("#operations-region")
    await expect(region).to_contain_text("no ICE of the pool may do this kind")
    ice = await connected(running, "here", "ci-cd")
    await running.label("here", gpu="yes")
    operation = await take(ice)
    line = page.locator(f'[id="operation-{operation}"]')
    await expect(line.get_by_role("link", name="here")).to_be_visible()
    await expect(line).to_contain_text("Running")
    await line.get_by_role("button", name="Cancel operation").click()
    await press(page, "Cancel the operation")
    await press(page, "Ok")
    await expect(line).to_contain_text("Cancelled")
    await expect_cancel(ice, operation)


async def test_an_answer_is_shown_though_its_dialog_was_closed_meanwhile(admin, running):
    admin.may_be_cut_off = True
    admin.expected = {422}
    page = await admin.open("pools")
    answering = asyncio.Event()

    async def make(answer):
        """Make the pool, and close the dialog before the answer comes."""

        async def closed_first(route):
            await page.keyboard.press("Escape")
            await expect(dialog(page)).to_have_count(0)
            await answering.wait()
            await answer(route)

        await page.route("**/admin/pools", closed_first, times=1)
        await page.get_by_role("button", name="Make a pool").click()
        await dialog(page).locator("#pool_name").fill("render")
        await dialog(page).locator("#pool_labels").fill("gpu=yes")
        await press(page, "Make the pool")
        await expect(dialog(page)).to_have_count(0)

    await make(lambda route: route.continue_())
    # Another dialog stays open: it may show a token, and it has what was typed.
    await page.get_by_role("button", name="Make a pool").click()
    await dialog(page).locator("#pool_name").fill("another")
    answering.set()
    notices = page.locator("#notices")
    await expect(notices).to_contain_text("The pool render is made.")
    await expect(dialog(page).locator("#pool_name")).to_have_value("another")
    await page.keyboard.press("Escape")
    await expect(page.locator("#open-render")).to_be_visible()
    await make(lambda route: route.continue_())
    await expect(notices).to_contain_text("there is a pool render already")
    await make(lambda route: route.abort())
    await expect(notices).to_contain_text("check whether it was done before you try again")
