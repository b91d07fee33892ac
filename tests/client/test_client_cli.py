"""The `ice-client` command: what it prints and how it ends. Contract section 8."""

import json
import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from client import __version__
from client.cli import main
from client.credentials import Token
from client.identity import Identity
from tests.client.scripted_gateway import admit, refuse

ROOT = Path(__file__).parents[2]


@pytest.fixture
def invoke():
    """Run a command that does not connect, in this process."""

    def invoke(*arguments, **options):
        return CliRunner().invoke(main, [str(argument) for argument in arguments], **options)

    return invoke


@pytest.fixture
def run_arguments(gateway, folder):
    """`ice-client run` at the scripted gateway."""

    def arguments(*more):
        return ("run", "--gateway", gateway.url, "--state-dir", folder, *more)

    return arguments


# --- run ---------------------------------------------------------------------------------------


async def test_run_registers_tells_and_ends_with_0_when_asked(
    gateway, fork, run_arguments, token, folder
):
    file = folder.with_name("lab-1.token")
    file.write_text(f"\ufeff  {token}\r\n", encoding="utf-8")
    gateway.script.append(admit())
    process = await fork.start(*run_arguments("--token-file", file))
    session = await gateway.session()
    await session.expect("ice.hello")
    status = await fork.run("status", "--state-dir", folder)
    assert status.status == 0, "connected: status should end with 0"
    os.kill(process, signal.SIGTERM)
    ended = await fork.end(process)

    assert (ended.status, ended.err) == (0, "")
    assert [line.partition(" ")[2] for line in ended.out.splitlines()] == [
        f"connecting to {gateway.url}/ice/v1",
        "admitted as lab-1 (normal), session s-1",
        "stopped on request",
    ]
    assert await session.closed() == 1000
    status = await fork.run("status", "--state-dir", folder)
    assert status.status == 1, "nobody runs: status should end with 1"


async def test_run_ends_with_3_and_one_line_when_a_person_must_act(
    gateway, fork, run_arguments, token
):
    gateway.script.append(admit(close=(4101, "deregistered")))
    ended = await fork.run(*run_arguments("--token-file", "-"), stdin=f"{token}\n")

    assert ended.status == 3
    assert ended.err == (
        "ice-client: 4101: deregistered: The admin has deregistered this ICE; a person must act.\n"
    )
    assert "closed 4101 deregistered" in ended.out
    assert token not in ended.out + ended.err


async def test_run_in_a_folder_in_use_ends_with_1(fork, run_arguments, folder, token):
    identity = Identity(folder, Token(token))
    ended = await fork.run(*run_arguments())
    identity.close()

    assert ended.status == 1
    assert ended.err == (
        f"ice-client: another ice-client runs with the state folder {folder}: stop it, or name"
        " another folder for another ICE\n"
    )


def half(token):
    return token[: len(token) // 2].encode()


@pytest.mark.parametrize(
    "of_no_use",
    [
        (None, "cannot be read: No such file"),
        (lambda token: b"", "is not a registration token"),
        (half, "is not a registration token"),
        (lambda token: token[:-1].encode(), "is not a registration token"),
        ("folder", "cannot be read: Is a directory"),
    ],
    ids=["missing", "empty", "half", "almost whole", "unreadable"],
)
async def test_a_token_file_of_no_use_is_a_warning_beside_a_stored_token(
    of_no_use, gateway, fork, run_arguments, token
):
    content, says = of_no_use
    folder = run_arguments()[-1]
    Identity(folder, Token(token)).close()
    gateway.script.append(refuse("deregistered"))
    file = folder.with_name("lab.token")
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content(token))
    ended = await fork.run(*run_arguments("--token-file", file))

    assert ended.status == 3
    warning, ending = ended.err.splitlines()
    assert "Z ice-client: warning: " in warning
    assert str(file) in warning
    assert says in warning
    assert warning.endswith("(using the stored token)")
    assert ending.startswith("ice-client: deregistered: ")
    assert gateway.handshakes[0].headers["Authorization"] == f"DPoP {token}"


async def test_standard_input_of_no_use_is_a_warning_too(gateway, fork, run_arguments, token):
    first = await fork.run(*run_arguments("--token-file", "-"), stdin=token, until_admitted=True)
    again = await fork.run(*run_arguments("--token-file", "-"), until_admitted=True)

    assert (first.status, first.err, again.status) == (0, "", 0)
    assert "Z ice-client: warning: standard input: this is not a registration" in again.err


