"""The commands, on the database alone: what they print, what they refuse, where settings come from."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import re
import socket
import sqlite3
import subprocess

import aiosqlite
import argon2
import click
import pytest
from click.testing import CliRunner

from gateway.cli import main
from gateway.cli.common import open_context
from gateway.core.audit_event import Actor, Via
from gateway.core.roles import Role
from gateway.core.secret import Secret
from gateway.core.times import to_text, utc_now
from gateway.runtime.setting_sources import load
from gateway.store import key_file
from gateway.store.key_file import KeyStore
from tests.support import served
from tests.support.databases import put_database
from tests.support.ice import PROCESS_PATIENCE

EXISTS = "ICE Provision Failed! ICE Name or User already exists"
TOKEN = re.compile(r"eyJ[\w-]+\.\.[\w-]+\.[\w-]+\.[\w-]+\n")
API_TOKEN = re.compile(r"icegw_[\w-]{43}\n")
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
PASSWORD = "correct horse battery"
ACTIONS = ["reprovision", "reregister", "deregister", "disconnect"]


class Cli:
    """Runs commands on a database of their own, which is empty at first."""

    def __init__(self, folder):
        self.folder = folder
        self.path = folder / "ice.db"
        self.url = f"sqlite:///{self.path}"
        self.settings = load(None, {}, {"database.url": self.url})

    def run(self, *args, **kwargs):
        """Run a command; an exception that no command may let out comes out."""
        return CliRunner(catch_exceptions=False).invoke(main, args, **kwargs)

    def at(self, *args, **kwargs):
        """The same on the database of this test."""
        return self.run(*args, "--database", self.url, **kwargs)

    def done(self, *args, **kwargs):
        """A command that must be done; what it prints on stdout."""
        result = self.at(*args, **kwargs)
        assert result.exit_code == 0, f"{args} must be done, but: {result.output}"
        return result.stdout

    def json(self, *args):
        return json.loads(self.done(*args, "--json"))

    def token(self, *args):
        """The command must print a registration token and nothing else."""
        text = self.done(*args)
        assert TOKEN.fullmatch(text), f"{args} must print the token alone, got {text!r}"
        return text.strip()

    def sql(self, sql, *params):
        connection = sqlite3.connect(self.path, isolation_level=None)
        try:
            return connection.execute(sql, params).fetchall()
        finally:
            connection.close()

    def work(self, use):
        """Run `await use(context)` on the database."""

        async def on_database():
            async with open_context(self.settings) as opened:
                return await use(opened)

        return asyncio.run(on_database())

    def recognised(self, token):
        """The caller whose API token this is."""
        return self.work(
            lambda opened: opened.services.accounts.authenticate(Secret(token.strip()))
        )

    def bring(self, status, name="lab-1"):
        """Provision an ICE and let it have this status; `None` leaves it out."""
        if status is None:
            return
        self.token("ices", "provision", name, "--type", "ci-cd")
        if status != "provisioned":
            self.sql(
                "UPDATE ice_tokens SET status = 'registered', key_thumbprint = 'x',"
                " registeredon = ?, expireson = NULL WHERE ice_name = ?",
                to_text(utc_now()),
                name,
            )
        if status == "deregistered":
            self.done("ices", "deregister", name)


@pytest.fixture
def cli(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("ICE_GATEWAY_CONFIG", "ICE_GATEWAY_DATABASE__URL"):
        monkeypatch.delenv(name, raising=False)
    put_database(tmp_path / "ice.db")
    return Cli(tmp_path)


def expect_refused(result, *words, status=1):
    """This status, nothing on stdout, the reason on one line of stderr."""
    assert result.exit_code == status, f"expected {status}, got {result.exit_code}: {result.output}"
    assert result.stdout == ""
    assert re.fullmatch(r"ice-gateway: .+\n", result.stderr), f"not one line: {result.stderr!r}"
    for word in words:
        assert word in result.stderr, f"expected {word!r} in {result.stderr!r}"


def expect_usage(result):
    assert result.exit_code == 2, f"expected wrong usage, got {result.exit_code}: {result.output}"
    assert result.stdout == ""
    assert "Usage:" in result.stderr


# --- usage -------------------------------------------------------------------------------------


def leaves(group=main, path=()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


def test_all_commands_of_the_contract_are_there():
    expected = {
        "serve": [],
        "demo": [],
        "users": ["add", "list", "disable", "set-role", "set-password"],
        "api-tokens": ["create", "list", "revoke"],
        "ices": ["provision", "list", "show", *ACTIONS],
        "enrolment-keys": ["create", "list", "show", "revoke"],
        "enrolments": ["list", "show", "approve", "reject"],
    }
    for name, members in expected.items():
        assert set(members) <= set(getattr(main.commands[name], "commands", ())), name


@pytest.mark.parametrize(
    "path",
    [path for path, _ in leaves() if path != ("demo",)],
    ids=" ".join,
)
def test_every_command_takes_config_and_database(cli, path):
    result = cli.run(*path, "--help")
    assert result.exit_code == 0
    assert {"--config", "--database"} <= set(re.findall(r"--[a-z-]+", result.stdout))


@pytest.mark.parametrize(
    "args",
    [
        "",
        "users",
        "no-such-command",
        "users no-such-command",
        "users list extra",
        "users list --no-such-option",
        "users add",
        "users add bob",
        "users add bob --role boss",
        "users add bob --role admin --no-password --password-stdin",
        "users add bob --role admin",
        "users disable",
        "users set-role bob",
        "users set-role bob boss",
        "users set-password",
        "users set-password bob",
        "api-tokens create --user bob",
        "api-tokens create --name x",
        "api-tokens create --user bob --name x --expires-in soon",
        "api-tokens create --user bob --name x --expires-in 90",
        "api-tokens create --user bob --name x --expires-in -1d",
        "api-tokens create --user bob --name x --expires-in 36501d",
        f"api-tokens create --user bob --name x --expires-in {'9' * 400}d",
        "api-tokens revoke",
        "ices provision lab-1",
        "ices provision lab-1 --type Normal",
        "ices provision --type ci-cd",
        "ices list --status unknown",
        "ices show",
        "ices deregister",
        "ices deregister lab-1 lab-2",
        "enrolment-keys create x --type ci-cd",
        "enrolment-keys create x --prefix lab-",
        "enrolment-keys create x --type ci-cd --prefix lab- --uses 0",
        "enrolment-keys revoke",
        "enrolments list --state pending",
        "enrolments approve",
        "serve --port x",
        "serve --port 99999",
        "serve --port -1",
        "serve --host http://host",
        "serve --public-url gateway.example",
        "serve --database mysql://host/ice",
        "demo --database mysql://host/ice",
        "users list --database sqlite:///",
        "backup backup --database mysql://host/ice",
        "doctor --database mysql://host/ice",
        "config show --database mysql://host/ice",
        "config show --url https://gateway.example",
        "serve extra",
    ],
)
def test_wrong_usage_is_2(cli, args):
    expect_usage(cli.run(*args.split(), env={"ICE_GATEWAY_DATABASE__URL": cli.url}))


# --- users -------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["admin", "auditor", "member"])
def test_user_is_added_without_a_word(cli, role):
    assert cli.done("users", "add", "Bob B.", "--role", role, "--no-password") == ""
    [user] = cli.json("users", "list")
    assert re.fullmatch(TIME, user.pop("createdon"))
    assert (user.pop("ices"), user.pop("logins"), user.pop("lastlogin")) == (0, 0, None)
    assert (user.pop("origin"), user.pop("has_password")) == ("local", False)
    assert user == {"name": "Bob B.", "role": role, "disabledon": None, "subject": None}


def test_password_is_read_from_stdin_and_kept_as_a_hash(cli):
    add = ("users", "add", "bob", "--role", "admin", "--password-stdin")
    result = cli.at(*add, input=f"{PASSWORD}\r\nnot this\n")
    assert (result.exit_code, result.output) == (0, "")
    [[first]] = cli.sql("SELECT password_hash FROM users")
    assert argon2.PasswordHasher().verify(first, PASSWORD)
    assert cli.json("users", "list")[0]["has_password"] is True

    other = PASSWORD[:12]
    result = cli.at("users", "set-password", "BOB", "--password-stdin", input=other)
    assert (result.exit_code, result.output) == (0, "")
    [[second]] = cli.sql("SELECT password_hash FROM users")
    assert argon2.PasswordHasher().verify(second, other)

    expect_refused(cli.at(*add, input=PASSWORD), "the user bob already exists")


def test_new_password_ends_all_logins(cli):
    cli.at("users", "add", "bob", "--role", "admin", "--password-stdin", input=PASSWORD)
    cli.sql("INSERT INTO logins VALUES ('a hash', 'bob', '192.0.2.7', '2026', '2026', NULL)")
    cli.at("users", "set-password", "bob", "--password-stdin", input=PASSWORD)
    assert cli.sql("SELECT * FROM logins") == []


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_password_that_powershell_pipes_is_understood(cli, encoding):
    add = ("users", "add", "bob", "--role", "admin", "--password-stdin")
    cli.done(*add, input=f"{PASSWORD} \u0a0a\r\nnot this\r\n".encode(encoding))
    [[kept]] = cli.sql("SELECT password_hash FROM users")
    assert argon2.PasswordHasher().verify(kept, f"{PASSWORD} \u0a0a")


def test_password_of_a_new_user_from_a_file(cli, tmp_path):
    file = tmp_path / "secret"
    file.write_text(f"{PASSWORD}\n")
    add = ("users", "add", "bob", "--role", "admin", "--password-file", str(file))
    cli.done(*add)
    file.write_text(f"{PASSWORD} anew")
    cli.done("users", "set-password", "bob", "--password-file", str(file))
    [[kept]] = cli.sql("SELECT password_hash FROM users")
    assert argon2.PasswordHasher().verify(kept, f"{PASSWORD} anew")
    file.unlink()
    expect_refused(
        cli.at(*add), f"the password file {file} cannot be read: No such file or directory"
    )
    assert cli.at(*add, "--password-stdin").exit_code == 2


def test_a_key_file_is_made_once(cli, tmp_path):
    file = tmp_path / "keys.json"
    assert cli.done("keys", "create", str(file)) == ""
    made = file.read_bytes()
    assert (file.stat().st_mode & 0o777, len(key_file.read(file).keys)) == (0o600, 1)
    expect_refused(
        cli.at("keys", "create", str(file)), f"{file} is already there, and is not replaced"
    )
    assert file.read_bytes() == made
    missing = tmp_path / "none" / "keys.json"
    expect_refused(
        cli.at("keys", "create", str(missing)), f"the key file {missing} cannot be written"
    )


def test_password_that_is_no_text_is_refused(cli):
    add = ("users", "add", "bob", "--role", "admin", "--password-stdin")
    expect_refused(cli.at(*add, input=b"\xffsecret\n"), "password: not text in UTF-8")


def test_password_is_asked_for_twice_on_a_terminal(cli, monkeypatch):
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    result = cli.at("users", "add", "bob", "--role", "admin", input=f"{PASSWORD}\n{PASSWORD}\n")
    assert result.exit_code == 0, result.output
    assert PASSWORD not in result.output
    [[kept]] = cli.sql("SELECT password_hash FROM users")
    assert argon2.PasswordHasher().verify(kept, PASSWORD)


@pytest.mark.parametrize(
    "password", ["", "\n", "x" * 11 + "\n", "x" * 1025, "\N{SNOWMAN}" * 342, b"\xff" * 12]
)
def test_impossible_password_is_refused(cli, password):
    add = ("users", "add", "bob", "--role", "admin", "--password-stdin")
    expect_refused(cli.at(*add, input=password), "password: ")
    assert cli.json("users", "list") == []


@pytest.mark.parametrize("name", ["", "x" * 129, "a\tb", "a\nb", "\x7f"])
def test_impossible_user_name_is_refused(cli, name):
    expect_refused(cli.at("users", "add", name, "--role", "member", "--no-password"), "name")


def test_user_names_are_unique_with_case_folded(cli):
    for name in ("Straße", "x" * 128):
        cli.done("users", "add", name, "--role", "member", "--no-password")
    for name in ("STRASSE", "straße", "X" * 128):
        add = ("users", "add", name, "--role", "member", "--no-password")
        expect_refused(cli.at(*add), "already")


def test_disable_names_the_ices_and_ends_the_tokens(cli):
    for name in ("Bob", "eve"):
        cli.done("users", "add", name, "--role", "admin", "--no-password")
    for name, user in (("lab-2", "bob"), ("Lab-1", "BOB"), ("lab-3", "eve")):
        cli.token("ices", "provision", name, "--type", "normal", "--user", user)
    create = ("api-tokens", "create", "--name", "x", "--user")
    bobs, eves = (cli.done(*create, user) for user in ("bob", "eve"))
    assert cli.recognised(bobs).user == "Bob"

    said = cli.done("users", "disable", "bob")
    assert said.splitlines()[1:] == ["Lab-1", "lab-2"]
    assert cli.recognised(bobs) is None, "the user's API tokens must end at once"
    assert cli.recognised(eves).user == "eve"
    first, second = cli.json("users", "list")
    assert re.fullmatch(TIME, first["disabledon"])
    assert second["disabledon"] is None

    assert cli.done("users", "disable", "bob") == said, "disabling again changes nothing"
    assert cli.json("users", "list") == [first, second]
    expect_refused(cli.at(*create, "bob"), "disabled")
    provision = ("ices", "provision", "lab-4", "--type", "normal", "--user", "bob")
    expect_refused(cli.at(*provision), "disabled")

    assert cli.done("users", "enable", "BOB") == ""
    assert cli.json("users", "list")[0]["disabledon"] is None
    assert cli.recognised(bobs).user == "Bob", "an API token that is still good works again"


def test_on_its_machine_the_last_admin_can_be_disabled(cli):
    """There another one can always be added."""
    cli.done("users", "add", "--role", "admin", "root", "--password-stdin", input=PASSWORD)
    cli.done("users", "disable", "root")
    cli.done("users", "enable", "root")
    token = cli.done("api-tokens", "create", "--user", "root", "--name", "x", "--accounts")
    assert cli.recognised(token).accounts


def test_role_is_set(cli):
    cli.done("users", "add", "bob", "--role", "member", "--no-password")
    token = cli.done("api-tokens", "create", "--user", "bob", "--name", "x")
    assert cli.done("users", "set-role", "BOB", "auditor") == ""
    assert cli.json("users", "list")[0]["role"] == "auditor"
    assert cli.recognised(token).role is Role.AUDITOR


@pytest.mark.parametrize(
    "args",
    [
        ("disable", "nobody"),
        ("enable", "nobody"),
        ("set-role", "nobody", "admin"),
        ("set-password", "nobody", "--password-stdin"),
    ],
    ids=lambda args: args[0],
)
def test_unknown_user_is_refused(cli, args):
    expect_refused(cli.at("users", *args, input=PASSWORD), "there is no user nobody")


def test_listing_of_users_for_people(cli):
    cli.done("users", "add", "bob", "--role", "member", "--no-password")
    heading, row = cli.done("users", "list").splitlines()
    assert (
        " ".join(heading.split())
        == "NAME ROLE CREATED DISABLED PASSWORD ORIGIN SUBJECT ICES LOGINS LAST LOGIN"
    )
    assert row.split()[:2] == ["bob", "member"]
    assert row.split()[3:] == ["-", "no", "local", "-", "0", "0", "-"]


# --- API tokens --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "days"), [([], 90), (["--expires-in", "12h"], 0.5), (["--expires-in", "0"], None)]
)
def test_api_token_is_printed_alone(cli, options, days):
    cli.done("users", "add", "Bob", "--role", "auditor", "--no-password")
    result = cli.at("api-tokens", "create", "--user", "bob", "--name", "CI", *options)
    assert result.exit_code == 0, result.output
    assert API_TOKEN.fullmatch(result.stdout), f"not the token alone: {result.stdout!r}"
    caller = cli.recognised(result.stdout)
    assert (caller.user, caller.role) == ("Bob", Role.AUDITOR)
    [token] = cli.json("api-tokens", "list")
    assert (token["user"], token["name"], token["revokedon"]) == ("Bob", "CI", None)
    assert (token["accounts"], token["lastused"]) == (False, None)
    assert token["madeby"].startswith("command of ")
    assert token["ice_name"] is None
    assert token["id"] in result.stderr
    lasts = cli.sql("SELECT julianday(expireson) - julianday(createdon) FROM api_tokens")
    assert lasts == [(days if days is None else pytest.approx(days, abs=1e-6),)]
    assert result.stdout.strip().encode() not in cli.path.read_bytes(), "only its hash is kept"


@pytest.mark.parametrize(
    ("user", "options", "word"),
    [
        ("nobody", [], "there is no user nobody"),
        ("bob", ["--name", ""], "name"),
        ("bob", ["--name", "x" * 129], "name"),
    ],
)
def test_impossible_api_token_is_refused(cli, user, options, word):
    cli.done("users", "add", "bob", "--role", "admin", "--no-password")
    create = ("api-tokens", "create", "--user", user, "--name", "x", *options)
    expect_refused(cli.at(*create), word)
    assert cli.json("api-tokens", "list") == []


def test_api_token_is_revoked(cli):
    cli.done("users", "add", "bob", "--role", "admin", "--no-password")
    first, second = (
        cli.done("api-tokens", "create", "--user", "bob", "--name", name) for name in "ab"
    )
    [token, other] = cli.json("api-tokens", "list")
    assert cli.done("api-tokens", "revoke", token["id"]) == ""
    assert cli.recognised(first) is None, "a revoked token must end at once"
    assert cli.recognised(second).user == "bob"
    [revoked, kept] = cli.json("api-tokens", "list")
    assert re.fullmatch(TIME, revoked["revokedon"])
    assert kept == other
    assert cli.done("api-tokens", "revoke", token["id"]) == "", "revoking again changes nothing"
    assert cli.json("api-tokens", "list") == [revoked, kept]
    expect_refused(cli.at("api-tokens", "revoke", "no-such-id"), "no-such-id")
    table = cli.done("api-tokens", "list").splitlines()
    assert [line.split()[1] for line in table] == ["USER", "bob", "bob"]


# --- ICEs --------------------------------------------------------------------------------------


def test_provision_prints_a_token_that_opens(cli):
    cli.done("users", "add", "bob", "--role", "member", "--no-password")
    normal = cli.token("ices", "provision", "Lab-1", "--type", "normal", "--user", "BOB")
    machine = cli.token("ices", "provision", "ci-1", "--type", "ci-cd")
    keys = KeyStore(cli.settings.key_file)
    assert [keys.open(Secret(token)).ice_name for token in (normal, machine)] == ["Lab-1", "ci-1"]
    ci, lab = cli.json("ices", "list")
    assert (lab["ice_name"], lab["ice_type"], lab["provisionedto"]) == ("Lab-1", "normal", "bob")
    assert (ci["ice_name"], ci["ice_type"], ci["provisionedto"]) == ("ci-1", "ci-cd", None)
    content = b"".join(file.read_bytes() for file in cli.folder.iterdir())
    assert normal.encode() not in content, "only its hash is kept"


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ("LAB-1 --type ci-cd", EXISTS),
        ("lab-1 --type normal --user bob", EXISTS),
        ("lab-2 --type normal", "--user: "),
        ("lab-2 --type normal --user nobody", "--user: "),
        ("lab-2 --type ci-cd --user bob", "--user: "),
        ("lab/2 --type ci-cd", "NAME "),
        (f"{'x' * 65} --type ci-cd", "NAME "),
    ],
)
def test_impossible_provisioning_is_refused(cli, args, word):
    cli.done("users", "add", "bob", "--role", "member", "--no-password")
    cli.bring("provisioned")
    before = cli.json("ices", "list")
    result = cli.at("ices", "provision", *args.split())
    expect_refused(result, word)
    if word == EXISTS:
        assert result.stderr == f"ice-gateway: {EXISTS}\n"
    assert cli.json("ices", "list") == before


# Contract section 2, as in test_admin_ices.
@pytest.mark.parametrize(
    ("action", "before", "after"),
    [
        ("reprovision", None, None),
        ("reprovision", "provisioned", ("provisioned", 2)),
        ("reprovision", "registered", None),
        ("reprovision", "deregistered", None),
        ("reregister", None, None),
        ("reregister", "provisioned", None),
        ("reregister", "registered", ("provisioned", 2)),
        ("reregister", "deregistered", ("provisioned", 3)),
        ("deregister", None, None),
        ("deregister", "provisioned", None),
        ("deregister", "registered", ("deregistered", 2)),
        ("deregister", "deregistered", None),
        ("disconnect", None, None),
        ("disconnect", "provisioned", ("provisioned", 1)),
        ("disconnect", "registered", ("registered", 1)),
        ("disconnect", "deregistered", ("deregistered", 2)),
    ],
)
def test_action(cli, action, before, after):
    cli.bring(before)
    was = cli.json("ices", "list")
    result = cli.at("ices", action, "LAB-1")
    if after is None:
        expect_refused(result, "Not registered" if before is None else f"lab-1 is {before}")
        assert cli.json("ices", "list") == was, "a refused command must change nothing"
        return
    assert result.exit_code == 0, result.output
    renews = action in ("reprovision", "reregister")
    assert (TOKEN if renews else re.compile("")).fullmatch(result.stdout), result.stdout
    assert result.stderr == ""
    ice = cli.json("ices", "show", "lab-1")
    assert (ice["status"], ice["generation"]) == after
    if renews:
        opened = KeyStore(cli.settings.key_file).open(Secret(result.stdout.strip()))
        assert opened.generation == ice["generation"]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("", ["A", "b", "C"]),
        ("--status registered", ["b"]),
        ("--type normal", ["A"]),
        ("--user BOB", ["A"]),
        ("--user nobody", []),
        ("--connected", []),
        ("--not-connected --status provisioned", ["A", "C"]),
    ],
)
def test_listing_is_filtered_and_ordered_by_name(cli, options, names):
    cli.done("users", "add", "bob", "--role", "member", "--no-password")
    cli.bring("provisioned", "C")
    cli.bring("registered", "b")
    cli.token("ices", "provision", "A", "--type", "normal", "--user", "bob")
    assert [ice["ice_name"] for ice in cli.json("ices", "list", *options.split())] == names
    heading, *rows = cli.done("ices", "list", *options.split()).splitlines()
    assert heading.split() == ["NAME", "TYPE", "USER", "STATUS", "LAST", "SEEN", "VERSION"]
    assert [row.split()[0] for row in rows] == names


def test_show_is_the_apis_object(cli):
    cli.bring("registered")
    shown = cli.json("ices", "show", "LAB-1")
    assert list(shown) == [
        "ice_name",
        "ice_type",
        "provisionedto",
        "status",
        "generation",
        "provisionedon",
        "registeredon",
        "deregisteredon",
        "expireson",
        "lastseen",
        "inactive",
        "labels",
        "note",
        "paused",
        "attention",
        "last",
        "connection",
    ]
    assert shown == cli.json("ices", "list")[0]
    told = dict(line.split(maxsplit=1) for line in cli.done("ices", "show", "lab-1").splitlines())
    assert told == {name: str(value or "-") for name, value in shown.items()}
    expect_refused(cli.at("ices", "show", "lab-2"), "Not registered")
    expect_refused(cli.at("ices", "show", "lab-2", "--json"), "Not registered")


def test_what_a_crashed_gateway_left_is_no_connection(cli):
    cli.bring("registered")
    cli.sql(
        "INSERT INTO ice_sessions (session, ice_name, generation, node, since, address)"
        " VALUES ('s', 'lab-1', 1, 'n', ?, '::1')",
        to_text(utc_now()),
    )
    assert cli.json("ices", "show", "lab-1")["connection"] is None
    assert cli.json("ices", "list", "--connected") == []


def test_every_change_is_one_event_of_who_sat_there(cli):
    cli.done("users", "add", "bob", "--role", "member", "--no-password")
    cli.bring("deregistered")
    token = cli.done("api-tokens", "create", "--user", "bob", "--name", "x")
    cli.done("api-tokens", "revoke", cli.json("api-tokens", "list")[0]["id"])
    cli.done("ices", "reregister", "lab-1")
    cli.done("ices", "reprovision", "lab-1")
    cli.done("ices", "disconnect", "lab-1")
    cli.done("users", "set-role", "bob", "admin")
    cli.done("users", "disable", "bob")
    events = cli.sql("SELECT action, actor, via, address, detail FROM ice_events ORDER BY seq")
    assert [event[0] for event in events] == [
        "add-user",
        "provision",
        "deregister",
        "create-api-token",
        "revoke-api-token",
        "reregister",
        "reprovision",
        "disconnect",
        "set-role",
        "disable-user",
    ]
    who = Actor(getpass.getuser(), Via.COMMAND, socket.gethostname())
    assert {event[1:4] for event in events} == {(who.name, who.via, who.address)}
    assert token.strip() not in str(events)


# --- settings and faults -----------------------------------------------------------------------


def test_options_come_before_the_environment_and_that_before_the_file(cli):
    for name in ("file", "variable", "option"):
        url = f"sqlite:///{cli.folder}/{name}.db"
        cli.run("users", "add", name, "--role", "member", "--no-password", "--database", url)
    config = cli.folder / "gateway.toml"
    config.write_text(f'[database]\nurl = "sqlite:///{cli.folder}/file.db"\n')
    named = {"ICE_GATEWAY_CONFIG": str(config)}
    variable = {"ICE_GATEWAY_DATABASE__URL": f"sqlite:///{cli.folder}/variable.db"}
    option = ("--database", f"sqlite:///{cli.folder}/option.db")
    other = ("--config", str(cli.folder / "other.toml"))
    (cli.folder / "other.toml").write_text(f'[database]\nurl = "{option[1]}"\n')
    for args, env, expected in (
        (("--config", str(config)), {}, "file"),
        ((), named, "file"),
        (other, named, "option"),
        ((), named | variable, "variable"),
        (("--config", str(config)), variable, "variable"),
        (option, named | variable, "option"),
    ):
        result = cli.run("users", "list", "--json", *args, env=env)
        [user] = json.loads(result.stdout)
        assert user["name"] == expected, f"{args} with {sorted(env)} must open {expected}.db"


def test_the_default_database_lies_where_one_stands(cli):
    cli.run("users", "add", "bob", "--role", "member", "--no-password")
    cli.run("ices", "provision", "lab-1", "--type", "ci-cd")
    assert (cli.folder / "ice-gateway.db").exists()
    assert (cli.folder / "ice-gateway.keys.json").stat().st_mode & 0o077 == 0


def test_time_to_register_is_a_setting(cli):
    for value, days in (("12h", 0.5), ("0", None)):
        name = f"lab-{value}"
        env = {"ICE_GATEWAY_TOKENS__REGISTRATION_TTL": value}
        cli.done("ices", "provision", name, "--type", "ci-cd", env=env)
        lasts = cli.sql(
            "SELECT julianday(expireson) - julianday(provisionedon) FROM ice_tokens"
            " WHERE ice_name = ?",
            name,
        )
        assert lasts == [(days if days is None else pytest.approx(days, abs=1e-6),)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server]\nprot = 1\n", ["server.prot", "no setting"]),
        ("[sever]\nport = 1\n", ["sever.port", "no setting"]),
        ("port = 1\n", ["port"]),
        ("[server]\nport = 'x'\n", ["server.port", "0 (any free one) to 65535"]),
        ("[tokens]\nregistration_ttl = '7 days'\n", ["tokens.registration_ttl", "s, m, h or d"]),
        ("[server\n", ["gateway.toml", "not TOML"]),
        ("\xff", ["gateway.toml", "not TOML"]),
        (None, ["gateway.toml", "No such file"]),
    ],
)
def test_bad_settings_file_is_refused(cli, text, words):
    if text is not None:
        (cli.folder / "gateway.toml").write_text(text, encoding="latin-1")
    for result in (
        cli.at("users", "list", "--config", "gateway.toml"),
        cli.at("users", "list", env={"ICE_GATEWAY_CONFIG": "gateway.toml"}),
        cli.at("serve", "--config", "gateway.toml"),
    ):
        expect_refused(result, *words, status=os.EX_CONFIG)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ICE_GATEWAY_SERVER__PROT", "1"),
        ("ICE_GATEWAY_SERVER__PORT", "x"),
        ("ICE_GATEWAY_ICE__HEARTBEAT", "0"),
        ("ICE_GATEWAY_DATABASE__URL", "mysql://x"),
    ],
)
def test_bad_variable_is_refused_by_name(cli, variable, value):
    result = cli.run("users", "list", env={variable: value})
    expect_refused(result, variable, status=os.EX_CONFIG)


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("sqlite:///{}/none/ice.db", "there is no database"),
        ("sqlite:///{}", "is a folder"),
        ("sqlite:///{}/text", "not an SQLite database"),
        ("sqlite:///{}/other.db", "another program"),
        ("sqlite:///{}/newer.db", "newer"),
    ],
)
def test_unusable_database_is_refused(cli, url, word):
    (cli.folder / "text").write_text("no database at all" * 100)
    with sqlite3.connect(cli.folder / "other.db") as other:
        other.execute("CREATE TABLE t (x)")
    other.close()
    cli.path.rename(cli.folder / "newer.db")
    newer = sqlite3.connect(cli.folder / "newer.db")
    newer.execute("PRAGMA user_version = 999")
    newer.close()
    result = cli.run("users", "list", "--database", url.replace("{}", str(cli.folder)))
    expect_refused(result, word, status=os.EX_CONFIG)


@pytest.fixture
def impatient(monkeypatch):
    """SQLite waits for a lock for 20 ms at most, whatever its time-out."""
    connect = aiosqlite.connect

    def connected(*args, **options):
        connection = connect(*args, **options)
        execute = connection.execute

        def told(sql, *params):
            return execute("PRAGMA busy_timeout=20" if "busy_timeout" in sql else sql, *params)

        monkeypatch.setattr(connection, "execute", told)
        return connection

    monkeypatch.setattr(aiosqlite, "connect", connected)


def test_locked_database_is_refused(cli, impatient):
    cli.bring("registered")
    other = sqlite3.connect(cli.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    expect_refused(cli.at("ices", "deregister", "lab-1"), "locked")
    assert cli.json("ices", "show", "lab-1")["status"] == "registered", "one may still look"
    other.close()
    cli.done("ices", "deregister", "lab-1")


@pytest.mark.parametrize(
    ("fault", "word"), [("gone", "is missing"), ("open", "chmod 600"), ("text", "not a key file")]
)
def test_unusable_key_file_is_refused(cli, fault, word):
    cli.bring("registered")
    keys = cli.settings.key_file
    if fault == "gone":
        keys.unlink()
    elif fault == "open":
        keys.chmod(0o644)
    else:
        keys.write_text("{}")
    expect_refused(cli.at("ices", "reregister", "lab-1"), word, status=78)
    expect_refused(cli.at("ices", "provision", "lab-2", "--type", "ci-cd"), word, status=78)
    assert cli.path.exists()
    assert cli.sql("SELECT ice_name, status FROM ice_tokens") == [("lab-1", "registered")]


@pytest.mark.parametrize(
    "args",
    [
        ("ices", "show"),
        ("ices", "deregister"),
        ("users", "disable"),
        ("api-tokens", "revoke"),
        ("ices", "provision", "lab-1", "--type", "normal", "--user"),
    ],
    ids=" ".join,
)
def test_argument_that_is_not_utf_8_is_refused(cli, args):
    expect_refused(cli.at(*args, "\udcff"), "UTF-8")


@pytest.mark.parametrize(
    "args",
    [
        "users list",
        "users disable bob",
        "api-tokens list",
        "api-tokens create --user bob --name x",
        "ices list --json",
        "ices show lab-1",
        "ices deregister lab-1",
        "backup folder",
        "restore --confirm",
    ],
)
def test_only_who_needs_a_new_database_makes_one(cli, args):
    """Somebody in the wrong folder is told so, instead of shown an empty table."""
    cli.path.unlink()
    result = cli.at(*args.split())
    expect_refused(result, f"there is no database {cli.path}", status=os.EX_CONFIG)
    assert list(cli.folder.iterdir()) == [], "nothing was expected to be made"


def test_the_first_user_makes_the_database(cli):
    cli.path.unlink()
    cli.done("users", "add", "bob", "--role", "admin", "--no-password")
    assert [user["name"] for user in cli.json("users", "list")] == ["bob"]


def test_the_help_of_restore_shows_that_confirm_needs_no_folder(cli):
    assert "restore [OPTIONS] (DIR | --confirm)" in cli.run("restore", "--help").stdout


def test_version_is_told(cli):
    result = cli.run("--version")
    assert (result.exit_code, result.stderr) == (0, "")
    assert re.fullmatch(r"ice-gateway, version \d+\.\d+\.\d+\n", result.stdout)


# --- stdout that cannot be written ---------------------------------------------------------------


FULL = "/dev/full"


def told(cli, fork, stdout, *args):
    """A command as a process with such a stdout; its exit status and stderr."""
    command = (*args, "--database", cli.url)
    if stdout == "full":
        ended = fork.run_blocking(*command, streams={"out": FULL})
        return ended.status, ended.err
    reading, writing = os.pipe()
    os.close(reading)
    script = 'exec "$@" >&-' if stdout == "closed" else 'exec "$@"'
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", *served.command(*command)],
        env=served.environment(),
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PROCESS_PATIENCE,
        check=False,
    )
    os.close(writing)
    return done.returncode, done.stderr


REASONS = {
    "full": "No space left on device",
    "closed": "Bad file descriptor",
    "broken": "Broken pipe",
}


_OUTPUTS = ["full", *(pytest.param(one, marks=pytest.mark.long) for one in ("closed", "broken"))]
"""How an output fails; one of them each time, the others in the long round."""


@pytest.mark.parametrize("stdout", _OUTPUTS)
def test_token_that_cannot_be_printed_is_said_to_be_lost(cli, fork, stdout):
    reason = f"the output could not be written to stdout: {REASONS[stdout]}"
    lost = "its token is lost: `ice-gateway ices reprovision lab-1` makes another"
    for args in (("provision", "lab-1", "--type", "ci-cd"), ("reprovision", "lab-1")):
        status, said = told(cli, fork, stdout, "ices", *args)
        assert status == 1, said
        assert said == f"ice-gateway: lab-1 is provisioned, but {reason}; {lost}\n"
    assert cli.json("ices", "show", "lab-1")["generation"] == 2, "it was done all the same"
    cli.done("users", "add", "bob", "--role", "admin", "--no-password")
    create = ("api-tokens", "create", "--user", "bob", "--name", "x")
    status, said = told(cli, fork, stdout, *create)
    [token] = cli.json("api-tokens", "list")
    assert status == 1
    assert said.splitlines()[1] == (
        f"ice-gateway: token {token['id']} of bob is created, but {reason}; it is lost:"
        f" `ice-gateway api-tokens revoke {token['id']}`, and create another"
    )


@pytest.mark.parametrize("stdout", _OUTPUTS)
@pytest.mark.parametrize(
    "args",
    [
        ("users", "list"),
        ("ices", "list", "--json"),
        pytest.param(("api-tokens", "list"), marks=pytest.mark.long),
        pytest.param(("audit", "verify"), marks=pytest.mark.long),
        pytest.param(("doctor",), marks=pytest.mark.long),
    ],
    ids=" ".join,
)
def test_output_that_cannot_be_written_is_a_failure(cli, fork, stdout, args):
    assert told(cli, fork, stdout, *args) == (
        1,
        f"ice-gateway: the output could not be written to stdout: {REASONS[stdout]}\n",
    )


@pytest.mark.parametrize("stdout", _OUTPUTS)
def test_export_that_cannot_be_written_is_a_failure(cli, fork, stdout):
    cli.done("ices", "provision", "lab-1", "--type", "ci-cd")
    said = f"ice-gateway: stdout cannot be written: {REASONS[stdout]}\n"
    assert told(cli, fork, stdout, "audit", "export") == (1, said)


def test_what_is_done_does_not_depend_on_stderr(cli, fork):
    cli.done("users", "add", "bob", "--role", "admin", "--no-password")
    create = ("api-tokens", "create", "--user", "bob", "--name", "x", "--database", cli.url)
    done = fork.run_blocking(*create, streams={"err": FULL})
    assert done.status == 0, "what is lost was a remark"
    assert API_TOKEN.fullmatch(done.out)
    list_ = ("users", "list", "--database", cli.url)
    assert fork.run_blocking(*list_, streams={"out": FULL, "err": FULL}).status == 1
