"""`/ices`: provisioned, listed, acted on by one admin or two, and what is told of their connections."""

from __future__ import annotations

import asyncio
import itertools
import re
import shutil
from datetime import datetime, timedelta

import pytest
import pytest_asyncio

from gateway.core.ice import Status
from gateway.core.times import to_text, utc_now
from gateway.store.engine import StoreUnavailable, as_json, rows_of
from gateway.store.sqlite.snapshot import copy_database
from tests.support.harness import ADMIN, expect_refused, harness, hold_to_description, settings_for
from tests.support.ice import Key

EXISTS = "ICE Provision Failed! ICE Name or User already exists"
FINAL = "ICE Names cannot be changed or deleted"
FIELDS = [
    "ice_name",
    "ice_type",
    "provisionedto",
    "status",
    "generation",
    "provisionedon",
    "registeredon",
    "deregisteredon",
    "expireson",
    "lastseen",
    "inactive",
    "labels",
    "note",
    "paused",
    "attention",
    "last",
    "connection",
]
MOVING = ("lastseen", "last", "connection")
"""What changes by itself."""
STATUSES = ["provisioned", "registered", "deregistered"]
ACTIONS = ["reprovision", "reregister", "deregister", "disconnect"]
# Contract section 2: (action, status before) -> status after, generation after it, close code.
ALLOWED = {
    ("reprovision", "provisioned"): ("provisioned", 2, None),
    ("reregister", "registered"): ("provisioned", 2, 4102),
    ("reregister", "deregistered"): ("provisioned", 3, None),
    ("deregister", "registered"): ("deregistered", 2, 4101),
    ("disconnect", "provisioned"): ("provisioned", 1, None),
    ("disconnect", "registered"): ("registered", 1, 4201),
    ("disconnect", "deregistered"): ("deregistered", 2, None),
}
MAY = {
    "provisioned": ["reprovisioned"],
    "registered": ["reregistered", "deregistered"],
    "deregistered": ["reregistered"],
}
BECAME = {
    "reprovision": "reprovisioned",
    "reregister": "reregistered",
    "deregister": "deregistered",
}


@pytest.fixture(autouse=True)
def described(monkeypatch):
    hold_to_description(monkeypatch)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory):
    """A gateway for tests that change nothing: four ICEs, of which b-2 is connected."""
    async with harness(tmp_path_factory.mktemp("shared")) as started:
        await started.add_user("bob")
        await started.add_user("gone")
        await started.gateway.services.accounts.disable(ADMIN, "gone")
        for name, ice_type, user in (
            ("d_4", "ci-cd", None),
            ("c.3", "normal", "bob"),
            ("Ann", "normal", "alice"),
        ):
            body = {"ice_name": name, "ice_type": ice_type, "provisionedto": user}
            assert (await started.admin.post("/ices", body)).status == 201
        await in_status(started, "registered", "b-2")
        await started.eventually("/ices/b-2", lambda answer: answer.json["connection"])
        yield started


changes_nothing = pytest.mark.asyncio(loop_scope="module")


async def in_status(running, status, name="lab-1"):
    """An ICE of this status; a registered one is connected."""
    ice = await running.provision(name)
    if status != "provisioned":
        await ice.connect()
    if status == "deregistered":
        await running.act(name, "deregister")
    return ice


async def entry(running, name="lab-1"):
    """The ICE without what changes by itself."""
    ice = (await running.admin.get(f"/ices/{name}")).json
    return {field: ice[field] for field in FIELDS if field not in MOVING}


async def last_seq(running):
    return await running.gateway.admin.events.last()


async def fill(running, names, status=Status.REGISTERED):
    """Write entries of alice straight into the table; their tokens are nobody's."""
    now = to_text(utc_now())
    key = "thumbprint" if status is Status.REGISTERED else None
    rows = [(name, f"{name}'s hash", status.value, key, now) for name in names]
    columns = "ice_name, ice_token, status, key_thumbprint, provisionedon"
    await running.gateway.engine.write(
        lambda transaction: transaction.run(
            f"INSERT INTO ice_tokens ({columns}, ice_type, provisionedto, generation)"  # noqa: S608 - our own
            f" SELECT {columns}, 'normal', 'alice', 1 FROM {rows_of(1, *columns.split(', '))}",
            as_json(rows),
        )
    )


