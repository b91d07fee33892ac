"""`/events`: the audit log page by page, and live together with presence."""

from __future__ import annotations

import asyncio
import contextlib
import json

import aiohttp
import pytest
import pytest_asyncio

from gateway.admin.event_streams import EventStreams, StreamLimits
from gateway.app import Tuning
from gateway.cli.common import open_context
from gateway.core.audit_event import Position
from gateway.core.roles import Role
from gateway.store.ice_listing import IceListing
from gateway.store.sqlite.commit_record import record_of
from tests.contract.domain import unguarded
from tests.support.harness import (
    ADMIN,
    API,
    expect_refused,
    harness,
    hold_to_description,
)
from tests.support.ice import PATIENCE, until

FIELDS = [
    "seq",
    "at",
    "actor",
    "via",
    "address",
    "action",
    "ice_name",
    "generation",
    "detail",
]
STREAM = f"{API}/events/stream"


@pytest.fixture(autouse=True)
def described(monkeypatch):
    hold_to_description(monkeypatch)


async def events(running, query=""):
    return (await running.admin.get(f"/events{query}")).json["items"]


async def heads(running):
    """The position behind each event."""
    return [Position.after(entry) for entry in await running.gateway.admin.events.after(0, 1000)]


async def last_seq(running):
    return await running.gateway.admin.events.last()


# --- page by page ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "generations"),
    [
        ("provision", (None, 1)),
        ("reprovision", (1, 2)),
        ("register", (1, 1)),
        ("reregister", (1, 2)),
        ("deregister", (1, 2)),
        ("disconnect", (1, 1)),
    ],
)
async def test_every_action_appends_one_event(running, action, generations):
    if action != "provision":
        ice = await running.provision("Lab-1")
    if action in ("reregister", "deregister", "disconnect"):
        await ice.connect()
    seq = await last_seq(running)
    if action == "provision":
        await running.provision("Lab-1")
    elif action == "register":
        await ice.connect()
    else:
        await running.act("lab-1", action)
    [event] = await events(running, f"?after={seq}")
    assert list(event) == FIELDS
    by_ice = action == "register"
    assert event == {
        "seq": seq + 1,
        "at": event["at"],
        "actor": "Lab-1" if by_ice else "root",
        "via": "ice" if by_ice else "api",
        "address": "127.0.0.1",
        "action": action,
        "ice_name": "Lab-1",
        "generation": generations[1],
        "detail": event["detail"],
    }
    assert event["detail"]["generation_before"] == generations[0]


async def test_the_ice_that_comes_again_appends_none(running):
    ice = await running.provision()
    await ice.connect()
    seq = await last_seq(running)
    await ice.connect()
    await running.eventually("/ices/lab-1", lambda answer: answer.json["connection"])
    assert await last_seq(running) == seq


async def test_a_change_by_command_names_who_and_where(running):
    await running.provision()
    async with open_context(running.gateway.settings) as opened:
        await opened.services.provisioning.reprovision(
            opened.actor, (await IceListing(opened.engine).find("lab-1")).ice
        )
        who = opened.actor
    [event] = await events(running, "?action=reprovision")
    assert (event["actor"], event["via"], event["address"]) == (who.name, "command", who.address)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory):
    """A gateway whose log only grows by what is written here: two ICEs, one reprovisioned twice."""
    async with harness(tmp_path_factory.mktemp("shared")) as started:
        for name in ("Lab-1", "lab-2"):
            await started.provision(name)
        for _ in range(2):
            await started.act("lab-1", "reprovision")
        started.auditor = await started.api("eve", Role.AUDITOR)
        yield started


changes_nothing = pytest.mark.asyncio(loop_scope="module")


@changes_nothing
async def test_log_is_told_oldest_first_without_gaps(shared):
    items = await events(shared)
    assert [event["seq"] for event in items] == list(range(1, await last_seq(shared) + 1))
    assert [event["at"] for event in items] == sorted(event["at"] for event in items)
    assert all(event["at"].endswith("Z") for event in items)


