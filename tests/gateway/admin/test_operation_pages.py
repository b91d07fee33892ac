"""Operations on the pages, as HTTP: requested, looked at, cancelled, and by whom."""

from __future__ import annotations

import html
import json
import re

import pytest
import pytest_asyncio

from gateway.core.ice import IceType
from gateway.core.roles import Role
from gateway.store.operations import Operations
from tests.support.harness import ADMIN
from tests.support.pages import said
from tests.support.work import (
    UNREADABLE,
    asked,
    connected,
    expect_cancel,
    expect_run,
    finish,
    finished,
    in_state,
    progress,
    show,
    stored,
    take,
)

SCRIPT = "<script>alert('x')</script>\"&"
HERE = "ices/lab-1"
WORK = f"{HERE}/operations"


async def alices(browse, running):
    return await browse(running, "alice", Role.MEMBER)


def nonce(answer) -> str:
    found = re.search(r'name="nonce" value="(\w{32})"', answer.text)
    assert found, f"expected the form of a new operation, got {answer.text}"
    return found[1]


async def run(browser, work=WORK, **fields):
    """Fill in the form, and send it."""
    fields = {"kind": "execute", "params": "{}", "run_at": "", "deadline": "", **fields}
    fields.setdefault("nonce", nonce(await browser.part(f"{work}/new", "dialog")))
    return await browser.post(work, fields)


async def linux(running, **ices):
    """The pool of the ICEs of Linux; these belong to it, each of the type that is given, connected."""
    connections = {name: await connected(running, name, kind) for name, kind in ices.items()}
    for name in ices:
        await running.label(name, os="linux")
    await running.make_pool("linux", {"os": "linux"})
    await running.settled()
    return connections


async def pool_operation(running, kind="execute", **body):
    """Request an operation of the pool; returns its id."""
    answer = await running.admin.post("/pools/linux/operations", {"kind": kind, **body})
    assert answer.status == 202, answer
    return answer.json["id"]


async def requested(running):
    return (await running.admin.get("/operations")).json["items"]


# --- requested ---------------------------------------------------------------------------------


async def test_an_operation_is_requested_and_reaches_the_ice(running, root):
    ice = await connected(running)
    answer = await run(root, params='  {"suite": "smoke"} ')
    assert answer.status == 202
    assert json.loads(answer.headers["HX-Trigger"])["operations-changed"] == {}
    sent = await expect_run(ice)
    assert (sent["kind"], sent["params"]) == ("execute", {"suite": "smoke"})
    assert sent["id"] in said(answer)
    [operation] = await requested(running)
    assert operation["requested_by"] == "root"
    page = said(await root.get(HERE))
    assert f"request-operation (execute {sent['id']})" in page


async def test_the_form_offers_what_the_type_allows(running, root):
    await connected(running)
    await connected(running, "build-7", "ci-cd")
    for name, kinds in (
        ("lab-1", ["scrape", "debug", "execute", "remote-execute", "schedule"]),
        ("build-7", ["remote-execute", "schedule"]),
    ):
        form = await root.part(f"ices/{name}/operations/new", "dialog")
        assert sorted(re.findall(r"<option>([\w-]+)", form.text)) == sorted(kinds)