async def test_the_gateway_may_be_left_out_once_it_is_stored(
    gateway, fork, run_arguments, folder, token
):
    await fork.run(*run_arguments("--token-file", "-"), stdin=token, until_admitted=True)
    again = await fork.run("run", "--state-dir", folder, until_admitted=True)

    assert (again.status, again.err) == (0, "")
    assert f"Z connecting to {gateway.url}/ice/v1\n" in again.out
    assert "Z admitted as lab-1" in again.out


async def test_plain_http_beyond_loopback_is_warned_about_at_each_start(
    gateway, fork, run_arguments, token
):
    gateway.url = gateway.url.replace("127.0.0.1", "0.0.0.0")  # noqa: S104 - leads here, too
    for given in (("--token-file", "-"), ()):
        ended = await fork.run(
            *run_arguments("--insecure", *given), stdin=token, until_admitted=True
        )
        assert ended.err.partition(" ")[2] == (
            "ice-client: warning: plain http: anyone on the network path can read the token and all messages\n"
        ), "the warning belongs to standard error, at every start"
        assert ended.status == 0


def test_ctrl_c_while_the_program_is_being_loaded_is_one_line(tmp_path):
    interrupting = (
        "import importlib.abc, os, runpy, signal, sys\n"
        "class Interrupt(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'aiohttp':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "sys.argv = ['ice-client', 'run', '--gateway', 'https://gw.example']\n"
        "runpy.run_module('client', run_name='__main__')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", interrupting], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr == "ice-client: interrupted\n"


@pytest.mark.parametrize(
    "arguments", [["run", "--state-dir", "/nonexistent/ice"], ["dance"], ["status", "--color"]]
)
async def test_wrong_usage_of_the_whole_program_ends_with_2(arguments, fork):
    ended = await fork.run(*arguments)

    assert ended.status == 2
    assert "Traceback" not in ended.err
    assert "Error: " in ended.err


def run_nowhere(folder, *more):
    return ["run", "--gateway", "http://127.0.0.1:1", "--state-dir", folder, *more]


def test_the_first_run_without_a_token_says_what_to_do(invoke, folder):
    result = invoke(*run_nowhere(folder))

    assert result.exit_code == 3
    assert result.stderr.count("\n") == 1
    assert "--token-file" in result.stderr


@pytest.mark.parametrize("content", [b"", b"hunter2", b"\xff\xfeh\x00", b"\x00" * 99])
def test_a_token_file_that_holds_none_says_so(content, invoke, folder, tmp_path):
    (tmp_path / "t").write_bytes(content)
    result = invoke(*run_nowhere(folder, "--token-file", tmp_path / "t"))

    assert result.exit_code == 3
    assert result.stderr.startswith(f"ice-client: {tmp_path / 't'}: this is not a registration tok")
    assert result.stderr.count("\n") == 1
    assert "hunter2" not in result.output
    assert not folder.exists(), "nothing should have been stored"


def test_a_token_file_that_cannot_be_read_says_so(invoke, folder, tmp_path):
    for name, why in ((tmp_path / "gone", "No such file"), (tmp_path, "Is a directory")):
        result = invoke(*run_nowhere(folder, "--token-file", name))

        assert result.exit_code == 3
        assert why in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_token_on_standard_input_that_is_none_says_so(invoke, folder):
    result = invoke(*run_nowhere(folder, "--token-file", "-"), input="hunter2\n")

    assert result.exit_code == 3
    assert result.stderr.startswith("ice-client: standard input: this is not a registration tok")
    assert "hunter2" not in result.output


def test_a_folder_that_cannot_be_used_ends_with_1(invoke, tmp_path, token):
    (tmp_path / "file").write_text("")
    (tmp_path / "t").write_text(token)
    result = invoke(*run_nowhere(tmp_path / "file" / "state", "--token-file", tmp_path / "t"))

    assert result.exit_code == 1
    assert "cannot be used: Not a directory" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_folder_that_others_may_write_to_ends_with_3(invoke, tmp_path, token):
    (tmp_path / "t").write_text(token)
    tmp_path.chmod(0o777)
    result = invoke(*run_nowhere(tmp_path, "--token-file", tmp_path / "t"))

    assert result.exit_code == 3
    assert f"other users may write to {tmp_path}" in result.stderr
    assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


