"""Restores: the old database is not lost, the new one admits nobody until an admin has looked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import sqlite3
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.cli import main
from gateway.cli.common import open_context
from gateway.core.ice import IceType
from gateway.core.roles import Role
from gateway.core.times import utc_now
from gateway.core.tokens import Key, KeyRing
from gateway.services.backup import Backup, GatewayFiles, back_up
from gateway.services.bulk_actions import Target
from gateway.services.enrolment_keys import NewKey
from gateway.services.pausing import PauseOrder
from gateway.services.pools import WantedPool
from gateway.services.restore import confirm, restore, review
from gateway.services.webhooks import WantedWebhook
from gateway.store import enrolments, key_file
from gateway.store.engine import StoreRefused
from gateway.store.events import Events
from gateway.store.ice_listing import IceListing
from gateway.store.key_file import KeyFileUnusable
from gateway.store.restore_mark import find_mark, head, standing
from gateway.store.sqlite.snapshot import open_read_only
from tests.support.harness import ADMIN, command, harness, settings_for
from tests.support.ice import PATIENCE, until
from tests.support.receiver import receiving


@pytest.fixture
def settings(tmp_path):
    return settings_for(tmp_path)


async def provision(opened, name):
    issued = await opened.services.provisioning.provision(ADMIN, name, IceType.CI_CD, None)
    return issued.token


async def make(settings, folder):
    async with open_context(settings) as opened:
        await back_up(opened.engine, GatewayFiles.of(settings), folder, ADMIN, utc_now)
    return folder


async def put_back(settings, folder):
    return await restore(Backup.find(folder), GatewayFiles.of(settings), ADMIN, utc_now)


async def names(path):
    """The ICEs in a database, whole; read as it is."""
    with open_read_only(path) as found:
        assert found.find_damage(thorough=True) is None
        return sorted((await standing(found.fetch)).ices)


async def listed(settings):
    """What a confirmation would list, as what: name, and why."""
    async with open_context(settings) as opened:
        found = await review(opened.engine.fetch, utc_now())
        return {(item.what, item.name): item.since for item in found.found}, found


async def confirmed(settings):
    async with open_context(settings) as opened:
        found = await review(opened.engine.fetch, utc_now())
        assert await confirm(opened.engine, found, ADMIN, utc_now)


# --- webhooks ------------------------------------------------------------------------------------


async def test_a_webhook_hears_nothing_of_a_restored_log_until_that_is_confirmed(tmp_path):
    allowed = {"webhooks__allow": ["127.0.0.0/8"]}
    async with receiving() as receiver:
        async with harness(tmp_path, **allowed) as running:
            settings = running.gateway.settings
            wanted = WantedWebhook("ops", receiver.url, ["provision"])
            made = await running.gateway.services.webhooks.create(ADMIN, wanted)
            receiver.secret = made.secret.reveal()
            folder = await make(settings, tmp_path / "backup")
            await running.provision("lab-1")
            await receiver.until_taken("provision")
            await running.gateway.services.webhooks.delete(ADMIN, made.webhook.id)
        await put_back(settings, folder)
        assert (await listed(settings))[0] == {("webhook", made.webhook.id): "deleted"}
        async with harness(tmp_path, **allowed) as running:
            await running.provision("lab-2")
            await running.settled()
            assert len(receiver.came) == 1
            await confirmed(settings)
            await receiver.until_taken("provision", "provision")
    logs = {message.rpartition("-")[0] for message in receiver.came}
    assert len(logs) == 2, "the same numbers are other events"


# --- the whole story, with a gateway and its ICEs ------------------------------------------------


async def test_nobody_is_admitted_until_the_admin_has_confirmed(tmp_path):
    async with harness(tmp_path) as running:
        settings = running.gateway.settings
        kept, gone = [await running.provision(name) for name in ("lab-1", "lab-2")]
        unused = await running.provision("lab-3")
        for ice in (kept, gone):
            await (await ice.connect()).round_trip()
        folder = await make(settings, tmp_path / "backup")
        # What happens now is not in the backup.
        await running.act("lab-2", "deregister")
        again = await running.act("lab-2", "reregister")
        newer = running.ice(again["token"])
        await (await newer.connect()).round_trip()
        await running.act("lab-2", "deregister")
        await (await unused.connect()).round_trip()
        late = await running.provision("lab-4")
        with pytest.raises(StoreRefused, match=r"a gateway serves .*: stop it before you restore"):
            await put_back(settings, folder)
    done = await put_back(settings, folder)
    assert await names(done.database_aside) == ["lab-1", "lab-2", "lab-3", "lab-4"]
    since, found = await listed(settings)
    assert found.compared == (str(done.database_aside),)
    assert since == {
        ("ice", "lab-2"): "deregistered",
        ("ice", "lab-3"): "registered: its token could be registered again, by anyone who has it",
    }
    async with harness(tmp_path) as running:
        # The ports are others now.
        ices = [running.ice(ice.token, ice.key) for ice in (kept, gone, newer, late)]
        kept, gone, newer, late = ices
        reason = running.gateway.node.restore_hold.reason
        assert "restore --confirm" in reason
        for ice in ices:
            refusal = await ice.refused()
            assert (refusal.status, refusal.code) == (503, "store-unavailable")
            assert refusal.problem["retry"] is True
            assert "restored from a backup" in refusal.problem["detail"]
            assert int(refusal.headers["Retry-After"]) > 0
        async with running.session.get(f"{running.url}/readyz") as answer:
            assert (answer.status, (await answer.json())["detail"]) == (503, reason)
        # The admin works as ever: an ICE that must not come back does not.
        await running.act("lab-2", "deregister")
        assert ("ice", "lab-2") not in (await listed(settings))[0]
        assert await running.status("lab-1") == "registered"
        # By another process; the gateway follows.
        await confirmed(settings)
        await until(lambda: running.gateway.node.restore_hold.reason is None)
        async with running.session.get(f"{running.url}/readyz") as answer:
            assert answer.status == 200
        await (await kept.connect()).round_trip()
        assert (await gone.refused()).code == "deregistered"
        # A token of between the backup and the restore is worthless, whatever its generation is.
        for generation, ice in ((3, newer), (1, late)):
            assert (await ice.refused()).code == "token-invalid", f"of generation {generation}"
        await running.provision("lab-4")
        assert (await late.refused()).code == "token-invalid", "of generation 1, as the entry's"
        again = await running.act("lab-2", "reregister")
        assert again["ice"]["generation"] == 3, "once more, as between the backup and the restore"
        assert (await newer.refused()).code == "token-invalid"
        assert (await running.ice(again["token"], newer.key).connect()).welcome
        actions = [item["action"] for item in (await running.admin.get("/events")).json["items"]]
        assert actions[actions.index("backup") + 1] == "restore"
        assert "confirm-restore" in actions


async def test_a_token_reprovisioned_since_is_worthless_too(tmp_path):
    async with harness(tmp_path) as running:
        settings = running.gateway.settings
        await running.provision()
        folder = await make(settings, tmp_path / "backup")
        between = running.ice((await running.act("lab-1", "reprovision"))["token"])
    await put_back(settings, folder)
    await confirmed(settings)
    async with harness(tmp_path) as running:
        between = running.ice(between.token, between.key)
        assert (await between.refused()).code == "token-invalid"
        again = await running.act("lab-1", "reprovision")
        assert again["ice"]["generation"] == 2
        assert (await between.refused()).code == "token-invalid"
        assert (await running.ice(again["token"]).connect()).welcome


async def test_a_copy_put_back_by_hand_admits_nobody_either(tmp_path, settings):
    async with open_context(settings) as opened:
        token = await provision(opened, "lab-1")
    folder = await make(settings, tmp_path / "backup")
    shutil.copyfile(folder / "ice-gateway.db", settings.database_path)
    async with harness(tmp_path) as running:
        ice = running.ice(token.reveal())
        assert (await ice.refused()).code == "store-unavailable"
        page = await running.session.get(f"{running.url}/admin/login")
        assert "restore --confirm" not in await page.text(), "a stranger is told nothing"
        await confirmed(settings)
        await until(lambda: running.gateway.node.restore_hold.reason is None)
        assert (await ice.connect()).welcome


# --- what is there already -----------------------------------------------------------------------


async def test_a_log_that_was_not_yet_written_back_is_put_aside_too(tmp_path, settings):
    """A gateway that was killed leaves half of the database in SQLite's log (WAL)."""
    async with open_context(settings) as opened:
        await provision(opened, "lab-1")
    folder = await make(settings, tmp_path / "backup")
    killed = tmp_path / "killed"
    killed.mkdir()
    async with open_context(settings) as opened:
        await provision(opened, "lab-2")
        for path in tmp_path.glob("ice.db*"):
            shutil.copyfile(path, killed / path.name)
    assert (killed / "ice.db-wal").stat().st_size
    shutil.copyfile(settings.key_file, killed / settings.key_file.name)
    settings = settings_for(killed)
    done = await put_back(settings, folder)
    assert await names(done.database_aside) == ["lab-1", "lab-2"]
    assert await names(settings.database_path) == ["lab-1"]
    assert not list(killed.glob("*-wal*"))


