"""Operations on an ICE's page: run, followed live, looked at, cancelled."""

from __future__ import annotations

import asyncio
import re

import pytest
from playwright.async_api import expect

from tests.browser.admin import dialog, hide, press
from tests.support.work import (
    accept,
    asked,
    connected,
    expect_cancel,
    expect_run,
    finish,
    finished,
    in_state,
    log,
    progress,
    take,
)

EVIL = "<img src=x onerror=window.hurt=1><script>window.hurt=1</script>"


async def run(page, kind="execute", params="{}"):
    await page.get_by_role("button", name="Run an operation").click()
    await dialog(page).get_by_label("Kind").select_option(kind)
    await dialog(page).get_by_label("Params").fill(params)


@pytest.mark.parametrize("user", ["root", pytest.param("alice", marks=pytest.mark.long)])
async def test_an_operation_is_run_followed_live_and_looked_at(new_admin, running, user):
    """A member has no stream of events: what goes on is seen all the same."""
    ice = await connected(running)
    admin = await new_admin(user)
    page = await admin.open("ices/lab-1")
    await run(page, params='{"suite": "smoke"}')
    await press(page, "Run")
    await expect(dialog(page)).to_contain_text("Operation requested")
    await press(page, "Ok")
    sent = await expect_run(ice)
    line = page.locator(f'[id="operation-{sent["id"]}"]')
    await expect(line).to_contain_text("Sent")
    accept(ice, sent["id"])
    await expect(line).to_contain_text("Running")
    progress(ice, sent["id"], fraction=0.5, message=EVIL)
    await expect(line.get_by_role("progressbar")).to_have_attribute("value", "0.5")
    await expect(line).to_contain_text("<script>")
    await finished(ice, sent["id"], result={"said": EVIL})
    await expect(line).to_contain_text("Succeeded")
    await line.get_by_role("button", name="Show operation").click()
    await expect(dialog(page)).to_contain_text('"suite": "smoke"')
    await expect(dialog(page)).to_contain_text('"said": "<img')
    async with page.expect_download() as download:
        await dialog(page).get_by_role("link", name="Download").click()
    assert (await download.value).suggested_filename == f"operation-{sent['id']}.json"
    await press(page, "Ok")
    assert await page.evaluate("window.hurt") is None


async def test_an_operation_is_cancelled_after_a_question(admin, running):
    ice = await connected(running)
    operation = await asked(running.admin)
    await take(ice)
    page = await admin.open("operations")
    line = page.locator(f'[id="operation-{operation}"]')
    await page.get_by_label("State").select_option("lost")
    await expect(page.get_by_text("No operation matches.").first).to_be_visible()
    await page.get_by_label("State").select_option("running")
    await expect(page.locator("#found")).to_have_text("1 operation matches.")
    await expect(page).to_have_url(re.compile("state=running"))
    await page.get_by_label("State").select_option("")
    await line.get_by_role("button", name="Cancel operation").click()
    await press(page, "Cancel the operation")
    await expect(dialog(page)).to_contain_text("Operation cancelled")
    await press(page, "Ok")
    await expect(line).to_contain_text("Cancelled")
    await expect(line.get_by_role("button", name="Cancel operation")).to_have_count(0)
    await expect_cancel(ice, operation)
    await finish(ice, operation, "failed", error={"code": "cancelled", "message": ""})


async def test_a_command_is_copied_and_a_replaced_token_is_marked(admin, running):
    await connected(running)
    await admin.context.grant_permissions(["clipboard-read"])
    page = await admin.open("ices/lab-1")
    await page.get_by_text("Start it on its machine").click()
    await page.get_by_role("button", name="Copy the command for Linux and macOS").click()
    await expect(page.locator("#copied")).to_have_text("Copied.")
    copied = await page.evaluate("navigator.clipboard.readText()")
    assert copied == f"ice/bin/ice-client run --gateway {running.url}"
    await page.get_by_role("button", name="Edit labels and note").click()
    await dialog(page).get_by_label("Labels to add").fill("os=linux")
    await press(page, "Save")
    await press(page, "Ok")
    await expect(page.get_by_text("os=linux", exact=True)).to_be_visible()
    await expect(page.locator(".timeline")).to_contain_text("Set the label os=linux.")
    await page.get_by_role("button", name="Reregister").click()
    await press(page, "Reregister")
    await press(page, "Ok")
    await expect(page.locator("#token-replaced")).to_be_empty()
    await running.admin.post("/ices/lab-1/reprovision")
    await expect(page.locator("#token-replaced")).to_contain_text("no longer works")