# --- provision ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "user"),
    [
        ({"ice_name": "Lab-1", "ice_type": "normal", "provisionedto": "alice"}, "alice"),
        ({"ice_name": "Lab-1", "ice_type": "normal", "provisionedto": "ALICE"}, "alice"),
        ({"ice_name": "Lab-1", "ice_type": "ci-cd", "provisionedto": None}, None),
        ({"ice_name": "Lab-1", "ice_type": "ci-cd"}, None),
    ],
)
async def test_provision_answers_the_ice_and_its_token(running, body, user):
    answer = await running.admin.post("/ices", body)
    assert answer.status == 201, f"expected 201, got {answer}"
    assert answer.headers["ETag"] == '"1"'
    assert answer.headers["Location"] == "/admin/api/v1/ices/Lab-1"
    assert list(answer.json) == ["ice", "token"]
    ice = answer.json["ice"]
    assert list(ice) == FIELDS
    assert ice == {
        **dict.fromkeys(FIELDS),
        "inactive": False,
        "labels": {},
        "note": "",
        "paused": None,
        "attention": [],
        "ice_name": "Lab-1",
        "ice_type": body["ice_type"],
        "provisionedto": user,
        "status": "provisioned",
        "generation": 1,
        "provisionedon": ice["provisionedon"],
        "expireson": ice["expireson"],
    }
    provisioned, expires = (
        datetime.fromisoformat(ice[field]) for field in ("provisionedon", "expireson")
    )
    assert ice["provisionedon"].endswith("Z"), "times are in UTC, with a Z"
    assert utc_now() - provisioned < timedelta(seconds=10)
    assert expires - provisioned == timedelta(days=7), "the default registration_ttl is 7 days"
    shown = await running.admin.get(answer.headers["Location"].removeprefix("/admin/api/v1"))
    assert (shown.status, shown.json) == (200, ice), "Location must lead to the ICE"


async def test_token_is_for_the_first_key_alone(running):
    ice = await running.provision()
    await ice.connect()
    assert (await running.ice(ice.token, Key()).refused()).code == "key-mismatch"
    assert await running.status("lab-1") == "registered"


@pytest.mark.parametrize("name", ["a", "0", "A.b_c-9", "z" * 64, "openapi.json", "bulk"])
async def test_every_proper_name_can_be_used(running, name):
    await running.provision(name)
    shown = await running.admin.get(f"/ices/{name}")
    assert (shown.status, shown.json["ice_name"]) == (200, name)


@pytest.mark.parametrize(
    "body",
    [
        {"ice_name": "lab-1", "ice_type": "normal", "provisionedto": "alice"},
        {"ice_name": "LAB-1", "ice_type": "normal", "provisionedto": "alice"},
        {"ice_name": "lab-1", "ice_type": "normal", "provisionedto": "bob"},
        {"ice_name": "Lab-1", "ice_type": "ci-cd"},
    ],
)
async def test_existing_name_is_refused_with_the_sentence(running, body):
    await running.add_user("bob")
    await running.provision("lab-1")
    before = await entry(running)
    refused = expect_refused(await running.admin.post("/ices", body), 409, "ice-exists")
    assert refused["detail"] == EXISTS
    assert await entry(running) == before, "a refused provisioning must change nothing"


