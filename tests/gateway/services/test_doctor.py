"""The doctor: finds each thing that can be wrong, says what to do, and changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import json
import os
import resource
import shutil
import socket
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.cli import main
from gateway.cli.common import open_context
from gateway.core.ice import IceType
from gateway.core.roles import Role
from gateway.core.secret import Secret
from gateway.core.times import to_text, utc_now
from gateway.core.tokens import Key, KeyRing
from gateway.services.backup import DATABASE, GatewayFiles, back_up
from gateway.services.doctor import Doctor
from gateway.services.enrolment_keys import NewKey
from gateway.services.schedules import WantedSchedule
from gateway.store import key_file
from gateway.store.sqlite.migrate import released
from tests.support.authority import Authority
from tests.support.harness import ADMIN, harness, settings_for

CHECKS = [
    "settings",
    "database",
    "keys",
    "files",
    "disk",
    "port",
    "metrics",
    "tls",
    "handles",
    "clock",
]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """The files of a gateway with an ICE, that never ran."""
    folder = tmp_path_factory.mktemp("template")

    async def work():
        async with open_context(settings_for(folder)) as opened:
            await opened.services.provisioning.provision(ADMIN, "lab-1", IceType.CI_CD, None)

    asyncio.run(work())
    return folder


@pytest.fixture
def settings(template, tmp_path, monkeypatch):
    """Of such a gateway; every check is well."""
    for path in template.iterdir():
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 6000))
    return settings_for(tmp_path, ice__max_connections=4000)


def examine(settings, config=None, clock=utc_now, **how):
    return asyncio.run(Doctor(settings, config, clock=clock, **how).examine())


def expect(findings, check, level, *words):
    """One finding of this check and level; each but that is ok."""
    others = [item for item in findings if item.level != "ok"]
    assert [(item.check, item.level) for item in others] == [(check, level)], others
    [found] = others
    for word in words:
        assert word in f"{found.text} -> {found.remedy}"
    assert found.remedy, "what to do was expected to be said"


def state(folder):
    """All files with their content and times."""
    return {
        path.name: (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.iterdir()
        if path.is_file()
    }


def test_all_is_well(settings, tmp_path):
    before = state(tmp_path)
    findings = examine(settings)
    assert [item.check for item in findings] == CHECKS
    assert [item for item in findings if item.level != "ok"] == []
    assert state(tmp_path) == before, "a doctor changes nothing"


@pytest.mark.parametrize("required", [False, True])
def test_single_sign_on_without_an_admin_of_its_own(settings, required):
    """Nobody listens at the issuer's port: what is said of it stands beside."""
    sso = dataclasses.replace(settings, sso_issuer="http://127.0.0.1:9", sso_required=required)

    def said():
        found = examine(sso)
        return [(one.level, one.remedy) for one in found if "local admin" in one.text]

    missing = "FAILED" if required else "warning"
    assert said() == [(missing, "run `ice-gateway users add NAME --role admin`")]

    async def add():
        async with open_context(settings) as opened:
            await opened.services.accounts.add_user(
                ADMIN, "root", Role.ADMIN, Secret("correct horse battery")
            )

    asyncio.run(add())
    assert said() == []


# --- as a command --------------------------------------------------------------------------------


SSO = {
    "ICE_GATEWAY_SSO__ISSUER": "http://127.0.0.1:9",
    "ICE_GATEWAY_SSO__CLIENT_ID": "ice",
    "ICE_GATEWAY_SSO__ROLES": "lab=member",
}


def run(settings, *args, **env):
    args = ("doctor", "--database", settings.database_url, *args)
    plain = {"ICE_GATEWAY_METRICS__LISTEN": "", "ICE_GATEWAY_SERVER__PORT": "0"}
    runner = CliRunner(
        catch_exceptions=False, env=plain | {"ICE_GATEWAY_ICE__MAX_CONNECTIONS": "9"}
    )
    return runner.invoke(main, args, env=env)


def test_the_command_prints_a_line_each(settings):
    result = run(settings)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", check] for check in CHECKS]
    found = json.loads(run(settings, "--json").stdout)
    assert [list(item) for item in found] == [["check", "level", "text", "remedy"]] * len(CHECKS)


