"""Schedules before an admin: one is made, explained, run, disabled, changed and deleted."""

from __future__ import annotations

from playwright.async_api import expect

from tests.browser.admin import dialog, follow, press
from tests.support.work import connected, expect_run


async def test_a_schedule_is_made_run_disabled_changed_and_deleted(admin, running):
    admin.expected = {404, 422}  # the page looks again as its schedule is deleted
    ice = await connected(running)
    page = await admin.open("schedules")
    await expect(page.get_by_text("There is no schedule.")).to_be_visible()
    await page.get_by_role("button", name="Make a schedule").click()
    form = dialog(page)
    await expect(form.locator("#schedule_name")).to_be_focused()
    await form.locator("#schedule_name").fill("nightly")
    await form.locator("#schedule_ice_name").fill("lab-1")
    await form.locator("#schedule_cron").fill("30 2 * * 8")
    await expect(form.locator("#schedule-times")).to_contain_text("day of week `8`")
    await press(page, "Make the schedule")
    await expect(form.get_by_role("alert")).to_contain_text("day of week `8`")
    await expect(form.locator("#schedule_cron")).to_be_focused()
    await form.locator("#schedule_cron").fill("30 2 * * MON-FRI")
    await expect(form.locator("#schedule-times")).to_contain_text("At 02:30 on Monday")
    await form.locator("#schedule_timezone").fill("Europe/Berlin")
    await expect(form.locator("#schedule-times")).to_contain_text("02:30 CE")
    await press(page, "Make the schedule")
    await expect(page.locator("#notices")).to_contain_text("The schedule nightly is made.")
    await follow(page, page.get_by_role("link", name="nightly"))
    await expect(page.get_by_text("At 02:30 on Monday through Friday.")).to_be_visible()
    await expect(page.get_by_role("columnheader", name="Europe/Berlin")).to_be_visible()
    await page.get_by_role("button", name="Run now").click()
    run = await expect_run(ice)
    await expect(page.locator("#notices")).to_contain_text(f"Operation {run['id']} is requested.")
    await page.get_by_role("button", name="Disable").click()
    await expect(page.get_by_text("It is disabled.")).to_be_visible()
    await page.get_by_role("button", name="Enable").click()
    await expect(page.get_by_role("button", name="Disable")).to_be_visible()
    await page.get_by_role("button", name="Change…").click()
    form = dialog(page)
    await expect(form.locator("#schedule-times")).to_contain_text("At 02:30")
    await form.locator("#schedule_grace").fill("90s")
    await press(page, "Change")
    await expect(page.get_by_text("at most 90s late")).to_be_visible()
    await page.get_by_role("button", name="Delete…").click()
    await press(page, "Delete")
    await expect(page).to_have_url(f"{running.url}/admin/schedules")
    await expect(page.get_by_text("There is no schedule.")).to_be_visible()