@pytest.mark.parametrize(
    ("query", "actions"),
    [
        ("ice_name=Lab-1", ["provision", "reprovision", "reprovision"]),
        ("ice_name=LAB-1", ["provision", "reprovision", "reprovision"]),
        ("ice_name=lab-2", ["provision"]),
        ("ice_name=lab-3", []),
        ("action=reprovision", ["reprovision"] * 2),
        ("action=reprovision&ice_name=lab-2", []),
        ("action=provision&actor=root", ["provision"] * 2),
        ("actor=alice", []),
        ("ice_name=Lab-1&limit=2", ["provision", "reprovision"]),
        ("ice_name=&action=provision&actor=", ["provision"] * 2),
    ],
)
@changes_nothing
async def test_log_is_filtered(shared, query, actions):
    assert [event["action"] for event in await events(shared, f"?{query}")] == actions, query


@changes_nothing
async def test_next_is_the_after_of_the_next_page(shared):
    seen, after = [], 0
    while after is not None:
        page = (await shared.admin.get(f"/events?ice_name=lab-1&limit=2&after={after}")).json
        seen += [event["seq"] for event in page["items"]]
        assert page["next"] in (None, seen[-1])
        after = page["next"]
    assert seen == [event["seq"] for event in await events(shared, "?ice_name=lab-1")]
    assert await events(shared, f"?after={await last_seq(shared)}") == []


async def test_a_place_beyond_the_end_is_a_reset(running):
    end = await last_seq(running)
    for query in (f"after={end + 1}", f"after={end + 1}&action=provision", f"after={2**63 - 1}"):
        refused = expect_refused(await running.admin.get(f"/events?{query}"), 409, "reset")
        assert (refused["seq"], refused["detail"]) == (end, f"The audit log ends at event {end}.")
    assert await events(running, f"?after={end}&action=nothing") == []


@pytest.mark.parametrize(("query", "number"), [("", 50), ("?limit=200", 200), ("?limit=1", 1)])
async def test_limit_is_that_of_the_ices(running, query, number):
    await running.provision()
    body = {"action": "disconnect", "ice_names": ["lab-1"] * 201}
    assert (await running.admin.post("/ices/bulk", body)).status == 200
    answer = await running.admin.get(f"/events{query}")
    assert len(answer.json["items"]) == number
    assert answer.json["next"] == answer.json["items"][-1]["seq"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("after=-1", "after"),
        ("after=x", "after"),
        (f"after={2**63}", "after"),
        (f"after={'9' * 5000}", "after"),
        ("before=3", "before"),
        ("action=provision&action=register", "action"),
    ],
)
@changes_nothing
async def test_wrong_parameter_is_named(shared, query, field):
    refused = expect_refused(await shared.admin.get(f"/events?{query}"), 422, "invalid")
    assert refused["field"] == field


# --- live --------------------------------------------------------------------------------------


class Reader:
    """Reads server-sent events."""

    def __init__(self, response):
        self._lines = response.content

    async def next(self):
        """The next event as its fields, `data` decoded; None at the end of the stream."""
        fields = {}
        async with asyncio.timeout(PATIENCE):
            while line := await self._lines.readline():
                name, _, value = line.decode().rstrip("\r\n").partition(": ")
                if name:
                    fields[name] = value
                elif "data" in fields:
                    return {**fields, "data": json.loads(fields["data"])}
        return None

    async def audit(self):
        """The next audit event."""
        while (event := await self.next()) is not None:
            if "event" not in event:
                return event
        raise AssertionError("the stream ended, an audit event was expected")

    async def seq(self):
        """The number of the next audit event."""
        return int((await self.audit())["id"].partition("-")[0])

    async def presence(self):
        """The next presence event."""
        while (event := await self.next()) is not None:
            if event.get("event") == "presence":
                assert "id" not in event, "presence must not move the place to resume from"
                return event["data"]
        raise AssertionError("the stream ended, a presence event was expected")

    async def ends(self):
        """Read to the end; returns what still came."""
        rest = []
        while (event := await self.next()) is not None:
            rest.append(event)
        return rest


