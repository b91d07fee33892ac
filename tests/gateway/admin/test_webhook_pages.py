"""The pages of webhooks over HTTP: made, shown, tested, changed, sent again and deleted."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from gateway.core.roles import Role
from gateway.core.times import utc_now
from gateway.core.webhook import Failing
from gateway.store.webhooks import SetAside, move_on, set_aside
from tests.support.pages import said
from tests.support.receiver import receiving

ALLOW = pytest.mark.gateway(webhooks__allow=["127.0.0.0/8"])
HOOK = {"name": "ops", "url": "https://hooks.example.com/T0/x", "events": "deregister, ice.away"}


def told(answer):
    """What the page's script is told in a header."""
    return json.loads(answer.headers["HX-Trigger"])


async def only(running):
    """The only webhook, as the API has it."""
    [found] = (await running.admin.get("/webhooks")).json["items"]
    return found


async def test_a_webhook_from_its_making_to_its_end(running, root):
    assert "There is no webhook." in said(await root.get("webhooks"))
    form = await root.get("new-webhook")
    assert "operation.finished" in said(form)
    made = await root.post("webhooks", HOOK)
    assert made.status == 201
    assert "webhooks-changed" in told(made)
    assert "whsec_" in made.text
    one = await only(running)
    assert one["events"] == ["deregister", "ice.away"]
    path = f"webhooks/{one['id']}"
    for where in ("webhooks", path):
        shown = await root.get(where)
        assert "whsec_" not in shown.text
        for part in ("ops", HOOK["url"], "deregister", "ice.away", "active"):
            assert part in said(shown), part
    assert "Nothing was sent yet." in said(await root.get(path))
    form = await root.get(f"{path}/change")
    assert 'value="deregister ice.away"' in form.text
    changed = await root.post(f"{path}/change", HOOK | {"name": "new", "events": "*"})
    assert told(changed)["toast"] == {"sentence": "The webhook new is changed."}
    for what, enabled in (("disable", False), ("enable", True)):
        switched = told(await root.post(f"{path}/{what}"))["toast"]
        assert switched == {"sentence": f"The webhook new is {what}d."}
        assert (await only(running))["enabled"] is enabled
    assert "Delete new?" in said(await root.get(f"{path}/delete"))
    deleted = await root.post(f"{path}/delete")
    assert (deleted.status, deleted.headers["HX-Redirect"]) == (204, "./webhooks")
    assert (await root.get(path)).status == 404
    log = said(await root.get("audit"))
    for part in (
        "Made the webhook ops",
        "Its name was ops.",
        "Disabled it.",
        "Deleted the webhook",
    ):
        assert part in log, part
    assert "T0/x" not in log


async def test_a_refusal_appears_in_the_form(running, root):
    for change, part in (
        ({"url": "http://hooks.example.com"}, "needs https"),
        ({"events": "nonsense"}, "nonsense is no action"),
        ({"events": " , "}, "name at least one"),
        ({"name": ""}, "printable characters"),
    ):
        refused = await root.post("webhooks", HOOK | change)
        assert refused.status == 422
        assert part in said(refused), part


@ALLOW
async def test_a_test_and_what_was_set_aside(running, root):
    async with receiving() as receiver:
        await root.post("webhooks", HOOK | {"url": receiver.url})
        one = await only(running)
        path = f"webhooks/{one['id']}"
        tested = told(await root.post(f"{path}/test"))["toast"]["sentence"]
        assert tested.startswith("The test was taken: 204 in ")
        receiver.answers = [413]
        tested = told(await root.post(f"{path}/test"))["toast"]["sentence"]
        assert tested == "The test was not taken: answered 413."
        given_up = SetAside("log-1", "provision", "{}", utc_now(), 20, "answered 500")
        await running.gateway.engine.write(lambda t: set_aside(t, one["id"], given_up))
        shown = said(await root.get(path))
        for part in ("Set aside", "log-1, after 20 attempts: answered 500", "answered 413"):
            assert part in shown, part
        sent = told(await root.post(f"{path}/set-aside/log-1/send"))["toast"]["sentence"]
        assert sent.startswith("The message log-1 was taken: 204 in ")
        assert "after 20 attempts" not in said(await root.get(path))


async def test_a_webhook_that_fails_says_since_when_and_why(running, root):
    await root.post("webhooks", HOOK)
    one = await only(running)
    now = utc_now()
    failing = Failing(
        "log-7", now - timedelta(hours=1), 9, now + timedelta(hours=1), "answered 500"
    )
    await running.gateway.engine.write(lambda t: move_on(t, one["id"], 6, failing))
    assert "failing since" in said(await root.get("webhooks"))
    shown = said(await root.get(f"webhooks/{one['id']}"))
    for part in ("answered 500", "9 to send log-7", "event 6", "Try now"):
        assert part in shown, part


async def test_an_auditor_reads_and_does_nothing(running, root, browse):
    await root.post("webhooks", HOOK)
    eve = await browse(running, "eve", Role.AUDITOR)
    one = await only(running)
    assert "Make a webhook" not in said(await eve.get("webhooks"))
    assert "Send a test" not in said(await eve.get(f"webhooks/{one['id']}"))
    assert (await eve.post(f"webhooks/{one['id']}/test")).status == 403