def new(**given):
    body = {"ice_name": "lab-1", "ice_type": "normal", "provisionedto": "alice", **given}
    return {name: value for name, value in body.items() if value is not ...}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        *((new(ice_name=name), "ice_name") for name in ("", "-a", ".a", "_a", "a" * 65, "a b")),
        *((new(ice_name=name), "ice_name") for name in ("ä", "a/b", "a\n", "a\0", 1, None, [])),
        (new(ice_name=...), "ice_name"),
        (new(ice_type="Normal"), "ice_type"),
        (new(ice_type=None), "ice_type"),
        (new(ice_type=...), "ice_type"),
        (new(ice_type="x - at `$.y"), "ice_type"),
        (new(ice_type="ci-cd"), "provisionedto"),
        (new(ice_type="ci-cd", provisionedto=""), "provisionedto"),
        (new(provisionedto=None), "provisionedto"),
        (new(provisionedto=...), "provisionedto"),
        (new(provisionedto=""), "provisionedto"),
        (new(provisionedto="nobody"), "provisionedto"),
        (new(provisionedto="gone"), "provisionedto"),
        (new(provisionedto=["alice"]), "provisionedto"),
        (new(owner="alice"), "owner"),
        ([new()], "body"),
        ("lab-1", "body"),
    ],
)
@changes_nothing
async def test_wrong_field_is_named(shared, body, field):
    seq = await last_seq(shared)
    refused = expect_refused(await shared.admin.post("/ices", body), 422, "invalid")
    assert refused["field"] == field, f"{field} was wrong, but {refused} names another"
    assert field in refused["detail"]
    assert await last_seq(shared) == seq, "a refused provisioning must change nothing"


async def test_of_many_who_provision_one_name_one_wins(running):
    answers = await asyncio.gather(*(running.admin.post("/ices", new()) for _ in range(8)))
    assert sorted(answer.status for answer in answers) == [201] + [409] * 7
    [won] = [answer for answer in answers if answer.status == 201]
    await running.ice(won.json["token"]).connect()


# --- read --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", "Ann b-2 c.3 d_4"),
        ("status=provisioned", "Ann c.3 d_4"),
        ("status=registered", "b-2"),
        ("status=deregistered", ""),
        ("ice_type=ci-cd", "d_4"),
        ("ice_type=normal&status=provisioned", "Ann c.3"),
        ("provisionedto=alice", "Ann b-2"),
        ("provisionedto=BOB", "c.3"),
        ("provisionedto=nobody", ""),
        ("connected=true", "b-2"),
        ("connected=false", "Ann c.3 d_4"),
        ("connected=false&provisionedto=alice", "Ann"),
        ("q=ANN", "Ann"),
        ("q=_", "d_4"),
        ("q=%25", ""),
        ("q=%00", ""),
        ("q=bob", "c.3"),
        ("q=lic", "Ann b-2"),
        ("q=-&connected=true", "b-2"),
        ("status=&connected=&cursor=&limit=", "Ann b-2 c.3 d_4"),
    ],
)
@changes_nothing
async def test_listing_is_filtered_and_ordered_by_name(shared, query, expected):
    answer = await shared.admin.get(f"/ices?{query}")
    names = [ice["ice_name"] for ice in answer.json["items"]]
    assert names == expected.split(), f"{query!r} must list {expected!r}"
    assert answer.json["next"] is None
    assert all(list(ice) == FIELDS for ice in answer.json["items"])


async def test_pages_lead_through_all_names_once(running):
    await fill(running, [f"{'lL'[number % 2]}ab-{number}" for number in range(10, 17)])
    seen, cursor = [], ""
    for expected in (3, 3, 1):
        answer = await running.admin.get(f"/ices?limit=3&status=registered&cursor={cursor}")
        seen += [ice["ice_name"] for ice in answer.json["items"]]
        assert len(answer.json["items"]) == expected
        cursor = answer.json["next"]
        # What comes in ahead of the cursor neither repeats nor hides an entry.
        await fill(running, [f"aaa-{expected}{len(seen)}"])
    assert cursor is None, "`next` must be null at the end"
    assert [name.lower() for name in seen] == [f"lab-{number}" for number in range(10, 17)]
    exact = await running.admin.get("/ices?limit=7&q=lab")
    assert exact.json["next"] is None, "a page that is just full must be the last"


