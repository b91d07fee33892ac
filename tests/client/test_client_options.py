"""The options of `ice-client`: each also in the environment and in the settings file, as documented."""

import re
import tomllib
from pathlib import Path

import click
import pytest

from client import cli

TABLE = re.search(
    r"^## Options\n.*?\n## ",
    (Path(__file__).parents[2] / "docs/client.md").read_text("utf-8"),
    re.DOTALL | re.MULTILINE,
)[0]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TABLE.splitlines()
    if line.startswith("| `--")
]
KINDS_OF_ACCEPT = {"--none", "--all"}
"""What `accept` is to store is no setting."""


COMMANDS = {name: command for name, command in cli.main.commands.items() if name != "conformance"}
"""Those of an ICE; `conformance` tries other programs, and is typed by hand."""


def name_of(parameter):
    return next(name for name in parameter.opts if name.startswith("--"))


@pytest.fixture
def parse(tmp_path):
    """The parameters of a command by a settings file, and the environment."""

    def parse(command, settings="", *words, **environ):
        file = tmp_path / "etc/ice-client.toml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(settings)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environ.items():
                patch.setenv(name, value)
            given = ["--config", str(file), *words]
            with cli.main.commands[command].make_context(command, given) as context:
                return context.params

    return parse


def test_the_table_of_options_is_whole():
    there = {}
    for command, item in COMMANDS.items():
        for parameter in item.params:
            if isinstance(parameter, click.Option) and name_of(parameter) not in KINDS_OF_ACCEPT:
                there.setdefault((name_of(parameter), parameter.envvar), set()).add(command)
    documented = {
        (option.strip("`").split()[0], variable.strip("`")): set(re.findall(r"`(\w+)`", commands))
        for option, commands, variable, _ in ROWS
    }
    assert documented == there


@pytest.mark.parametrize(
    ("option", "example"),
    [(option.strip("`").split()[0], example.strip("`")) for option, _, _, example in ROWS],
)
def test_each_option_may_stand_in_the_file_and_in_the_environment(option, example, parse):
    key = option[2:].replace("-", "_")
    if option == "--config":
        assert not example
        return
    [(name, value)] = tomllib.loads(example).items()
    assert name == key
    for command, item in COMMANDS.items():
        needed = (
            ()
            if command != "enrol" or key == "enrolment_key_file"
            else ("--enrolment-key-file", "-")
        )
        for parameter in item.params:
            if option in parameter.opts:
                by_file = parse(command, example, *needed)[parameter.name]
                by_variable = parse(command, "", *needed, **{parameter.envvar: str(value)})
                assert str(by_file).endswith(str(value))
                assert str(by_variable[parameter.name]) == str(value)


PATHS = ("token_file", "enrolment_key_file", "state_dir", "ca_file", "log_file")


@pytest.mark.parametrize("key", [*PATHS, "handlers"])
def test_a_relative_path_counts_from_the_folder_of_the_file(key, parse, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/alice")
    for written, found in (
        ("mine.py", tmp_path / "etc/mine.py"),
        ("../mine.py", tmp_path / "etc/../mine.py"),
        ("/srv/mine.py", "/srv/mine.py"),
        ("~/mine.py", "/home/alice/mine.py"),
    ):
        assert str(parse("run", f'{key} = "{written}"')[key]) == str(found)


@pytest.mark.parametrize(
    ("key", "value"),
    [("handlers", "package.module"), ("token_file", "-"), ("enrolment_key_file", "-")],
)
def test_what_is_no_path_stays(key, value, parse):
    assert parse("run", f'{key} = "{value}"')[key] == value


def test_a_path_elsewhere_counts_from_the_current_folder(parse):
    assert parse("run", 'state_dir = "a"', ICE_CLIENT_STATE_DIR="b")["state_dir"] == Path("b")
    assert parse("run", 'state_dir = "a"', "--state-dir", "c")["state_dir"] == Path("c")


def test_one_file_serves_all_commands(parse):
    settings = """
    gateway = "https://gateway.example"
    state_dir = "state"
    handlers = "mine.py"
    json = true
    [suites]
    smoke = "/srv/smoke"
    [[gateway_lists]]
    any = "name"
    """
    for command in ("run", "status", "accept"):
        assert parse(command, settings)["state_dir"].name == "state"
    assert parse("status", settings)["as_json"]


@pytest.mark.parametrize("command", ["run", "status", "accept"])
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ('gatewya = "https://gateway.example"', "there is no setting gatewya; there are accepts, "),
        ("pages = 10", "there is no setting pages"),
        ("pages = []", "there is no setting pages"),
        ('config = "another.toml"', "there is no setting config"),
        ("none = true", "there is no setting none"),
        ("gateway = 7", "gateway must be a text"),
        ("json = 1", "json must be true or false"),
        ('state_dir = "~nobody-of-this-name/x"', "state_dir: "),
        ('state_dir = "\\u0000"', "state_dir holds a NUL character"),
    ],
)
def test_what_cannot_be_a_setting_is_refused_by_every_command(settings, says, command, parse):
    with pytest.raises(click.UsageError, match=says) as refused:
        parse(command, settings)
    assert "ice-client.toml: " in str(refused.value)
