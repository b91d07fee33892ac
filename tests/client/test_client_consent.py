"""What others than the ICE's user may send: `accepts` in hello, `ice.accepts`, `ice-client accept`."""

import os
import signal

import pytest
from click.testing import CliRunner

from client import consent, platform
from client.cli import main
from client.environment import Waits
from client.identity import StateFolder
from client.protocol import Accepts, OperationKind
from tests.client.scripted_gateway import admit
from tests.support.ice import until

QUICK = Waits(consent=0.01)
ALL = [kind.value for kind in OperationKind]


@pytest.fixture
def accept(folder):
    """Run `ice-client accept` in this process."""

    def accept(*arguments, **options):
        command = ["accept", "--state-dir", str(folder), *arguments]
        return CliRunner().invoke(main, command, **options)

    return accept


async def hello_of(gateway):
    session = await gateway.session()
    return session, (await session.expect("ice.hello"))["params"]


# --- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("all", None),
        ("none", []),
        ("debug", ["debug"]),
        ("debug, scrape,debug", ["scrape", "debug"]),
        (",".join(reversed(ALL)), ALL),
    ],
)
def test_a_setting_is_parsed(text, kinds):
    assert consent.parsed(text) == kinds


@pytest.mark.parametrize("text", ["", "every", "debug,", "debug,none", "Debug"])
def test_a_setting_with_an_unknown_kind_is_refused(text, folder):
    with pytest.raises(ValueError, match=r"unknown kinds: .*; there are scrape, debug"):
        consent.parsed(text)
    where = ("--gateway", "http://127.0.0.1:1", "--state-dir", str(folder))
    done = CliRunner().invoke(main, ["run", *where, "--accepts", text])
    assert done.exit_code == 2
    assert "--accepts: unknown kinds" in done.stderr
    assert not folder.exists()


# --- the client --------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [None, [], ["debug"], ALL])
async def test_each_hello_says_what_the_setting_does(kinds, gateway, make_ice):
    gateway.script.extend([admit(), admit()])
    async with make_ice(accepts=kinds):
        for _ in range(2):
            session, hello = await hello_of(gateway)
            assert hello.get("accepts") == kinds
            assert ("accepts" in hello) is (kinds is not None)
            await session.socket.close(code=1012)


async def test_a_running_client_follows_the_command(accept, gateway, make_ice, folder, events):
    gateway.script.extend([admit(), admit()])
    async with make_ice(accepts=["schedule"], waits=QUICK) as ice:
        session, hello = await hello_of(gateway)
        assert hello["accepts"] == ["schedule"]
        assert "schedule" in accept().output, "the command shows what the setting says"
        for arguments, params in (
            (["debug", "scrape"], {"accepts": ["scrape", "debug"]}),
            (["--none"], {"accepts": []}),
            (["--all"], {}),
        ):
            assert accept(*arguments).exit_code == 0
            assert (await session.expect("ice.accepts"))["params"] == params
        ice.accept(["execute"])
        assert (await session.expect("ice.accepts"))["params"] == {"accepts": ["execute"]}
        assert accept().output == "others may send: execute\n"
        await session.socket.close(code=1012)
        _, hello = await hello_of(gateway)
        assert hello["accepts"] == ["execute"], "what is stored counts before the setting"
    assert [str(event) for event in events if event.kind == "accepts"][:2] == [
        "others may send: scrape, debug",
        "others may send: nothing",
    ]


async def test_the_same_again_is_not_sent(gateway, make_ice):
    gateway.script.append(admit())
    async with make_ice(waits=QUICK) as ice:
        session, _ = await hello_of(gateway)
        ice.accept(["debug"])
        assert (await session.expect("ice.accepts"))["params"] == {"accepts": ["debug"]}
        before = ice._consent._version
        ice.accept(["debug"])
        await until(lambda: ice._consent._version != before)
        ice.accept([])
        assert (await session.expect("ice.accepts"))["params"] == {"accepts": []}


