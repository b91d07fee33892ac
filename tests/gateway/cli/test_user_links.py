"""`users set-login` and `users link`, on a database and over the API."""

from __future__ import annotations

import json

import pytest

from gateway.core.roles import Role
from tests.contract.domain import ISSUER
from tests.support.pages import has_password

with_issuer = pytest.mark.gateway(sso__issuer=ISSUER, sso__client_id="ice", sso__roles="lab=member")


@pytest.fixture(autouse=True)
def issuer(monkeypatch):
    """For commands on the database."""
    monkeypatch.setenv("ICE_GATEWAY_SSO__ISSUER", ISSUER)


async def users(admin):
    listed = json.loads((await admin("users", "list", "--json")).stdout)
    return {user["name"]: (user["origin"], user["subject"]) for user in listed}


@with_issuer
async def test_a_user_is_linked_and_made_local(running, admin):
    await has_password(running, "alice", Role.MEMBER)
    assert (await admin("users", "set-login", "ALICE", "sso", "--subject", "a-1")).output == ""
    assert (await users(admin))["alice"] == ("sso", "a-1")
    listed = (await admin("users", "list")).stdout.splitlines()
    [row] = [line.split() for line in listed if line.startswith("alice")]
    assert row[4:7] == ["no", "sso", "a-1"]
    again = await admin("users", "set-login", "root", "sso", "--subject", "a-1", status=1)
    assert again.stderr.count("\n") == 1
    assert "is that of alice" in again.stderr
    assert (await admin("users", "set-login", "alice", "local")).output == ""
    assert (await users(admin))["alice"] == ("local", None)
    for args, status, says in (
        (("alice", "sso"), 2, "sso needs --subject"),
        (("alice", "local", "--subject", "x"), 2, "local has none"),
        (("alice", "other"), 2, "'other' is not one of"),
        (("alice", "sso", "--subject", "zoë"), 1, "subject: "),
        (("nobody", "local"), 1, "there is no user"),
    ):
        done = await admin("users", "set-login", *args, status=status)
        assert says.lower() in done.stderr.lower(), done.stderr


async def test_without_an_issuer_the_command_names_the_setting(running, admin, monkeypatch):
    monkeypatch.delenv("ICE_GATEWAY_SSO__ISSUER")
    done = await admin("users", "set-login", "alice", "sso", "--subject", "a", status=1)
    assert done.stderr.count("\n") == 1
    assert "sso.issuer" in done.stderr


@with_issuer
async def test_users_of_a_file_are_linked(running, admin, tmp_path):
    for name in ("bob", "carol", "zed"):
        await running.add_user(name)
    await admin("users", "set-login", "zed", "sso", "--subject", "z-1")
    file = tmp_path / "users.csv"
    file.write_text("Subject,User\na-1,ALICE\nb-1,bob\nx-1,nobody\nz-1,carol\n")
    done = await admin("users", "link", "--from", str(file), status=1)
    assert done.stdout == ""
    first, second, summary = done.stderr.splitlines()
    assert first.startswith("ice-gateway: line 4: nobody: ")
    assert second.startswith("ice-gateway: line 5: carol: ")
    assert "is that of zed" in second
    assert summary == "ice-gateway: 2 of 4 users are linked to their subject"
    linked = await users(admin)
    assert (linked["alice"], linked["bob"]) == (("sso", "a-1"), ("sso", "b-1"))
    assert linked["carol"][0] != "sso"

    file.write_text("user,subject\nalice,a-1\nbob,b-1\ncarol,c-1\n")
    done = await admin("users", "link", "--from", str(file))
    assert done.stderr == "ice-gateway: 3 of 3 users are linked to their subject\n"
    changes = (await running.admin.get("/events?action=set-login&limit=200")).json["items"]
    assert [one["detail"]["user"] for one in changes] == ["zed", "alice", "bob", "carol"]


@with_issuer
async def test_a_file_with_faults_links_nobody(running, admin, tmp_path):
    file = tmp_path / "users.csv"
    file.write_text("user,subject\nalice,a-1\nroot,a-1\n")
    done = await admin("users", "link", "--from", str(file), status=1)
    assert "line 3: subject: is on line 2 already" in done.stderr
    assert "nothing was done" in done.stderr
    assert (await users(admin))["alice"][0] != "sso"
    missing = await admin("users", "link", "--from", str(tmp_path / "none.csv"), status=78)
    assert "cannot be read" in missing.stderr


async def test_a_refusal_of_all_ends_the_command(running, admin, tmp_path, monkeypatch):
    monkeypatch.delenv("ICE_GATEWAY_SSO__ISSUER")
    file = tmp_path / "users.csv"
    file.write_text("user,subject\nalice,a-1\nroot,r-1\n")
    done = await admin("users", "link", "--from", str(file), status=1)
    progress, reason = done.stderr.splitlines()
    assert progress == "ice-gateway: 0 of 2 users were linked; run this again"
    assert "sso.issuer" in reason