async def test_a_damaged_database_is_put_aside_with_its_log(tmp_path, settings):
    async with open_context(settings) as opened:
        await provision(opened, "lab-1")
    folder = await make(settings, tmp_path / "backup")
    settings.database_path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    log = settings.database_path.with_name("ice.db-wal")
    log.write_bytes(b"what was not yet written back")
    done = await put_back(settings, folder)
    assert done.database_aside.read_bytes().endswith(b"\xff" * 5000)
    kept = done.database_aside.with_name(f"{done.database_aside.name}-wal")
    assert kept.read_bytes() == b"what was not yet written back"
    assert not log.exists(), "an old log must never meet a new database"
    assert await names(settings.database_path) == ["lab-1"]
    since, found = await listed(settings)
    assert since == {("ice", "lab-1"): "not known"}
    assert "cannot be read" in found.reasons[0]


async def test_a_database_of_another_program_stays(tmp_path, settings):
    async with open_context(settings) as opened:
        await provision(opened, "lab-1")
    folder = await make(settings, tmp_path / "backup")
    settings.database_path.unlink()
    with contextlib.closing(sqlite3.connect(settings.database_path)) as other:
        other.execute("CREATE TABLE recipes (name)")
    before = settings.database_path.read_bytes()
    with pytest.raises(StoreRefused, match="of another program"):
        await put_back(settings, folder)
    assert settings.database_path.read_bytes() == before