@pytest.mark.parametrize(("query", "number"), [("", 50), ("?limit=1", 1), ("?limit=200", 200)])
async def test_limit_is_50_by_default_and_200_at_the_most(running, query, number):
    await fill(running, [f"lab-{number}" for number in range(201)])
    answer = await running.admin.get(f"/ices{query}")
    assert len(answer.json["items"]) == number
    assert isinstance(answer.json["next"], str)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        *((f"limit={limit}", "limit") for limit in ("0", "201", "-1", "x", "9" * 40)),
        ("status=Registered", "status"),
        ("ice_type=normal,ci-cd", "ice_type"),
        ("connected=maybe", "connected"),
        ("cursor=!", "cursor"),
        ("cursor=%00", "cursor"),
        ("cursor=_-8", "cursor"),
        (f"q={'x' * 257}", "q"),
        ("user=alice", "user"),
        ("status=registered&status=provisioned", "status"),
    ],
)
@changes_nothing
async def test_wrong_parameter_is_named(shared, query, field):
    refused = expect_refused(await shared.admin.get(f"/ices?{query}"), 422, "invalid")
    assert refused["field"] == field


@pytest.mark.parametrize("asked", ["Ann", "ANN", "ann", "%41nn"])
@changes_nothing
async def test_show_folds_case(shared, asked):
    answer = await shared.admin.get(f"/ices/{asked}")
    assert (answer.status, answer.json["ice_name"]) == (200, "Ann")
    assert answer.headers["ETag"] == '"1"'
    assert list(answer.json) == FIELDS


@pytest.mark.parametrize("asked", ["Ann-2", "Ann%00", "%FF", "%ED%A0%80", "Ann%2Fx", "x" * 999])
@changes_nothing
async def test_unknown_name_is_not_registered(shared, asked):
    expect_refused(await shared.admin.get(f"/ices/{asked}"), 404, "not-registered")
    connections = await shared.admin.get(f"/ices/{asked}/connections")
    expect_refused(connections, 404, "not-registered")


@pytest.mark.parametrize("name", ["Ann", "no-such-ice"])
@pytest.mark.parametrize("method", ["DELETE", "PUT", "PATCH"])
@changes_nothing
async def test_names_are_final(shared, method, name):
    seq = await last_seq(shared)
    answer = await shared.admin.call(method, f"/ices/{name}", json={"ice_name": "Bea"})
    assert expect_refused(answer, 405, "method-not-allowed")["detail"] == FINAL
    assert answer.headers["Allow"] == "GET, HEAD, PATCH"
    assert await last_seq(shared) == seq


# --- actions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("action", "before"), ALLOWED)
async def test_allowed_action(running, action, before):
    after, generation, code = ALLOWED[action, before]
    ice = await in_status(running, before)
    old = ice.connections[-1] if ice.connections else None
    answer = await running.admin.post(f"/ices/LAB-1/{action}")
    assert answer.status == 200, f"{action} of a {before} ICE must succeed, got {answer}"
    assert answer.headers["ETag"] == f'"{generation}"'
    renews = action in ("reprovision", "reregister")
    assert list(answer.json) == ["ice", *(["token"] if renews else []), "dropped", "unconfirmed"]
    shown = answer.json["ice"]
    assert (shown["status"], shown["generation"]) == (after, generation)
    assert shown["connection"] is None, "what was dropped is not shown as connected"
    assert {k: shown[k] for k in FIELDS if k not in MOVING} == await entry(running)
    assert answer.json["unconfirmed"] == []
    if code is None:
        assert answer.json["dropped"] == []
    else:
        [dropped] = answer.json["dropped"]
        assert dropped["session"] == old.welcome["session"]
        assert dropped["code"] == code
        assert dropped["node"]
        assert 0 <= dropped["elapsed_ms"] < 1000, f"the drop took {dropped['elapsed_ms']} ms"
        await old.expect_dropped(code)
    if renews:
        assert (await ice.refused()).code == "token-replaced"
        assert (await running.ice(answer.json["token"]).connect()).welcome[
            "generation"
        ] == generation
    elif after == "deregistered":
        assert (await ice.refused()).code == "deregistered"


@pytest.mark.parametrize(
    ("action", "before"),
    [pair for pair in itertools.product(ACTIONS, STATUSES) if pair not in ALLOWED],
)
async def test_every_other_action_is_refused_and_changes_nothing(running, action, before):
    ice = await in_status(running, before)
    was, seq = await entry(running), await last_seq(running)
    refused = expect_refused(await running.admin.post(f"/ices/lab-1/{action}"), 409, "wrong-status")
    has, _, may = refused["detail"].partition("; ")
    assert before in has, f"the sentence must say that it is {before}: {refused['detail']}"
    for word in BECAME.values():
        assert (re.search(rf"\b{word}\b", may) is not None) == (word in MAY[before]), (
            f"from {before} it can be {MAY[before]}: {refused['detail']}"
        )
    assert (await entry(running), await last_seq(running)) == (was, seq)
    if before == "registered":
        await ice.connections[-1].round_trip()


