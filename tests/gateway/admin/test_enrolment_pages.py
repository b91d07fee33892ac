"""The pages of enrolment over HTTP: machines that wait, decisions, keys, and who sees what."""

from __future__ import annotations

import importlib
import json
import re

import aiohttp
import pytest
import pytest_asyncio

from gateway.core.roles import Role
from tests.support.harness import ADMIN, harness
from tests.support.machine import CI_CD, KEY, Machine, new_key
from tests.support.pages import Browser, has_password, said

APPROVAL = {**KEY, "approval": True, "max_uses": 9}
NEW = {
    "name": "lab PCs",
    "ice_type": "normal",
    "provisionedto": "ALICE",
    "name_prefix": "lab-",
    "max_uses": "2",
    "expires_in": "7d",
    "labels": "os=windows; room=4",
}


async def waits(running, hostname="PC-7", *, secret=None, **wanted):
    """A machine that waits, and the id of its enrolment."""
    if secret is None:
        _, secret = await new_key(running, APPROVAL)
    machine = Machine(running.session, running.url, secret, hostname)
    status, answer = await machine.ask(**wanted)
    assert status == 202, answer
    return machine, answer["enrolment"]


async def thumbprint(running, one):
    return (await running.admin.get(f"/enrolments/{one}")).json["thumbprint"]


def told(answer):
    """What the page's script is told in a header."""
    return json.loads(answer.headers["HX-Trigger"])


