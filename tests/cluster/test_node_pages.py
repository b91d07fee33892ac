"""The page of the nodes: who sees it, and that what is done there is done."""

from __future__ import annotations

import aiohttp
import pytest

from gateway.core.roles import Role
from gateway.node.node import NodeState
from tests.cluster.test_cluster import until
from tests.support.harness import command, expect_refused
from tests.support.pages import Browser, has_password, said


@pytest.fixture
async def browser(cluster):
    """The admin at node A."""
    await has_password(cluster.a, "root")
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        opened = Browser(session, cluster.a.url)
        opened.origin = "http://gateway.example"
        assert (await opened.log_in()).status == 303
        yield opened


async def test_a_node_is_drained_and_resumed_on_the_page(cluster, browser):
    ice = await cluster.ice()
    connection = await ice.at(cluster.b).connect()
    await cluster.b.settled()
    page = await browser.get("nodes")
    text = said(page)
    for name in ("node-a", "node-b", "node-c"):
        assert f"{name} Serves" in text, text
    assert "node-b Serves 1" in text, "node-b was to be shown with its ICE"

    asked = said(await browser.part("nodes/node-b/drain", "dialog"))
    assert "Drain node-b?" in asked
    assert "its 1 ICE is sent to the other nodes" in asked
    assert "No other node serves" not in asked
    done = await browser.post("nodes/node-b/drain")
    assert (done.status, "node-b is drained" in said(done)) == (200, True)
    await connection.expect_dropped(1012)
    assert "node-b Drained" in said(await browser.part("nodes"))

    done = await browser.post("nodes/node-b/resume")
    assert "node-b serves again" in said(done)
    node = cluster.b.gateway.node
    await until(lambda: node.state is NodeState.SERVING, "a node that goes on")
    log = said(await browser.get("audit"))
    assert "drain-node" in log
    assert "resume-node" in log


async def test_an_ice_at_another_node_is_connected_on_every_page(cluster, browser):
    ice = await cluster.ice()
    connection = await ice.at(cluster.b).connect()
    await cluster.b.settled()
    assert "Not connected" not in said(await browser.get("ices/lab-1"))
    asked = said(await browser.part("ices/lab-1/deregister", "dialog"))
    assert "Its connection is dropped at once" in asked, asked
    await connection.leave()


async def test_who_may_not_act_may_look_at_the_most(cluster, browser):
    for user, role, status in (("eve", Role.AUDITOR, 200), ("mia", Role.MEMBER, 403)):
        await has_password(cluster.a, user, role)
        assert (await browser.log_in(user)).status == 303
        assert (await browser.get("nodes")).status == status
        assert (await browser.post("nodes/node-b/drain")).status == 403


async def test_the_last_node_that_serves_is_drained_by_force_alone(cluster, browser, tmp_path):
    admin = cluster.a.admin
    first = (await admin.get("/nodes?limit=2")).json
    rest = (await admin.get(f"/nodes?cursor={first['next']}")).json
    assert [node["name"] for node in first["items"] + rest["items"]] == [
        f"node-{name}" for name in "abc"
    ]
    assert rest["next"] is None
    for name in "bc":
        drained = await admin.post(f"/nodes/node-{name}/drain", {})
        assert (drained.status, drained.json["state"]) == (200, "drained")
    expect_refused(await admin.post("/nodes/node-a/drain"), 409, "last-node")
    refused = await cluster.a.command("nodes", "drain", "node-a", status=1)
    assert "No node would admit ICEs" in refused.stderr
    token = tmp_path / "api.token"
    token.touch(0o600)
    token.write_text(admin.token)
    there = ("--url", cluster.a.url, "--token-file", str(token), "nodes")
    assert (await command(*there, "drain", "node-a", status=1)).stderr == refused.stderr
    assert (await command(*there, "drain", "node-b")).stdout.startswith("node-b is drained already")
    assert "node-c" in (await command(*there, "list")).stdout
    asked = await browser.part("nodes/node-a/drain", "dialog")
    assert "No other node serves" in said(asked)
    assert 'name="force"' in asked.text
    forced = await admin.post("/nodes/node-a/drain", {"force": True})
    assert (forced.status, forced.json["state"]) == (200, "drained")
    resumed = await admin.post("/nodes/node-a/resume")
    assert (resumed.status, resumed.json["state"]) == (200, "serves")
    expect_refused(await admin.post("/nodes/node-x/resume"), 404, "not-found")
    auditor = await cluster.a.api("ada", Role.AUDITOR)
    expect_refused(await auditor.post("/nodes/node-b/resume"), 403, "forbidden")


async def test_what_is_no_node_is_not_found(browser):
    assert (await browser.part("nodes/node-x/drain", "dialog")).status == 404
    assert (await browser.post("nodes/node-x/drain")).status == 404
