"""By keyboard alone, with a screen reader, in light and dark, narrow and wide."""

from __future__ import annotations

import itertools

import pytest
from playwright.async_api import expect

from gateway.core.roles import Role
from gateway.core.schedule import Occurrence, SkipReason
from gateway.core.times import utc_now
from gateway.core.webhook import Failing
from gateway.services.webhooks import WantedWebhook
from gateway.store import schedules, webhooks
from gateway.store.nodes import NodeRecord
from tests.browser.admin import (
    choose,
    close_token,
    dialog,
    fill,
    follow,
    hide,
    more,
    press,
    row,
    submit,
    violations,
)
from tests.support.harness import ADMIN
from tests.support.ice import Key
from tests.support.machine import CI_CD, KEY, Machine, new_key
from tests.support.work import asked, progress, take

NAV = [
    "./",
    "operations",
    "schedules",
    "pools",
    "enrolment",
    "users",
    "api-tokens",
    "webhooks",
    "audit",
    "guide",
]
NAV += ["me"]


LOOKS = list(itertools.product(("light", "dark"), (360, 768, 1280)))
"""Colour schemes and widths; one of them in each run of the tests, all in the long one."""


def looks(scheme, width):
    """All looks, of which only this one is for each run of the tests."""
    return pytest.mark.parametrize(
        ("scheme", "width"),
        [
            look if look == (scheme, width) else pytest.param(*look, marks=pytest.mark.long)
            for look in LOOKS
        ],
    )


def node(name, **state):
    return NodeRecord(name, name, "0.1.0", "k", "https://10.0.0.1:8440", utc_now(), 1, **state)


async def hooked(running):
    """A webhook that fails, with a message that was set aside, and one that is disabled."""
    service, now = running.gateway.services.webhooks, utc_now()
    url = "https://hooks.example.com/" + "x" * 300
    for name in ("off", "ops"):
        made = await service.create(ADMIN, WantedWebhook(name, url, ["*"], enabled=False))
    failing = Failing("log-9", now, 7, now, "answered 500")
    given_up = webhooks.SetAside("log-1", "provision", "{}", now, 20, "answered 413")
    sent = webhooks.Delivery("log-9", "deregister", now, 500, "answered 500", 12)

    async def unit(transaction):
        await webhooks.set_aside(transaction, made.webhook.id, given_up)
        await webhooks.record(transaction, made.webhook.id, sent)
        # Enabled, so that it says that it fails, though nothing is sent: no event says so.
        await transaction.run("UPDATE webhooks SET enabled = 1 WHERE id = $1", made.webhook.id)
        await webhooks.move_on(transaction, made.webhook.id, 2**40, failing)

    await running.gateway.engine.write(unit)


async def inhabited(running):
    """ICEs in every status, one of them connected, one with a refused attempt; tokens; nodes in every state."""
    await running.provision("waiting-1")
    off = await (await running.provision("off-1")).connect()
    await off.leave()
    labelled = {"labels": {"os": "windows", "room": "4"}, "note": "under the desk"}
    await running.admin.call("PATCH", "/ices/off-1", json=labelled)
    gone = await running.provision("gone-1", "ci-cd")
    await gone.connect()
    await running.act("gone-1", "deregister")
    ice = await running.provision("lab-berlin-1")
    connection = await ice.connect()
    connection.hello(version="7.1", platform="Linux-6.1-x86_64-with-glibc2.36", hostname="desk-9")
    await connection.round_trip()
    for kind in ("debug", "scrape"):
        await asked(running.admin, "lab-berlin-1", kind, params={"page": "x" * 300})
    operation = await take(connection)
    progress(connection, operation, fraction=0.42, message="tests/test_login.py::" + "x" * 90)
    await running.eventually(f"/operations/{operation}", lambda told: told.json["progress"])
    await running.ice(ice.token, Key()).refused()
    for name in ("lab-berlin-1", "waiting-1"):
        pause = {"until": "2126-11-22T18:00:00Z", "note": "n" * 300}
        await running.admin.post(f"/ices/{name}/pause", pause)
    await running.provision("a" * 64)
    await running.add_user("a-user-with-a-very-long-name-" + "x" * 90, Role.AUDITOR)
    await running.add_user("second", Role.ADMIN)
    await running.add_user("gone")
    accounts = running.gateway.services.accounts
    await accounts.disable(ADMIN, "gone")
    for label in ("nightly", "revoked"):
        made = await accounts.create_token(ADMIN, "root", label, 86_400)
    await accounts.revoke_token(ADMIN, made.token.id)
    _, secret = await new_key(running, KEY, approval=True, max_uses=9, name="k" * 128)
    for name in ("w" * 253, "berlin-1"):  # the second replaces an ICE
        await Machine(running.session, running.url, secret, name).ask()
    await new_key(running, CI_CD, labels={"os": "windows"})
    for name in ("windows", "w" * 64):
        labels = {"os": "windows", "site": "x" * 63}
        await running.make_pool(name, labels, description="x" * 300)
    await accounts.create_token(ADMIN, "root", "job", 86_400, pool="windows")
    await scheduled(running)
    await hooked(running)
    found = (await running.admin.get(f"/schedules?pool={'w' * 64}")).json["items"]
    await running.admin.post(f"/schedules/{found[0]['id']}/run")
    for kind in ("remote-execute", "scrape"):
        await running.admin.post("/pools/windows/operations", {"kind": kind})
    await running.settled()
    return operation


