"""The commands of webhooks, on the database of a running gateway and over its API."""

from __future__ import annotations

import json

import pytest

from gateway.core.times import utc_now
from gateway.store.webhooks import SetAside, set_aside
from tests.support.receiver import receiving

pytestmark = pytest.mark.gateway(webhooks__allow=["127.0.0.0/8"])


@pytest.fixture(autouse=True)
def allowed(monkeypatch):
    """The commands on the database read the settings, too."""
    monkeypatch.setenv("ICE_GATEWAY_WEBHOOKS__ALLOW", "127.0.0.0/8")


async def listed(admin):
    return json.loads((await admin("webhooks", "list", "--json")).stdout)


async def test_a_webhook_from_its_making_to_its_end(running, admin):
    async with receiving() as receiver:
        events = ("--event", "provision", "--event", "ice.away")
        made = await admin("webhooks", "create", "ops", "--url", receiver.url, *events)
        receiver.secret = made.stdout.strip()
        assert receiver.secret.startswith("whsec_")
        [one] = await listed(admin)
        assert made.stderr == f"made the webhook {one['id']}; stdout has its secret, this once\n"
        assert one == (await running.admin.get(f"/webhooks/{one['id']}")).json
        assert one["events"] == ["provision", "ice.away"]
        said = (await admin("webhooks", "test", one["id"])).stdout
        assert said.startswith("204 in ")
        await running.provision("lab-1")
        await receiver.until_taken("test", "provision")
        receiver.answers = [500]
        refused = await admin("webhooks", "test", one["id"], status=1)
        assert refused.stderr.startswith("ice-gateway: answered 500 (")
    await admin("webhooks", "change", one["id"], "--disable", "--event", "*", "--name", "new")
    [changed] = await listed(admin)
    assert (changed["enabled"], changed["events"], changed["name"]) == (False, ["*"], "new")
    heading, row = (await admin("webhooks", "list", "--q", "NE")).stdout.splitlines()
    assert heading.split("  ")[0] == "ID"
    assert "  disabled  " in row
    shown = (await admin("webhooks", "show", one["id"])).stdout
    assert "whsec_" not in shown
    assert "new" in shown
    deliveries = (await admin("webhooks", "deliveries", one["id"])).stdout
    assert [line.split()[2] for line in deliveries.splitlines()] == [
        *("TYPE", "test", "provision", "test"),
    ]
    assert (await admin("webhooks", "delete", one["id"])).output == ""
    assert await listed(admin) == []


async def test_what_was_set_aside_is_sent_again(running, admin):
    async with receiving() as receiver:
        options = ("--url", receiver.url, "--event", "provision", "--disabled")
        receiver.secret = (await admin("webhooks", "create", "ops", *options)).stdout.strip()
        [one] = await listed(admin)
        aside = SetAside("log-1", "provision", "{}", utc_now(), 20, "answered 500")
        await running.gateway.engine.write(lambda t: set_aside(t, one["id"], aside))
        _, row = (await admin("webhooks", "set-aside", one["id"])).stdout.splitlines()
        assert row.split()[1:4] == ["log-1", "provision", "20"]
        receiver.answers = [503]
        refused = await admin("webhooks", "send-again", one["id"], "log-1", status=1)
        assert "answered 503" in refused.stderr
        await admin("webhooks", "send-again", one["id"], "log-1")
    assert json.loads((await admin("webhooks", "set-aside", one["id"], "--json")).stdout) == []


REFUSED = (
    (("create", "n", "--url", "https://a.example"), 2, "Missing option '--event'"),
    (("create", "n", "--event", "*"), 2, "Missing option '--url'"),
    (("create", "n", "--url", "http://a.example", "--event", "*"), 1, "needs https"),
    (("create", "n", "--url", "https://10.0.0.1", "--event", "*"), 1, "webhooks.allow"),
    (("create", "n", "--url", "https://a.example", "--event", "x"), 1, "x is no action"),
    (("change", "none"), 2, "say what to change"),
    (("change", "none", "--enable"), 1, "There is no such webhook."),
    (("show", "none"), 1, "There is no such webhook."),
    (("delete", "none"), 1, "There is no such webhook."),
    (("test", "none"), 1, "There is no such webhook."),
    (("deliveries", "none"), 1, "There is no such webhook."),
    (("set-aside", "none"), 1, "There is no such webhook."),
    (("send-again", "none", "m"), 1, "There is no such webhook."),
)


async def test_what_is_refused(admin):
    for asked, status, said in REFUSED:
        refused = await admin("webhooks", *asked, status=status)
        assert said in refused.stderr, (asked, refused.stderr)
        assert refused.stdout == ""
