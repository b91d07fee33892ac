"""An ICE is paused by its user, in their time zone; the admin sees it at once, and the user sees its end."""

from __future__ import annotations

from playwright.async_api import expect

from tests.browser.admin import dialog, press, row


async def test_a_user_pauses_and_an_admin_resumes(new_admin, page, running):
    await running.provision()
    await expect(row(page, "lab-1")).to_be_visible()
    user = await new_admin("alice")
    own = await user.open("ices/lab-1")
    await own.get_by_role("button", name="Pause").click()
    await dialog(own).get_by_label("Until").fill("2126-11-22T18:00:00")
    await dialog(own).get_by_label("Note").fill("at lunch")
    await press(own, "Pause")
    await expect(dialog(own)).to_have_count(0)
    facts = own.get_by_role("article", name="Facts")
    await expect(facts).to_contain_text("at lunch")
    await expect(facts.locator(".paused time")).to_have_attribute(
        "datetime", "2126-11-22T09:00:00.000000Z"
    )
    await expect(row(page, "lab-1").locator(".paused")).to_have_text("Paused")
    await page.get_by_role("link", name="Paused 1").click()
    await expect(row(page, "lab-1")).to_be_visible()
    await page.get_by_label("Choose lab-1").check()
    await page.locator("#bulk-resume").click()
    await press(page, "Resume")
    await expect(dialog(page).get_by_role("heading")).to_have_text("Resume: 1 of 1 done")
    await press(page, "Ok")
    await expect(page.get_by_text("No ICE matches.")).to_be_visible()
    await expect(own.get_by_role("button", name="Resume")).to_have_count(0)
