"""Webhooks before an admin: one is made, tested, fails, is tried again, sent again, changed and deleted."""

from __future__ import annotations

import asyncio

import pytest
from playwright.async_api import expect

from gateway.core.times import utc_now
from gateway.store.webhooks import SetAside, set_aside
from tests.browser.admin import close_token, dialog, follow, press
from tests.support.receiver import receiving

RENEWED = """() => new Promise((done) => {
  document.addEventListener("htmx:afterOnLoad", ({ target }) => target.matches("#live") && done());
})"""
"""Until the live part of the page has been renewed, or could have been."""


@pytest.mark.gateway(webhooks__allow=["127.0.0.0/8"])
async def test_a_webhook_is_made_tested_tried_again_and_deleted(admin, running):
    admin.expected = {404, 422}  # the page looks again as its webhook is deleted
    page = await admin.open("webhooks")
    async with receiving() as receiver:
        await expect(page.get_by_text("There is no webhook.")).to_be_visible()
        await page.get_by_role("button", name="Make a webhook").click()
        form = dialog(page)
        await expect(form.locator("#webhook_name")).to_be_focused()
        await form.locator("#webhook_name").fill("ops")
        await form.locator("#webhook_url").fill("http://hooks.example.com")
        await form.locator("#webhook_events").fill("provision ice.away")
        await press(page, "Make the webhook")
        await expect(form.get_by_role("alert")).to_contain_text("needs https")
        await expect(form.locator("#webhook_url")).to_be_focused()
        await form.locator("#webhook_url").fill(receiver.url)
        await press(page, "Make the webhook")
        await press(page, "Ok")
        receiver.secret = await dialog(page).locator("#token").input_value()
        await close_token(page)
        await follow(page, page.get_by_role("link", name="ops"))
        await expect(page.get_by_text("Nothing was sent yet.")).to_be_visible()
        await page.get_by_role("button", name="Send a test").click()
        await expect(page.locator("#notices")).to_contain_text("The test was taken: 204 in ")
        await expect(page.get_by_role("cell", name="test", exact=True)).to_be_visible()
        receiver.down = True
        await running.provision("lab-1")
        await expect(page.locator("#live .fault").first).to_be_visible()
        await expect(page.locator("#facts-title + dl")).to_contain_text("answered 503")
        receiver.down = False
        await page.get_by_role("button", name="Try now").click()
        await receiver.until(lambda one: "provision" in one.types)
        await expect(page.locator("#facts-title + dl")).to_contain_text("active")
        [one] = (await running.admin.get("/webhooks")).json["items"]
        given_up = SetAside("log-1", "provision", "{}", utc_now(), 20, "answered 500")
        await running.gateway.engine.write(lambda t: set_aside(t, one["id"], given_up))
        await page.reload()
        await page.get_by_role("button", name="Send log-1 again").click()
        await expect(page.locator("#notices")).to_contain_text("The message log-1 was taken")
        await expect(page.get_by_role("heading", name="Set aside")).to_have_count(0)
        await page.get_by_role("button", name="Change…").click()
        await dialog(page).locator("#webhook_events").fill("*")
        await press(page, "Change")
        await expect(page.locator("#facts-title + dl")).to_contain_text("all")
        await page.get_by_role("button", name="Disable").click()
        await expect(page.locator("#facts-title + dl")).to_contain_text("disabled")
        await page.get_by_role("button", name="Delete…").click()
        await press(page, "Delete")
    await expect(page).to_have_url(f"{running.url}/admin/webhooks")
    await expect(page.get_by_text("There is no webhook.")).to_be_visible()


@pytest.mark.gateway(webhooks__allow=["127.0.0.0/8"])
async def test_an_answer_is_shown_though_the_page_renews_itself_meanwhile(admin, running):
    async with receiving() as receiver:
        made = await running.admin.post(
            "/webhooks", json={"name": "ops", "url": receiver.url, "events": ["ice.away"]}
        )
        page = await admin.open(f"webhooks/{made.json['webhook']['id']}")

        async def renewed_first(route):
            renewed = asyncio.create_task(page.evaluate(RENEWED))
            await running.provision("lab-1")
            await renewed
            await route.continue_()

        await page.route("**/test", renewed_first)
        await page.get_by_role("button", name="Send a test").click()
        await expect(page.locator("#notices")).to_contain_text("The test was taken: 204 in ")
        await expect(page.get_by_role("cell", name="test", exact=True)).to_be_visible()