async def scheduled(running):
    """A schedule that has run and was left out for each reason, one with long names, and one that is disabled."""
    for how in (
        {"ice_name": "lab-berlin-1", "enabled": False},
        {"pool": "w" * 64, "name": "w" * 128, "timezone": "America/Argentina/ComodRivadavia"},
        {"ice_name": "lab-berlin-1", "params": {"page": "x" * 300}},
    ):
        body = {"name": "nightly", "cron": ",".join(map(str, range(60))) + " 2 * * 1-5"} | how
        made = (await running.admin.post("/schedules", body)).json
    at = utc_now()
    rows = [Occurrence(at, at, "0c2f1e6f0b7d4a5e9c8b7a61", None)]
    rows += [Occurrence(at, at, None, reason) for reason in SkipReason]
    await running.gateway.engine.write(
        lambda transaction: schedules.record(transaction, made["id"], rows)
    )


@pytest.fixture
def nodes(running, monkeypatch):
    """What the page of nodes shows of several gateways."""
    found = [node("a", draining=False, lease=10.0, connected=3)]
    found.append(node("b", draining=True, lease=10.0))
    found.append(node("c" * 64, draining=False, lease=10.0, gone=True))

    async def all_nodes():
        return found

    monkeypatch.setattr(running.gateway.services.nodes, "all", all_nodes)


async def hold_to_axe(page, where, part=None):
    found = await violations(page, part)
    assert not found, f"{where}:\n{found}"


async def hold_to_width(page, where, *widths):
    """Nothing of the page is beside the window, at its width and at these."""
    before = page.viewport_size
    for width in (before["width"], *widths):
        await page.set_viewport_size({**before, "width": width})
        needs = await page.evaluate("document.documentElement.scrollWidth")
        assert needs <= width, f"{where} is {needs} px wide in a window of {width}"
    await page.set_viewport_size(before)