async def test_while_a_command_has_it_open_it_is_refused(tmp_path, settings):
    async with open_context(settings) as opened:
        await provision(opened, "lab-1")
    folder = await make(settings, tmp_path / "backup")
    async with open_context(settings) as opened:
        with pytest.raises(StoreRefused, match=r"a command has .* open: try again"):
            await put_back(settings, folder)
        await provision(opened, "lab-2")
    assert await names(settings.database_path) == ["lab-1", "lab-2"]


async def test_without_a_database_all_that_is_good_is_listed(tmp_path, settings):
    async with open_context(settings) as opened:
        await opened.services.accounts.add_user(ADMIN, "alice", Role.ADMIN, None)
        token = (await opened.services.accounts.create_token(ADMIN, "alice", "tour", 0)).token
        for name in ("lab-1", "lab-2"):
            await provision(opened, name)
    folder = await make(settings, tmp_path / "backup")
    settings.database_path.unlink()
    done = await put_back(settings, folder)
    assert (done.database_aside, done.keys_aside) == (None, None)
    since, found = await listed(settings)
    assert since.keys() == {("ice", "lab-1"), ("ice", "lab-2"), ("api-token", token.id)}
    assert found.reasons == ["the database that it replaced is not known here"]


async def test_enrolment_keys_that_were_used_or_revoked_since_are_shown(tmp_path, settings):
    expires = utc_now() + timedelta(days=1)
    async with open_context(settings) as opened:
        keys = opened.services.enrolment_keys
        made = [
            (await keys.create_key(ADMIN, NewKey(name, IceType.CI_CD, "ci-", expires))).key.id
            for name in ("image", "rack", "spare")
        ]
    folder = await make(settings, tmp_path / "backup")
    async with open_context(settings) as opened:
        await opened.services.enrolment_keys.revoke_key(ADMIN, made[0])
        await opened.engine.write(
            lambda transaction: enrolments.count_uses(transaction, made[1], 1)
        )
    await put_back(settings, folder)
    at = ("--database", settings.database_url)
    shown = (await command("restore", "--confirm", "--yes", *at)).stdout.splitlines()
    rows = {tuple(re.split(" {2,}", line)) for line in shown if line.startswith("enrolment-key")}
    assert rows == {
        ("enrolment-key", made[0], "image: 1 use left", "revoked"),
        ("enrolment-key", made[1], "rack: 1 use left", "used 1 more time"),
    }
    assert shown[-2:] == [
        "What must not come back: deregister (or reprovision), disable, revoke it. Then confirm.",
        "confirmed: ICEs are admitted again",
    ]


