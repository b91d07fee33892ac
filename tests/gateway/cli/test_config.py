"""`config show`: every setting, its value, and where it comes from; and what the commands say of variables."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.cli import main
from gateway.cli.config import toml, value_of
from gateway.runtime.setting_sources import Given, load
from gateway.runtime.settings import SETTINGS, Setting

FILE = """
[server]
host = ["0.0.0.0", "::"]
trusted_proxies = ["10.0.0.0/8"]
[database]
url = "postgresql://ice:secret@db/ice?password=secret"
[tokens]
key_file = "keys.json"
"""
ENVIRONMENT = {
    "ICE_GATEWAY_SERVER__PUBLIC_URL": "https://a, https://b/p",
    "ICE_GATEWAY_SERVER__PORT": "443",
    "ICE_GATEWAY_SERVER__INSECURE": "TRUE",
    "ICE_GATEWAY_ICE__HEARTBEAT": "20s",
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command in a folder with a settings file."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("ICE_GATEWAY_"):
            monkeypatch.delenv(name)
    Path("gateway.toml").write_text(FILE)

    def run(*args, status=0, **env):
        done = CliRunner(catch_exceptions=False).invoke(main, args, env=env)
        assert done.exit_code == status, done.output
        return done

    return run


def test_every_setting_is_shown_with_its_source_and_without_a_password(run, tmp_path):
    done = run("config", "show", "--config", "gateway.toml", **ENVIRONMENT)
    assert "secret@" not in done.output
    assert "=secret" not in done.output
    heading, *lines = done.stdout.splitlines()
    assert heading.split() == ["KEY", "VALUE", "SOURCE"]
    rows = {
        key: rest.rsplit(maxsplit=1) for key, rest in (line.split(maxsplit=1) for line in lines)
    }
    assert list(rows) == [setting.key for setting in SETTINGS]
    file = str(tmp_path / "gateway.toml")
    for key, value, source in (
        ("server.host", '["0.0.0.0","::"]', file),
        ("server.port", "443", "ICE_GATEWAY_SERVER__PORT"),
        ("server.public_url", '["https://a","https://b/p"]', "ICE_GATEWAY_SERVER__PUBLIC_URL"),
        ("server.insecure", "true", "ICE_GATEWAY_SERVER__INSECURE"),
        ("database.url", '"postgresql://ice@db/ice"', file),
        ("tokens.key_file", f'"{tmp_path}/keys.json"', file),
        ("ice.heartbeat", '"20s"', "ICE_GATEWAY_ICE__HEARTBEAT"),
        ("log.level", '"info"', "default"),
    ):
        assert rows[key] == [value, source]


def test_what_is_shown_is_toml_that_means_the_same(run, tmp_path):
    lines = run("config", "show", "--config", "gateway.toml", **ENVIRONMENT).stdout.splitlines()[1:]
    again = tmp_path / "again.toml"
    values = [(line.split()[0], line.split(maxsplit=1)[1].rsplit(maxsplit=1)[0]) for line in lines]
    again.write_text(
        "".join(f"{key} = {value}\n" for key, value in values if key != "database.url")
    )
    nested = tomllib.loads(again.read_text())
    assert nested["server"]["port"] == 443
    there = load(again, {}, {"database.url": "x"})
    assert there == load(Path("gateway.toml").absolute(), ENVIRONMENT, {"database.url": "x"})


def test_as_json_it_is_for_programs(run):
    done = run("config", "show", "--json", "--database", "ice.db", **ENVIRONMENT)
    found = {each["key"]: (each["value"], each["source"]) for each in json.loads(done.stdout)}
    assert found["server.port"] == (443, "ICE_GATEWAY_SERVER__PORT")
    assert found["server.trusted_proxies"] == ([], "default")
    assert found["database.url"] == (f"sqlite:///{Path.cwd()}/ice.db", "command line")


def test_a_setting_that_is_a_table_is_an_inline_table():
    roles = {"ice admins": "admin", "staff": "member"}
    setting = Setting("sso.roles", {}, dict, "a table", secret=False)
    shown = value_of(Given(setting, roles, tuple(roles.items()), "default"))
    assert shown == roles
    assert tomllib.loads(f"roles = {toml(shown)}") == {"roles": roles}


def test_a_bad_setting_is_refused(run):
    done = run("config", "show", status=os.EX_CONFIG, ICE_GATEWAY_SERVER__PORT="x")
    assert "ICE_GATEWAY_SERVER__PORT" in done.stderr


@pytest.mark.parametrize("command", ["config show", "users list", "backup somewhere"])
def test_commands_warn_of_a_variable_that_lacks_an_underscore(run, command):
    run("users", "add", "bob", "--role", "member", "--no-password")
    said = run(*command.split(), ICE_GATEWAY_SERVER_PORT="1").stderr.splitlines()
    assert len(said) == 1
    assert said[0].startswith(
        "ice-gateway: warning: the environment variable ICE_GATEWAY_SERVER_PORT is"
    )


def test_doctor_finds_a_variable_that_lacks_an_underscore(run):
    done = run("doctor", "--json", status=1, ICE_GATEWAY_SERVER_PORT="1")
    first = json.loads(done.stdout)[0]
    assert (first["check"], first["level"]) == ("settings", "warning")
    assert "ICE_GATEWAY_SERVER__PORT" in first["text"]


@pytest.mark.parametrize(
    "command", ["keys list", "backup somewhere", "audit prune --keep 1d", "doctor"]
)
def test_a_command_that_works_on_a_database_alone_says_that_the_url_is_ignored(run, command):
    run("ices", "provision", "lab-1", "--type", "ci-cd")
    status = int(command == "doctor")  # a port of this machine may be taken
    url = {"ICE_GATEWAY_URL": "https://gateway.example"}
    done = CliRunner().invoke(main, command.split(), env=url)
    notice = "ice-gateway: ICE_GATEWAY_URL is ignored: this command works on a database"
    assert done.exit_code in (0, status)
    assert done.stderr.startswith(notice)
    named = CliRunner().invoke(main, [*command.split(), "--database", "ice-gateway.db"], env=url)
    assert notice not in named.stderr, "the database was named"


def test_messages_name_whole_paths(run, tmp_path):
    for *args, status, path in (
        ("users", "list", os.EX_CONFIG, "ice-gateway.db"),
        ("users", "list", "--database", "sub/ice.db", os.EX_CONFIG, "sub/ice.db"),
        ("users", "list", "--config", "none.toml", os.EX_CONFIG, "none.toml"),
        ("restore", "none", 1, "none"),
        ("ices", "provision", "--from", "f.csv", "--tokens", "t", os.EX_CONFIG, "f.csv"),
        ("operations", "run", "x", "--kind", "debug", "--params", "@p.json", 2, "p.json"),
        ("migrate-store", "--from", "sqlite:///o.db", "--to", "postgresql://d/i", 1, "o.db"),
    ):
        assert f"{tmp_path}/{path}" in run(*args, status=status).stderr
    run("users", "add", "bob", "--role", "member", "--no-password")
    done = run("audit", "export", "--output", "sub/log", status=1)
    assert f"{tmp_path}/sub/log" in done.stderr
    over_api = ("--url", "https://127.0.0.1:1", "--token-file", "t", "users", "list")
    assert f"{tmp_path}/t" in run(*over_api, status=os.EX_CONFIG).stderr