async def test_what_was_said_before_the_first_start_counts(accept, folder, gateway, make_ice):
    assert accept().output == "others may send: every kind\n"
    assert not folder.exists(), "to show it changes nothing"
    said = accept("remote-execute")
    assert said.stdout == "others may send: remote-execute\n"
    assert f"no client was started with the state folder {folder} yet" in said.stderr
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "accepts.json").stat().st_mode & 0o777 == 0o600
    gateway.script.append(admit())
    async with make_ice():
        _, hello = await hello_of(gateway)
    assert hello["accepts"] == ["remote-execute"]


async def test_a_kind_of_a_newer_client_is_ignored(folder, gateway, make_ice):
    StateFolder(folder).store_decision(Accepts(accepts=["dance", "debug"]))
    gateway.script.append(admit())
    async with make_ice():
        _, hello = await hello_of(gateway)
    assert hello["accepts"] == ["debug"]


@pytest.mark.parametrize("content", ["", "[", '{"accepts": "debug"}', "[" * 5000])
async def test_a_damaged_decision_is_none_at_the_start_and_no_change_later(
    content, folder, gateway, make_ice, events
):
    decision = folder / "accepts.json"
    folder.mkdir(mode=0o700)
    decision.write_text(content)
    gateway.script.append(admit())
    async with make_ice(waits=QUICK) as ice:
        session, hello = await hello_of(gateway)
        assert hello["accepts"] == []
        ice.accept(["debug"])
        assert (await session.expect("ice.accepts"))["params"] == {"accepts": ["debug"]}
        decision.write_text(content + " ")
        await until(lambda: len(warnings(events)) == 2)
    first, second = warnings(events)
    assert first.endswith("others may send: nothing")
    assert second.endswith("others may send: debug")


def warnings(events):
    return [str(event) for event in events if event.kind == "warning"]


def test_the_library_refuses_an_unknown_kind(make_ice):
    with pytest.raises(ValueError, match="dance"):
        make_ice(accepts=["dance"])
    with pytest.raises(ValueError, match="dance"):
        make_ice().accept(["dance"])


# --- the command -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["dance"], ["debug", "--none"], ["--none", "--all"], ["debug", "--all"]]
)
def test_wrong_usage_changes_nothing(arguments, accept, folder):
    assert accept(*arguments).exit_code == 2
    assert not folder.exists()


def test_a_damaged_decision_is_not_shown(accept, folder):
    accept("debug")
    (folder / "accepts.json").write_text("[")
    done = accept()
    assert done.exit_code == 1
    assert "is damaged: say with `ice-client accept`" in done.stderr
    assert accept("--none").stdout == "others may send: nothing\n"


def test_two_commands_at_once(accept, folder):
    accept("debug")
    lock = platform.FileLock(folder / "accepts.lock")
    assert lock.acquire()
    done = accept("--all")
    lock.release()
    assert (done.exit_code, done.stderr) == (
        1,
        "ice-client: another `ice-client accept` runs: try again\n",
    )
    assert accept().output == "others may send: debug\n"


def test_a_folder_that_cannot_be_used_ends_with_1(accept, folder):
    folder.parent.joinpath("file").write_text("")
    done = accept("debug", "--state-dir", str(folder.parent / "file" / "state"))
    assert done.exit_code == 1
    assert "cannot be used: Not a directory" in done.stderr


async def test_a_ci_cd_ice_is_told_that_it_counts_for_nothing(accept, gateway, make_ice):
    gateway.script.append(admit(ice_type="ci-cd"))
    async with make_ice() as ice:
        await ice.connected()
    assert "counts for nothing" in accept("--none").stderr


async def test_the_setting_stands_in_the_file_and_in_the_suggestion(gateway, fork, folder, token):
    settings, secret = folder.with_name("c.toml"), folder.with_name("t")
    settings.write_text('accepts = "debug,scrape"')
    secret.write_text(token)
    gateway.script.append(admit())
    arguments = ("--gateway", gateway.url, "--state-dir", folder, "--config", settings)
    process = await fork.start("run", *arguments, "--token-file", secret)
    _, hello = await hello_of(gateway)
    assert hello["accepts"] == ["scrape", "debug"]
    os.kill(process, signal.SIGTERM)
    await fork.end(process)
    status = await fork.run("status", "--state-dir", folder)
    assert "--accepts debug,scrape" in status.out


def test_the_client_looks_within_the_promised_5_seconds():
    assert Waits().consent < 5