async def every_dialog(page, running):
    """Open each kind of dialog in turn; yields what it is."""
    await choose(page, "lab-berlin-1", "Deregister")
    yield "deregister?"
    await press(page, "Cancel")
    await choose(page, "lab-berlin-1", "Disconnect")
    await press(page, "Disconnect")
    await expect(dialog(page).get_by_role("heading")).to_contain_text("disconnected")
    yield "disconnected"
    await press(page, "Ok")
    await page.get_by_label("Choose all on this page").check()
    for button in ("#bulk-label", "#bulk-pause", "#show-chosen"):
        await page.locator(button).click()
        await expect(dialog(page)).to_be_visible()
        yield button
        await dialog(page).locator("[data-close]").click()
    await page.locator("#bulk-deregister").click()
    await expect(dialog(page)).to_be_visible()
    yield "deregister several?"
    await press(page, "Deregister")
    await expect(dialog(page).get_by_role("heading")).to_contain_text("done")
    yield "deregistered several"
    await press(page, "Ok")
    fleet = b"ice_name,ice_type,user,labels\n-,-,,\nlab-9,normal,nobody,os=windows;room=4\n"
    file = {"name": "fleet.csv", "mimeType": "text/csv", "buffer": fleet}
    await fill(page, "lab-2")
    await page.locator("#fleet-file").set_input_files(file)
    await expect(dialog(page)).to_be_visible()
    yield "preview of a file"
    await press(page, "Cancel")
    await submit(page)
    await expect(dialog(page)).to_be_visible()
    yield "provisioned"
    await press(page, "Ok")
    await expect(dialog(page).locator("[data-ask]")).to_be_visible()
    yield "token"
    await dialog(page).locator("[data-ask]").click()
    yield "token, closing"
    await dialog(page).locator("[data-close]").click()
    await page.evaluate("document.querySelector('meta[name=form-token]').content = 'old'")
    await fill(page, "lab-3")
    await submit(page)
    await expect(dialog(page)).to_be_visible()
    yield "problem"


async def hold_pages(page, running, addresses, further):
    """Hold each page to axe and to the width, with all that it folds away unfolded."""
    for address in addresses:
        answer = await page.goto(f"{running.url}/admin/{address}")
        assert answer.ok or address == "ices/nowhere", f"{address} answered {answer.status}"
        for summary in await page.locator("summary").all():
            await summary.click()
        if await page.locator("[data-open-provision]").is_visible():
            await page.locator("[data-open-provision]").click()
            if await page.locator(".more").count():
                await page.locator("#choose-all").check()
                await page.locator(".more").first.click()
        await hold_to_axe(page, address)
        await hold_to_width(page, address, further)


async def details(running, enabled):
    """The pages of the schedules and webhooks that are enabled, or of those that are not."""
    return [
        f"{kind}/{one['id']}"
        for kind in ("schedules", "webhooks")
        for one in (await running.admin.get(f"/{kind}")).json["items"]
        if one["enabled"] is enabled
    ]


def beyond(width):
    """A width at which a page that is shown at this one is looked at besides."""
    return 320 if width == 360 else 1920


@looks("dark", 360)
async def test_pages_hold_to_axe_and_to_the_width(new_admin, running, nodes, scheme, width):
    operation = await inhabited(running)
    look = {"color_scheme": scheme, "viewport": {"width": width, "height": 900}}
    stranger = await new_admin(None, **look)
    page = await stranger.open("login")
    await hold_to_axe(page, "login")
    await hold_to_width(page, "login", beyond(width))
    admin = await new_admin(**look)
    admin.expected = {404}
    page = await admin.open()
    links = page.get_by_role("navigation", name="Main").get_by_role("link")
    found = await links.evaluate_all("links => links.map(link => link.getAttribute('href'))")
    assert found == NAV
    others = ["nodes", "enrolment/keys", "pools/windows", f"operations/{operation}"]
    others += [*await details(running, enabled=True), "ices/lab-berlin-1", "ices/nowhere"]
    await hold_pages(page, running, [*NAV, *others], beyond(width))


@pytest.mark.long
@pytest.mark.parametrize(("scheme", "width"), LOOKS)
async def test_pages_hold_to_axe_and_to_the_width_in_other_states(
    new_admin, running, scheme, width
):
    await inhabited(running)
    admin = await new_admin(color_scheme=scheme, viewport={"width": width, "height": 900})
    page = await admin.open()
    states = [f"ices/{name}" for name in ("waiting-1", "off-1", "gone-1")]
    states += ["operations?pool=windows", "operations?state=lost", "?q=nowhere"]
    states += await details(running, enabled=False)
    await hold_pages(page, running, states, beyond(width))


async def every_dialog_of_work(page, running):
    """The same on the page of an ICE that works."""
    await page.goto(f"{running.url}/admin/ices/lab-berlin-1")
    for button in (
        "Run an operation",
        "Show operation",
        "Cancel operation",
        "Edit labels and note",
        "Change pause",
        "Reregister",
    ):
        await page.get_by_role("button", name=button).first.click()
        await expect(dialog(page)).to_be_visible()
        if button == "Run an operation":
            await dialog(page).get_by_label("Kind").select_option("schedule")
        yield button
        await dialog(page).locator("[data-close]").click()