@contextlib.asynccontextmanager
async def streaming(api, last=None):
    headers = {"Authorization": f"Bearer {api.token}"}
    if last is not None:
        headers["Last-Event-ID"] = str(last)
    async with api.session.get(f"{api.base}{STREAM}", headers=headers) as response:
        assert response.status == 200, f"the stream was refused: {await response.text()}"
        assert response.content_type == "text/event-stream"
        assert response.headers["Cache-Control"] == "no-store"
        yield Reader(response)


async def test_stream_tells_audit_events_with_their_number(running):
    async with streaming(running.admin) as reader:
        await running.provision()
        await running.act("lab-1", "reprovision")
        told = [await reader.audit(), await reader.audit()]
    logged = await events(running, "?ice_name=lab-1")
    assert [event["data"] for event in told] == logged
    digests = [head.digest for head in await heads(running)]
    expected = [f"{event['seq']}-{digests[event['seq'] - 1][:8]}" for event in logged]
    assert [event["id"] for event in told] == expected


@pytest.mark.parametrize("behind", [0, 1])
async def test_stream_resumes_behind_the_last_event(running, behind):
    await running.provision()
    body = {"action": "disconnect", "ice_names": ["lab-1"] * 250}
    await running.admin.post("/ices/bulk", body)
    last = 0 if behind == 0 else await last_seq(running) - behind
    async with streaming(running.admin, last) as reader:
        await running.act("lab-1", "reprovision")
        expected = range(last + 1, await last_seq(running) + 1)
        assert [await reader.seq() for _ in expected] == list(expected)


@pytest.mark.parametrize("digest", [True, False])
async def test_stream_resumes_behind_the_id_of_an_event(running, digest):
    await running.provision()
    await running.act("lab-1", "reprovision")
    last = (await heads(running))[-2]
    async with streaming(running.admin, last if digest else last.seq) as reader:
        assert await reader.seq() == last.seq + 1


@pytest.mark.parametrize("last", ["{beyond}", "{beyond}-01234567", "{end}-{other}", "0-01234567"])
async def test_id_that_the_log_does_not_hold_is_answered_by_a_reset(running, last):
    end = (await heads(running))[-1]
    other = "f" * 8 if end.digest[0] != "f" else "0" * 8
    given = last.format(beyond=end.seq + 100, end=end.seq, other=other)
    async with streaming(running.admin, given) as reader:
        assert await reader.next() == {"event": "reset", "id": str(end), "data": {"seq": end.seq}}
        await running.provision()
        assert await reader.seq() == end.seq + 1


@pytest.mark.sqlite
async def test_reader_of_a_log_that_was_restored_meanwhile_is_told(tmp_path):
    """Both logs have an event of the reader's number."""
    async with harness(tmp_path) as running:
        await running.provision("lab-1")
        end = (await heads(running))[-1]
    copy = (tmp_path / "ice.db").read_bytes()
    async with harness(tmp_path) as running, streaming(running.admin, end) as reader:
        await running.provision("lab-2")
        ids = [(await reader.audit())["id"] for _ in range(2)]
    (tmp_path / "ice.db").write_bytes(copy)
    record_of(tmp_path / "ice.db").unlink()  # otherwise an older copy is refused
    async with harness(tmp_path) as running:
        await running.provision("lab-3")
        end = (await heads(running))[-1]
        assert ids[-1].startswith(f"{end.seq}-")
        async with streaming(running.admin, ids[-1]) as reader:
            assert (await reader.next())["event"] == "reset"
            await running.act("lab-3", "reprovision")
            assert await reader.seq() == end.seq + 1


READ_OFTEN = pytest.mark.gateway(tuning=Tuning(streams=StreamLimits(authenticate_every=0.02)))