async def test_the_form_keeps_what_was_typed_and_asks_for_the_viewers_time(admin, running):
    await connected(running)
    admin.expected = {422}
    page = await admin.open("ices/lab-1")
    await run(page, params='{"a": ')
    asks = dialog(page)
    when, params = asks.get_by_label("Run at"), asks.get_by_label("Params")
    await expect(when).to_be_hidden()
    await asks.get_by_label("Kind").select_option("schedule")
    await expect(when).to_be_visible()
    await press(page, "Run")
    await expect(asks.locator(".fault")).to_contain_text("has to be JSON")
    await expect(params).to_have_attribute("aria-invalid", "true")
    await expect(params).to_have_value('{"a": ')
    await params.fill('{"a": 1}')
    await press(page, "Run")
    await expect(asks.locator(".fault")).to_contain_text("is required for schedule")
    await when.fill("2027-02-03T04:05:06")
    await press(page, "Run")
    await expect(asks).to_contain_text("Operation requested")
    [operation] = (await running.admin.get("/operations")).json["items"]
    assert operation["run_at"] == "2027-02-02T19:05:06.000000Z", "Tokyo is nine hours ahead"
    await press(page, "Ok")
    await expect(page.locator(f'[id="operation-{operation["id"]}"]')).to_contain_text("until")


async def test_pages_follow_an_operation_and_ask_for_nothing_when_idle(admin, running):
    ice = await connected(running)
    pages = [await admin.open(address) for address in ("ices/lab-1", "operations?state=succeeded")]
    looks = []
    admin.context.on("request", lambda request: looks.append(request.url.rpartition("/")[2]))
    operation = await asked(running.admin)
    await take(ice)
    async with pages[0].expect_request(re.compile("ices/lab-1$")) as first:
        pass
    assert (await (await first.value).all_headers())["x-live"] == "true"
    await pages[1].bring_to_front()
    async with pages[1].expect_request(re.compile("state=succeeded$")):
        await in_state(running, operation, "running")
    await finished(ice, operation, result=1)
    for page in pages:
        line = page.locator(f'[id="operation-{operation}"]')
        await expect(line).to_contain_text("Succeeded")
    await pages[0].wait_for_timeout(700)  # news that came meanwhile
    looks.clear()
    await asyncio.sleep(2.2)  # two looks of each, if there were any
    assert looks == []
    await hide(pages[1])
    await asked(running.admin)
    await expect(pages[0].get_by_text("Sent")).to_be_visible()
    await asyncio.sleep(1)  # a look at the least
    assert set(looks) == {"lab-1"}


async def test_a_log_is_followed_searched_and_cannot_do_anything(admin, running):
    ice = await connected(running)
    operation = await asked(running.admin)
    await take(ice)
    log(ice, operation, f"first\r\n{EVIL}\n\x1b[31mred\u202e\n")
    page = await admin.open(f"operations/{operation}")
    region = page.locator("#log-lines")
    lines = region.locator("span:visible")
    await expect(lines).to_have_text(["first", EVIL, r"\u{1b}[31mred\u{202e}"])
    log(ice, operation, "half of")
    await expect(lines).to_have_count(4)
    log(ice, operation, " a line\n" + "".join(f"line {number}\n" for number in range(6000)))
    await expect(page.get_by_text("The last 5,000 lines are shown.")).to_be_visible()
    await region.scroll_into_view_if_needed()
    await expect(lines.last).to_be_in_viewport()
    await region.evaluate("element => element.scrollTop = 0")
    await expect(page.get_by_label("Scroll to new lines")).not_to_be_checked()
    await hide(page)
    log(ice, operation, "while it was hidden\n")
    await finished(ice, operation)
    await hide(page, hidden=False)
    await page.get_by_label("Search the log").fill("HIDDEN")
    await expect(lines).to_have_text(["while it was hidden"])
    await expect(page.get_by_text("1 match.")).to_be_visible()
    async with page.expect_download() as download:
        await page.get_by_role("link", name="Download the log").click()
    assert (await download.value).suggested_filename == f"operation-{operation}.log"
    assert await page.evaluate("window.hurt") is None