@pytest.mark.parametrize("action", ACTIONS)
@changes_nothing
async def test_action_on_no_entry_is_404(shared, action):
    answer = await shared.admin.post(f"/ices/lab-1/{action}", headers={"If-Match": '"1"'})
    expect_refused(answer, 404, "not-registered")


async def test_dates_of_a_whole_life(running):
    ice = await running.provision()
    provisioned = await entry(running)

    token = (await running.act("lab-1", "reprovision"))["token"]
    reprovisioned = await entry(running)
    assert reprovisioned["provisionedon"] > provisioned["provisionedon"]
    assert reprovisioned["expireson"] > provisioned["expireson"]
    assert reprovisioned["registeredon"] is None

    ice = running.ice(token)
    await ice.connect()
    registered = await entry(running)
    assert registered["registeredon"] > reprovisioned["provisionedon"]
    assert registered["provisionedon"] == reprovisioned["provisionedon"]
    assert registered["expireson"] is None, "a registered ICE does not expire"

    deregistered = (await running.act("lab-1", "deregister"))["ice"]
    assert deregistered["deregisteredon"] > registered["registeredon"]
    assert deregistered["registeredon"] == registered["registeredon"]
    assert deregistered["expireson"] is None, "a deregistered ICE does not expire"

    renewed = (await running.act("lab-1", "reregister"))["ice"]
    assert renewed["provisionedon"] > deregistered["deregisteredon"]
    assert (renewed["registeredon"], renewed["deregisteredon"]) == (None, None)
    assert renewed["expireson"] > renewed["provisionedon"]


@pytest.mark.parametrize(
    ("tags", "status"),
    [
        (['"2"'], 200),
        (["*"], 200),
        (['"7", "2"'], 200),
        (['"7"', '"2"'], 200),
        (['"1"'], 412),
        (['"3"'], 412),
        (['"1", "3"'], 412),
        (['W/"2"'], 412),
        (["2"], 412),
        (['"02"'], 412),
        ([""], 412),
        (['"', '""', "garbage", '"x"', "\xb2"], 412),
        ([f'"{"9" * 5000}"'], 412),
    ],
)
async def test_if_match(running, tags, status):
    await running.provision()
    await running.act("lab-1", "reprovision")
    was, seq = await entry(running), await last_seq(running)
    headers = {"Authorization": f"Bearer {running.admin.token}"}
    async with running.session.post(
        f"{running.url}/admin/api/v1/ices/lab-1/reprovision",
        headers=[*headers.items(), *(("If-Match", tag) for tag in tags)],
    ) as answer:
        assert answer.status == status, f"If-Match {tags} on generation 2 gave {answer.status}"
        if status == 200:
            return
        assert (await answer.json(content_type=None))["code"] == "stale"
    assert (await entry(running), await last_seq(running)) == (was, seq)


@pytest.mark.parametrize("action", ["deregister", "reregister", "disconnect"])
async def test_every_action_honours_if_match(running, action):
    ice = await in_status(running, "registered")
    path = f"/ices/lab-1/{action}"
    stale = await running.admin.post(path, headers={"If-Match": '"2"'})
    expect_refused(stale, 412, "stale")
    await ice.connections[-1].round_trip()
    assert (await running.admin.post(path, headers={"If-Match": '"1"'})).status == 200


@pytest.fixture
def both_read(running, monkeypatch):
    """Has two actions read the entry before either of them writes."""
    ices = running.gateway.admin.ices
    find, barrier, readers = ices.find, asyncio.Barrier(2), [1, 2]

    async def read(name):
        listed = await find(name)
        if readers:
            readers.pop()
            await barrier.wait()
        return listed

    return lambda: monkeypatch.setattr(ices, "find", read)


