"""The `ice-client` command: what it prints and how it ends. Contract section 8."""

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from scripted_gateway import NOW, admit, make_token, refuse

from client import __version__
from client.cli import main
from client.identity import Identity, StateFolder, Token

ROOT = Path(__file__).parents[2]


@pytest.fixture
def invoke():
    """Run a command that does not connect, in this process."""

    def invoke(*arguments, **options):
        return CliRunner().invoke(main, [str(argument) for argument in arguments], **options)

    return invoke


@pytest.fixture
async def start(gateway, folder):
    """Start `ice-client run` as a process of its own."""
    processes = []

    async def start(*arguments, stdin=b""):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "client", "run", "--gateway", gateway.url),
            *("--state-dir", str(folder), *map(str, arguments)),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        processes.append(process)
        process.stdin.write(stdin)
        process.stdin.close()
        return process

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def ended(process):
    """Exit status, standard output and standard error."""
    out, err = await asyncio.wait_for(process.communicate(), 20)
    return process.returncode, out.decode(), err.decode()


# --- run ---------------------------------------------------------------------------------------


async def test_run_registers_tells_and_ends_with_0_when_asked(
    gateway, start, folder, token, invoke
):
    (folder.parent / "lab-1.token").write_text(f"\ufeff  {token}\r\n", encoding="utf-8")
    gateway.script.append(admit())
    process = await start("--token-file", folder.parent / "lab-1.token")
    session = await gateway.session()
    await session.expect("ice.hello")
    status = await asyncio.to_thread(invoke, "status", "--state-dir", folder)
    assert status.exit_code == 0, "connected: status should end with 0"
    assert "lab-1 (normal) is registered at http://127.0.0.1:" in status.output
    assert "\nconnected since 2" in status.output
    process.send_signal(signal.SIGTERM)
    code, out, err = await ended(process)

    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"connecting to {gateway.url}/ice/v1",
        "admitted as lab-1 (normal), session s-1",
    ]
    assert await session.closed() == 1000
    status = await asyncio.to_thread(invoke, "status", "--state-dir", folder)
    assert status.exit_code == 1
    assert "not connected: no client is running" in status.output


async def test_run_ends_with_3_and_one_line_when_a_person_must_act(gateway, start, folder, token):
    gateway.script.append(admit(close=(4101, "deregistered")))
    code, out, err = await ended(await start("--token-file", "-", stdin=f"{token}\n".encode()))

    assert code == 3
    assert err == (
        "ice-client: 4101: deregistered: The admin has deregistered this ICE; a person must act.\n"
    )
    assert "closed 4101 deregistered" in out
    assert token not in out + err


async def test_run_in_a_folder_in_use_ends_with_1(start, folder, token):
    identity = Identity.open(folder, Token(token))
    code, _, err = await ended(await start())
    identity.close()

    assert code == 1
    assert err == (
        f"ice-client: another ice-client runs with the state folder {folder}: stop it, or name"
        " another folder for another ICE\n"
    )


async def test_a_token_file_that_is_gone_does_not_matter_once_the_token_is_stored(
    gateway, start, folder, token, tmp_path
):
    Identity.open(folder, Token(token)).close()
    gateway.script.append(refuse("deregistered"))
    code, out, _ = await ended(await start("--token-file", tmp_path / "gone"))

    assert code == 3
    assert out.startswith(f"{tmp_path / 'gone'} is not there: using the stored token\n")
    assert gateway.handshakes[0].headers["Authorization"] == f"DPoP {token}"


def run_arguments(folder, *more):
    return ["run", "--gateway", "http://127.0.0.1:1", "--state-dir", folder, *more]


def test_the_first_run_without_a_token_says_what_to_do(invoke, folder):
    result = invoke(*run_arguments(folder))

    assert result.exit_code == 3
    assert result.stderr.count("\n") == 1
    assert "--token-file" in result.stderr


@pytest.mark.parametrize("content", [b"", b"hunter2", b"\xff\xfeh\x00", b"\x00" * 99])
def test_a_token_file_that_holds_none_says_so(content, invoke, folder, tmp_path):
    (tmp_path / "t").write_bytes(content)
    result = invoke(*run_arguments(folder, "--token-file", tmp_path / "t"))

    assert result.exit_code == 3
    assert result.stderr.startswith(f"ice-client: {tmp_path / 't'}: this is not a registration tok")
    assert result.stderr.count("\n") == 1
    assert "hunter2" not in result.output
    assert not folder.exists(), "nothing should have been stored"