async def test_the_same_form_twice_is_one_operation_and_an_edited_one_another(running, root):
    await connected(running)
    form = nonce(await root.part(f"{WORK}/new", "dialog"))
    answers = [await run(root, nonce=form, params=params) for params in ("1", "1", "2")]
    assert [answer.status for answer in answers] == [202, 202, 202]
    assert [item["params"] for item in await requested(running)] == [2, 1]
    await run(root, params="1")
    assert len(await requested(running)) == 3, "another form is another wish"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def with_ice(shared):
    """A gateway to which an ICE is connected."""
    await connected(shared)
    return shared


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"kind": "dance"}, "kind", "invalid enum value"),
        ({"kind": ""}, "kind", "missing required field"),
        ({"params": "{"}, "params", "has to be JSON"),
        ({"params": '1, "kind": "debug"'}, "params", "has to be JSON"),
        ({"params": "[" * 976 + "]" * 976}, "params", "deeper than 100 levels"),
        ({"params": "1e999"}, "params", "not finite"),
        ({"params": f'"{"x" * 999_999}"'}, "params", "at most 1,000,000 bytes"),
        ({"kind": "schedule"}, "run_at", "is required for schedule"),
        ({"run_at": "2099-01-01T00:00:00Z"}, "run_at", "is only for schedule"),
        ({"kind": "schedule", "run_at": "2001-01-01T00:00:00Z"}, "run_at", "is past"),
        ({"deadline": "2001-01-01T00:00:00"}, "deadline", "timezone"),
        ({"deadline": "2001-01-01T00:00:00Z"}, "deadline", "is past"),
        ({"deadline": SCRIPT}, "deadline", "RFC3339"),
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_what_cannot_be_requested_is_said_in_the_form(
    with_ice, shared_root, fields, field, says
):
    answer = await run(shared_root, **fields)
    assert answer.status == 422, answer
    told = json.loads(answer.headers["HX-Trigger"])
    assert told["form-fault"] == {"field": f"operation-{field}"}
    assert answer.headers["HX-Retarget"] == "#dialog-fault"
    assert says in said(answer)
    assert "<script>" not in answer.text
    assert await requested(with_ice) == []


async def test_what_the_ice_may_not_be_sent_is_said_in_the_form(running, root):
    await connected(running, "lab-1", "ci-cd")
    answer = await run(root, kind="scrape")
    assert answer.status == 409
    assert "A ci-cd ICE accepts only remote-execute and schedule" in said(answer)
    await running.act("lab-1", "deregister")
    answer = await run(root, kind="remote-execute")
    assert answer.status == 409
    assert "only a registered ICE gets operations" in said(answer)
    assert "Run an operation" not in said(await root.get(HERE))
    assert await requested(running) == []


async def test_params_of_the_full_length_fit_the_form(running, root):
    await connected(running)
    params = f'"{"%" * 999_998}"'  # each of them three bytes in a form
    assert (await run(root, params=params)).status == 202


# --- looked at ---------------------------------------------------------------------------------


async def test_the_page_shows_how_far_it_is_while_it_goes_on(running, root):
    ice = await connected(running)
    assert "data-unfinished" not in (await root.get(HERE)).text
    operation = await asked(running.admin)
    await take(ice)
    progress(ice, operation, fraction=0.42, message=SCRIPT)
    await running.eventually(f"/operations/{operation}", lambda told: told.json["progress"])
    page = await root.part(HERE, "live")
    assert "data-unfinished" in page.text
    assert 'value="0.42"' in page.text
    assert html.escape(SCRIPT, quote=False).split("(")[0] in page.text
    await finished(ice, operation, result={"said": SCRIPT})
    await in_state(running, operation, "succeeded")
    page = await root.part(HERE, "live")
    assert "data-unfinished" not in page.text, "an idle page asks for nothing"
    assert "Succeeded" in said(page)


async def test_all_of_an_operation_is_shown(running, root):
    ice = await connected(running)
    operation = await asked(running.admin, params={"x": SCRIPT})
    error = {"code": "odd", "message": SCRIPT}
    await finished(ice, await take(ice), "failed", error=error)
    await in_state(running, operation, "failed")
    answer = await root.part(f"operations/{operation}/details", "dialog")
    text = said(answer)
    assert (
        json.dumps({"x": SCRIPT}, indent=2).split()
        == text.split("Params ")[1].split(" Error ")[0].split()
    )
    assert '"code": "odd"' in text
    assert "<script>" not in answer.text
    assert f'href="api/v1/operations/{operation}"' in answer.text
    assert "beginning" not in text