@READ_OFTEN
async def test_stream_that_is_open_while_the_log_is_replaced_is_reset(running, monkeypatch):
    # The node would condemn the engine, which ends the stream first.
    monkeypatch.setattr(running.gateway.engine, "condemn", lambda _: None)
    await running.provision()
    *_, before, end = await heads(running)
    async with streaming(running.admin, before) as reader:
        assert await reader.seq() == end.seq
        await unguarded(running.gateway.engine)
        await running.gateway.engine.write(
            lambda transaction: transaction.run("DELETE FROM ice_events WHERE seq = $1", end.seq)
        )
        assert await reader.next() == {
            "event": "reset",
            "id": str(before),
            "data": {"seq": before.seq},
        }
        await running.add_user("bob")
        assert (await reader.audit())["data"]["detail"]["user"] == "bob"


async def test_stream_without_a_number_begins_now(running):
    await running.provision()
    async with streaming(running.admin) as reader:
        await running.act("lab-1", "reprovision")
        assert (await reader.audit())["data"]["action"] == "reprovision"


async def test_stream_tells_presence_without_a_number(running):
    ice = await running.provision()
    async with streaming(running.admin) as reader:
        connection = await ice.connect()
        came = await reader.presence()
        assert came["ice_name"] == "lab-1"
        assert came["connection"]["session"] == connection.welcome["session"]
        connection.hello(version="1.2", platform="linux", hostname="desk")
        greeted = await reader.presence()
        shown = (await running.admin.get("/ices/lab-1")).json["connection"]
        assert greeted == {"ice_name": "lab-1", "connection": shown}
        assert shown["version"] == "1.2"
        await connection.close()
        assert await reader.presence() == {"ice_name": "lab-1", "connection": None}


async def test_stream_tells_refused_attempts_without_a_number(running):
    ice = await running.provision()
    await running.act("lab-1", "reprovision")
    async with streaming(running.admin) as reader:
        for count in (1, 2):
            await ice.refused()
            told = await reader.next()
            [shown] = (await running.admin.get("/ices/lab-1/connections")).json["items"]
            assert shown.pop("event") == "refused"
            assert told == {"event": "refused", "data": {"ice_name": "lab-1", **shown}}
            assert (shown["code"], shown["count"]) == ("token-replaced", count)


async def lose_user(running, token_id):
    await running.gateway.services.accounts.disable(ADMIN, "eve")


async def lose_token(running, token_id):
    await running.gateway.services.accounts.revoke_token(ADMIN, token_id)


async def lose_role(running, token_id):
    await running.gateway.services.accounts.set_role(ADMIN, "eve", Role.MEMBER)


@pytest.mark.parametrize("lose", [lose_user, lose_token, lose_role])
async def test_stream_ends_for_who_may_no_longer_read(running, lose):
    ice = await running.provision()
    eve = await running.api("eve", Role.AUDITOR)
    [token] = [
        token for token in await running.gateway.services.accounts.tokens() if token.user == "eve"
    ]
    async with streaming(eve) as reader:
        await running.act("lab-1", "disconnect")
        assert (await reader.audit())["data"]["action"] == "disconnect"
        await lose(running, token.id)
        await ice.connect()
        assert await reader.ends() == [], "nothing may be told of what came after"


async def test_stream_of_others_goes_on(running):
    await running.provision()
    await running.add_user("eve", Role.AUDITOR)
    async with streaming(running.admin) as reader:
        await running.gateway.services.accounts.disable(ADMIN, "eve")
        assert (await reader.audit())["data"]["action"] == "disable-user"
        await running.act("lab-1", "reprovision")
        assert (await reader.audit())["data"]["action"] == "reprovision"


@pytest.mark.parametrize(
    "last",
    [
        "x",
        "-1",
        "1.5",
        "\xb2",
        "9" * 21,
        "9" * 5000,
        "1-",
        "1-0123456",
        "1-0123456G",
        "1-012345678",
    ],
)
@changes_nothing
async def test_bad_last_event_id_is_refused(shared, last):
    answer = await shared.admin.get("/events/stream", headers={"Last-Event-ID": last})
    assert expect_refused(answer, 422, "invalid")["field"] == "Last-Event-ID"


