"""The life of the token keys, by command beside a gateway that runs."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import aiosqlite
import pytest

from gateway.cli.common import CommandContext, open_context
from gateway.core.ice import IceType
from gateway.core.times import to_text, utc_now
from gateway.core.tokens import Key, KeyRing, OpenedToken
from gateway.core.webhook_secret import open_sealed, sealed_by
from gateway.services.key_rotation import KeyRefused, Keys
from gateway.services.webhooks import WantedWebhook
from gateway.store import key_file
from gateway.store.engine import StoreLocked
from gateway.store.ice_listing import IceListing
from gateway.store.sqlite.engine import open_sqlite
from gateway.store.sqlite.migrate import APPLICATION_ID, released
from gateway.store.webhooks import Webhooks
from tests.support.harness import ADMIN, settings_for
from tests.support.ice import until


@pytest.fixture
def command(running):
    """Runs `ice-gateway keys …`."""
    return functools.partial(running.command, "keys")


def ring(running):
    return key_file.read(running.gateway.settings.key_file)


@pytest.fixture
def by_the_log_alone(running, monkeypatch):
    """The gateway does not look at the file from time to time, so that only the event can tell it."""
    monkeypatch.delitem(running.gateway.node.health.checks, "keys")


async def test_a_key_is_added_promoted_and_retired_beside_a_running_gateway(
    by_the_log_alone, running, command
):
    ice, third = await running.provision("lab-1"), await running.provision("lab-3")
    await ice.connect()
    [old] = [key.kid for key in ring(running).keys]
    new = (await command("rotate")).stdout.strip()
    assert ring(running).seals == old, "a new key only opens at first"
    await command("promote")
    second = await running.provision("lab-2")
    assert [listed.kid for listed in await states(running)] == [old, new]
    assert {listed.kid: listed.ices for listed in await states(running)} == {
        old: ["lab-3"],
        new: ["lab-2"],
    }, "lab-1 is registered, and needs no key any more"
    await second.connect()
    stays = await command("retire", old, status=1)
    assert stays.stdout == "lab-3\n", "the ICEs in the way are listed"
    assert f"the key {old} is needed by 1 provisioned ICE:" in stays.stderr
    again = (await running.act("lab-3", "reprovision"))["token"]
    await command("retire", old)
    assert [key.kid for key in ring(running).keys] == [new]
    assert ring(running).retired == (old,)
    held = running.gateway.services.provisioning.keys
    await until(lambda: held.kids() == {new})
    await ice.connect()
    assert (await third.refused()).code == "token-invalid"
    third.token = again
    await third.connect()
    events = await running.admin.get("/events?limit=200")
    assert [
        (event["action"], event["detail"])
        for event in events.json["items"]
        if "key" in event["action"]
    ] == [
        ("rotate-keys", {"key": new}),
        ("promote-key", {"key": new}),
        ("retire-key", {"key": old}),
    ]


async def states(running):
    async with open_context(running.gateway.settings) as opened:
        return await keys(opened).list()


def keys(opened, clock=utc_now):
    return Keys(engine=opened.engine, path=opened.settings.key_file, clock=clock)


@pytest.mark.parametrize("how", ["registers", "reprovision", "deregister"])
async def test_a_key_is_needed_until_the_ice_has_registered_or_another_token(running, command, how):
    ice = await running.provision("ci-1", "ci-cd")
    [old] = [key.kid for key in ring(running).keys]
    await command("rotate")
    await command("promote")
    await command("retire", old, status=1)
    if how == "reprovision":
        await running.act("ci-1", how)
    else:
        await ice.connect()
    if how == "deregister":
        await running.act("ci-1", how)
    await command("retire", old)


async def test_an_entry_from_before_keys_were_kept_may_need_each_key_of_that_time(tmp_path):
    """The database and the key file are those of the version before; others write such rows, too."""
    settings = settings_for(tmp_path)
    first, second = Key("first", bytes(32)), Key("second", bytes(range(32)))
    path = settings.key_file
    key_file.create(path)
    key_file.replace(path, KeyRing([first, second], "second"))
    with contextlib.closing(sqlite3.connect(settings.database_path)) as older:
        for number, script in released()[:2]:
            older.executescript(script)
            older.execute(f"PRAGMA user_version={number}")
        older.execute(f"PRAGMA application_id={APPLICATION_ID}")
        add_as_before(older, "ci-1", utc_now())
        add_as_before(older, "ci-2", utc_now())
        older.execute(
            "UPDATE ice_tokens SET status = 'deregistered', deregisteredon = provisionedon"
            " WHERE ice_name = 'ci-2'"
        )
        older.commit()
        async with open_context(settings) as opened:
            master = keys(opened)
            third = await master.rotate(opened.actor)
            await master.promote(opened.actor, None)
            assert await depend(master) == {"first": ["ci-1"], "second": ["ci-1"], third: []}
            # Who does not write the id has had the third key to seal with, too.
            add_as_before(older, "CI-0", utc_now())
            assert (await depend(master))[third] == ["CI-0"]
            await master.promote(opened.actor, await master.rotate(opened.actor))
            for kid, ices in ((third, ["CI-0"]), ("first", ["CI-0", "ci-1"])):
                refused = await master.retire(opened.actor, kid)
                assert isinstance(refused, KeyRefused)
                assert refused.ices == ices
            for name in ("ci-1", "CI-0"):
                await opened.services.provisioning.reprovision(
                    opened.actor, (await IceListing(opened.engine).find(name)).ice
                )
            for kid in ("first", "second", third):
                assert await master.retire(opened.actor, kid) is None


def add_as_before(database, name, now):
    """As the version before writes it: without the key's id."""
    row = (name, hashlib.sha256(name.encode()).hexdigest(), to_text(now))
    database.execute(
        "INSERT INTO ice_tokens (ice_name, ice_type, ice_token, status, generation, provisionedon)"
        " VALUES (?, 'ci-cd', ?, 'provisioned', 1, ?)",
        row,
    )
    database.commit()


