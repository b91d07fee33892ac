"""Many ICEs from a CSV file, and actions on all that match a filter."""

from __future__ import annotations

import asyncio
import csv
from pathlib import Path

from playwright.async_api import expect

from gateway.core.ice import NAME_RULE
from tests.browser.admin import close_token, dialog, follow, press, row
from tests.browser.test_table import many

FLEET = """ice_name,ice_type,user,labels
lab-1,normal,alice,os=windows;room=4
build-1,ci-cd,,os=linux
lab-2,normal,nobody,
taken,ci-cd,,
-bad,ci-cd,,
"""


async def upload(page, text, name="fleet.csv"):
    await page.evaluate("document.querySelector('[data-open-provision]').click()")
    data = text if isinstance(text, bytes) else text.encode()
    await page.locator("#fleet-file").set_input_files(
        {"name": name, "mimeType": "text/csv", "buffer": data}
    )


async def test_file_of_ices_is_previewed_and_provisioned(admin, page, running):
    await running.provision("taken", "ci-cd")
    await upload(page, b"ice_name\xff\n")
    await expect(page.locator("[data-fleet-fault]")).to_contain_text("neither UTF-8 nor UTF-16")
    await upload(page, FLEET)
    told = dialog(page)
    await expect(told.get_by_role("heading")).to_have_text("Provision 3 ICEs?")
    await expect(told.get_by_role("list", name="Faults").get_by_role("listitem")).to_have_text(
        [
            "line 5: ICE Provision Failed! ICE Name or User already exists",
            f"line 6: ice_name: needs {NAME_RULE}",
        ]
    )
    preview = told.get_by_role("row", name="2 lab-1 Normal alice os=windows; room=4")
    await expect(preview).to_be_visible()
    assert (await running.admin.get("/ices/lab-1")).status == 404, "a preview changes nothing"
    # If an answer is lost, the page says what to do.
    admin.expected = {503}
    await page.route("**/admin/fleet", lambda route: route.fulfill(status=503), times=1)
    await press(page, "Provision")
    await expect(told.get_by_role("heading")).to_have_text("0 ICEs provisioned")
    await expect(told.get_by_role("list", name="Refused")).to_have_text(
        "The gateway answered 503. The ICEs from row 1 of the file on may have been provisioned;"
        " reprovision those that the list shows."
    )
    await press(page, "Ok")
    await upload(page, FLEET)
    await told.get_by_role("switch").check()
    await press(page, "Provision")
    await expect(told.get_by_role("heading")).to_have_text("3 ICEs provisioned")
    await page.keyboard.press("Escape")
    await press(page, "Ok")
    async with page.expect_download() as download:
        await press(page, "Download")
    file = await download.value
    saved = await asyncio.to_thread(Path(await file.path()).read_text)
    tokens = {line["ice_name"]: line["token"] for line in csv.DictReader(saved.splitlines())}
    assert list(tokens) == ["lab-1", "build-1", "lab-2"]
    await dialog(page).locator("[data-ask]").click()
    await expect(dialog(page).get_by_role("alert")).to_contain_text("not be shown again")
    await dialog(page).locator("[data-close]:visible").click()
    for token in tokens.values():
        await running.ice(token).connect()
    await expect(row(page, "lab-2").locator(".user")).to_have_text("nobody")
    await expect(row(page, "build-1").locator(".chip")).to_have_text("os=linux")
    # A label leads to all that have it.
    await row(page, "build-1").get_by_role("link", name="os=linux").click()
    await expect(page.locator("tbody tr")).to_have_count(1)
    await expect(page.get_by_label("Labels")).to_have_value("os=linux")
    events = (await running.admin.get("/events?action=provision")).json["items"]
    assert {event["via"] for event in events[1:]} == {"page"}


async def test_all_that_match_are_chosen_and_asked_about(admin, running):
    await running.provision("zebra")
    await many(running, 66)
    page = await admin.open("?q=ice-")
    await page.get_by_label("Choose all on this page").check()
    bulk = page.get_by_role("group", name="Chosen ICEs")
    await expect(bulk).to_contain_text("50 chosen")
    await bulk.get_by_role("button", name="Choose all 66 that match").click()
    await expect(bulk).to_contain_text("66 chosen")
    # A look at an ICE, and back.
    await follow(page, page.locator("#link-ice-00001"))
    await page.go_back()
    await expect(bulk).to_contain_text("66 chosen")
    await bulk.get_by_role("button", name="Show").click()
    await dialog(page).get_by_role("button", name="Remove ice-00063").click()
    await expect(dialog(page).get_by_role("listitem")).to_have_count(65)
    await press(page, "Ok")
    await bulk.get_by_role("button", name="Reprovision…").click()
    told = dialog(page)
    await expect(told.get_by_role("heading")).to_have_text("Reprovision 21 of 65 ICEs?")
    await expect(told).to_contain_text("44: each is registered, so it cannot be reprovisioned")
    await press(page, "Reprovision")
    await expect(told.get_by_role("heading")).to_have_text("Reprovision 21 of 65 ICEs?")
    await told.get_by_label("Type 21 to confirm").fill("21")
    await press(page, "Reprovision")
    await expect(told.get_by_role("heading")).to_have_text("Reprovision: 21 of 65 done")
    await press(page, "Ok")
    saved = (await page.locator("#token").input_value()).splitlines()
    assert len(saved) == 22
    assert saved[1].startswith("ice-00000,ey")
    await close_token(page)
    await expect(bulk).to_be_hidden()
    # Labels for several.
    admin.expected = {422}
    await page.get_by_label("Choose ice-00001").check()
    await page.get_by_label("Choose ice-00002").check()
    await bulk.get_by_role("button", name="Label…").click()
    await told.get_by_label("Labels to set").fill("os")
    await press(page, "Label")
    await expect(told.get_by_role("alert")).to_have_text("Labels: os is not key=value")
    await told.get_by_label("Labels to set").fill("os=linux; room=7")
    await expect(told.get_by_role("alert")).to_have_count(0)
    await press(page, "Label")
    await expect(told.get_by_role("heading")).to_have_text("Label: 2 of 2 done")
    await press(page, "Ok")
    await expect(row(page, "ice-00002").locator(".chip")).to_have_text(["os=linux", "room=7"])