async def test_of_a_large_result_the_beginning_is_shown(running, root):
    ice = await connected(running)
    operation = await asked(running.admin)
    await finished(ice, await take(ice), result="x" * 900_000)
    await in_state(running, operation, "succeeded")
    answer = await root.part(f"operations/{operation}/details", "dialog")
    assert "Only the beginning is shown." in said(answer)
    assert len(answer.text) < 30_000


@pytest.mark.parametrize("column", UNREADABLE)
async def test_what_an_older_version_stored_is_shown(running, root, column):
    await connected(running)
    operation = await asked(running.admin)
    await running.admin.post(f"/operations/{operation}/cancel")
    await stored(running, operation, column, UNREADABLE[column])
    assert operation in (await root.get("ices/lab-1")).text
    answer = await root.part(f"operations/{operation}/details", "dialog")
    assert answer.status == 200
    assert len(answer.text) < 30_000
    if column == "params":
        assert "Only the beginning is shown." in said(answer)


async def test_operations_are_paged_newest_first(running, root):
    await connected(running)
    made = [await asked(running.admin, params=number) for number in range(25)]
    page = await root.get(HERE)

    def ids(answer):
        return re.findall(r'<tr id="operation-(\w+)"', answer.text)

    assert ids(page) == made[:4:-1]
    older = re.search(rf'href="({HERE}\?before=\d+)">Older', page.text)[1]
    page = await root.get(older)
    assert ids(page) == made[4::-1]
    assert f'hx-get="{older}"' in page.text, "what is live stays on this page"
    assert (await root.get(f"{HERE}?before=x")).status == 422


async def test_the_fleets_page_is_live_while_what_it_shows_may_change(running, browse, root):
    await running.add_user("bob")
    bob = await browse(running, "bob", Role.MEMBER)
    ice = await connected(running)

    async def live(query="", browser=root):
        return "data-unfinished" in (await browser.get(f"operations?{query}")).text

    assert not await live()
    operation = await asked(running.admin)
    await take(ice)
    for query in ("", "state=running", "state=succeeded", "state=lost&kind=execute"):
        assert await live(query), query
    for query in ("kind=debug", "state=lost&ice_name=other", "state=lost&before=1"):
        assert not await live(query), query
    assert not await live("state=succeeded", bob), "it is not his"
    await finished(ice, operation, result=1)
    await in_state(running, operation, "succeeded")
    for query in ("", "state=running", "state=succeeded"):
        assert not await live(query), query


async def test_an_operation_that_finishes_while_the_page_is_read_is_shown_by_the_next_look(
    running, root, monkeypatch
):
    ice = await connected(running)
    operation = await asked(running.admin)
    await take(ice)
    page = Operations.page

    async def then_finish(*args, **kwargs):
        found = await page(*args, **kwargs)
        monkeypatch.undo()
        await finished(ice, operation, result=1)
        await in_state(running, operation, "succeeded")
        return found

    monkeypatch.setattr(Operations, "page", then_finish)
    answer = await root.get("operations?state=succeeded")
    assert f"operation-{operation}" not in answer.text
    assert "data-unfinished" in answer.text, "the page was expected to look again"


# --- cancelled ---------------------------------------------------------------------------------


async def test_an_operation_is_cancelled_after_a_question(running, root):
    ice = await connected(running)
    operation = await asked(running.admin)
    await take(ice)
    await in_state(running, operation, "running")
    asks = await root.part(f"operations/{operation}/cancel", "dialog")
    assert "the gateway asks the ICE to stop" in said(asks)
    assert (await show(running.admin, operation))["state"] == "running", "asking changes nothing"
    done = await root.post(f"operations/{operation}/cancel")
    assert done.status == 200
    assert "Operation cancelled" in said(done)
    await expect_cancel(ice, operation)
    again = await root.post(f"operations/{operation}/cancel")
    assert again.status == 409
    assert "The operation has been cancelled." in said(again)
    await finish(ice, operation, "failed", error={"code": "cancelled", "message": "stopped"})


