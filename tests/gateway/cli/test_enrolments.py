"""The commands of enrolment, on the database of a running gateway and over its API."""

from __future__ import annotations

import json
import re

import pytest

from tests.support.machine import Machine, new_key

CREATE = ("enrolment-keys", "create")
LAB = (*CREATE, "lab PCs", "--type", "normal", "--prefix", "lab-", "--user")


def machine(running, secret, hostname="PC-7.example.org"):
    return Machine(running.session, running.url, secret, hostname)


async def wait(running, secret, hostname, **wanted):
    """A machine asks; it and the id of its enrolment."""
    one = machine(running, secret, hostname)
    status, answer = await one.ask(**wanted)
    assert status == 202, answer
    return one, answer["enrolment"]


async def test_a_key_is_made_used_and_revoked(running, admin):
    options = ("--uses", "2", "--expires-in", "12h", "--label", "site=north", "--label", "os=")
    made = await admin(*LAB, "ALICE", *options)
    key_id = re.fullmatch(r"iceek_([0-9a-f]{32})_[\w-]{43}\n", made.stdout)[1]
    secret = made.stdout.strip()
    key = (await running.admin.get(f"/enrolment-keys/{key_id}")).json
    assert made.stderr == f"enrolment key {key_id} for 2 ICEs, expires: {key['expires']}\n"
    assert (key["name"], key["provisionedto"], key["max_uses"]) == ("lab PCs", "alice", 2)
    assert (key["labels"], key["approval"]) == ({"os": "", "site": "north"}, False)
    status, _ = await machine(running, secret).ask()
    assert status == 201

    [listed] = json.loads((await admin("enrolment-keys", "list", "--json")).stdout)
    assert listed == key | {"uses": 1}
    shown = ("enrolment-keys", "show", key_id)
    assert json.loads((await admin(*shown, "--json")).stdout) == listed
    assert "name_prefix    lab-\n" in (await admin(*shown)).stdout
    heading, row = (await admin("enrolment-keys", "list")).stdout.splitlines()
    assert heading.split()[:5] == ["ID", "NAME", "TYPE", "USER", "PREFIX"]
    assert "lab PCs  normal  alice  lab-    1 of 2  no" in row

    for _ in range(2):  # revoking again changes nothing
        assert (await admin("enrolment-keys", "revoke", key_id)).output == ""
    assert (await machine(running, secret, "PC-8").ask())[0] == 401
    [event] = (await running.admin.get("/events?action=revoke-enrolment-key")).json["items"]
    assert event["detail"]["id"] == key_id


async def test_an_admin_decides_on_several_machines(running, admin):
    made = await admin(*LAB, "*", "--approval", "--uses", "9")
    machines = [
        await wait(running, made.stdout.strip(), f"pc-{number}", provisionedto=user)
        for number, user in enumerate(("alice", "alice", "carol"))
    ]
    (first, one), (second, two), (_, unknown) = machines
    listed = await admin("enrolments", "list", "--state", "waiting", "--json")
    assert json.loads(listed.stdout) == (await running.admin.get("/enrolments")).json["items"]
    row = (await admin("enrolments", "list")).stdout.splitlines()[1]
    assert row.split()[:6] == [one, "lab-pc-0", "alice", "pc-0", "127.0.0.1", "waiting"]

    assert (await admin("enrolments", "reject", two)).stdout == f"{two}  rejected  lab-pc-1\n"
    done = await admin("enrolments", "approve", two, "none", unknown, one, status=1)
    assert done.stdout == f"{one}  approved  lab-pc-0\n"
    assert done.stderr.splitlines() == [
        f"ice-gateway: {two}: the enrolment is rejected",
        "ice-gateway: none: There is no such enrolment.",
        f"ice-gateway: {unknown}: provisionedto: there is no user of this name; add the user first",
    ]
    assert (await first.poll(one))[0] == 200
    assert (await second.poll(two))[0] == 403
    shown = ("enrolments", "show", one)
    document = json.loads((await admin(*shown, "--json")).stdout)
    assert document == (await running.admin.get(f"/enrolments/{one}")).json
    assert (document["state"], document["hostname"]) == ("enrolled", "pc-0")
    assert "ice_name       lab-pc-0\n" in (await admin(*shown)).stdout
    [left] = json.loads((await admin("enrolments", "list", "--state", "waiting", "--json")).stdout)
    assert left["id"] == unknown


async def test_no_machine_writes_to_a_terminal(running, admin):
    made = await admin(*LAB, "*", "--approval")
    _, one = await wait(running, made.stdout.strip(), "PC-7", provisionedto="alice")
    # No request can say so; a database that was tampered with, or another gateway, could.
    await running.gateway.engine.write(
        lambda transaction: transaction.run(
            "UPDATE enrolments SET hostname = $1", "\x1b[2Jx\nof another"
        )
    )
    for command in (("list",), ("show", one)):
        shown = (await admin("enrolments", *command)).stdout
        assert r"\x1b[2Jx\nof another" in shown
        assert "\x1b" not in shown


@pytest.mark.parametrize("noun", ["enrolment-keys", "enrolments"])
async def test_what_is_not_there_is_a_line(admin, noun):
    missing = f"There is no such {noun.replace('-', ' ').removesuffix('s')}."
    assert (await admin(noun, "show", "none", status=1)).stderr == f"ice-gateway: {missing}\n"
    assert json.loads((await admin(noun, "list", "--json")).stdout) == []
    if noun == "enrolment-keys":
        refused = await admin(noun, "revoke", "none", status=1)
        assert refused.stderr == f"ice-gateway: {missing}\n"


async def test_keys_that_cannot_be_are_refused_alike(admin):
    for options, says in (
        (("*",), "--user: may be * only where an admin approves each enrolment"),
        (("bob",), "--user: there is no user of this name; add the user first"),
        (("alice", "--type", "ci-cd"), "--user: a ci-cd ICE has no user"),
        (("alice", "--label", "A=x"), "labels.A: a label's key has 1 to 63 characters: "),
    ):
        refused = await admin(*LAB, *options, status=1)
        assert (refused.stdout, len(refused.stderr.splitlines())) == ("", 1)
        assert refused.stderr.startswith(f"ice-gateway: {says}")
    for options, says in (
        (("--uses", "10001"), "1<=x<=10000"),
        (("--prefix", "ab"), "'--prefix': needs 3 to 63 characters: "),
        (("--expires-in", "91d"), "at most 90d"),
        (("--expires-in", "0"), "at most 90d"),
        (("--expires-in", f"{'9' * 400}d"), "at most 90d"),
        (("--label", "os"), "os: KEY=VALUE sets a label"),
        (("--label", "os=a", "--label", "os=b"), "the label os is named twice"),
    ):
        assert says in (await admin(*LAB, "alice", *options, status=2)).stderr
    assert json.loads((await admin("enrolment-keys", "list", "--json")).stdout) == []


async def test_a_refusal_of_the_caller_ends_the_command(running, there, tmp_path):
    _, secret = await new_key(running, approval=True)
    _, enrolment = await wait(running, secret, "pc-1")
    weak = await running.admin.post("/api-tokens", {"user": "root", "name": "weak"})
    file = tmp_path / "weak.token"
    file.touch(0o600)
    file.write_text(weak.json["token"])
    for decision in ("approve", "reject"):
        refused = await there("enrolments", decision, enrolment, "x", status=1, token_file=file)
        assert (refused.stdout, len(refused.stderr.splitlines())) == ("", 1)
    assert (await running.admin.get(f"/enrolments/{enrolment}")).json["state"] == "waiting"
