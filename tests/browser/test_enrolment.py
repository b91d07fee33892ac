"""Machines that enrol, before an admin: they appear, are decided on, and keys are made for them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from playwright.async_api import expect

from tests.browser.admin import close_token, dialog, follow, press
from tests.support.machine import KEY, Machine, new_key


def box(page, hostname):
    return page.get_by_label(f"Choose {hostname}", exact=True)


async def test_machines_appear_and_are_decided_on(admin, running):
    _, secret = await new_key(running, KEY, approval=True, max_uses=9)
    machines = {n: Machine(running.session, running.url, secret, f"pc-{n}") for n in range(4)}
    page = await admin.open("enrolment")
    await expect(page.get_by_text("No machine waits.")).to_be_visible()
    _, asked = await machines[1].ask()
    await expect(page.get_by_role("rowheader", name="lab-pc-1")).to_be_visible()
    await expect(page.locator("#count-1 strong")).to_have_text("1")
    # What is chosen outlasts the renewal by the next machine.
    chosen = page.get_by_role("button", name="Approve chosen")
    await expect(chosen).to_be_hidden()
    await box(page, "pc-1").check()
    _, other = await machines[2].ask()
    await expect(box(page, "pc-2")).to_be_visible()
    await expect(box(page, "pc-1")).to_be_checked()
    await page.get_by_role("button", name="Approve pc-2").click()
    await expect(box(page, "pc-2")).to_have_count(0)
    await expect(page.locator("#notices")).to_contain_text("lab-pc-2 approved")
    status, made = await machines[2].poll(other["enrolment"])
    assert (status, made["ice_name"]) == (200, "lab-pc-2")
    await (await running.provision("lab-pc-3")).connect()
    await machines[3].ask()
    await expect(page.get_by_text("Replaces generation 1")).to_be_visible()
    await page.get_by_role("button", name="Approve pc-3").click()
    await expect(dialog(page)).to_contain_text("dropped at once when the new one comes")
    await press(page, "Cancel")
    await page.get_by_label("Choose all on this page").check()
    await chosen.click()
    await expect(dialog(page).get_by_role("heading")).to_have_text("Approve 2 machines?")
    await press(page, "Approve")
    await expect(dialog(page)).to_have_count(0)
    await expect(page.locator("#notices")).to_contain_text("Approved 2 machines.")
    await expect(page.get_by_text("No machine waits.")).to_be_visible()
    assert (await machines[1].poll(asked["enrolment"]))[0] == 200
    await machines[0].ask()
    await page.get_by_role("button", name="Reject pc-0").click()
    await press(page, "Reject")
    await expect(page.locator("#notices")).to_contain_text("pc-0 was rejected.")
    await expect(page.get_by_text("No machine waits.")).to_be_visible()


async def test_a_key_is_made_downloaded_and_revoked(admin, running):
    admin.expected = {422}
    page = await admin.open("enrolment")
    await follow(page, page.get_by_role("link", name="Make the first key"))
    await page.get_by_role("button", name="Make a key").click()
    form = dialog(page)
    await expect(form.locator("#key_name")).to_be_focused()
    await form.locator("#key_name").fill("lab PCs")
    await form.locator("#key_prefix").fill("lab-")
    await form.locator("#provisionedto").fill("nobody")
    await press(page, "Make the key")
    await expect(form.get_by_role("alert")).to_contain_text("User: there is no user of this name")
    await expect(form.locator("#provisionedto")).to_be_focused()
    await form.get_by_role("radio", name="CI/CD").check()
    await expect(form.locator("#provisionedto")).to_be_hidden()
    await press(page, "Make the key")
    await press(page, "Ok")
    async with page.expect_download() as found:
        await press(page, "Download")
    download = await found.value
    assert download.suggested_filename == "enrolment-key.txt"
    secret = await asyncio.to_thread(Path(await download.path()).read_text, "utf-8")
    await close_token(page)
    await expect(page.get_by_role("rowheader", name="lab PCs")).to_be_visible()
    assert (await Machine(running.session, running.url, secret, "pc-1").ask())[0] == 201
    await expect(page.get_by_role("row", name="lab PCs")).to_contain_text("Used up")
    await page.get_by_role("button", name="Revoke lab PCs").click()
    await press(page, "Revoke")
    await expect(page.get_by_role("row", name="lab PCs")).to_contain_text("Revoked")