async def every_dialog_of_pools(page, running):
    """The same on the page of a pool, and of all."""
    await page.goto(f"{running.url}/admin/pools/windows")
    for button in (
        *("Change…", "Delete…", "Run an operation"),
        *("Show operation", "Cancel operation"),
    ):
        await page.get_by_role("button", name=button).first.click()
        await expect(dialog(page)).to_be_visible()
        yield button
        await dialog(page).locator("[data-close]").click()
    await page.goto(f"{running.url}/admin/pools")
    await page.get_by_role("button", name="Make a pool").click()
    await expect(dialog(page)).to_be_visible()
    yield "Make a pool"
    await press(page, "Cancel")


async def every_dialog_of_schedules(page, running):
    """The same on the pages of schedules."""
    await page.goto(f"{running.url}/admin/schedules")
    await follow(page, page.get_by_role("link", name="nightly").first)
    for button in ("Change…", "Delete…"):
        await page.get_by_role("button", name=button).click()
        await expect(dialog(page)).to_be_visible()
        if button == "Change…":
            await expect(dialog(page).get_by_text("on Monday through Friday")).to_be_visible()
        yield button
        await press(page, "Cancel")
    await page.goto(f"{running.url}/admin/schedules")
    await page.get_by_role("button", name="Make a schedule").click()
    await expect(dialog(page)).to_be_visible()
    yield "Make a schedule"
    await press(page, "Cancel")


async def every_dialog_of_webhooks(page, running):
    """The same on the pages of webhooks."""
    await page.goto(f"{running.url}/admin/webhooks")
    await follow(page, page.get_by_role("link", name="ops").first)
    for button in ("Change…", "Delete…"):
        await page.get_by_role("button", name=button).click()
        await expect(dialog(page)).to_be_visible()
        yield button
        await press(page, "Cancel")
    await page.goto(f"{running.url}/admin/webhooks")
    await page.get_by_role("button", name="Make a webhook").click()
    await dialog(page).locator("summary").click()
    yield "Make a webhook"
    await dialog(page).locator("#webhook_name").fill("new")
    await dialog(page).locator("#webhook_url").fill("https://hooks.example.com")
    await dialog(page).locator("#webhook_events").fill("deregister")
    await press(page, "Make the webhook")
    await press(page, "Ok")
    await expect(dialog(page).locator("[data-ask]")).to_be_visible()
    yield "secret of a webhook"
    await close_token(page)


async def every_dialog_of_accounts_and_nodes(page, running):
    """The same on the pages of users, API tokens and nodes, and of one's own account."""
    for address, buttons in {
        "users": ("role-second", "password-second", "logins-root", "disable-alice", "enable-gone"),
        "nodes": ("drain-a", "resume-b"),
    }.items():
        await page.goto(f"{running.url}/admin/{address}")
        for button in buttons:
            await page.locator(f"#{button}").click()
            await expect(dialog(page)).to_be_visible()
            yield button
            if button == "disable-alice":
                await press(page, "Disable")
                await expect(dialog(page).get_by_role("heading")).to_have_text("alice is disabled")
                yield "disabled"
            await dialog(page).locator("[data-close]").click()
    await page.goto(f"{running.url}/admin/api-tokens")
    await page.get_by_role("button", name="Revoke nightly").click()
    await expect(dialog(page)).to_be_visible()
    yield "revoke?"
    await press(page, "Cancel")
    await page.locator("#token_owner").fill("root")
    await page.locator("#token_label").fill("new")
    await page.get_by_role("button", name="Create token").click()
    await press(page, "Ok")
    await expect(dialog(page).locator("[data-ask]")).to_be_visible()
    yield "API token"


