"""Reprovision, Reregister, Deregister, Disconnect: told before, done, told afterwards; and two at once."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import expect

from gateway.cli.common import open_context
from gateway.core.roles import Role
from gateway.store.ice_listing import IceListing
from tests.browser.admin import (
    choose,
    close_token,
    dialog,
    enter,
    fill,
    hide,
    more,
    offered,
    press,
    row,
    set_password,
    submit,
)

DROPPED = re.compile(r"1 session dropped in \d+\.\d ms\.")
HELLO = {"version": "7.1", "platform": "Linux", "hostname": "desk-9"}


async def connected(running, page, name="lab-1", ice_type="normal"):
    """An ICE that is registered and connected, and its row says so."""
    ice = await running.provision(name, ice_type)
    connection = await ice.connect()
    connection.hello(**HELLO)
    await expect(row(page, name).locator(".version")).to_have_text("7.1")
    return connection


async def test_only_the_actions_that_a_row_allows(page, running):
    await running.provision("lab-1")
    await expect(row(page, "lab-1")).to_be_visible()
    assert await offered(page, "lab-1") == ["Reprovision"]
    connection = await connected(running, page, "lab-2")
    assert await offered(page, "lab-2") == ["Reregister", "Disconnect", "Deregister"]
    await connection.leave()
    await expect(row(page, "lab-2").locator(".offline")).to_have_text("Offline")
    assert await offered(page, "lab-2") == ["Reregister", "Deregister"]
    await running.act("lab-2", "deregister")
    await expect(row(page, "lab-2").locator(".status")).to_have_text("Deregistered")
    assert await offered(page, "lab-2") == ["Reregister"]


@pytest.mark.parametrize(
    ("action", "code", "status"),
    [
        pytest.param("Reregister", 4102, "Registered", marks=pytest.mark.long),
        ("Deregister", 4101, "Deregistered"),
        pytest.param("Disconnect", 4201, "Registered", marks=pytest.mark.long),
    ],
)
async def test_action_on_a_connected_ice(page, running, action, code, status):
    connection = await connected(running, page)
    await fill(page, "half-typed")
    asks = await choose(page, "lab-1", action)
    since = (await running.admin.get("/ices/lab-1")).json["connection"]["since"]
    await expect(asks.get_by_role("heading")).to_have_text(f"{action} lab-1?")
    now = asks.get_by_text("It has been connected since")
    await expect(now.locator("time")).to_have_attribute("datetime", since)
    await expect(now).to_contain_text(
        "from 127.0.0.1 (desk-9), running version 7.1 on Linux.", use_inner_text=True
    )
    # Nothing has happened yet, and Cancel leaves it so, with the focus where it was.
    await press(page, "Cancel")
    main = row(page, "lab-1").get_by_role("button", name=f"{action} lab-1")
    await expect(main if action == "Reregister" else more(page, "lab-1")).to_be_focused()
    await connection.round_trip()
    await choose(page, "lab-1", action)
    await press(page, action)
    await connection.expect_dropped(code)
    await expect(dialog(page).get_by_role("heading")).to_have_text(
        "ICE reregistered" if action == "Reregister" else f"lab-1 {action.lower()}ed"
    )
    await expect(dialog(page).get_by_text(DROPPED)).to_be_visible()
    await press(page, "Ok")
    if action == "Reregister":
        token = await page.locator("#token").input_value()
        await close_token(page)
        await running.ice(token).connect()
    await expect(dialog(page)).to_have_count(0)
    await expect(row(page, "lab-1").locator(".status")).to_have_text(status)
    await expect(page.locator("body")).not_to_be_focused()
    await expect(page.get_by_label("ICE name")).to_have_value("half-typed")


async def test_a_leavers_ices_are_given_to_another_user(admin, page, running):
    await running.add_user("bob")
    connection = await connected(running, page)
    users = await admin.open("users")
    await users.get_by_role("button", name="Disable alice").click()
    asks = dialog(users)
    await expect(asks.get_by_role("heading")).to_have_text("Disable alice?")
    next_user = asks.get_by_label("Next user")
    await expect(next_user).to_be_hidden()
    await asks.get_by_role("radio", name="Give to another user").check()
    await next_user.fill("nobody")
    admin.expected.add(422)
    await press(users, "Disable")
    await expect(asks.locator(".fault")).to_contain_text("Next user: there is no user")
    await expect(next_user).to_be_focused()
    await connection.round_trip()
    await next_user.fill("bob")
    await press(users, "Disable")
    await connection.expect_dropped(4102)
    await expect(asks.get_by_role("heading")).to_have_text("alice is disabled")
    await expect(asks.get_by_text(DROPPED)).to_be_visible()
    await press(users, "Ok")
    rows = (await users.locator("#token").input_value()).splitlines()
    assert [line.split(",")[0] for line in rows] == ["ice_name", "lab-1"]
    await close_token(users)
    await (await running.ice(rows[1].split(",")[1]).connect()).round_trip()
    await expect(row(page, "lab-1").locator(".user")).to_have_text("bob")


async def test_several_are_deregistered_with_a_result_for_each(admin, page, running):
    first = await connected(running, page, "lab-1")
    second = await connected(running, page, "build-2", "ci-cd")
    await running.provision("lab-3")
    await expect(row(page, "lab-3")).to_be_visible()
    bulk = page.get_by_role("group", name="Chosen ICEs")
    await expect(bulk).to_be_hidden()
    await page.get_by_label("Choose all on this page").check()
    await expect(bulk).to_contain_text("3 chosen")
    await bulk.get_by_role("button", name="Deregister…").click()
    await expect(dialog(page).get_by_role("heading")).to_have_text("Deregister 2 of 3 ICEs?")
    await expect(dialog(page)).to_contain_text(
        "1: each is provisioned, so it cannot be deregistered"
    )
    items = dialog(page).get_by_role("list", name="Chosen ICEs").get_by_role("listitem")
    await expect(items.nth(0)).to_contain_text("build-2 Registered connected since")
    await expect(items.nth(2)).to_contain_text("lab-3 Provisioned not connected")
    await expect(items.nth(2)).to_contain_text("will be refused")
    await press(page, "Deregister")
    await first.expect_dropped(4101)
    await second.expect_dropped(4101)
    await expect(dialog(page).get_by_role("heading")).to_have_text("Deregister: 2 of 3 done")
    await expect(dialog(page)).to_contain_text(
        re.compile(r"2 sessions dropped, the last after \d+\.\d ms\.")
    )
    await expect(items.nth(1)).to_have_text(re.compile(r"lab-1: done, dropped in \d+\.\d ms"))
    await expect(items.nth(2)).to_contain_text("lab-3 is provisioned, so it cannot be deregistered")
    await press(page, "Ok")
    await expect(bulk).to_be_hidden()
    await expect(page.get_by_label("Choose all on this page")).to_be_focused()


@pytest.mark.long
async def test_several_are_disconnected_also_from_another_page_of_the_table(admin, page, running):
    first = await connected(running, page, "lab-1")
    second = await connected(running, page, "build-2", "ci-cd")
    await page.get_by_label("Choose build-2").check()
    await page.get_by_label("Search ICEs").fill("lab")
    await expect(row(page, "build-2")).to_have_count(0)
    await page.get_by_label("Choose lab-1").check()
    bulk = page.get_by_role("group", name="Chosen ICEs")
    await bulk.get_by_role("button", name="Disconnect…").click()
    await expect(dialog(page).get_by_role("listitem")).to_have_count(2)
    await press(page, "Disconnect")
    await first.expect_dropped(4201)
    await second.expect_dropped(4201)
    await expect(dialog(page).get_by_role("heading")).to_have_text("Disconnect: 2 of 2 done")


@pytest.mark.long
async def test_of_two_admins_the_second_is_told(new_admin, running):
    await running.add_user("eve", Role.ADMIN)
    root, eve = await new_admin(), await new_admin("eve")
    eve.expected = {409}
    one, two = await root.open(), await eve.open()
    await connected(running, one)
    await choose(two, "lab-1", "Deregister")
    await choose(one, "lab-1", "Deregister")
    await press(one, "Deregister")
    await expect(dialog(one).get_by_role("heading")).to_have_text("lab-1 deregistered")
    # What eve sees behind her dialog has changed; the dialog is still there.
    await expect(row(two, "lab-1").locator(".status")).to_have_text("Deregistered")
    await press(two, "Deregister")
    await expect(dialog(two).get_by_role("heading")).to_have_text("The ICE has changed")
    await expect(dialog(two).get_by_role("alert")).to_contain_text("It is now: Deregistered")
    await press(two, "Ok")
    events = (await running.admin.get("/events?action=deregister")).json["items"]
    assert [event["actor"] for event in events] == ["root"]


async def test_action_that_is_no_longer_allowed_is_told_before_it_is_tried(admin, running):
    """A page that is not renewed shows what was."""
    admin.expected = {409}
    ice = await running.provision("lab-1")
    page = await admin.open()
    await hide(page)
    await ice.connect()
    await choose(page, "lab-1", "Reprovision")
    await expect(dialog(page).get_by_role("alert")).to_contain_text("It is now: Registered")
    await press(page, "Ok")
    await expect(row(page, "lab-1").locator(".status")).to_have_text("Registered")


async def test_login_that_ends_in_the_middle_of_an_action(new_admin, running):
    await set_password(running)
    admin = await new_admin()
    admin.expected = {401}
    # The page must learn of the end by the action: it is not renewed, and looks for no user's name.
    page = await admin.open()
    await hide(page)
    await fill(page, "lab-1", None)
    await admin.end_logins()
    await submit(page)
    await expect(dialog(page).get_by_role("alert")).to_have_text(
        "Your login has ended. Nothing was changed."
    )
    assert (await running.admin.get("/ices/lab-1")).status == 404
    async with admin.context.expect_page() as opened:
        await dialog(page).get_by_role("link", name="Log in again").click()
    other = await opened.value
    await enter(other)
    await expect(other.get_by_role("heading", level=1)).to_have_text("ICE Provisioning")
    await other.close()
    token = page.locator("meta[name=form-token]")
    old = await token.get_attribute("content")  # before the page is renewed, as it is when it shows
    await hide(page, hidden=False)
    # The same page goes on, with what was typed.
    await press(page, "Ok")
    await expect(page.get_by_label("ICE name")).to_have_value("lab-1")
    await expect(token).not_to_have_attribute("content", old)
    await submit(page)
    await expect(dialog(page).get_by_role("heading")).to_have_text("ICE provisioning successful")


async def test_form_of_an_earlier_login_changes_nothing_and_can_be_sent_again(admin, page, running):
    admin.expected = {403}
    await fill(page, "lab-1")
    # At the press: whatever the page asks for by itself before brings it the token of now.
    await page.evaluate(
        """() => {
          const of_earlier = (event) => {
            if (event.detail.verb !== "post") return;
            document.removeEventListener("htmx:configRequest", of_earlier);
            document.querySelector("meta[name=form-token]").content = "old";
            event.detail.headers["X-Form-Token"] = "old";
          };
          document.addEventListener("htmx:configRequest", of_earlier);
        }"""
    )
    await submit(page)
    await expect(dialog(page).get_by_role("alert")).to_contain_text("nothing was changed")
    assert (await running.admin.get("/ices/lab-1")).status == 404
    await press(page, "Ok")
    await expect(page.get_by_label("ICE name")).to_have_value("lab-1")
    await submit(page)
    await expect(dialog(page).get_by_role("heading")).to_have_text("ICE provisioning successful")


async def test_gateway_that_does_not_answer_is_told_of(admin, page, running):
    await page.route("**/admin/ices", lambda route: route.abort())
    await fill(page, "lab-1")
    await submit(page)
    message = page.locator("#notices").get_by_role("alert")
    await expect(message).to_have_text(
        "The gateway did not answer: check whether it was done before you try again."
    )
    await page.get_by_role("button", name="Dismiss").click()
    await expect(message).to_have_count(0)
    await expect(page.get_by_label("ICE name")).to_have_value("lab-1")
    faults, admin.faults = admin.faults, []
    assert all("ERR_FAILED" in fault or "htmx:" in fault for fault in faults), faults


@pytest.mark.long
async def test_change_by_a_command_while_its_dialog_is_open(admin, page, running):
    admin.expected = {409}
    connection = await connected(running, page)
    await choose(page, "lab-1", "Reregister")
    async with open_context(running.gateway.settings) as opened:
        await opened.services.provisioning.deregister(
            opened.actor, (await IceListing(opened.engine).find("lab-1")).ice
        )
    await connection.expect_dropped(4101)
    await expect(row(page, "lab-1").locator(".status")).to_have_text("Deregistered")
    await expect(dialog(page).get_by_role("heading")).to_have_text("Reregister lab-1?")
    await press(page, "Reregister")
    await expect(dialog(page).get_by_role("alert")).to_contain_text("It is now: Deregistered")
