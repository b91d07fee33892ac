"""`users disable --ices`, on a database and over the API."""

from __future__ import annotations

import json

import pytest

from gateway.cli.admin_port import AnswerLost
from gateway.cli.api_admin import ApiAdmin
from gateway.cli.token_folder import TokenFolder


@pytest.fixture
async def fleet(running):
    """The connection of lab-1; lab-2 is provisioned and lab-3 deregistered. All are alice's."""
    await running.add_user("bob")
    connection = await (await running.provision("lab-1")).connect()
    await running.provision("lab-2")
    await (await running.provision("lab-3")).connect()
    await running.act("lab-3", "deregister")
    return connection


async def owners(running):
    listed = json.loads((await running.command("ices", "list", "--json")).stdout)
    return [ice["provisionedto"] for ice in listed]


async def is_disabled(running, name):
    return (await running.admin.get(f"/users/{name}")).json["disabledon"] is not None


KEPT = [
    "ICEs of alice, active until deregistered:",
    "lab-1",
    "ICEs of alice, provisioned; the unused token has expired:",
    "lab-2",
    "ICEs of alice, deregistered before:",
    "lab-3",
]


async def test_ices_are_kept_and_then_deregistered(running, admin, fleet):
    for args in ((), ("--ices", "keep")):
        assert (await admin("users", "disable", "alice", *args)).stdout.splitlines() == KEPT
    await fleet.round_trip()
    done = await admin("users", "disable", "--ices=deregister", "ALICE")
    await fleet.expect_dropped(4101)
    assert done.stdout.splitlines() == ["ICEs of alice, deregistered now:", *KEPT[1:]]


async def test_ices_are_given_to_another_user(running, admin, fleet, tmp_path):
    tokens = tmp_path / "new" / "tokens"
    # In any order, the word after `to` is the next user.
    done = await admin("users", "disable", "--ices", "to", "BOB", "alice", "--tokens", str(tokens))
    await fleet.expect_dropped(4102)
    assert done.stdout.splitlines() == [
        "ICEs of alice, given to another user, with a new token:",
        "lab-1",
        "lab-2",
        *KEPT[4:],
    ]
    assert await owners(running) == ["bob", "bob", "alice"]
    assert await is_disabled(running, "alice")
    assert not await is_disabled(running, "bob")
    files = sorted(tokens.iterdir())
    assert [file.name for file in files] == ["lab-1.token", "lab-2.token"]
    for file in files:
        assert file.stat().st_mode & 0o777 == 0o600
        await (await running.ice(file.read_text().strip()).connect()).round_trip()


async def test_what_cannot_be_done_is_refused_before(running, admin, fleet, tmp_path):
    taken, file = tmp_path / "taken", tmp_path / "file"
    taken.mkdir()
    (taken / "lab-1.token").write_text("a token\n")
    file.touch()
    to = ("--ices", "to", "bob")
    for args, status, says in (
        (to, 2, "needs --tokens"),
        (("--tokens", str(taken)), 2, "needs --tokens, and --tokens needs it"),
        (("--ices", "to "), 2, "'to ' is none of keep|deregister|to USER"),
        (("--ices", "burn"), 2, "'burn' is none of keep|deregister|to USER"),
        ((*to, "--tokens", str(file / "below")), 78, "cannot be used: Not a directory"),
        ((*to, "--tokens", str(taken)), 1, "lab-1.token is there already; nothing was done"),
        (("--ices", "to", "eve", "--tokens", str(tmp_path)), 1, "--ices to: there is no user"),
        (("--ices=to", "alice", "--tokens", str(tmp_path)), 1, "--ices to: this is the user"),
    ):
        assert says in (await admin("users", "disable", "alice", *args, status=status)).stderr
    assert not await is_disabled(running, "alice")
    await fleet.round_trip()


async def test_a_token_that_is_lost_is_named(running, admin, fleet, tmp_path, monkeypatch):
    monkeypatch.setattr(TokenFolder, "write", lambda *_: {"lab-1": "No space left on device"})
    args = ("users", "disable", "alice", "--ices", "to", "bob", "--tokens", str(tmp_path))
    lost = await admin(*args, status=1)
    assert "alice is disabled, but the tokens of 1 ICE could not be written" in lost.stderr
    assert "(No space left on device): lab-1; `ice-gateway ices reprovision`" in lost.stderr


async def test_an_answer_that_is_lost_is_told(running, there, fleet, tmp_path, monkeypatch):
    async def lost(*_):
        raise AnswerLost("the connection ended")

    monkeypatch.setattr(ApiAdmin, "disable_user", lost)
    args = ("users", "disable", "alice", "--ices", "to", "bob", "--tokens", str(tmp_path))
    told = await there(*args, status=1)
    assert "not known whether it was done. `ice-gateway ices list --user bob` says" in told.stderr
