"""Where users come from, on the page: shown in the list, changed in a dialog with the API's rules."""

from __future__ import annotations

import pytest

from gateway.core.roles import Role
from tests.contract.domain import ISSUER
from tests.support.pages import said

with_issuer = pytest.mark.gateway(sso__issuer=ISSUER, sso__client_id="ice", sso__roles="lab=member")


@with_issuer
async def test_a_user_is_linked_and_made_local_in_a_dialog(running, browse, root):
    alice = await browse(running, "alice", Role.MEMBER)
    assert "Change my password" in said(await alice.get("me"))
    ask = await root.get("users/origin?name=alice")
    assert ISSUER in said(ask)
    assert "1 login ends when single sign-on begins or ends." in said(ask)
    fields = {"name": "alice", "origin": "sso", "subject": " a-1 "}
    done = await root.post("users/origin", fields)
    assert "alice logs in by single sign-on alone, as a-1." in said(done)
    assert "1 login ended." in said(done)
    assert (await alice.get("me")).status == 302
    listed = await root.part("users")
    assert f'title="a-1 of {ISSUER}"' in listed.text
    assert "Set password of alice" not in listed.text
    assert 'value="a-1"' in (await root.get("users/origin?name=alice")).text
    assert "logs in by single sign-on alone" in said(
        await root.post("users/password", {"name": "alice", "password": "x" * 12})
    )
    done = await root.post("users/origin", {"name": "alice", "origin": "local", "subject": "a-1"})
    assert "alice is a local user and needs a password to log in." in said(done)


@with_issuer
@pytest.mark.parametrize(
    ("fields", "status", "field", "sentence"),
    [
        ({"origin": "sso"}, 422, "new_subject", "the issuer's `sub`"),
        ({"origin": "sso", "subject": "zoë"}, 422, "new_subject", "printable ASCII"),
        ({"origin": "sso", "subject": "b-1"}, 409, "new_subject", "is that of bob"),
        ({"name": "root", "origin": "sso", "subject": "r"}, 409, "", "another local user"),
    ],
)
async def test_a_refusal_is_shown_in_the_dialog(running, root, fields, *, status, field, sentence):
    await running.add_user("bob")
    linked = {"name": "bob", "origin": "sso", "subject": "b-1"}
    assert (await root.post("users/origin", linked)).status == 200
    answer = await root.post("users/origin", {"name": "alice", **fields})
    assert answer.status == status
    assert answer.headers["HX-Retarget"] == "#dialog-fault"
    assert f'"form-fault":{{"field":"{field}"}}' in answer.headers["HX-Trigger"]
    assert sentence in said(answer)


async def test_without_an_issuer_a_user_can_only_be_marked_local(running, root):
    assert "Change origin" not in (await root.part("users")).text
    await running.gateway.engine.write(
        lambda t: t.run("UPDATE users SET origin = NULL WHERE name = 'root'")
    )
    listed = (await root.part("users")).text
    assert listed.count("Change origin") == 1
    assert "Not decided" in listed
    assert 'name="subject"' not in (await root.get("users/origin?name=root")).text
    done = await root.post("users/origin", {"name": "root", "origin": "local"})
    assert "root is a local user and logs in by password." in said(done)
    assert (await root.get()).status == 200, "they stay logged in"


@with_issuer
async def test_who_logs_in_by_single_sign_on_is_offered_no_password(running, browse, root):
    alice = await browse(running, "alice", Role.MEMBER)
    await running.gateway.engine.write(
        lambda t: t.run(
            "UPDATE users SET origin = 'sso', issuer = $1, subject = 'a' WHERE name = 'alice'",
            ISSUER,
        )
    )
    page = await alice.get("me")
    assert "You log in by single sign-on" in said(page)
    assert "Change my password" not in said(page)
    new = "another one of it"
    refused = await alice.post("me/password", {"old": "x", "new": new})
    assert refused.status == 409
    assert "does not log in by password" in said(refused)