@pytest.mark.parametrize(
    ("action", "tag", "told"),
    [
        ("reprovision", {}, (412, "stale")),
        ("reprovision", {"If-Match": '"1"'}, (412, "stale")),
        ("reregister", {}, (409, "wrong-status")),
        ("reregister", {"If-Match": '"1"'}, (412, "stale")),
        ("deregister", {}, (409, "wrong-status")),
        ("deregister", {"If-Match": '"1"'}, (412, "stale")),
    ],
)
async def test_of_two_admins_in_the_same_instant_one_wins(running, both_read, action, tag, told):
    await in_status(running, "provisioned" if action == "reprovision" else "registered")
    seq = await last_seq(running)
    both_read()
    path = f"/ices/lab-1/{action}"
    answers = await asyncio.gather(*(running.admin.post(path, headers=tag) for _ in range(2)))
    answers.sort(key=lambda answer: answer.status)
    assert answers[0].status == 200, f"one of the two must win: {answers}"
    expect_refused(answers[1], *told)
    assert (await entry(running))["generation"] == 2, "only one of them may count"
    assert await last_seq(running) == seq + 1
    if "token" in answers[0].json:
        await running.ice(answers[0].json["token"]).connect()


async def test_deregister_and_reregister_in_the_same_instant(running, both_read):
    await in_status(running, "registered")
    both_read()
    answers = await asyncio.gather(
        *(running.admin.post(f"/ices/lab-1/{action}") for action in ("deregister", "reregister"))
    )
    # Whoever loses is judged anew: what is provisioned cannot be deregistered, and what another
    # has deregistered meanwhile is not what was to be reregistered.
    assert sorted(answer.status for answer in answers) in ([200, 409], [200, 412])
    assert (await entry(running))["generation"] == 2


async def test_answer_shows_the_token_even_if_the_store_is_lost_after_the_change(
    running, monkeypatch
):
    await running.provision()
    ices = running.gateway.admin.ices
    find, found = ices.find, []

    async def find_once(name):
        if found:
            raise StoreUnavailable("gone")
        found.append(name)
        return await find(name)

    with monkeypatch.context() as patch:
        patch.setattr(ices, "find", find_once)
        answer = await running.admin.post("/ices/lab-1/reprovision")
    assert answer.status == 200, f"the action was done, so its token must be shown: {answer}"
    await running.ice(answer.json["token"]).connect()


async def test_disconnect_closes_and_the_ice_comes_back(running):
    ice = await in_status(running, "registered")
    done = await running.act("lab-1", "disconnect")
    assert [drop["session"] for drop in done["dropped"]] == [ice.connections[-1].welcome["session"]]
    await ice.connections[-1].expect_dropped(4201)
    again = await ice.connect()
    assert again.welcome["generation"] == 1, "a disconnect leaves the ICE as it is"
    await again.round_trip()
    # Sessions admitted before it are closed, the one after it only by the next.
    [dropped] = (await running.act("lab-1", "disconnect"))["dropped"]
    assert dropped["session"] == again.welcome["session"]
    await again.expect_dropped(4201)
    assert (await running.act("lab-1", "disconnect"))["dropped"] == []


# --- bulk --------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["deregister", "disconnect"])
async def test_bulk_answers_what_each_action_alone_would_have(running, action):
    names = ["reg", "reg-2", "prov", "none", "der", "REG", "reg", "", "no/name"]
    connections = []
    for name, status in (
        ("reg", "registered"),
        ("reg-2", "registered"),
        ("prov", "provisioned"),
        ("der", "deregistered"),
    ):
        connections += (await in_status(running, status, name)).connections[-1:]
    answer = await running.admin.post("/ices/bulk", {"action": action, "ice_names": names})
    assert answer.status == 200, f"got {answer}"
    assert list(answer.json) == ["items", "dropped", "unconfirmed"]
    ok, wrong, none = {"status": 200}, {"status": 409, "code": "wrong-status"}, None
    expected = (
        [ok, ok, wrong, none, wrong, wrong, wrong, none, none]
        if action == "deregister"
        else [ok, ok, ok, none, ok, ok, ok, none, none]
    )
    unknown = {"status": 404, "code": "not-registered"}
    assert answer.json["items"] == [
        {"ice_name": name, **(verdict or unknown)}
        for name, verdict in zip(names, expected, strict=True)
    ]
    code = 4101 if action == "deregister" else 4201
    assert [(drop["session"], drop["code"]) for drop in answer.json["dropped"]] == [
        (connection.welcome["session"], code) for connection in connections[:2]
    ]
    for connection in connections[:2]:
        await connection.expect_dropped(code)
    status = "deregistered" if action == "deregister" else "registered"
    assert [await running.status(name) for name in ("reg", "reg-2")] == [status] * 2
    assert await running.status("prov") == "provisioned"


