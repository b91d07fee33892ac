"""The requirements' steps 1 to 5, in order and word for word."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from playwright.async_api import expect

from tests.browser.admin import (
    choose,
    close_token,
    dialog,
    enter,
    fill,
    follow,
    press,
    row,
    set_password,
    submit,
)

EXISTS = "ICE Provision Failed! ICE Name or User already exists"
SAVE = "Save this token until the ICE registration is complete. For more information, refer here."


async def test_steps_1_to_5(new_admin, running):
    await set_password(running)
    admin = await new_admin(None)
    await admin.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = await admin.open()

    # 1. Log in as Admin User. Navigate to ICE Provisioning Section.
    await expect(page).to_have_url(f"{running.url}/admin/login")
    await enter(page)
    await expect(page.get_by_role("heading", name="ICE Provisioning", level=1)).to_be_visible()
    current = page.get_by_role("navigation", name="Main").locator("[aria-current=page]")
    await expect(current).to_have_text("ICE Provisioning")

    # 2. Select the type of ICE required and specify the required details.
    await page.get_by_role("radio", name="CI/CD").check()
    await expect(page.locator("#provisionedto")).to_be_hidden()
    await page.get_by_role("radio", name="Normal").check()
    await page.get_by_label("ICE name").fill("lab-1")
    await page.locator("#provisionedto").fill("LIC")
    await expect(page.locator("#known-users option")).to_have_count(1)
    await expect(page.locator("#known-users option")).to_have_attribute("value", "alice")
    await page.locator("#provisionedto").fill("alice")

    # 3. Click on 'Provision'. The Admin will be prompted as follows: ICE provisioning successful
    await submit(page)
    await expect(dialog(page).get_by_role("heading")).to_have_text("ICE provisioning successful")
    await expect(dialog(page).get_by_role("button")).to_have_count(1)
    await expect(dialog(page)).to_have_accessible_name("ICE provisioning successful")
    await expect(page.locator("#token")).to_be_hidden()
    await page.keyboard.press("Escape")
    await expect(row(page, "lab-1")).to_contain_text("Provisioned")

    # 4. Click on 'Ok'. The token is displayed. Copy and Download options are available.
    await press(page, "Ok")
    token = await page.locator("#token").input_value()
    assert re.fullmatch(r"eyJ[\w-]+\.\.[\w-]+\.[\w-]+\.[\w-]+", token)
    await expect(dialog(page)).to_have_accessible_name("Registration token of lab-1")
    valid = dialog(page).get_by_text("Valid for its registration until").locator("time")
    expires = (await running.admin.get("/ices/lab-1")).json["expireson"]
    await expect(valid).to_have_attribute("datetime", expires)
    await press(page, "Copy")
    await expect(dialog(page).get_by_role("status")).to_have_text("Copied.")
    assert await page.evaluate("navigator.clipboard.readText()") == token
    async with page.expect_download() as download:
        await press(page, "Download")
    file = await download.value
    assert file.suggested_filename == "lab-1.token"
    saved = await asyncio.to_thread(Path(await file.path()).read_text)
    assert saved == token
    commands = await dialog(page).locator("pre").all_inner_texts()
    assert commands == [
        f"ice/bin/ice-client run --gateway {running.url} --token-file lab-1.token",
        rf"ice\Scripts\ice-client.exe run --gateway {running.url} --token-file .\lab-1.token",
    ]

    # 5. The token should be saved until the completion of the ICE registration. Refer here.
    await expect(dialog(page)).to_contain_text(SAVE)
    async with admin.context.expect_page() as opened:
        await dialog(page).get_by_role("link", name="here", exact=True).click()
    guide = await opened.value
    await expect(guide.get_by_role("heading", level=1)).to_have_text("Registering an ICE")
    await guide.close()

    # Nothing closes the panel by accident: a browser asks a page only once whether Escape may.
    await page.bring_to_front()
    for _ in range(3):
        await page.keyboard.press("Escape")
        await expect(dialog(page).get_by_role("alert")).to_have_text(
            "The token will not be shown again. Close?"
        )
    await press(page, "Keep it open")
    await expect(page.locator("#token")).to_have_value(token)

    # The ICE registers with that token, and the row behind the panel changes by itself.
    connection = await running.ice(token).connect()
    connection.hello(version="7.1", platform="Linux", hostname="desk-9")
    await expect(row(page, "lab-1")).to_contain_text("Registered")
    await expect(row(page, "lab-1")).to_contain_text("Connected")
    await expect(row(page, "lab-1").locator(".version")).to_have_text("7.1")
    await close_token(page)
    await expect(page.get_by_role("button", name="Provision", exact=True)).to_be_focused()
    await expect(page.get_by_label("ICE name")).to_have_value("")
    assert token not in await page.content()
    assert await running.status("lab-1") == "registered"


async def test_refusals_stand_beside_the_form_and_go_with_what_caused_them(admin, page, running):
    admin.expected = {409, 422}
    await running.provision("lab-1")
    name, user = page.get_by_label("ICE name"), page.locator("#provisionedto")
    fault = page.locator("#form-fault")
    await fill(page, "LAB-1")
    await submit(page)
    await expect(fault).to_have_text(EXISTS)
    await expect(name).to_be_focused()
    await expect(name).to_have_value("LAB-1")
    await expect(user).to_have_value("alice")
    await expect(dialog(page)).to_have_count(0)
    # An unknown user.
    await name.fill("lab-2")
    await user.fill("nobody")
    await submit(page)
    await expect(fault).to_contain_text("User: there is no user of this name")
    await expect(user).to_be_focused()
    await expect(name).to_have_value("lab-2")
    # The error goes when its field changes.
    await user.fill("nobod")
    await expect(fault).to_be_empty()
    await expect(user).not_to_have_attribute("aria-invalid", "true")
    await user.fill("nobody")
    await submit(page)
    await fault.get_by_role("button", name="Add nobody").click()
    await expect(fault).to_have_text("nobody is a user now. Press Provision.")
    await expect(page.get_by_role("button", name="Provision", exact=True)).to_be_focused()
    # A pasted name that is too long is refused, not cut.
    await name.fill("x" * 70)
    await submit(page)
    await expect(name).to_be_focused()
    await expect(name).to_have_value("x" * 70)
    await expect(dialog(page)).to_have_count(0)
    # Once mended, it goes through.
    await name.fill("lab-2")
    await page.keyboard.press("Enter")
    await expect(dialog(page).get_by_role("heading")).to_have_text("ICE provisioning successful")
    await expect(fault).to_be_empty()
    await expect(name).not_to_have_attribute("aria-invalid", "true")


async def test_nothing_takes_an_open_token_away(page):
    """Neither Tab, nor a reload without a question, nor the back button."""
    status = page.get_by_label("Status", exact=True)
    await status.select_option("provisioned")
    await expect(page).to_have_url(re.compile("status=provisioned"))
    await fill(page, "build-1", None)
    await submit(page)
    await press(page, "Ok")
    token = await page.locator("#token").input_value()
    for _ in range(12):
        await page.keyboard.press("Tab")
        inside = (
            "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
        )
        assert await page.evaluate(inside), "the focus left the dialog"
    asked = []

    async def stay(question):
        asked.append(question.type)
        await question.dismiss()

    page.on("dialog", stay)
    async with page.expect_event("dialog"):
        await page.evaluate("setTimeout(() => location.reload())")
    assert asked == ["beforeunload"]
    await expect(page.locator("#token")).to_have_value(token)
    await page.go_back()
    await expect(page).not_to_have_url(re.compile("status"))
    await expect(status).to_have_value("")
    await expect(page.locator("#token")).to_have_value(token)


async def test_token_can_be_copied_where_the_browser_has_no_clipboard(admin, running):
    await admin.context.add_init_script(
        "Object.defineProperty(navigator, 'clipboard', {value: undefined});"
        "document.execCommand = () => false;"
    )
    page = await admin.open()
    await fill(page, "build-1", None)
    await submit(page)
    await press(page, "Ok")
    await press(page, "Copy")
    await expect(dialog(page).get_by_role("status")).to_contain_text("press Ctrl+C")
    selected = await page.evaluate("getSelection().toString() || document.activeElement.value")
    assert selected == await page.locator("#token").input_value()


async def test_double_click_provisions_once(page, running):
    await fill(page, "lab-1")
    await page.get_by_role("button", name="Provision", exact=True).dblclick()
    await expect(dialog(page).get_by_role("heading")).to_have_text("ICE provisioning successful")
    await press(page, "Ok")
    token = await page.locator("#token").input_value()
    events = (await running.admin.get("/events?ice_name=lab-1")).json["items"]
    assert [event["action"] for event in events] == ["provision"]
    await running.ice(token).connect()


async def test_back_after_an_action_is_harmless(page, running):
    """And Reprovision replaces a lost token."""
    lost = await running.provision("lab-1")
    await follow(page, page.get_by_role("link", name="Guide"))
    await follow(page, page.get_by_role("link", name="ICE Provisioning"))
    await choose(page, "lab-1", "Reprovision")
    await press(page, "Reprovision")
    await expect(dialog(page).get_by_role("heading")).to_have_text("ICE reprovisioned")
    await press(page, "Ok")
    token = await page.locator("#token").input_value()
    await close_token(page)
    await page.go_back()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Registering an ICE")
    await page.go_forward()
    await expect(row(page, "lab-1")).to_contain_text("Provisioned")
    await expect(dialog(page)).to_have_count(0)
    events = (await running.admin.get("/events?ice_name=lab-1")).json["items"]
    assert [event["action"] for event in events] == ["provision", "reprovision"]
    assert (await lost.refused()).code == "token-replaced"
    await running.ice(token).connect()


async def test_link_from_another_site_reaches_who_is_logged_in(page, running):
    """The cookie is SameSite=Strict: the browser does not send it with such a link."""
    await running.provision("lab-1")
    await page.goto(f'data:text/html,<a href="{running.url}/admin/ices/lab-1">look</a>')
    async with page.expect_request("**/admin/login?to=ices/lab-1"):
        await page.get_by_role("link", name="look").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("lab-1")


async def test_logging_out_ends_it_for_the_back_button_too(new_admin, running):
    await set_password(running)
    admin = await new_admin()
    admin.expected = {401}
    page = await admin.open()
    await page.get_by_role("button", name="Log out").click()
    await expect(page).to_have_url(f"{running.url}/admin/login")
    await page.go_back()
    await expect(page.get_by_label("Password")).to_be_visible()
    await enter(page, password="wrong")
    await expect(page.get_by_role("alert")).to_have_text("Name or password is wrong.")
    await expect(page.get_by_label("Name")).to_have_value("root")
    await expect(page.get_by_label("Password")).to_be_focused()
