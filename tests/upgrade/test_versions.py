"""Releases meet while machines are upgraded: clients, gateways and databases of the one before and of this one."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from tests.support.ice import PATIENCE, Ice
from tests.upgrade.conftest import Release

pytestmark = pytest.mark.long
BODY = {"kind": "remote-execute", "params": {"suite": "smoke"}}


@dataclass
class Upgrade:
    """A machine on which both releases are."""

    old: Release
    new: Release
    session: aiohttp.ClientSession
    folder: Path

    @property
    def settings(self):
        return {"ICE_GATEWAY_TOKENS__KEY_FILE": str(self.folder / "ice.keys.json")}


@pytest.fixture
async def upgrade(old, new, tmp_path):
    async with aiohttp.ClientSession() as session:
        yield Upgrade(old, new, session, tmp_path)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    """The URL of a new database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ice.db"
    return request.getfixturevalue("database_url")


def admin(release, url, settings):
    """An API token of a new admin."""
    at = ("--database", url)
    release.run("users", "add", "root", "--role", "admin", "--no-password", *at, **settings)
    create = ("api-tokens", "create", "--user", "root", "--name", "test")
    return release.run(*create, *at, **settings)


async def provision(api, name):
    answer = await api.post("/ices", {"ice_name": name, "ice_type": "ci-cd"})
    assert answer.status == 201, f"provisioning {name} gave {answer}"
    return answer.json["token"]


async def eventually(api, path, holds):
    """Ask another process again until its answer holds."""
    async with asyncio.timeout(2 * PATIENCE):
        while not holds((answer := await api.get(path)).json):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return answer.json


@pytest.mark.parametrize(("gateway", "client"), [("new", "old"), ("old", "new")])
async def test_a_client_works_with_the_gateway_of_another_release(upgrade, gateway, client):
    serves, connects = getattr(upgrade, gateway), getattr(upgrade, client)
    url, settings = f"sqlite:///{upgrade.folder}/ice.db", upgrade.settings
    token = admin(serves, url, settings)
    with serves.serving(url, **settings) as running:
        api = running.api(upgrade.session, token)
        given = await provision(api, "build-1")
        with connects.agent(running.url, upgrade.folder / "state", given) as lines:
            lines.expect("^admitted as build-1$")
            done = (await api.post("/ices/build-1/operations?wait=30", BODY)).json
            assert (done["state"], done["result"]) == ("succeeded", {"echo": BODY["params"]})
            assert done["progress"]["fraction"] == 0.5
            before = (await api.get("/ices/build-1")).json["connection"]["session"]
            assert (await api.post("/ices/build-1/disconnect")).status == 200
            await eventually(
                api,
                "/ices/build-1",
                lambda ice: ice["connection"] and ice["connection"]["session"] != before,
            )
            # What it works on is cancelled, and told so in whatever words that release knows.
            asked = (
                await api.post("/ices/build-1/operations", {**BODY, "params": {"hang": 1}})
            ).json
            await eventually(api, f"/operations/{asked['id']}", lambda one: one["sent"])
            assert (await api.post(f"/operations/{asked['id']}/cancel")).status == 200
            done = (await api.post("/ices/build-1/operations?wait=30", BODY)).json
            assert done["state"] == "succeeded"
            assert (await api.post("/ices/build-1/deregister")).status == 200
            lines.expect("^ended: .*4101")


async def test_an_old_client_keeps_up_with_keys_and_tokens_of_this_gateway(upgrade):
    """Registered, its token's key is retired; then it is reregistered."""
    old, new, settings = upgrade.old, upgrade.new, upgrade.settings
    url, state = f"sqlite:///{upgrade.folder}/ice.db", upgrade.folder / "state"
    token = admin(new, url, settings)
    at = ("--database", url)
    with new.serving(url, **settings) as running:
        api = running.api(upgrade.session, token)
        with old.agent(running.url, state, await provision(api, "build-1")) as lines:
            lines.expect("^admitted as build-1$")
            [first] = json.loads(new.run("keys", "list", "--json", *at, **settings))
            new.run("keys", "rotate", *at, **settings)
            new.run("keys", "promote", *at, **settings)
            new.run("keys", "retire", first["key"], *at, **settings)
            before = (await api.get("/ices/build-1")).json["connection"]["session"]
            assert (await api.post("/ices/build-1/disconnect")).status == 200
            await eventually(
                api,
                "/ices/build-1",
                lambda ice: ice["connection"] and ice["connection"]["session"] != before,
            )
            done = (await api.post("/ices/build-1/operations?wait=30", BODY)).json
            assert done["state"] == "succeeded"
            renewed = (await api.post("/ices/build-1/reregister")).json["token"]
            lines.expect("^ended: .*4102")
        with old.agent(running.url, state, renewed) as lines:
            lines.expect("^admitted as build-1$")
            done = (await api.post("/ices/build-1/operations?wait=30", BODY)).json
            assert done["state"] == "succeeded"