async def test_what_is_logged_meanwhile_does_not_spoil_the_json(settings, fork):
    doctor = ("doctor", "--json", "--database", settings.database_url)
    ended = await fork.run(*doctor, environ=SSO)
    assert "the issuer cannot be used" in ended.err
    assert "sso" in [item["check"] for item in json.loads(ended.out)]


def test_a_failure_is_status_1_and_says_what_to_do(settings):
    settings.key_file.write_text("{}")
    result = run(settings)
    assert (result.exit_code, result.stderr) == (1, "ice-gateway: 1 of 10 findings is FAILED\n")
    [line] = [line for line in result.stdout.splitlines() if line.startswith("FAILED")]
    assert line.split()[1] == "keys"
    assert line.endswith("put it back from a backup")
    result = run(settings, "--json")
    assert (result.exit_code, len(json.loads(result.stdout))) == (1, 10)


def test_bad_settings_are_a_finding(settings):
    result = run(settings, ICE_GATEWAY_SERVER__PORT="x")
    assert result.exit_code == 1
    assert result.stdout.startswith("FAILED   settings  server.port = 'x'")
    assert "Traceback" not in result.output


def test_where_there_is_no_database_none_is_made(tmp_path):
    result = run(settings_for(tmp_path))
    assert result.exit_code == 1
    [line] = [line for line in result.stdout.splitlines() if line.startswith("FAILED")]
    assert f"there is no {tmp_path}/ice.db" in line
    assert list(tmp_path.iterdir()) == []


# --- the database --------------------------------------------------------------------------------


def sql(path, *statements):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def garbage(path):
    path.write_bytes(b"Dear diary,\n" * 1000)


def torn(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        [page] = connection.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'ice_connections'"
        ).fetchone()
        [size] = connection.execute("PRAGMA page_size").fetchone()
    content = path.read_bytes()
    start = (page - 1) * size
    path.write_bytes(content[:start] + b"\xff" * size + content[start + size :])


@pytest.mark.parametrize(
    ("harm", "level", "words"),
    [
        (garbage, "FAILED", ["cannot be read", "restore a backup"]),
        (torn, "FAILED", ["is damaged", "restore a backup"]),
        (lambda path: path.write_bytes(b""), "warning", ["is empty"]),
        (
            lambda path: sql(path, "PRAGMA application_id=7"),
            "FAILED",
            ["is no database of a gateway"],
        ),
        (
            lambda path: sql(path, "PRAGMA user_version=99"),
            "FAILED",
            ["schema 99", "upgrade the gateway"],
        ),
        (
            lambda path: sql(path, "PRAGMA user_version=2", "DROP TABLE restored"),
            "warning",
            ["schema 2", "keeps a copy"],
        ),
        (
            lambda path: sql(
                path,
                *("PRAGMA user_version=16", "DROP TABLE enrolments", "DROP TABLE enrolment_keys"),
            ),
            "warning",
            ["schema 16", "keeps a copy"],
        ),
        (
            lambda path: sql(
                path,
                "PRAGMA foreign_keys=OFF",
                "UPDATE ice_tokens SET ice_type='normal', provisionedto='x'",
            ),
            "FAILED",
            ["a row of ice_tokens refers to none of users"],
        ),
    ],
)
def test_a_database_that_is_not_as_it_should_be(settings, tmp_path, harm, level, words):
    harm(settings.database_path)
    before = state(tmp_path)
    expect(examine(settings), "database", level, *words)
    assert state(tmp_path) == before


def test_a_restored_table_that_waits(settings, tmp_path):
    async def work():
        async with open_context(settings) as opened:
            place = GatewayFiles.of(settings)
            await back_up(opened.engine, place, tmp_path / "backup", ADMIN, utc_now)

    asyncio.run(work())
    shutil.copyfile(tmp_path / "backup" / DATABASE, settings.database_path)
    expect(examine(settings), "restore", "FAILED", "no ICE is admitted", "restore --confirm")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: path.unlink(), ["is missing", "of the 1 ICEs", "from a backup"]),
        (lambda path: path.write_text("{}"), ["is not a key file", "from a backup"]),
    ],
)
def test_keys_that_cannot_be_used(settings, harm, words):
    harm(settings.key_file)
    expect(examine(settings), "keys", "FAILED", *words)


