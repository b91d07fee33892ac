"""The audit log as a whole: by command, and on its page."""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json

import pytest

from gateway.core.roles import Role
from gateway.runtime.database_url import file_of
from gateway.store.sqlite.commit_record import record_of
from tests.contract.domain import unguarded
from tests.support.harness import API


@pytest.fixture
def command(running):
    """Runs `ice-gateway audit …`."""
    return functools.partial(running.command, "audit")


async def tamper(running, statement):
    await unguarded(running.gateway.engine)
    await running.gateway.engine.write(lambda transaction: transaction.run(statement))


async def test_a_kept_head_proves_the_log(running, command):
    await running.provision()
    head = (await command("head")).stdout.strip()
    await running.act("lab-1", "reprovision")
    said = (await command("verify", "--head", head)).stdout
    assert f"up to event {head.split(':')[0]} they are those of the kept head" in said
    assert "not proven: that no event was removed from the end" in said
    assert (
        json.loads((await command("head", "--json")).stdout)["seq"] == int(head.split(":")[0]) + 1
    )
    await tamper(running, "UPDATE ice_events SET actor = 'eve' WHERE action = 'provision'")
    wrong = await command("verify", "--head", head, status=1)
    seq = int(head.split(":")[0])
    assert f"event {seq} was altered, or one before it with the chain rewritten" in wrong.stderr
    await running.act("lab-1", "reprovision")
    assert (await command("verify", status=1)).stderr == f"ice-gateway: event {seq} was altered\n"
    assert "nothing was pruned" in (await command("prune", "--keep", "0", status=1)).stderr


@pytest.mark.parametrize(
    ("taken", "says"),
    [
        ("TRUE", "the log is empty although there are users: its events were removed"),
        ("action = 'reprovision'", "lab-1 has generation 2, and the log ends at its generation 1"),
        ("ice_name = 'lab-1'", "the log has no event of lab-1"),
    ],
)
async def test_a_shortened_log_is_not_proven(running, command, taken, says):
    await running.provision()
    await running.act("lab-1", "reprovision")
    await tamper(running, f"DELETE FROM ice_events WHERE {taken}")  # noqa: S608 - of this test
    path = file_of(running.gateway.settings.database_url)
    if path is not None:
        # An attacker who changes the file can remove the record of its last commit, too.
        record_of(path).unlink()
    wrong = await command("verify", status=1)
    assert wrong.stderr.startswith(f"ice-gateway: {says}")
    assert wrong.stdout == ""


async def test_wrong_usage_is_said(running, command):
    assert "SEQ:DIGEST" in (await command("verify", "--head", "7", status=2)).stderr
    assert "such as 90d" in (await command("prune", "--keep", "old", status=2)).stderr
    assert "--keep" in (await command("prune", status=2)).stderr
    assert "no event is older" in (await command("prune", "--keep", "1d")).stdout
    assert "36500d at most" in (await command("prune", "--keep", "9999999d", status=2)).stderr


async def test_a_running_gateway_goes_on_while_it_is_pruned(running, command):
    ice = await running.provision()
    connection = await ice.connect()
    assert (await command("prune", "--keep", "0")).stdout.startswith("pruned ")
    await running.act("lab-1", "deregister")
    await connection.expect_dropped(4101)
    events = (await running.admin.get("/events?limit=200")).json["items"]
    assert [event["action"] for event in events] == ["prune", "deregister"]
    assert (await command("verify")).stdout.startswith("proven: ")


async def test_a_stream_resumes_at_the_oldest_event_that_is_left(running, command):
    await running.provision()
    await command("prune", "--keep", "0")
    [checkpoint] = (await running.admin.get("/events")).json["items"]
    assert (await running.admin.get("/events?after=1")).json["items"] == [checkpoint]
    for last in ("1", "1-01234567"):
        headers = {"Authorization": f"Bearer {running.admin.token}", "Last-Event-ID": last}
        url = f"{running.url}{API}/events/stream"
        async with running.session.get(url, headers=headers) as stream:
            first = await stream.content.readuntil(b"\r\n\r\n")
            assert f"id: {checkpoint['seq']}-".encode() in first


async def test_an_export_is_for_its_owner_and_fails_in_one_line(command, tmp_path):
    file = tmp_path / "log.jsonl"
    await command("export", "--output", str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    for output, reason in (("/dev/full", "No space left"), (f"{tmp_path}/none/x", "No such file")):
        said = (await command("export", "--output", output, status=1)).stderr
        assert said.startswith(f"ice-gateway: {output} cannot be written: {reason}")
        assert said.count("\n") == 1


async def test_anybody_can_check_the_exported_chain(running, command):
    await running.provision()
    await running.act("lab-1", "reprovision")
    previous = "0" * 64
    for line in (await command("export")).stdout.splitlines():
        event = json.loads(line)
        assert event["previous"] == previous
        detail = json.dumps(event["detail"], sort_keys=True, separators=(",", ":"))
        columns = [*(event | {"detail": detail}).values()]
        text = json.dumps(columns, separators=(",", ":"), ensure_ascii=False)
        previous = hashlib.sha256(text.encode()).hexdigest()
    assert (await command("head")).stdout.strip().endswith(f":{previous}")


async def test_no_name_is_a_formula_in_a_spreadsheet(running, command, tmp_path):
    evil = await running.api("=cmd|' -C calc'!A0", Role.ADMIN)
    await evil.post("/ices", {"ice_name": "ci-1", "ice_type": "ci-cd"})
    file = tmp_path / "log.csv"
    await command("export", "--format", "csv", "--output", str(file))
    rows = list(csv.DictReader(io.StringIO(file.read_bytes().decode(), newline="")))
    assert rows[-1]["actor"] == "'=cmd|' -C calc'!A0"
    assert rows[-1]["ice_name"] == "ci-1"
    assert [int(row["seq"]) for row in rows] == list(range(1, len(rows) + 1))