def field(answer, status=422):
    assert answer.status == status, answer
    assert answer.headers["HX-Retarget"] == "#dialog-fault"
    return told(answer)["form-fault"]["field"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_root(tmp_path_factory):
    """The browser of an admin before a gateway that no test changes."""
    jar = aiohttp.CookieJar(unsafe=True)
    async with (
        harness(tmp_path_factory.mktemp("shared")) as running,
        aiohttp.ClientSession(cookie_jar=jar) as session,
    ):
        browser = Browser(session, running.url)
        await has_password(running, "root")
        assert (await browser.log_in()).status == 303
        yield browser


# --- machines that wait --------------------------------------------------------------------------


async def test_a_machine_waits_is_approved_and_gets_its_token(running, root):
    assert "No machine waits" in said(await root.get("enrolment"))
    machine, one = await waits(running, "PC-7.example.org")
    page = await root.get("enrolment")
    for part in ("lab-PC-7", "PC-7.example.org", "127.0.0.1", "test", "alice", "lab PCs"):
        assert part in said(page), part
    assert await thumbprint(running, one) in page.text
    assert "machine waits to enrol" in said(await root.get())
    answer = await root.post(f"enrolment/of/{one}/approve")
    assert answer.status == 204
    sentence = "lab-PC-7 approved: PC-7.example.org gets it as it asks next."
    assert told(answer)["toast"] == {"sentence": sentence}
    assert "enrolments-changed" in told(answer)
    status, made = await machine.poll(one)
    assert (status, made["ice_name"]) == (200, "lab-PC-7")
    assert "No machine waits" in said(await root.get("enrolment"))
    assert "to enrol" not in said(await root.get())
    again = await root.post(f"enrolment/of/{one}/approve")
    assert again.status == 409
    assert "Not waiting any more" in said(again)


async def test_a_rejected_machine_gets_nothing(running, root):
    machine, one = await waits(running)
    assert "It gets no ICE" in said(await root.part(f"enrolment/of/{one}/reject", "dialog"))
    answer = await root.post(f"enrolment/of/{one}/reject")
    assert told(answer)["toast"] == {"sentence": "PC-7 was rejected."}
    status, refused = await machine.poll(one)
    assert (status, refused["code"]) == (403, "enrolment-refused")
    assert (await root.part(f"enrolment/of/{one}/reject", "dialog")).status == 409


async def test_a_machine_that_replaces_another_is_marked_and_asked_about(running, root):
    connection = await (await running.provision("lab-PC-7")).connect()
    machine, one = await waits(running)
    page = await root.get("enrolment")
    assert "Replaces generation 1" in said(page)
    assert f'hx-get="enrolment/of/{one}/approve"' in page.text
    assert f'hx-post="enrolment/of/{one}/approve"' not in page.text
    asked = said(await root.part(f"enrolment/of/{one}/approve", "dialog"))
    assert "is dropped at once when the new one comes" in asked
    assert "It has been connected since" in asked
    assert (await root.post(f"enrolment/of/{one}/approve")).status == 204
    status, _ = await machine.poll(one)
    assert status == 200
    await connection.expect_dropped(4102)


async def test_what_keeps_a_machine_from_its_ice_is_in_its_row(running, root):
    key, secret = await new_key(running, APPROVAL, provisionedto="*")
    _, one = await waits(running, secret=secret, provisionedto="nobody")
    assert "No such enabled user" in said(await root.get("enrolment"))
    refused = await root.post(f"enrolment/of/{one}/approve")
    assert refused.status == 422
    assert "there is no user of this name" in said(refused)
    await waits(running, "pc-8", secret=secret, provisionedto="ALICE")
    assert said(await root.get("enrolment")).count("No such enabled user") == 1
    await root.post(f"enrolment/keys/{key['id']}/revoke")
    assert "No machine waits" in said(await root.get("enrolment"))


async def test_many_are_decided_at_once_and_refusals_have_reasons(running, root):
    _, secret = await new_key(running, APPROVAL)
    ids = [(await waits(running, f"pc-{n}", secret=secret))[1] for n in range(4)]
    rival, other = await waits(running, "pc-0", secret=secret)
    chosen = {"enrolments": [*ids[:2], other]}
    asked = said(await root.post("enrolment/chosen/approve/confirm", chosen))
    assert "Approve 3 machines?" in asked
    decided = said(await root.post("enrolment/chosen/approve", chosen))
    assert "Approved 2 of 3" in decided
    assert "another machine has the approval for it" in decided
    answer = await root.post("enrolment/chosen/reject", {"enrolments": [*ids[2:], other]})
    assert told(answer)["toast"] == {"sentence": "Rejected 3 machines."}
    assert (await rival.poll(other))[0] == 403
    assert (await root.post("enrolment/chosen/reject/confirm", chosen)).status == 409
    too_many = {"enrolments": ids[:1] * 51}
    assert (await root.post("enrolment/chosen/reject", too_many)).status == 422


async def test_the_page_after_the_last_is_the_last(running, root, monkeypatch):
    # By their names in the package one finds their `routes`.
    for name in ("base", "enrolment"):
        monkeypatch.setattr(importlib.import_module(f"gateway.admin.pages.{name}"), "PAGE", 2)
    _, secret = await new_key(running, APPROVAL)
    for number in range(3):
        await waits(running, f"pc-{number}", secret=secret)
    first, last = await root.part("enrolment"), await root.part("enrolment?page=9")
    assert ("lab-pc-1" in first.text, "lab-pc-2" in first.text) == (True, False)
    assert ("lab-pc-1" in last.text, "lab-pc-2" in last.text) == (False, True)
    assert "page 2 of 2" in said(last)


async def test_names_of_machines_are_text(running, root):
    name = "<b>Büro</b>"
    _, one = await waits(running, name, ice_name="lab-1")
    assert name not in (await root.get("enrolment")).text
    answer = await root.post(f"enrolment/of/{one}/reject")
    assert told(answer)["toast"] == {"sentence": f"{name} was rejected."}


# --- keys ----------------------------------------------------------------------------------------


async def test_a_key_is_made_shown_once_and_used(running, root):
    assert "There is no enrolment key." in said(await root.get("enrolment/keys"))
    made = await root.post("enrolment/keys", NEW)
    assert made.status == 201
    assert "keys-changed" in told(made)
    [secret] = re.findall(r"iceek_[0-9a-f]{32}_[\w-]{43}", made.text)
    assert 'data-filename="enrolment-key.txt"' in made.text
    command = f"run --gateway {running.url} --enrolment-key-file"
    assert said(made).count(command) == 2
    assert said(made).count("Linux and macOS") == 2
    machine = Machine(running.session, running.url, secret)
    assert (await machine.ask())[0] == 201
    page = await root.get("enrolment/keys")
    for part in ("lab PCs", "Good", "alice", "lab-", "1 of 2", "not needed", "root", "os=windows"):
        assert part in said(page), part
    for address in ("enrolment", "enrolment/keys", "audit"):
        assert secret not in (await root.get(address)).text


async def test_a_machine_that_names_its_user_enrols_before_it_runs(root):
    made = said(
        await root.post("enrolment/keys", {**NEW, "provisionedto": "*", "approval": "true"})
    )
    assert made.count("--user USER") == 4
    assert "Each waits until an admin approves it." in made


@pytest.mark.parametrize(
    ("wrong", "element"),
    [
        ({"name": " "}, "key_name"),
        ({"ice_type": "odd"}, "ice_type"),
        ({"provisionedto": ""}, "provisionedto"),
        ({"provisionedto": "nobody"}, "provisionedto"),
        ({"provisionedto": "*"}, "provisionedto"),
        ({"name_prefix": "a"}, "key_prefix"),
        ({"max_uses": "0"}, "key_uses"),
        ({"max_uses": "٣"}, "key_uses"),
        ({"max_uses": "9" * 5000}, "key_uses"),
        ({"expires_in": "91d"}, "key_expires"),
        ({"labels": "os"}, "key_labels"),
        ({"labels": "OS=1"}, "key_labels"),
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_refusal_is_at_its_field(shared_root, wrong, element):
    answer = await shared_root.post("enrolment/keys", {**NEW, **wrong})
    assert field(answer) == element
    assert "iceek_" not in answer.text


async def test_states_of_keys_in_words(running, root):
    for name in ("used", "revoked", "good"):
        key, secret = await new_key(running, CI_CD, name=name)
        if name == "used":
            assert (await Machine(running.session, running.url, secret).ask())[0] == 201
        if name == "revoked":
            asked = said(await root.part(f"enrolment/keys/{key['id']}/revoke", "dialog"))
            assert "No machine can enrol with it any more" in asked
            answer = await root.post(f"enrolment/keys/{key['id']}/revoke")
            assert told(answer)["toast"]["sentence"] == "The enrolment key revoked is revoked."
            again = said(await root.part(f"enrolment/keys/{key['id']}/revoke", "dialog"))
            assert "was revoked on" in again
    await new_key(running, KEY)
    await running.gateway.services.accounts.disable(ADMIN, "alice")
    states = re.findall(
        r'<span class="(?:done|warning)">(.*?)<', (await root.get("enrolment/keys")).text
    )
    assert states == ["User disabled", "Good", "Revoked", "Used up"]


# --- who sees it ---------------------------------------------------------------------------------


async def test_auditors_see_all_and_decide_nothing_members_see_no_link(running, browse):
    await waits(running)
    auditor = await browse(running, "eve", Role.AUDITOR)
    for address, shown in (("enrolment", "lab-PC-7"), ("enrolment/keys", "lab PCs")):
        page = await auditor.get(address)
        assert shown in said(page)
        main = page.text[page.text.index("<main") :]
        assert "<button" not in main
        assert "<input" not in main
    member = await browse(running, "alice", Role.MEMBER)
    home = await member.get()
    assert 'href="enrolment"' not in home.text


async def test_the_log_tells_it_in_sentences(running, root):
    machine, one = await waits(running)
    await root.post(f"enrolment/of/{one}/approve")
    await machine.poll(one)
    log, pair = said(await root.get("audit")), await thumbprint(running, one)
    for part in (
        "Made the enrolment key lab PCs",
        f"PC-7 (key pair {pair}) asked for the ICE lab-PC-7 of alice.",
        f"Approved PC-7 (key pair {pair})",
        "A machine with the enrolment key",
    ):
        assert part in log, part
    assert "A machine with the enrolment key" in said(await root.get("ices/lab-PC-7"))