def test_a_retired_key_is_needed_by_provisioned_ices_alone(settings):
    new = Key.generate(utc_now())
    ring = key_file.read(settings.key_file)
    retired = ring.with_key(new).sealing_with(new.kid).retiring(ring.seals)
    key_file.replace(settings.key_file, retired)
    told = f"has retired {ring.seals}, which lab-1 need"
    expect(examine(settings), "keys", "FAILED", told, "reprovision them")
    with contextlib.closing(sqlite3.connect(settings.database_path)) as database:
        database.execute(
            "UPDATE ice_tokens SET status = 'registered', registeredon = provisionedon,"
            " expireson = NULL, key_thumbprint = 't'"
        )
        database.commit()
    assert all(finding.level == "ok" for finding in examine(settings))
    key_file.replace(settings.key_file, KeyRing([new], new.kid))
    expect(examine(settings), "keys", "FAILED", f"lacks {ring.seals}, which lab-1 need")


def test_a_key_that_some_need_and_the_file_lacks(settings):
    ring = key_file.read(settings.key_file)
    other = Key.generate(utc_now())
    key_file.replace(settings.key_file, KeyRing([other], other.kid))
    expect(examine(settings), "keys", "FAILED", f"lacks {ring.seals}, which lab-1 need")


@pytest.mark.usefixtures("settings")
def test_enrolment_keys_need_the_key_file_too(tmp_path):
    folder = tmp_path / "without-ices"
    folder.mkdir()
    settings = settings_for(folder, ice__max_connections=4000)
    new = NewKey("runners", IceType.CI_CD, "ci-", utc_now() + dt.timedelta(days=1))

    async def create():
        async with open_context(settings) as opened:
            return await opened.services.enrolment_keys.create_key(ADMIN, new)

    asyncio.run(create())
    findings = examine(settings)
    assert [item for item in findings if item.level != "ok"] == []
    assert "ICEs: 0, events: 1, schedules: 0, enrolment keys: 1, webhooks: 0;" in findings[1].text
    made = settings.key_file.rename(folder / "kept")
    expect(examine(settings), "keys", "FAILED", "is missing", "none of 1 enrolment key is known")
    assert asyncio.run(create()).code == "keys-unavailable", "no other key file is made"
    key_file.create(settings.key_file)
    expect(examine(settings), "keys", "FAILED", "lacks the key of 1 enrolment key", "revoke them")
    key_file.replace(settings.key_file, key_file.read(made).with_key(Key.generate(utc_now())))
    assert [item for item in examine(settings) if item.level != "ok"] == []


def test_schedules_in_a_time_zone_that_is_not_known_here(settings):
    new = WantedSchedule("nightly", "0 2 * * *", "UTC", ice_name="lab-1")

    async def create(zone):
        async with open_context(settings) as opened:
            service = opened.services.schedules
            made = await service.create(ADMIN, service.prepare(ADMIN, new))
            sql = "UPDATE ice_schedules SET timezone = $1 WHERE id = $2"
            await opened.engine.write(lambda transaction: transaction.run(sql, zone, made.id))

    for _ in range(2):
        asyncio.run(create("Europe/Atlantis"))
    said = "zone Europe/Atlantis: what is scheduled in it requests nothing (2 enabled)"
    expect(examine(settings), "schedules", "FAILED", said, "tzdata")
    asyncio.run(create("Mars/Olympus"))
    expect(
        examine(settings),
        "schedules",
        "FAILED",
        "zones Europe/Atlantis, Mars/Olympus",
        "(3 enabled)",
    )


# --- files and disk ------------------------------------------------------------------------------


def test_files_that_others_may_use(settings, tmp_path):
    config = tmp_path / "gateway.toml"
    config.write_text("")
    config.chmod(0o664)
    expect(examine(settings, config), "files", "FAILED", f"{config} can be changed", "chmod go-w")
    config.chmod(0o644)
    settings.database_path.chmod(0o640)
    expect(examine(settings, config), "files", "FAILED", f"chmod 600 {settings.database_path}")
    settings.database_path.chmod(0o600)
    tmp_path.chmod(0o777)
    expect(examine(settings, config), "files", "FAILED", f"{tmp_path} can be changed by others")
    tmp_path.chmod(0o1777)  # as /tmp: others cannot rename what is ours
    assert examine(settings, config)[0].text == f"from {config}"