async def test_a_pause_that_is_lost_is_shown(tmp_path, settings):
    async with open_context(settings) as opened:
        await opened.services.provisioning.provision(ADMIN, "ci-1", IceType.CI_CD, None)
    folder = await make(settings, tmp_path / "backup")
    async with open_context(settings) as opened:
        order = PauseOrder(by_admin=True, note="new disk")
        await opened.services.bulk.pause(ADMIN, [Target("ci-1")], order)
    await put_back(settings, folder)
    at = ("--database", settings.database_url)
    shown = (await command("restore", "--confirm", "--yes", *at)).stdout
    assert "paused by root: it would be sent work again" in shown


async def test_pools_that_have_other_ices_again_are_shown(tmp_path, settings):
    async with open_context(settings) as opened:
        for name in ("gone", "changed", "same"):
            await opened.services.pools.set(ADMIN, WantedPool(name, {"os": "linux"}))
    folder = await make(settings, tmp_path / "backup")
    async with open_context(settings) as opened:
        await opened.services.pools.delete(ADMIN, "gone")
        await opened.services.pools.set(ADMIN, WantedPool("changed", {"os": "windows"}))
    await put_back(settings, folder)
    since, _ = await listed(settings)
    assert since == {
        ("pool", "gone"): "deleted",
        ("pool", "changed"): "changed: it had other ICEs",
    }


async def test_a_database_that_is_no_later_state_is_not_compared_with(tmp_path, settings):
    async with open_context(settings) as opened:
        await provision(opened, "lab-1")
    folder = await make(settings, tmp_path / "backup")
    for path in tmp_path.glob("ice.*"):
        path.unlink()
    async with open_context(settings) as opened:  # somebody has begun anew
        for name in ("lab-1", "lab-2", "lab-3"):
            await provision(opened, name)
    done = await put_back(settings, folder)
    since, found = await listed(settings)
    assert since == {("ice", "lab-1"): "not known"}
    assert found.reasons == [f"{done.database_aside} is not a later state of it"]


async def test_a_second_restore_is_compared_with_what_the_first_replaced(tmp_path, settings):
    async with open_context(settings) as opened:
        await opened.services.accounts.add_user(ADMIN, "alice", Role.MEMBER, None)
        for name in ("lab-1", "lab-2"):
            await provision(opened, name)
    folder = await make(settings, tmp_path / "backup")
    async with open_context(settings) as opened:
        await opened.services.provisioning.reprovision(
            ADMIN, (await IceListing(opened.engine).find("lab-1")).ice
        )
        await opened.services.accounts.disable(ADMIN, "alice")
    first = await put_back(settings, folder)
    async with open_context(settings) as opened:
        await opened.services.provisioning.reprovision(
            ADMIN, (await IceListing(opened.engine).find("lab-2")).ice
        )
        await opened.services.provisioning.reprovision(
            ADMIN, (await IceListing(opened.engine).find("lab-1")).ice
        )
    assert (await listed(settings))[0].keys() == {("user", "alice")}, "who got a token anew is not"
    second = await put_back(settings, folder)
    assert second.database_aside != first.database_aside
    since, found = await listed(settings)
    assert since.keys() == {("ice", "lab-1"), ("ice", "lab-2"), ("user", "alice")}
    assert found.compared == (str(first.database_aside), str(second.database_aside))


async def test_it_is_confirmed_once_and_told_in_the_log(tmp_path, settings):
    async with open_context(settings) as opened:
        await provision(opened, "lab-1")
    folder = await make(settings, tmp_path / "backup")
    async with open_context(settings) as opened:
        await provision(opened, "lab-2")
        newest = await head(opened.engine.fetch)
    done = await put_back(settings, folder)
    async with open_context(settings) as opened:
        found = await review(opened.engine.fetch, utc_now())
        assert await confirm(opened.engine, found, ADMIN, utc_now)
        assert not await confirm(opened.engine, found, ADMIN, utc_now)
        assert await review(opened.engine.fetch, utc_now()) is None
        log = await Events(opened.engine.fetch).after(0, 100)
    assert [entry.event.action for entry in log] == [
        "provision",
        "backup",
        "restore",
        "confirm-restore",
    ]
    assert log[2].event.detail == {
        "copied": done.manifest.at,
        "head": done.manifest.head,
        "aside": str(done.database_aside),
        "head_aside": str(newest),
    }
    assert log[3].event.detail == {
        "copied": done.manifest.at,
        "compared": [str(done.database_aside)],
        "listed": 0,
    }