# --- who may -----------------------------------------------------------------------------------


async def test_members_operate_their_ices_and_see_no_others(running, browse):
    ice = await connected(running)
    alice = await alices(browse, running)
    answer = await run(alice)
    assert answer.status == 202
    operation = await take(ice)
    page = await alice.get(HERE)
    assert f'id="cancel-{operation}"' in page.text
    assert (await alice.post(f"operations/{operation}/cancel")).status == 200
    bob = await browse(running, "bob", Role.MEMBER)
    for path in (
        WORK + "/new",
        f"operations/{operation}/details",
        f"operations/{operation}/cancel",
    ):
        assert (await bob.part(path)).status == 404
    assert (await bob.post(WORK, {"kind": "execute"})).status == 404


async def test_a_member_of_a_machine_may_not_operate_it(running, browse):
    """An ICE for machines belongs to nobody; whoever it is tagged to in the table sees it at most."""
    await connected(running, "build-7", "ci-cd")
    alice = await alices(browse, running)
    assert (await alice.part("ices/build-7/operations/new")).status == 404


async def test_auditors_look_on(running, browse):
    ice = await connected(running)
    operation = await asked(running.admin)
    await take(ice)
    eve = await browse(running, "eve", Role.AUDITOR)
    page = await eve.get(HERE)
    assert f'id="show-{operation}"' in page.text
    assert f'id="cancel-{operation}"' not in page.text
    assert "Run an operation" not in page.text
    assert (await eve.part(f"operations/{operation}/details")).status == 200
    assert (await eve.part(f"{WORK}/new")).status == 403
    assert (await eve.post(WORK, {"kind": "execute"})).status == 403
    assert (await eve.post(f"operations/{operation}/cancel")).status == 403
    assert (await show(running.admin, operation))["state"] in ("sent", "running")


async def test_a_change_needs_origin_and_form_token(running, root):
    await connected(running)
    operation = await asked(running.admin)
    for path in (WORK, f"operations/{operation}/cancel"):
        for wrong in ({"X_Form_Token": None}, {"Origin": "https://evil.example"}):
            answer = await root.post(path, {"kind": "execute"}, **wrong)
            assert answer.status == 403, f"{path} with {wrong} gave {answer}"
    assert len(await requested(running)) == 1


async def test_an_ice_that_is_not_registered_has_no_run_button(running, root):
    await running.provision()
    assert "Run an operation" not in said(await root.get(HERE))
    await running.gateway.services.provisioning.provision(ADMIN, "lab-2", IceType.NORMAL, "alice")
    assert "No operation has been requested of this ICE." in said(await root.get("ices/lab-2"))


# --- over the fleet ----------------------------------------------------------------------------


async def test_operations_of_the_fleet_are_filtered_and_linked(running, browse, root):
    assert "No operation has been requested yet." in said(await root.get("operations"))
    ice = await connected(running)
    first = await asked(running.admin)
    report = "<testsuite><testcase name='bad'><failure message='1 == 2'/></testcase></testsuite>"
    await finished(ice, await take(ice), result={"exit": 1, "junit": report})
    await in_state(running, first, "succeeded")
    await connected(running, "build-1", "ci-cd")
    second = await asked(running.admin, "build-1", "remote-execute")

    async def listed(query="", browser=root):
        answer = await browser.get(f"operations?{query}")
        assert answer.status == 200
        return re.findall(r'<tr id="operation-(\w+)"', answer.text)

    assert await listed() == [second, first]
    for query in ("state=succeeded", "kind=execute", "ice_name=LAB-1"):
        assert await listed(query) == [first], query
    assert await listed("requested_by=alice") == await listed("since=2999-01-01T00:00:00Z") == []
    assert "No operation matches." in said(await root.get("operations?requested_by=alice"))
    assert (await root.get("operations?since=later")).status == 422
    answer = await root.get(f"operations/{first}")
    assert "Tests: 1 failed, 0 with an error, 0 skipped, 0 passed" in said(answer)
    assert "bad Failed 1 == 2" in said(answer)
    alice = await alices(browse, running)
    assert await listed(browser=alice) == [first], "a member sees those of their ICEs"
    assert (await alice.get(f"operations/{second}")).status == 404