async def every_dialog_of_enrolment(page, running):
    """The same on the pages of enrolment."""
    await page.goto(f"{running.url}/admin/enrolment")
    await page.get_by_label("Choose all on this page").check()
    for button in ("Approve berlin-1", "Reject berlin-1", "Approve chosen", "Reject chosen"):
        await page.get_by_role("button", name=button).click()
        await expect(dialog(page)).to_be_visible()
        yield button
        await press(page, "Cancel")
    await page.goto(f"{running.url}/admin/enrolment/keys")
    for button in ("Revoke runners", "Make a key"):
        await page.get_by_role("button", name=button).click()
        await expect(dialog(page)).to_be_visible()
        yield button
        if button != "Make a key":
            await press(page, "Cancel")
    await dialog(page).locator("#key_name").fill("new")
    await dialog(page).locator("#key_prefix").fill("new-")
    await dialog(page).get_by_role("radio", name="CI/CD").check()
    await press(page, "Make the key")
    await press(page, "Ok")
    await expect(dialog(page).locator("[data-ask]")).to_be_visible()
    yield "enrolment key"
    await close_token(page)


@pytest.mark.parametrize(
    ("scheme", "width"),
    [pytest.param(*look, marks=pytest.mark.long) for look in (("light", 320), *LOOKS)],
)
async def test_dialogs_hold_to_axe_and_to_the_width(new_admin, running, nodes, scheme, width):
    await inhabited(running)
    admin = await new_admin(color_scheme=scheme, viewport={"width": width, "height": 700})
    admin.expected = {403}
    page = await admin.open()
    walks = [every_dialog_of_work, every_dialog]
    if width != 320:
        walks += [
            every_dialog_of_enrolment,
            every_dialog_of_accounts_and_nodes,
            every_dialog_of_pools,
            every_dialog_of_schedules,
            every_dialog_of_webhooks,
        ]
    for dialogs in walks:
        if dialogs is every_dialog:
            await page.goto(f"{running.url}/admin/")
        async for what in dialogs(page, running):
            await hold_to_axe(page, what, "dialog[open]")
            await hold_to_width(page, what)
            box = await dialog(page).locator("article:visible").bounding_box()
            assert box["x"] >= 0, f"{what}: {box}"
            assert box["x"] + box["width"] <= width, f"{what}: {box}"


@pytest.mark.gateway(
    sso__issuer="https://id.example.org", sso__client_id="ice", sso__roles="lab=member"
)
async def test_a_user_is_linked_to_the_issuer(new_admin, running):
    admin = await new_admin(viewport={"width": 360, "height": 700})
    page = await admin.open("users")
    await page.get_by_role("button", name="Change origin of alice").click()
    asks, subject = dialog(page), dialog(page).get_by_label("Subject")
    await expect(asks.get_by_role("heading")).to_have_text("Origin of alice")
    await expect(subject).to_be_hidden()
    await asks.get_by_role("radio", name="Single sign-on").check()
    await hold_to_axe(page, "origin", "dialog[open]")
    await hold_to_width(page, "origin")
    admin.expected.add(422)
    await press(page, "Change origin")
    await expect(asks.locator(".fault")).to_contain_text("Subject: must be the issuer's")
    await expect(subject).to_be_focused()
    await subject.fill("248289761001")
    await press(page, "Change origin")
    await expect(asks).to_contain_text("alice logs in by single sign-on alone, as 248289761001.")
    await press(page, "Ok")
    await expect(page.locator("#user-alice")).to_contain_text("Single sign-on")
    await expect(page.get_by_role("button", name="Set password of alice")).to_have_count(0)


async def reach(page, name, key="Tab"):
    """Press Tab until the focus is on what bears this name; it has to come within the page's length."""
    for _ in range(60):
        focused = await page.evaluate(
            "(document.activeElement.getAttribute('aria-label')"
            " || document.activeElement.labels?.[0]?.innerText"
            " || document.activeElement.innerText || '').trim()"
        )
        if focused.startswith(name):
            return
        await page.keyboard.press(key)
    raise AssertionError(f"{name} is not reached by {key}")