async def filled(upgrade, url):
    """A bit of everything, written by the release before; the admin's token, and what the API shows."""
    release, settings = upgrade.old, upgrade.settings
    token = admin(release, url, settings)
    add = ("users", "add", "alice", "--role", "member", "--no-password", "--database", url)
    release.run(*add, **settings)
    with release.serving(url, **settings) as running:
        api = running.api(upgrade.session, token)
        given = await provision(api, "build-1")
        await provision(api, "unused-1")
        gone = Ice(running.url, await provision(api, "gone-1"))
        await (await gone.connect()).close()
        assert (await api.post("/ices/gone-1/deregister")).status == 200
        with release.agent(running.url, upgrade.folder / "state", given) as lines:
            lines.expect("^admitted as build-1$")
            assert (await api.post("/ices/build-1/operations?wait=30", BODY)).json["finished"]
        await eventually(api, "/ices/build-1", lambda ice: ice["connection"] is None)
        before = {
            path: (await api.get(path)).json
            for path in ("/ices", "/events", "/operations", "/ices/build-1/connections")
        }
    return token, before


async def test_a_database_is_migrated(upgrade, database):
    token, before = await filled(upgrade, database)
    new, settings = upgrade.new, upgrade.settings
    with new.serving(database, name="new", **settings) as running:
        running.err.expect("was migrated from schema")
        api = running.api(upgrade.session, token)
        for path, was in before.items():
            now = (await api.get(path)).json["items"]
            # Documents may have got members.
            kept = [
                {name: other.get(name) for name in one}
                for one, other in zip(was["items"], now, strict=False)
            ]
            assert kept == was["items"], f"{path} was {was['items']}, and is {now}"
        with new.agent(running.url, upgrade.folder / "state") as lines:
            lines.expect("^admitted as build-1$")
            done = (await api.post("/ices/build-1/operations?wait=30", BODY)).json
            assert done["state"] == "succeeded"
    proven = new.run("audit", "verify", "--database", database, **settings)
    assert "proven" in proven
    [alice] = [
        user
        for user in json.loads(
            new.run("users", "list", "--json", "--database", database, **settings)
        )
        if user["name"] == "alice"
    ]
    assert alice["role"] == "member"


async def test_a_node_of_a_newer_release_says_which_node_to_stop(upgrade, database_url):
    old, new, settings = upgrade.old, upgrade.new, upgrade.settings
    token = admin(old, database_url, settings)
    with old.serving(database_url, name="gw-1", **settings) as first:
        given = await provision(first.api(upgrade.session, token), "build-1")
        await provision(first.api(upgrade.session, token), "build-2")
        with old.agent(first.url, upgrade.folder / "state", given) as lines:
            lines.expect("^admitted as build-1$")
            with (
                pytest.raises(AssertionError, match="it did not start") as refused,
                new.serving(database_url, name="gw-2", **settings),
            ):
                pass
            assert "served by nodes of an older version: gw-1; stop them" in str(refused.value)
            # The first was not disturbed. Its connection was idle meanwhile, so this is another.
            async with aiohttp.ClientSession() as afresh:
                api = first.api(afresh, token)
                done = (await api.post("/ices/build-1/operations?wait=30", BODY)).json
            assert done["state"] == "succeeded"
    with (
        new.serving(database_url, name="gw-2", **settings) as second,
        old.agent(second.url, upgrade.folder / "state", given) as lines,
    ):
        lines.expect("^admitted as build-1$")
        ended = (await second.api(upgrade.session, token).post("/ices/build-1/deregister")).json
        assert [drop["node"] for drop in ended["dropped"]] == ["gw-2"]
        lines.expect("^ended: .*4101")