async def test_who_gets_an_ice_does_not_see_what_was_requested_before(running, browse):
    await connected(running)
    operation = await asked(running.admin)
    await running.add_user("bob")
    await running.admin.post("/ices/lab-1/reregister", {"provisionedto": "bob"})
    bob = await browse(running, "bob", Role.MEMBER)
    assert operation not in (await bob.get("ices/lab-1")).text
    for address in (f"operations/{operation}", f"operations/{operation}/details"):
        assert (await bob.get(address)).status == 404


# --- of a pool ---------------------------------------------------------------------------------


async def test_an_operation_of_a_pool_is_requested_shown_and_cancelled(running, root):
    ices = await linux(running, one="ci-cd")
    page = await root.get("pools/linux")
    assert 'id="run-operation"' in page.text
    assert "No operation has been requested of this pool." in said(page)
    form = await root.part("pools/linux/operations/new", "dialog")
    assert "Run an operation in the pool linux" in said(form)
    refused = await run(root, "pools/linux/operations", params="{")
    assert refused.status == 422
    assert "has to be JSON" in said(refused)
    answer = await run(root, "pools/linux/operations", kind="remote-execute", params="1")
    assert answer.status == 202
    first = (await expect_run(ices["one"]))["id"]
    assert first in said(answer)
    second = await pool_operation(running, "remote-execute", params=2)
    pool, fleet, ice = [
        await root.get(address) for address in ("pools/linux", "operations", "ices/one")
    ]
    assert "data-unfinished" in pool.text
    assert "none yet" in said(pool)
    assert "each ICE of the pool is busy" in said(pool)
    assert "pool linux" in said(fleet).split("Actions")[1]
    assert "remote-execute pool linux" in said(ice)
    assert "remote-execute pool linux" not in said(pool)
    details = await root.part(f"operations/{second}/details", "dialog")
    assert "remote-execute in the pool linux" in said(details)
    assert "Waits each ICE of the pool is busy" in said(details)
    assert "no ICE of it has it yet" in said(details)
    assert "remote-execute at the pool linux" in (await root.get(f"operations/{second}")).text
    asks = await root.part(f"operations/{second}/cancel", "dialog")
    assert "Cancel remote-execute in the pool linux?" in said(asks)
    assert "Operation cancelled" in said(await root.post(f"operations/{second}/cancel"))
    await finished(ices["one"], first, result=1)


async def test_a_form_of_a_pool_offers_what_its_type_allows(running, root):
    await linux(running)
    form = await root.part("pools/linux/operations/new", "dialog")
    assert len(re.findall(r"<option>", form.text)) == 5
    await running.make_pool("linux", {"os": "linux"}, ice_type="ci-cd")
    form = await root.part("pools/linux/operations/new", "dialog")
    assert sorted(re.findall(r"<option>([\w-]+)", form.text)) == ["remote-execute", "schedule"]
    refused = await run(root, "pools/linux/operations", kind="scrape")
    assert refused.status == 409
    assert "A ci-cd ICE accepts only remote-execute and schedule" in said(refused)