async def test_what_others_could_read_is_warned_of(fork, run_arguments, folder, token):
    await fork.run(*run_arguments("--token-file", "-"), stdin=token, until_admitted=True)
    (folder / "key.pem").chmod(0o644)
    ended = await fork.run(*run_arguments(), until_admitted=True)

    assert ended.status == 0
    assert ended.err.partition(" ")[2] == (
        f"ice-client: warning: other users could read or change {folder / 'key.pem'} until now: if one may"
        " have done so, ask the admin to reregister this ICE\n"
    )


def test_a_damaged_journal_ends_with_3(invoke, folder, tmp_path, token):
    (tmp_path / "t").write_text(token)
    folder.mkdir(mode=0o700)
    (folder / "operations.db").write_bytes(b"x" * 5000)
    result = invoke(*run_nowhere(folder, "--token-file", tmp_path / "t"))

    assert result.exit_code == 3
    assert f"{folder / 'operations.db'} is damaged" in result.stderr
    assert result.stderr.count("\n") == 1


def test_plain_http_ends_with_1(invoke, folder):
    result = invoke("run", "--gateway", "http://gw.example", "--state-dir", folder)

    assert result.exit_code == 1
    assert "--insecure" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not folder.exists()


def test_a_ca_file_that_cannot_be_read_ends_with_1(invoke, folder, tmp_path):
    result = invoke(
        *("run", "--gateway", "https://gw.example", "--state-dir", folder),
        *("--ca-file", tmp_path / "missing.pem"),
    )

    assert result.exit_code == 1
    assert "missing.pem cannot be read" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--state-dir", "/nonexistent/ice"],
        ["run", "--gateway", "wss://gw.example"],
        ["run", "--gateway", "https://ada:secret@gw.example"],
        ["run", "--gateway", "http://127.0.0.1:1", "--token", "x"],
        ["dance"],
        ["status", "--color"],
    ],
)
def test_wrong_usage_ends_with_2(arguments, invoke):
    result = invoke(*arguments)

    assert result.exit_code == 2
    assert "secret" not in result.stderr


@pytest.mark.parametrize(
    ("settings", "status", "says"),
    [
        ("gateway = 7", 2, "gateway must be a text"),
        ('insecure = "yes"', 2, "insecure must be true or false"),
        ("gateway =", 1, "is not TOML"),
        ('gateway = "wss://gw.example"', 2, "the gateway's URL must look like"),
        ('gateway = "http://gw.example"', 1, "--insecure"),
        ('gateway = "http://gw.example"\ninsecure = true', 3, "--token-file"),
        ('[gateway]\nname = "for a handler"', 2, "Missing option '--gateway'"),
    ],
)
def test_options_in_the_settings_file(settings, status, says, invoke, tmp_path):
    (tmp_path / "ice-client.toml").write_text(settings)
    where = ("--state-dir", tmp_path / "state", "--config", tmp_path / "ice-client.toml")
    result = invoke("run", *where)

    assert result.exit_code == status
    assert says in result.stderr


def test_the_command_line_counts_before_the_environment_and_that_before_the_file(
    invoke, folder, tmp_path
):
    file = tmp_path / "ice-client.toml"
    file.write_text('gateway = "file"')
    given = ("run", "--state-dir", folder, "--config", file)
    for more, environ in (
        (("--gateway", "http://gw.example"), {"ICE_CLIENT_GATEWAY": "environment"}),
        ((), {"ICE_CLIENT_GATEWAY": "http://gw.example"}),
    ):
        result = invoke(*given, *more, env=environ)
        assert result.exit_code == 1, "a valid address, but plain http"
    assert invoke(*given).exit_code == 2


def test_the_version_is_told(invoke):
    result = invoke("--version")

    assert (result.exit_code, result.output) == (0, f"ice-client, version {__version__}\n")


def test_without_a_home_a_folder_must_be_named(invoke, monkeypatch):
    def unknown(_):
        raise KeyError

    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    result = invoke("status")

    assert result.exit_code == 2
    assert "--state-dir" in result.stderr


async def test_a_state_folder_whose_name_is_not_utf_8_is_reported(fork, tmp_path):
    """As JSON, too, which has to be read."""
    folder = f"{tmp_path}/b\udcfcro"
    ended = await fork.run("status", "--json", "--state-dir", folder)

    assert (ended.status, ended.err) == (3, "")
    assert json.loads(ended.out)["state_dir"] == folder