async def test_bulk_of_10000_is_one_transaction(running, monkeypatch):
    names = [f"lab-{number:05}".ljust(64, "x") for number in range(10_000)]
    await fill(running, names)
    seq = await last_seq(running)
    written = []
    write = running.gateway.engine.write

    async def counted(unit):
        if "BulkActions" in repr(unit):  # and no lease that is renewed meanwhile
            written.append(unit)
        return await write(unit)

    monkeypatch.setattr(running.gateway.engine, "write", counted)
    body = {"action": "deregister", "ice_names": names}
    answer = await running.admin.post("/ices/bulk", body)
    assert answer.status == 200
    assert {item["status"] for item in answer.json["items"]} == {200}
    assert len(answer.json["items"]) == 10_000
    assert answer.json["unconfirmed"] in ([], ["node-a"])  # a busy machine may take more than 2 s
    assert len(written) == 1, "all must be done in one transaction"
    assert await last_seq(running) == seq + 10_000, "each change has its event"
    assert await running.status(names[-1]) == "deregistered"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"action": "deregister", "ice_names": ["b-2"] * 10_001}, "ice_names"),
        ({"action": "register", "ice_names": ["b-2"]}, "action"),
        ({"action": "reregister", "ice_names": ["b-2"] * 1_001}, "ice_names"),
        ({"action": "reregister", "ice_names": ["b-2", "B-2"]}, "ice_names"),
        ({"ice_names": ["b-2"]}, "action"),
        ({"action": "deregister"}, "ice_names"),
        ({"action": "deregister", "ice_names": "b-2"}, "ice_names"),
        ({"action": "deregister", "ice_names": ["b-2", None]}, "ice_names"),
        ({"action": "deregister", "ice_names": ["b-2"], "if_match": 1}, "if_match"),
    ],
)
@changes_nothing
async def test_wrong_bulk_is_refused_whole(shared, body, field):
    seq = await last_seq(shared)
    refused = expect_refused(await shared.admin.post("/ices/bulk", body), 422, "invalid")
    assert refused["field"].partition("[")[0] == field
    assert await last_seq(shared) == seq, "nothing of a refused bulk may be done"


@pytest.mark.parametrize("action", ["deregister", "disconnect"])
@changes_nothing
async def test_bulk_of_none_does_nothing(shared, action):
    seq = await last_seq(shared)
    answer = await shared.admin.post("/ices/bulk", {"action": action, "ice_names": []})
    assert answer.json == {"items": [], "dropped": [], "unconfirmed": []}
    assert await last_seq(shared) == seq


# --- connections -------------------------------------------------------------------------------


async def test_connection_and_hello_are_shown(running):
    ice = await running.provision()
    assert (await running.admin.get("/ices/lab-1")).json["lastseen"] is None
    connection = await ice.connect()
    shown = await running.eventually("/ices/lab-1", lambda answer: answer.json["connection"])
    facts = shown.json["connection"]
    assert list(facts) == [
        "session",
        "node",
        "since",
        "address",
        "version",
        "platform",
        "hostname",
        "accepts",
    ]
    assert facts == {
        **dict.fromkeys(facts),
        "session": connection.welcome["session"],
        "node": facts["node"],
        "since": facts["since"],
        "address": "127.0.0.1",
    }
    assert facts["since"] >= shown.json["registeredon"]
    assert shown.json["lastseen"] >= facts["since"]

    connection.hello(version="1.2", platform="linux\n", hostname="h" * 300)
    shown = await running.eventually(
        "/ices/lab-1", lambda answer: answer.json["connection"]["version"]
    )
    greeted = {"version": "1.2", "platform": "linux?", "hostname": "h" * 255}
    assert shown.json["connection"] == {**facts, **greeted}
    listed = (await running.admin.get("/ices?connected=true")).json["items"]
    assert [item["connection"] for item in listed] == [{**facts, **greeted}]

    await connection.close()
    gone = await running.eventually("/ices/lab-1", lambda answer: answer.json["connection"] is None)
    assert gone.json["lastseen"] >= shown.json["lastseen"]