async def test_auditors_look_at_a_pool_and_members_do_not(running, browse):
    await linux(running)
    operation = await pool_operation(running)
    eve, alice = await browse(running, "eve", Role.AUDITOR), await alices(browse, running)
    page = await eve.get("pools/linux")
    assert f'id="show-{operation}"' in page.text
    assert f'id="cancel-{operation}"' not in page.text
    assert 'id="run-operation"' not in page.text
    assert "no ICE of the pool may do this kind" in said(page)
    for browser in (eve, alice):
        assert (await browser.part("pools/linux/operations/new")).status == 403
        assert (await browser.post("pools/linux/operations", {"kind": "execute"})).status == 403
    assert (await eve.post(f"operations/{operation}/cancel")).status == 403
    assert (await alice.post(f"operations/{operation}/cancel")).status == 404


async def test_the_user_of_an_ice_sees_that_a_pools_operation_runs_on_it_and_no_more(
    running, browse
):
    ices = await linux(running, mine="normal")
    operation = await pool_operation(running, params="SECRET-IN")
    await take(ices["mine"])
    progress(ices["mine"], operation, fraction=0.5, message="SECRET-ON")
    await running.eventually(f"/operations/{operation}", lambda told: told.json["progress"])
    await in_state(running, operation, "running")
    alice = await alices(browse, running)
    page = await alice.get("ices/mine")
    assert "execute pool linux Running" in said(page)
    assert 'href="pools/' not in page.text
    assert f'id="cancel-{operation}"' not in page.text, "an admin cancels it"
    for address in (f"operations/{operation}/details", f"operations/{operation}"):
        answer = await alice.part(address)
        assert "shown to admins and auditors only" in said(answer)
        assert 'id="value-' not in answer.text
        assert "download=" not in answer.text
        assert "SECRET" not in answer.text
    assert "SECRET" not in page.text
    assert (await alice.part(f"operations/{operation}/cancel")).status == 403
    await finished(ices["mine"], operation, result=1)


async def test_the_page_says_why_an_operation_waits(running, root):
    await linux(running)
    ice = await connected(running)
    first = await asked(running.admin)
    await take(ice)
    second = await asked(running.admin)
    assert "Queued another operation comes before it" in said(await root.get("ices/lab-1"))
    await running.admin.post(f"/operations/{second}/cancel")
    await finished(ice, first, result=1)
    await running.admin.post("/ices/lab-1/pause", {})
    waiting = await asked(running.admin)
    await pool_operation(running)
    page = said(await root.get("operations?state=queued"))
    assert "Queued the ICE is paused" in page
    assert "Queued no ICE of the pool may do this kind" in page
    await running.label("lab-1", os="linux")
    page = said(await root.get("operations?state=queued"))
    assert "Queued each connected ICE of the pool is paused" in page
    await ice.leave()
    await running.settled()
    assert "Waits the ICE is not connected" in said(
        await root.part(f"operations/{waiting}/details")
    )
    assert "Queued no ICE of the pool is connected" in said(await root.get("pools/linux"))


async def test_operations_of_a_schedule_lead_to_it_and_are_found(running, root):
    await linux(running)
    made = await running.admin.post(
        "/schedules", {"name": "nightly", "pool": "linux", "cron": "0 2 * * *"}
    )
    schedule = made.json["id"]
    operation = (await running.admin.post(f"/schedules/{schedule}/run", {})).json["id"]
    other = await pool_operation(running)
    link = f'<a href="schedules/{schedule}">nightly</a>'
    for query in (f"schedule={schedule}", "pool=LINUX&kind=schedule"):
        page = await root.get(f"operations?{query}")
        assert re.findall(r'<tr id="operation-(\w+)"', page.text) == [operation], query
        assert link in page.text
    assert (
        f'<option value="{schedule}" selected>'
        in (await root.get(f"operations?schedule={schedule}")).text
    )
    assert link in (await root.part(f"operations/{operation}/details")).text
    for each in (operation, other):
        await running.admin.post(f"/operations/{each}/cancel")
    await running.admin.call("DELETE", f"/schedules/{schedule}")
    page = await root.get("operations")
    assert operation in page.text
    assert "nightly" not in page.text, "it is deleted"