def test_files_of_two_users(settings, monkeypatch):
    stat = Path.stat

    def of_another(path, **options):
        found = stat(path, **options)
        if path != settings.key_file:
            return found
        return os.stat_result([*found[:4], found.st_uid + 1, *found[5:]])

    monkeypatch.setattr(Path, "stat", of_another)
    expect(examine(settings), "files", "FAILED", "belongs to another user", "the gateway's user")


def test_a_folder_that_is_not_ours(settings, monkeypatch):
    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.W_OK)
    expect(examine(settings), "files", "FAILED", "no file can be made in")


@pytest.mark.parametrize(
    ("free", "level"), [(1024, "FAILED"), (64 * 1024 * 1024 + 1024, "warning")]
)
def test_a_disk_that_is_nearly_full(settings, monkeypatch, free, level):
    usage = shutil.disk_usage(settings.database_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    expect(examine(settings), "disk", level, "make room")


def test_a_log_that_has_grown(settings):
    with contextlib.closing(sqlite3.connect(settings.database_path)) as other:
        other.execute("UPDATE ice_tokens SET lastseen = ''")
        other.commit()
        os.truncate(f"{settings.database_path}-wal", 65 * 1024 * 1024)  # takes no room
        expect(examine(settings), "disk", "warning", "-wal has grown")


def test_what_a_check_does_not_expect_is_a_finding(settings, monkeypatch):
    def away(_):
        raise OSError("the disk is away")

    monkeypatch.setattr(shutil, "disk_usage", away)
    expect(examine(settings), "disk", "FAILED", "cannot be checked: the disk is away")


# --- reach ---------------------------------------------------------------------------------------


def test_exposure(settings):
    open_to_all = dataclasses.replace(settings, server_host=("0.0.0.0",))  # noqa: S104
    expect(examine(open_to_all), "settings", "FAILED", "set server.public_url")
    plain = dataclasses.replace(
        settings, server_public_url=("http://ice.example",), server_insecure=True
    )
    expect(examine(plain), "settings", "warning", "everybody on the way can read tokens")


@pytest.mark.parametrize("at", ["port", "metrics"])
def test_a_port_that_another_program_has(settings, at):
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0)
        place = other.getsockname()
        if at == "port":
            taken = dataclasses.replace(settings, server_port=place[1])
            expect_quickly(taken, "port", "FAILED", "another program has", "server.port")
        else:
            taken = dataclasses.replace(settings, metrics_listen=place)
            expect_quickly(taken, "metrics", "warning", "Address already in use", "metrics.listen")


def expect_quickly(settings, *expected):
    """A port that accepts and says nothing is not waited for."""
    expect(examine(settings, timeout=0.05), *expected)


def test_an_address_that_is_not_ours(settings):
    elsewhere = dataclasses.replace(
        settings,
        server_host=("192.0.2.1",),
        server_public_url=("http://192.0.2.1",),
        server_insecure=True,
    )
    findings = [item for item in examine(elsewhere) if item.check != "settings"]
    expect(findings, "port", "FAILED", "cannot listen on 192.0.2.1", "server.host")


def test_each_of_several_hosts_is_looked_at(settings):
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        other.settimeout(0)
        port = other.getsockname()[1]
        both = dataclasses.replace(settings, server_host=("127.0.0.1", "::1"), server_port=port)
        findings = [item for item in examine(both, timeout=0.05) if item.check == "port"]
    assert [(item.level, item.text) for item in findings] == [
        ("ok", f"127.0.0.1:{port} is free"),
        ("FAILED", f"another program has [::1]:{port}"),
    ]