@pytest.mark.sqlite
async def test_a_crash_takes_back_nothing_of_what_was_shown_as_last_seen(running, tmp_path):
    """The files as a crash would leave them, and a gateway that starts on them."""
    ice = await running.provision()
    await ice.connect()
    began = await running.eventually("/ices/lab-1", lambda answer: answer.json["connection"])
    await running.gateway.node.presence.flush(confirm=True)
    shown = (await running.admin.get("/ices/lab-1")).json
    assert shown["lastseen"] > began.json["lastseen"]
    settings = running.gateway.settings
    place = tmp_path / "after the crash"
    place.mkdir()
    copy_database(settings.database_path, place / "ice.db")
    shutil.copy(settings.key_file, settings_for(place).key_file)
    async with harness(place) as again:
        found = (await again.admin.get("/ices/lab-1")).json
    assert (found["lastseen"], found["connection"]) == (shown["lastseen"], None)


@pytest.mark.parametrize("action", ["deregister", "reregister"])
async def test_what_was_dropped_is_never_shown_as_connected(running, monkeypatch, action):
    ice = await running.provision()
    await ice.connect()
    await running.eventually("/ices/lab-1", lambda answer: answer.json["connection"])

    async def later():
        """Presence is written a moment after it happened; here: not at all."""

    monkeypatch.setattr(running.gateway.node.presence, "flush", later)
    assert (await running.act("lab-1", action))["ice"]["connection"] is None
    assert (await running.admin.get("/ices/lab-1")).json["connection"] is None
    assert (await running.admin.get("/ices?connected=true")).json["items"] == []


async def test_connections_tell_what_became_of_them(running):
    ice = await running.provision()
    first = await ice.connect()
    thief = running.ice(ice.token, Key())
    for _ in range(3):
        await thief.refused()
    await running.act("lab-1", "disconnect")
    await first.expect_dropped(4201)
    await ice.connect()
    await running.act("lab-1", "deregister")
    await ice.refused()
    answer = await running.eventually(
        "/ices/LAB-1/connections", lambda answer: len(answer.json["items"]) == 6
    )
    items = answer.json["items"]
    assert [(item["event"], item["code"], item["count"]) for item in items] == [
        ("refused", "deregistered", 1),
        ("closed", 4101, 1),
        ("admitted", None, 1),
        ("closed", 4201, 1),
        ("refused", "key-mismatch", 3),
        ("admitted", None, 1),
    ], "newest first, refusals counted together"
    assert {item["address"] for item in items} == {"127.0.0.1"}
    assert [item["at"] for item in items] == sorted((item["at"] for item in items), reverse=True)
    assert items[4]["first"] < items[4]["at"]
    events = (await running.admin.get("/events?ice_name=lab-1")).json["items"]
    assert [event["action"] for event in events] == [
        "provision",
        "register",
        "disconnect",
        "deregister",
    ], "connections are kept outside the audit log"


async def test_connections_are_bounded(running):
    ice = await running.provision()
    other = await running.provision("lab-2")
    await other.connect()
    for _ in range(30):
        last = await ice.connect()

    def settled(answer):
        items = answer.json["items"]
        return len(items) == 50 and sum(item["event"] == "admitted" for item in items) >= 25

    await running.eventually("/ices/lab-1/connections", settled)
    await last.round_trip()
    [kept] = (await running.admin.get("/ices/lab-2/connections")).json["items"]
    assert kept["event"] == "admitted", "the connections of one ICE push out no other's"