# --- keys ----------------------------------------------------------------------------------------


async def test_the_keys_of_both_open_and_the_newest_goes_on_sealing(tmp_path, settings):
    async with open_context(settings) as opened:
        old = await provision(opened, "lab-1")
        folder = await make(settings, tmp_path / "backup")
        ring, new = key_file.read(settings.key_file), Key.generate(utc_now())
        key_file.replace(settings.key_file, KeyRing([*ring.keys, new], new.kid))
        since = await provision(opened, "lab-2")
        before = settings.key_file.read_bytes()
    done = await put_back(settings, folder)
    assert (done.keys_aside, settings.key_file.read_bytes()) == (None, before), "it had them all"
    key_file.replace(settings.key_file, KeyRing([new], new.kid))  # the older one was retired
    retired = settings.key_file.read_bytes()
    done = await put_back(settings, folder)
    joined = key_file.read(settings.key_file)
    assert ({key.kid for key in joined.keys}, joined.seals) == (
        {key.kid for key in (*ring.keys, new)},
        new.kid,
    )
    assert [joined.open(token).ice_name for token in (old, since)] == ["lab-1", "lab-2"]
    assert done.keys_aside.read_bytes() == retired
    assert done.keys_aside.stat().st_mode & 0o077 == 0


async def test_a_backup_from_before_a_retirement_strands_no_registered_ice(tmp_path):
    async with harness(tmp_path) as running:
        settings = running.gateway.settings
        ice, unused = await running.provision("lab-1"), await running.provision("lab-2")
        await (await ice.connect()).close()
        folder = await make(settings, tmp_path / "backup")
        [old] = [key.kid for key in key_file.read(settings.key_file).keys]
        await running.act("lab-2", "reprovision")
        await running.act("lab-2", "reprovision")
        for step in ("rotate", "promote"):
            await running.command("keys", step)
        await running.act("lab-2", "reprovision")
        await running.command("keys", "retire", old)
        retired = settings.key_file.read_bytes()
    done = await put_back(settings, folder)
    assert (done.keys_aside, settings.key_file.read_bytes()) == (None, retired)
    shown = await command("restore", "--confirm", "--yes", "--database", settings.database_url)
    assert "The key of their tokens was retired, so reprovision them: lab-2\n" in shown.stdout
    async with harness(tmp_path) as running:
        ice.url = unused.url = running.url
        await (await ice.connect()).close()
        assert (await unused.refused()).code == "token-invalid"
        unused.token = (await running.act("lab-2", "reprovision"))["token"]
        await (await unused.connect()).close()


@pytest.mark.parametrize("lost", ["gone", "garbage", "open to others"])
async def test_keys_that_cannot_be_used_are_replaced(tmp_path, settings, lost):
    async with open_context(settings) as opened:
        token = await provision(opened, "lab-1")
    folder = await make(settings, tmp_path / "backup")
    if lost == "gone":
        settings.key_file.unlink()
    elif lost == "garbage":
        settings.key_file.write_text("Dear diary")
    else:
        settings.key_file.write_text("{}")
        settings.key_file.chmod(0o644)
    done = await put_back(settings, folder)
    assert key_file.read(settings.key_file).open(token).ice_name == "lab-1"
    if lost == "garbage":
        assert done.keys_aside.read_text() == "Dear diary"


async def test_a_key_file_of_another_gateway_is_refused(tmp_path, settings):
    async with open_context(settings) as opened:
        await provision(opened, "lab-1")
    folder = await make(settings, tmp_path / "backup")
    kid = key_file.read(settings.key_file).seals
    key_file.replace(settings.key_file, KeyRing([Key(kid, b"\1" * 32)], kid))
    before = settings.key_file.read_bytes()
    with pytest.raises(KeyFileUnusable, match="of another gateway"):
        await put_back(settings, folder)
    assert settings.key_file.read_bytes() == before
    assert not list(tmp_path.glob("*.before-restore-*"))


# --- stopped half-way ----------------------------------------------------------------------------