async def test_stream_ends_when_the_gateway_stops(tmp_path):
    async with aiohttp.ClientSession() as session:
        async with harness(tmp_path) as running:
            api = running.admin
            api.session = session
            request = streaming(api)
            reader = await request.__aenter__()
        assert await reader.ends() == []
        await request.__aexit__(None, None, None)


@READ_OFTEN
async def test_reader_who_has_gone_is_forgotten(running):
    streams = running.gateway.admin.streams
    async with aiohttp.ClientSession() as session:
        running.admin.session = session
        async with streaming(running.admin):
            assert streams.subscribers == 1
    await until(lambda: streams.subscribers == 0)


async def test_reader_who_goes_before_the_stream_begins_is_no_fault(running, monkeypatch, said):
    accounts = running.gateway.services.accounts
    authenticate = accounts.authenticate
    before = asyncio.all_tasks()
    address = running.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(*address)

    async def goes(token):
        caller = await authenticate(token)
        mine = writer.get_extra_info("sockname")
        for connection in running.gateway.runner.server.connections:
            if connection.transport.get_extra_info("peername") == mine:
                connection.transport.abort()
        return caller

    monkeypatch.setattr(accounts, "authenticate", goes)
    bearer = f"Authorization: Bearer {running.admin.token}"
    writer.write(f"GET {STREAM} HTTP/1.1\r\nHost: x\r\n{bearer}\r\n\r\n".encode())
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    await until(lambda: asyncio.all_tasks() <= before)
    assert said == []
    writer.close()


@pytest.mark.parametrize(
    ("action", "code"), [("deregister", 4101), ("reregister", 4102), ("disconnect", 4201)]
)
async def test_change_by_another_process_counts_within_a_second(running, action, code):
    connection = await (await running.provision()).connect()
    await running.eventually("/ices/lab-1", lambda answer: answer.json["connection"])
    loop = asyncio.get_running_loop()
    async with streaming(running.admin) as reader, open_context(running.gateway.settings) as opened:
        began = loop.time()
        ice = (await IceListing(opened.engine).find("lab-1")).ice
        await getattr(opened.services.provisioning, action)(opened.actor, ice)
        await connection.expect_dropped(code)
        took = loop.time() - began
        assert took < 1, f"the {action} dropped the session after {took:.2f} s"
        told = await reader.audit()
        assert told["data"]["action"] == action
        assert await reader.presence() == {"ice_name": "lab-1", "connection": None}


@pytest.mark.gateway(tuning=Tuning(streams=StreamLimits(max_readers=1)))
async def test_one_user_cannot_take_all_streams(running):
    other = await running.api("other", Role.AUDITOR)
    url = f"{running.url}{API}/events/stream"
    headers = {"Authorization": f"Bearer {running.admin.token}"}
    async with running.session.get(url, headers=headers) as first:
        assert first.status == 200
        expect_refused(await running.admin.get("/events/stream"), 429, "too-many-streams")
        headers = {"Authorization": f"Bearer {other.token}"}
        async with running.session.get(url, headers=headers) as another:
            assert another.status == 200, "another user was expected to have a stream"


def test_polls_are_spread_so_that_a_second_has_no_more_than_its_share():
    streams = EventStreams(StreamLimits(poll_every=5.0, polls_per_second=2.0))
    assert [streams.next_poll(100.0) for _ in range(4)] == [5.0, 5.5, 6.0, 6.5]
    assert streams.next_poll(106.0) == 5.0, "those that are past are forgotten"
    assert streams.next_poll(106.0) == 5.5
    pauses = [streams.next_poll(106.0) for _ in range(10_000)]
    assert max(pauses) == 120.0, "a member who asks all the time does not keep the others waiting"