async def test_provision_and_deregister_by_keyboard_alone(page, running):
    keys = page.keyboard
    await keys.press("Tab")
    await expect(page.get_by_text("Skip to content")).to_be_focused()
    await keys.press("Enter")
    await expect(page.locator("main")).to_be_focused()
    await reach(page, "Normal")
    await keys.press("ArrowDown")
    await expect(page.get_by_role("radio", name="CI/CD")).to_be_checked()
    await keys.press("ArrowUp")
    await reach(page, "ICE name")
    await keys.type("lab-1")
    await keys.press("Tab")
    await expect(page.locator("#provisionedto")).to_be_focused()
    await keys.type("alice")
    await reach(page, "Provision")
    await keys.press("Enter")
    ok = dialog(page).get_by_role("button", name="Ok")
    await expect(ok).to_be_focused()
    await keys.press("Enter")
    await expect(dialog(page).get_by_role("heading")).to_be_focused()
    token = await page.locator("#token").input_value()
    await reach(page, "Close")
    await keys.press("Enter")
    await expect(dialog(page).get_by_role("button", name="Keep it open")).to_be_focused()
    await keys.press("Tab")
    await keys.press("Enter")
    await expect(page.get_by_role("button", name="Provision", exact=True)).to_be_focused()
    connection = await running.ice(token).connect()
    await expect(row(page, "lab-1").locator(".status")).to_have_text("Registered")
    # The last that the page shows by itself: a key that is pressed while the row is replaced is lost.
    await expect(row(page, "lab-1")).to_contain_text("Connected")
    await reach(page, "More actions for lab-1")
    await keys.press("Enter")
    await expect(page.get_by_role("menuitem", name="Disconnect lab-1")).to_be_focused()
    await keys.press("ArrowDown")
    await keys.press("Enter")
    await expect(dialog(page).get_by_role("button", name="Cancel")).to_be_focused()
    await keys.press("Escape")
    await expect(more(page, "lab-1")).to_be_focused()
    await keys.press("Enter")
    await expect(page.get_by_role("menuitem", name="Disconnect lab-1")).to_be_focused()
    await keys.press("ArrowUp")
    await keys.press("ArrowUp")
    await keys.press("Enter")
    await expect(dialog(page)).to_be_visible()
    await keys.press("Tab")
    await keys.press("Enter")
    await connection.expect_dropped(4101)
    await expect(dialog(page).get_by_role("heading")).to_have_text("lab-1 deregistered")
    await keys.press("Escape")
    await expect(more(page, "lab-1")).to_be_focused()


async def test_actions_of_ices_and_operations_are_reachable_at_every_width(new_admin, running):
    await inhabited(running)
    page = await (await new_admin()).open()
    for width in (1280, 768, 360):
        await page.set_viewport_size({"width": width, "height": 700})
        for name in ("lab-berlin-1", "a" * 64):
            box = None
            while box is None:  # the table renewed itself between the two steps of this call
                box = await more(page, name).bounding_box()
            assert box["x"] >= 0, f"{name}: {box}"
            assert box["x"] + box["width"] <= width, f"{name}: {box}"
    await choose(page, "lab-berlin-1", "Reregister")
    await press(page, "Cancel")
    for address in ("operations", "ices/lab-berlin-1"):
        await page.goto(f"{running.url}/admin/{address}")
        await hide(page)  # so that it does not renew what follows
        region = page.locator("#operations-region")
        # The longest of everything.
        await region.evaluate(
            """region => {
              for (const link of region.querySelectorAll("th a")) link.textContent = "a".repeat(64);
              for (const by of region.querySelectorAll("td.user")) by.append("x".repeat(120));
              for (const kind of region.querySelectorAll("td.kind")) kind.firstChild.data = "remote-execute";
              for (const end of region.querySelectorAll("td.finished"))
                end.textContent = "29 Nov 2026, 09:55:48";
            }"""
        )
        for width in (1280, 1024, 768, 360):
            await page.set_viewport_size({"width": width, "height": 900})
            needs, has = await region.evaluate("region => [region.scrollWidth, region.clientWidth]")
            assert needs <= has, f"{address} at {width}: the table is {needs} px wide in {has}"
            for name in ("Show operation", "Cancel operation"):
                box = await region.get_by_role("button", name=name).first.bounding_box()
                assert box["x"] >= 0, f"{name} on {address} at {width}: {box}"
                assert box["x"] + box["width"] <= width, f"{name} on {address} at {width}: {box}"