_KILLED = """
import asyncio, os, shutil, sys
from pathlib import Path
from gateway.services.backup import Backup, GatewayFiles
from gateway.core.audit_event import Actor, Via
from gateway.services.restore import restore
from gateway.runtime.setting_sources import load
from gateway.core.times import utc_now

template, folder = Path(sys.argv[1]), Path(sys.argv[2])
os.fsync = lambda _: None  # a process is killed here, not the machine
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "sqlite3.connect"}

def die_before(step):
    count = 0
    def hook(event, args):
        nonlocal count
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if not writes and event not in CHANGES:
            return
        names = [os.fspath(arg) for arg in args if isinstance(arg, (str, os.PathLike))]
        # What happens within a folder that is removed anyway makes no difference.
        if not all(".unfinished/" in name for name in names if "/" in name):
            count += 1
            if count == step:
                os._exit(9)
    sys.addaudithook(hook)

async def work(place):
    settings = load(None, {}, {"database.url": f"sqlite:///{place}/ice.db"})
    await restore(Backup.find(template / "backup"), GatewayFiles.of(settings),
                  Actor("root", Via.COMMAND, "here"), utc_now)

step, status = 0, 9
while status == 9:
    step += 1
    place = folder / str(step)
    shutil.copytree(template / "place", place)
    child = os.fork()
    if not child:
        die_before(step)
        asyncio.run(work(place))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
sys.exit(status)
"""


async def killed_at_every_step(template, folder):
    """Restore again and again, killed before each of its steps; the last time it is done."""
    folder.mkdir()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _KILLED, str(template), str(folder)), stderr=asyncio.subprocess.PIPE
    )
    _, error = await asyncio.wait_for(process.communicate(), 6 * PATIENCE)
    assert process.returncode == 0, error.decode()
    places = sorted(folder.iterdir(), key=lambda path: int(path.name))
    assert len(places) > 5, "more steps were expected"
    return places