async def depend(master):
    return {state.kid: state.ices for state in await master.list()}


@pytest.mark.sqlite  # the nodes of a fleet have a key file from the start
async def test_what_cannot_be_done_is_said(running, command):
    none = await command("list", status=78)
    assert "there is no key file" in none.stderr
    await running.provision("ci-1", "ci-cd")
    seals = ring(running).seals
    for args, sentence in (
        (("promote",), f"the key {seals} seals already"),
        (("promote", "none"), "there is no key none"),
        (("retire", "none"), "there is no key none"),
        (("retire", seals), f"the key {seals} seals: promote another first"),
    ):
        said = await command(*args, status=1)
        assert sentence in said.stderr, f"keys {args} said {said.output}"
        assert len(said.stderr.splitlines()) == 1
    assert seals in (await command("list")).stdout
    assert '"seals": true' in (await command("list", "--json")).stdout


@pytest.mark.sqlite
async def test_a_commit_that_fails_says_that_the_file_may_be_changed(running, command, monkeypatch):
    ice = await running.provision("lab-1")
    [old] = [key.kid for key in ring(running).keys]
    new = (await command("rotate")).stdout.strip()
    await command("promote")
    again = (await running.act("lab-1", "reprovision"))["token"]

    failure = sqlite3.OperationalError("disk I/O error")
    failure.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
    connect = aiosqlite.connect

    def failing(*args, factory, **options):
        class Failing(factory):
            def execute(self, sql, *params):
                if sql == "COMMIT":
                    raise failure
                return super().execute(sql, *params)

        return connect(*args, factory=Failing, **options)

    # The gateway has its connections already: only the command's commits fail.
    with monkeypatch.context() as patched:
        patched.setattr(aiosqlite, "connect", failing)
        said = await command("retire", old, status=1)
    assert "the key file may be changed already: see `ice-gateway keys list`" in said.stderr
    assert len(said.stderr.splitlines()) == 1
    assert [key.kid for key in ring(running).keys] == [new]
    # No event tells of it, so that the gateway has to see it for itself.
    held = running.gateway.services.provisioning.keys
    await until(lambda: held.kids() == {new})
    assert (await ice.refused()).code == "token-invalid"
    ice.token = again
    await ice.connect()


# --- at the same moment -----------------------------------------------------------------------------
#
# One command is stopped where it matters, another does its worst meanwhile, on connections of its own.
# It may be locked out or succeed; what counts is that afterwards nobody has a token that no key opens.


class Intruder:
    """Does `work` on a connection of its own, without waiting for locks, whenever it is let in."""

    def __init__(self, settings, work):
        self.settings = settings
        self.work = work
        self.visits = 0
        self.inside = False

    def __call__(self):
        """In a thread, while whoever calls is kept waiting; what the intruder causes lets nobody in."""
        if not self.inside:
            self.visits, self.inside = self.visits + 1, True
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, self._try()).result()
            self.inside = False

    async def _try(self):
        with contextlib.suppress(StoreLocked):
            async with open_sqlite(self.settings.database_path, busy_timeout=0) as engine:
                await self.work(CommandContext.of(self.settings, engine))


@pytest.fixture
async def table(tmp_path):
    """A command's context without a gateway; ICEs need its first key, and its second key seals."""
    async with open_context(settings_for(tmp_path)) as opened:
        await opened.services.provisioning.provision(opened.actor, "ci-1", IceType.CI_CD, None)
        master = keys(opened)
        await master.promote(opened.actor, await master.rotate(opened.actor))
        await master.rotate(opened.actor)
        yield opened