def test_a_token_file_that_cannot_be_read_says_so(invoke, folder, tmp_path):
    for name, why in ((tmp_path / "gone", "No such file"), (tmp_path, "Is a directory")):
        result = invoke(*run_arguments(folder, "--token-file", name))

        assert result.exit_code == 3
        assert why in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_token_on_standard_input_that_is_none_says_so(invoke, folder):
    result = invoke(*run_arguments(folder, "--token-file", "-"), input="hunter2\n")

    assert result.exit_code == 3
    assert result.stderr.startswith("ice-client: standard input: this is not a registration tok")
    assert "hunter2" not in result.output


def test_a_folder_that_cannot_be_used_ends_with_1(invoke, tmp_path, token):
    (tmp_path / "file").write_text("")
    (tmp_path / "t").write_text(token)
    result = invoke(*run_arguments(tmp_path / "file" / "state", "--token-file", tmp_path / "t"))

    assert result.exit_code == 1
    assert "cannot be used: Not a directory" in result.stderr
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
        ["run"],
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


def test_the_version_is_told(invoke):
    result = invoke("--version")

    assert (result.exit_code, result.output) == (0, f"ice-client, version {__version__}\n")


def test_without_a_home_a_folder_must_be_named(invoke, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("client.platform.default_state_dir", homeless)
    result = invoke("status")

    assert result.exit_code == 2
    assert "--state-dir" in result.stderr


# --- status ------------------------------------------------------------------------------------


@pytest.fixture
def left_behind(folder):
    """A folder as a client leaves it."""

    def leave(text=None, **changes):
        identity = Identity.open(folder, Token(text or make_token(NOW)))
        admitted = {"admitted": identity.token.digest(), "registered": True, "ice_name": "lab-1"}
        identity.note(**(admitted | {"ice_type": "normal"} | changes))
        return identity

    return leave


def report(invoke, folder):
    result = invoke("status", "--state-dir", folder, "--json")
    told = json.loads(result.output)
    assert result.exit_code == (0 if told["connected"] else 1), "the exit status says: connected"
    return told


def test_status_before_anything_was_done(invoke, folder):
    told = report(invoke, folder)
    text = invoke("status", "--state-dir", folder).output

    assert (told["registered"], told["connected"], told["running"]) == (False, False, False)
    assert "--token-file" in told["todo"]
    assert "this ICE is not registered\n" in text
    assert not folder.exists(), "looking should leave no traces"


def test_status_of_a_client_that_was_killed(invoke, folder, left_behind):
    identity = left_behind(connected=True, since="2026-11-22T09:00:00Z")
    assert report(invoke, folder)["connected"], "a client holds the folder and says so"
    identity.close()
    told = report(invoke, folder)

    assert not told["connected"], "nobody holds the folder: it cannot be connected"
    assert told["registered"]
    assert told["todo"] == "Start `ice-client run --gateway URL`."


def test_status_when_a_person_must_act(invoke, folder, left_behind):
    left_behind(must_act=True, code="key-mismatch", sentence="Ask.", registered=False).close()
    told = report(invoke, folder)
    text = invoke("status", "--state-dir", folder).output

    assert (told["registered"], told["todo"]) == (False, "Ask.")
    assert "last: key-mismatch: Ask.\nto do: Ask.\n" in text


def test_status_while_it_tries_again_by_itself(invoke, folder, left_behind):
    identity = left_behind(code="unreachable", sentence="Nobody there.")
    text = invoke("status", "--state-dir", folder).output
    identity.close()

    assert "to do: nothing: it tries again by itself" in text


def test_status_after_a_new_token_was_stored(invoke, folder, left_behind):
    left_behind().close()
    StateFolder(folder).store_token(Token(make_token(NOW + 1)))

    assert not report(invoke, folder)["registered"], "the new token has not been admitted yet"


def test_status_of_a_folder_that_cannot_be_read(invoke, tmp_path):
    (tmp_path / "token").mkdir()
    result = invoke("status", "--state-dir", tmp_path)

    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "Is a directory" in result.stderr