async def test_killed_at_any_step_it_leaves_the_old_database_or_the_new_one(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    settings = settings_for(place)
    async with open_context(settings) as opened:
        old = await provision(opened, "lab-1")
    await make(settings, tmp_path / "backup")
    async with open_context(settings) as opened:
        ring, new = key_file.read(settings.key_file), Key.generate(utc_now())
        key_file.replace(settings.key_file, KeyRing([*ring.keys, new], new.kid))
        await opened.services.provisioning.reprovision(
            ADMIN, (await IceListing(opened.engine).find("lab-1")).ice
        )
        since = await provision(opened, "lab-2")
        key_file.replace(settings.key_file, KeyRing([new], new.kid))
    seen = []
    places = await killed_at_every_step(tmp_path, tmp_path / "killed")
    for where in places:
        settings = settings_for(where)
        keys = key_file.read(settings.key_file)
        with open_read_only(settings.database_path) as found:
            assert found.find_damage(thorough=True) is None
            waits = await find_mark(found.fetch)
            entries = sorted((await standing(found.fetch)).ices)
        assert keys.open(since).ice_name == "lab-2", "a newer key was lost"
        if waits is None:
            assert entries == ["lab-1", "lab-2"], "an older table was expected to wait"
        else:
            assert entries == ["lab-1"]
            assert await names(Path(waits.aside[0])) == ["lab-1", "lab-2"]
            assert keys.open(old).ice_name == "lab-1"
        for aside in where.glob("ice.db.before-restore-*"):
            assert await names(aside) == ["lab-1", "lab-2"]
        seen.append(waits is not None)
    assert seen == sorted(seen), "once it is new it stays so"
    assert set(seen) == {False, True}
    # Stopped anywhere, it is simply done again.
    for where in (places[len(places) // 2], places[-2]):
        settings = settings_for(where)
        await put_back(settings, tmp_path / "backup")
        assert await names(settings.database_path) == ["lab-1"]
        assert not list(where.glob(".*.unfinished")), "what was left over was expected to go"


async def test_killed_at_any_step_over_a_damaged_database_nothing_of_it_is_lost(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    settings = settings_for(place)
    async with open_context(settings) as opened:
        await provision(opened, "lab-1")
    await make(settings, tmp_path / "backup")
    damaged, log = b"SQLite format 3\0" + b"\xff" * 5000, b"the log beside it"
    settings.database_path.write_bytes(damaged)
    settings.database_path.with_name("ice.db-wal").write_bytes(log)
    for where in await killed_at_every_step(tmp_path, tmp_path / "killed"):
        path = where / "ice.db"
        content = path.read_bytes() if path.exists() else None
        logs = [item.read_bytes() for item in where.glob("ice.db*-wal")]
        assert log in logs, f"the log was lost in {where}"
        if content == damaged:
            assert path.with_name("ice.db-wal").read_bytes() == log
            continue
        assert damaged in [item.read_bytes() for item in where.glob("ice.db.before-restore-*Z")]
        if content is not None:
            assert not path.with_name("ice.db-wal").exists(), "an old log beside a new database"
            with open_read_only(path) as found:
                assert await find_mark(found.fetch) is not None


# --- as commands ---------------------------------------------------------------------------------


class Commands:
    """Runs commands on the database of `settings`, where nobody can be asked."""

    def __init__(self, settings):
        self.settings = settings

    def run(self, *args, **how):
        runner = CliRunner(catch_exceptions=False)
        return runner.invoke(main, (*args, "--database", self.settings.database_url), **how)

    def done(self, *args):
        result = self.run(*args)
        assert result.exit_code == 0, f"{args} must be done, but: {result.output}"
        return result

    def refused(self, *args, **how):
        result = self.run(*args, **how)
        assert result.exit_code == 1, f"{args} must be refused, but: {result.output}"
        [*_, line] = result.stderr.splitlines()
        assert line.startswith("ice-gateway: ")
        return result.stdout, line


@pytest.fixture
def commands(settings):
    return Commands(settings)


def test_backup_restore_confirm(commands, tmp_path):
    commands.done("ices", "provision", "lab-1", "--type", "ci-cd")
    folder = str(tmp_path / "backup")
    out = commands.done("backup", folder).stdout
    assert re.fullmatch(
        rf"backup of \S+Z in {folder}: schema \d+\n"
        r"head of its audit log, to be kept elsewhere, too: 2:[0-9a-f]{64}\n",
        out,
    )
    assert "holds a backup already" in commands.refused("backup", folder)[1]
    commands.done("ices", "reprovision", "lab-1")
    result = commands.done("restore", folder)
    lines = result.stdout.splitlines()
    assert lines[0].startswith("restored the backup of ")
    aside = re.fullmatch(r"the database that was there is now (\S+)", lines[1])[1]
    row = ["ice", "lab-1", "provisioned,", "generation", "1", "its", "token", "was", "replaced"]
    assert lines[4].split()[:9] == row
    assert "no ICE is admitted until: ice-gateway restore --confirm --database" in result.stderr
    # First it lists, then it asks.
    listed, reason = commands.refused("restore", "--confirm")
    assert listed.splitlines()[:3] == lines[2:5]
    assert "there is no terminal to ask on, so nothing was confirmed" in reason
    out = commands.done("restore", "--confirm", "--yes").stdout
    assert out == f"{listed}confirmed: ICEs are admitted again\n"
    assert "nothing waits" in commands.refused("restore", "--confirm", "--yes")[1]
    assert json.loads(commands.done("ices", "show", "lab-1", "--json").stdout)["generation"] == 1
    commands.settings.database_path.unlink()
    out = commands.done("restore", folder).stdout
    assert "cannot be told: the database that it replaced is not known here" in out
    assert aside not in out


@pytest.mark.parametrize(("answer", "admitted"), [("y", True), ("n", False), ("", False)])
def test_on_a_terminal_it_asks(commands, tmp_path, monkeypatch, answer, admitted):
    commands.done("users", "add", "alice", "--role", "member", "--no-password")
    commands.done("backup", str(tmp_path / "backup"))
    commands.done("restore", str(tmp_path / "backup"))
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    result = commands.run("restore", "--confirm", input=f"{answer}\n")
    assert "Nothing was taken back after" in result.stdout
    assert "Let ICEs be admitted again? [y/N]" in result.stdout
    assert (result.exit_code == 0) is admitted
    monkeypatch.undo()
    again = commands.run("restore", "--confirm")
    assert ("nothing waits" in again.stderr) is admitted


@pytest.mark.parametrize("args", [(), ("DIR", "--confirm"), ("DIR", "--yes"), ("--yes",)])
def test_wrong_usage(commands, args):
    assert commands.run("restore", *args).exit_code == 2


def test_what_is_no_backup_is_refused_on_one_line(commands, tmp_path):
    out, line = commands.refused("restore", str(tmp_path / "nothing"))
    assert (out, line) == (
        "",
        f"ice-gateway: {tmp_path / 'nothing'} is no backup: it has no manifest.json",
    )
    assert list(tmp_path.iterdir()) == []