def kids(opened):
    return [key.kid for key in key_file.read(opened.settings.key_file).keys]


@pytest.mark.parametrize("action", ["provision", "reprovision", "reregister"])
async def test_no_key_is_retired_under_a_token_that_is_being_sealed(table, monkeypatch, action):
    _, sealing, newest = kids(table)
    provisioning = table.services.provisioning
    if action == "reregister":
        await table.engine.write(
            lambda transaction: transaction.run(
                "UPDATE ice_tokens SET status = 'registered', key_thumbprint = 'x', expireson = NULL"
            )
        )

    async def retire_it(opened):
        await keys(opened).promote(opened.actor, newest)
        await keys(opened).retire(opened.actor, sealing)

    intruder = Intruder(table.settings, retire_it)
    for_sealing = provisioning.keys.for_sealing

    def stopped(**options):
        held = for_sealing(**options)
        intruder()
        return held

    monkeypatch.setattr(provisioning.keys, "for_sealing", stopped)
    if action == "provision":
        issued = await provisioning.provision(table.actor, "ci-2", IceType.CI_CD, None)
    else:
        issued = await getattr(provisioning, action)(
            table.actor, (await IceListing(table.engine).find("ci-1")).ice
        )
    assert intruder.visits == 1
    opened = key_file.read(table.settings.key_file).open(issued.token)
    assert isinstance(opened, OpenedToken), "the token that was given out was expected to open"


def intrude_on_the_file(monkeypatch, intruder):
    """Let the intruder in whenever the key file is about to be replaced."""
    rename = os.rename

    def stopped(*names):
        intruder()
        rename(*names)

    monkeypatch.setattr(os, "rename", stopped)


@pytest.mark.parametrize("moment", ["looked", "writes"])
async def test_no_token_is_sealed_with_a_key_that_is_being_retired(table, monkeypatch, moment):
    first, second, _ = kids(table)
    await table.services.provisioning.reprovision(
        table.actor, (await IceListing(table.engine).find("ci-1")).ice
    )  # nobody needs the first any more
    tokens = []

    async def seal_with_it(opened):
        master = keys(opened)
        await master.promote(opened.actor, first)
        issued = await opened.services.provisioning.provision(
            opened.actor, "ci-2", IceType.CI_CD, None
        )
        tokens.append(issued.token)
        await master.promote(opened.actor, second)

    intruder = Intruder(table.settings, seal_with_it)
    if moment == "writes":
        intrude_on_the_file(monkeypatch, intruder)

    def looked():
        """The time of the event is asked for once it is known that nobody needs the key."""
        if moment == "looked":
            intruder()
        return utc_now()

    refused = await keys(table, looked).retire(table.actor, first)
    assert intruder.visits == 1
    assert tokens or refused is None
    held = key_file.read(table.settings.key_file)
    assert all(isinstance(held.open(token), OpenedToken) for token in tokens)


async def test_of_two_keys_that_are_added_at_once_none_is_lost(table, monkeypatch):
    told = []

    async def add(opened):
        told.append(await keys(opened).rotate(opened.actor))

    intruder = Intruder(table.settings, add)
    intrude_on_the_file(monkeypatch, intruder)
    await add(table)
    assert intruder.visits == 1
    assert set(told) <= set(kids(table))


async def test_the_secret_of_a_webhook_outlives_the_key_that_sealed_it(running, command):
    webhooks = running.gateway.services.webhooks
    wanted = WantedWebhook("ops", "https://hooks.example.com", ["provision"], enabled=False)
    made = await webhooks.create(ADMIN, wanted)
    [old] = [key.kid for key in ring(running).keys]
    await command("rotate")
    await command("promote")
    await command("retire", old)
    found = await Webhooks(running.gateway.engine.fetch).find(made.webhook.id)
    assert sealed_by(found.secret) == ring(running).seals != old
    assert open_sealed(running.gateway.services.bulk.keys.find, found.id, found.secret) == (
        made.secret
    )


async def test_a_key_stays_that_sealed_a_secret_which_cannot_be_opened(running, command):
    webhooks = running.gateway.services.webhooks
    wanted = WantedWebhook("ops", "https://hooks.example.com", ["provision"], enabled=False)
    await webhooks.create(ADMIN, wanted)
    [old] = [key.kid for key in ring(running).keys]
    await running.gateway.engine.write(
        lambda one: one.run("UPDATE webhooks SET secret = $1", f"{old}.AAAA")
    )
    await command("rotate")
    await command("promote")
    said = await command("retire", old, status=1)
    assert "delete ops" in said.stderr