async def test_beside_a_gateway(tmp_path):
    async with harness(tmp_path, metrics__listen="") as running:
        port = int(running.url.rsplit(":", 1)[1])
        made = dataclasses.replace(
            running.gateway.settings, server_port=port, ice_max_connections=1
        )
        (tmp_path / "other").mkdir()
        other = dataclasses.replace(made, database_url=f"sqlite:///{tmp_path}/other/ice.db")
        shutil.copy2(tmp_path / "ice.db", tmp_path / "other" / "ice.db")
        free = dataclasses.replace(made, server_port=0)

        async def found(settings):
            findings = await asyncio.to_thread(examine, settings)
            return {item.check: (item.level, item.text) for item in findings}

        level, text = (await found(made))["port"]
        assert (level, "and admits ICEs" in text) == ("ok", True), text
        running.gateway.node.restore_hold.reason = "it is held"
        level, text = (await found(made))["port"]
        assert (level, text) == (
            "FAILED",
            f"the gateway on 127.0.0.1:{port} admits nobody: it is held",
        )
        level, text = (await found(free))["port"]
        assert (level, "but not on" in text) == ("warning", True), text
        level, text = (await found(other))["port"]
        assert (level, "a gateway on another database" in text) == ("FAILED", True), text


def test_certificates(settings, tmp_path):
    (tmp_path / "tls").mkdir()
    authority = Authority(tmp_path / "tls")

    def certified(certificate, key):
        if key is not None:
            key.chmod(0o640)
        return dataclasses.replace(settings, server_tls_certificate=certificate, server_tls_key=key)

    hours = dt.timedelta(hours=1)
    brief = authority.certificate("127.0.0.1", name="brief")
    good = authority.certificate("127.0.0.1", name="good", good_for=31 * 24 * hours)
    late = authority.certificate("127.0.0.1", -2 * hours, name="late")
    early = authority.certificate("127.0.0.1", 2 * hours, name="early")
    expect(examine(certified(*brief)), "tls", "warning", "for 0 days", "renew it")
    assert [item for item in examine(certified(*good)) if item.level != "ok"] == []
    expect(examine(certified(*late)), "tls", "FAILED", "has expired", "renew it")
    expect(examine(certified(*early)), "tls", "FAILED", "is good from", "set the clock")
    expect(examine(certified(good[0], late[1])), "tls", "FAILED", "cannot be used", "its own key")
    expect(examine(certified(Path("gone"), good[1])), "tls", "FAILED", "No such file")
    expect(examine(certified(good[0], None)), "tls", "FAILED", "server.tls_key is missing")
    settings = certified(*good)
    good[1].chmod(0o644)
    expect(examine(settings), "files", "FAILED", "good.key is open to others", "chmod 640")


def test_too_few_file_handles(settings):
    many = dataclasses.replace(settings, ice_max_connections=4990)
    expect(examine(many), "handles", "warning", "6000 file handles", "LimitNOFILE")


# --- the clock -----------------------------------------------------------------------------------


def test_a_clock_that_was_set_back(settings):
    def earlier():
        return utc_now() - dt.timedelta(seconds=60)

    findings = [item for item in examine(settings, clock=earlier) if item.level != "ok"]
    assert [(item.check, item.level) for item in findings] == [
        ("clock", "FAILED"),
        ("clock", "warning"),
        ("clock", "warning"),
    ]
    assert "the newest event is of" in findings[0].text
    assert "was written later than it is now" in findings[1].text


def test_a_clock_that_begins_in_1970(tmp_path):
    settings = settings_for(tmp_path, ice__max_connections=1)
    findings = examine(settings, clock=lambda: dt.datetime(1970, 1, 1, tzinfo=dt.UTC))
    assert ("clock", "FAILED") in [(item.check, item.level) for item in findings]
    assert any(to_text(dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) in item.text for item in findings)


def test_a_clock_that_leaps(settings):
    steady = iter([0.0, 60.0])
    expect(
        examine(settings, monotonic=lambda: next(steady)), "clock", "warning", "within 60 s", "NTP"
    )


def test_the_doctor_knows_the_newest_schema(settings):
    findings = examine(settings)
    sql(settings.database_path, f"PRAGMA user_version={released()[-1][0] - 1}")
    expect(examine(settings), "database", "warning", "nothing need be done")
    assert all(item.level == "ok" for item in findings)
