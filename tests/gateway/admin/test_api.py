"""The admin API as HTTP: who may call, which refusal comes first, how it refuses, how it is described."""

from __future__ import annotations

import asyncio
import io
import json
import sqlite3
from datetime import timedelta
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from gateway.admin import api_app
from gateway.app import Tuning
from gateway.core.roles import Role
from gateway.core.times import utc_now
from gateway.store.engine import OutcomeUnknown
from gateway.web.connection import Timeouts
from gateway.web.responses import MAX_BODY
from tests.support.harness import (
    ADMIN,
    API,
    Api,
    expect_refused,
    harness,
    hold_to_description,
)
from tests.support.ice import PATIENCE

NEW = {"ice_name": "new", "ice_type": "normal", "provisionedto": "alice"}
STALE = {"If-Match": '"9"'}
ACTIONS = ["reprovision", "reregister", "deregister", "disconnect"]

changes_nothing = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(autouse=True)
def described(monkeypatch):
    hold_to_description(monkeypatch)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory):
    """A gateway for tests that change nothing, with `mine` of alice and `theirs` of bob."""
    async with harness(tmp_path_factory.mktemp("shared")) as started:
        await started.add_user("bob")
        await started.provision("mine")
        body = {"ice_name": "theirs", "ice_type": "normal", "provisionedto": "bob"}
        assert (await started.admin.post("/ices", body)).status == 201
        await started.provision("machine", "ci-cd")
        started.callers = {
            "nobody": Api(started.session, started.url, None),
            "member": await started.api("alice"),
            "auditor": await started.api("eve", Role.AUDITOR),
            "admin": started.admin,
        }
        yield started


async def last_seq(running):
    return await running.gateway.admin.events.last()


async def raw(running, method, path, headers=(), data=None):
    """A request as it stands: status, headers and text of the answer."""
    async with running.session.request(
        method, f"{running.url}{path}", headers=headers, data=data
    ) as answer:
        return answer.status, answer.headers, await answer.text()


# --- which refusal comes first -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("caller", "call", "sent", "expected"),
    [
        # 401 before 422, 404, 403, 412, 409 and whatever else
        ("nobody", "POST /ices", {"json": {}}, 401),
        ("nobody", "POST /ices", {"data": b"{"}, 401),
        ("nobody", "GET /ices?limit=0", {}, 401),
        ("nobody", "GET /events/stream", {"headers": {"Last-Event-ID": "x"}}, 401),
        ("nobody", "GET /ices/none", {}, 401),
        ("nobody", "GET /no-such-path", {}, 401),
        ("nobody", "DELETE /ices/mine", {}, 401),
        ("nobody", "GET /ices/openapi.json", {}, 401),
        ("nobody", "GET /ices/x%2Fapi%2Fv1%2Fopenapi.json", {}, 401),
        ("nobody", "POST /openapi.json", {}, 401),
        ("nobody", "POST /ices/mine/reprovision", {"headers": STALE}, 401),
        ("nobody", "POST /ices/mine/deregister", {}, 401),
        # 422 before 403 and 409
        ("member", "POST /ices", {"json": {**NEW, "ice_name": "-"}}, 422),
        ("member", "POST /ices", {"json": {}}, 422),
        ("auditor", "POST /ices", {"json": {**NEW, "provisionedto": None}}, 422),
        ("auditor", "POST /ices/bulk", {"json": {"action": "deregister"}}, 422),
        ("member", "GET /events?limit=0", {}, 422),
        ("member", "GET /events/stream", {"headers": {"Last-Event-ID": "x"}}, 422),
        ("admin", "POST /ices", {"json": {**NEW, "ice_name": "mine", "ice_type": "ci-cd"}}, 422),
        (
            "admin",
            "POST /ices",
            {"json": {**NEW, "ice_name": "mine", "provisionedto": "none"}},
            422,
        ),
        # 404 before 403 and 412
        ("auditor", "POST /ices/none/reprovision", {}, 404),
        ("member", "POST /ices/none/reprovision", {}, 404),
        ("member", "POST /ices/theirs/reprovision", {"headers": STALE}, 404),
        ("member", "POST /ices/theirs/deregister", {}, 404),
        ("admin", "POST /ices/none/reprovision", {"headers": STALE}, 404),
        # 403 before 412 and 409
        ("auditor", "POST /ices/mine/reprovision", {"headers": STALE}, 403),
        ("member", "POST /ices/mine/reprovision", {"headers": STALE}, 403),
        ("auditor", "POST /ices/mine/deregister", {}, 403),
        ("member", "POST /ices/mine/deregister", {}, 403),
        ("auditor", "POST /ices", {"json": {**NEW, "ice_name": "mine"}}, 403),
        # 412 before 409
        ("admin", "POST /ices/mine/deregister", {"headers": STALE}, 412),
        ("admin", "POST /ices/mine/deregister", {"headers": {"If-Match": '"1"'}}, 409),
    ],
)
@changes_nothing
async def test_precedence(shared, caller, call, sent, expected):
    seq = await last_seq(shared)
    answer = await shared.callers[caller].call(*call.split(), **sent)
    assert answer.status == expected, f"{caller}: {call} must give {expected}, got {answer}"
    assert await last_seq(shared) == seq, "a refusal must change nothing"


@pytest.mark.parametrize(
    "call", [*(f"/ices/mine/{one}" for one in ACTIONS), "/operations/x/cancel"]
)
@pytest.mark.parametrize(
    ("data", "kind", "status", "field"),
    [
        (b'{"provisionedto": 1}', "application/json", 422, "provisionedto"),
        (b"[]", "application/json", 422, "body"),
        (b"null", "application/json", 422, "body"),
        (b"{", "application/json", 400, None),
        (b" ", "application/json", 400, None),
        (b"{}", "text/plain", 415, None),
    ],
)
@changes_nothing
async def test_action_takes_no_members(shared, call, data, kind, *, status, field):
    for caller in ("admin", "auditor", "member"):  # 422 comes before 404 and 403
        for path in (call, call.replace("mine", "none")):
            answer = await shared.callers[caller].call(
                "POST", path, data=data, headers={"Content-Type": kind}
            )
            assert (answer.status, answer.json.get("field")) == (status, field), (
                f"{caller}: {answer}"
            )


@pytest.mark.parametrize(
    ("data", "kind"),
    [(b"{}", "application/json"), (b"", "text/plain"), (b"", ""), (None, "application/json")],
)
async def test_action_takes_an_empty_body(running, data, kind):
    await running.provision("lab-1")
    answer = await running.admin.call(
        "POST", "/ices/lab-1/reprovision", data=data, headers={"Content-Type": kind}
    )
    assert answer.status == 200


async def test_action_takes_an_empty_body_in_chunks(running):
    async def nothing():
        yield b""

    await running.provision("lab-1")
    assert (
        await running.admin.call("POST", "/ices/lab-1/reprovision", data=nothing())
    ).status == 200


# --- roles -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "body", "member", "auditor", "admin"),
    [
        ("GET /ices", None, 200, 200, 200),
        ("GET /ices/mine", None, 200, 200, 200),
        ("GET /ices/theirs", None, 404, 200, 200),
        ("GET /ices/machine", None, 404, 200, 200),
        ("GET /ices/mine/connections", None, 200, 200, 200),
        ("GET /ices/theirs/connections", None, 404, 200, 200),
        ("GET /events", None, 403, 200, 200),
        ("GET /openapi.json", None, 200, 200, 200),
        ("POST /ices", NEW, 403, 403, None),
        ("POST /ices/bulk", {"action": "deregister", "ice_names": ["mine"]}, 403, 403, None),
        ("POST /ices/bulk", {"action": "disconnect", "ice_names": []}, 403, 403, 200),
        ("GET /events/stream", None, 403, None, None),
        ("DELETE /ices/mine", None, 405, 405, 405),
        *((f"POST /ices/mine/{action}", None, 403, 403, None) for action in ACTIONS),
        *((f"POST /ices/theirs/{action}", None, 404, 403, None) for action in ACTIONS),
        *((f"POST /ices/machine/{action}", None, 404, 403, None) for action in ACTIONS),
        *((f"POST /ices/none/{action}", None, 404, 404, 404) for action in ACTIONS),
    ],
)
@changes_nothing
async def test_what_each_role_may_do(shared, call, body, *, member, auditor, admin):
    method, path = call.split()
    expected = {"member": member, "auditor": auditor, "admin": admin}
    for caller, status in expected.items():
        if status is None:  # it would be done: other tests see to that
            continue
        if path == "/openapi.json":
            answered, *_ = await raw(shared, method, API + path)
        else:
            answered = (await shared.callers[caller].call(method, path, json=body)).status
        assert answered == status, f"{caller}: {call} must give {status}, got {answered}"


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", ["mine"]),
        ("provisionedto=ALICE", ["mine"]),
        ("provisionedto=bob", []),
        ("ice_type=ci-cd", []),
        ("q=theirs", []),
        ("q=bob", []),
    ],
)
@changes_nothing
async def test_member_lists_their_own(shared, query, names):
    page = (await shared.callers["member"].get(f"/ices?{query}")).json
    assert [ice["ice_name"] for ice in page["items"]] == names
    assert page["next"] is None


async def test_role_counts_from_the_next_request(running):
    eve = await running.api("eve", Role.MEMBER)
    for role, status in ((Role.AUDITOR, 200), (Role.MEMBER, 403), (Role.ADMIN, 200)):
        await running.gateway.services.accounts.set_role(ADMIN, "eve", role)
        assert (await eve.get("/events")).status == status, f"eve is {role} now"


# --- credentials -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["Bearer"],
        ["Bearer "],
        ["Bearer no-such-token"],
        ["Bearer {}x"],
        ["Bearer \xff\xfe"],
        ["Bearer {}, Bearer {}"],
        ["Bearer {}", "Bearer {}"],
        ["Bearer {}", "Basic eDp5"],
        ["Basic {}"],
        ["DPoP {}"],
        ["Bearer{}"],
        ["{}"],
    ],
)
@changes_nothing
async def test_bad_credentials_are_401_with_a_challenge(shared, headers):
    good = shared.admin.token
    head = [f"GET {API}/ices HTTP/1.1", "Host: x", "Connection: close"]
    head += [f"Authorization: {value.replace('{}', good)}" for value in headers]
    port = urlsplit(shared.url).port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(("\r\n".join(head) + "\r\n\r\n").encode("latin-1"))
    async with asyncio.timeout(PATIENCE):
        answer = (await reader.read()).decode()
    writer.close()
    assert answer.startswith("HTTP/1.1 401 "), f"{headers} must be 401, got {answer}"
    assert "\r\nWWW-Authenticate: Bearer\r\n" in answer
    assert "\r\nCache-Control: no-store\r\n" in answer
    assert json.loads(answer.partition("\r\n\r\n")[2])["code"] == "unauthenticated"


@changes_nothing
async def test_case_of_the_scheme_is_ignored(shared):
    headers = {"Authorization": f"bEARER  {shared.admin.token}"}
    assert (await raw(shared, "GET", f"{API}/ices", headers))[0] == 200


@pytest.mark.parametrize("lost", ["expired", "revoked", "disabled"])
async def test_token_ends_at_once(tmp_path, lost):
    ahead = timedelta()
    async with harness(tmp_path, clock=lambda: utc_now() + ahead) as running:
        accounts = running.gateway.services.accounts
        await running.add_user("eve", Role.ADMIN)
        made = await accounts.create_token(ADMIN, "eve", "test", 30.0)
        eve = Api(running.session, running.url, made.secret.reveal())
        assert (await eve.get("/ices")).status == 200
        if lost == "expired":
            ahead = timedelta(seconds=31)
        elif lost == "revoked":
            await accounts.revoke_token(ADMIN, made.token.id)
        else:
            await accounts.disable(ADMIN, "eve")
        answer = await eve.get("/ices")
        expect_refused(answer, 401, "unauthenticated")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert (await running.admin.get("/ices")).status == 200, "others go on"


# --- bodies and paths --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"no JSON",
        b"{'ice_name': 'a'}",
        b'{"ice_name": "a",}',
        b'{"ice_name": "a"} {}',
        b"NaN",
        b'{"ice_name": "\xff"}',
        b'{"ice_name": "\\ud800"}',
        b'{"x": "\xed\xa0\x80"}',
        '{"ice_name": "a"}'.encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b"9" * 100_000 + b"]",
    ],
    ids=lambda data: repr(data[:20]),
)
@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
@changes_nothing
async def test_what_is_not_json_is_400(shared, data, kind):
    answer = await shared.admin.call("POST", "/ices", data=data, headers={"Content-Type": kind})
    expect_refused(answer, 400, "malformed-json")


@pytest.mark.parametrize(
    "data",
    [b"[" * 101 + b"]" * 101, b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b"[1e999]", b"9" * 31],
    ids=lambda data: repr(data[:20]),
)
@changes_nothing
async def test_too_complex_json_is_422_after_415(shared, data):
    for kind, status, code in (
        ("text/plain", 415, "unsupported-media-type"),
        ("application/json", 422, "invalid"),
    ):
        answer = await shared.admin.call("POST", "/ices", data=data, headers={"Content-Type": kind})
        document = expect_refused(answer, status, code)
    assert document["field"] == "body"


@pytest.mark.parametrize("data", [b"[" * 100 + b"]" * 100, b'"x"', b"1", b"null", b"true", b"[]"])
@pytest.mark.parametrize("path", ["/ices", "/ices/bulk"])
@changes_nothing
async def test_wrong_shape_is_422(shared, path, data):
    answer = await shared.admin.call(
        "POST", path, data=data, headers={"Content-Type": "application/json; charset=utf-8"}
    )
    assert expect_refused(answer, 422, "invalid")["field"] == "body"


@pytest.mark.parametrize(
    "data",
    [
        {"x" * 1_000_000: 1},
        {**NEW, "ice_type": "x" * 1_000_000},
        {**NEW, "provisionedto": "x" * 1_000_000},
        {**NEW, "\x7f" * 100_000: 1},
    ],
    ids=lambda data: str(data)[:20],
)
@changes_nothing
async def test_refusal_is_short_whatever_was_sent(shared, data):
    answer = await shared.admin.post("/ices", data)
    expect_refused(answer, 422, "invalid")
    assert len(answer.body) < 2000


@pytest.mark.parametrize(
    "kind",
    [
        *("text/plain", "application/x-www-form-urlencoded", "a/b", ""),
        *(";" * 32_000, "a/b; " + "(" * 275, "a/b;" * 8_000),
    ],
    ids=lambda kind: kind[:20],
)
@changes_nothing
async def test_json_under_another_name_is_415(shared, kind):
    answer = await shared.admin.call(
        "POST", "/ices", data=json.dumps(NEW).encode(), headers={"Content-Type": kind}
    )
    expect_refused(answer, 415, "unsupported-media-type")


async def in_chunks(size):
    for _ in range(0, size, 1024):
        yield b" " * 1024


@pytest.mark.parametrize("chunked", [False, True])
@changes_nothing
async def test_body_above_1_mib_is_413(shared, chunked):
    data = in_chunks(MAX_BODY + 1024) if chunked else io.BytesIO(b" " * (MAX_BODY + 1))
    headers = {"Content-Type": "application/json"}
    answer = await shared.admin.call("POST", "/ices/bulk", data=data, headers=headers)
    expect_refused(answer, 413, "too-large")


@changes_nothing
async def test_body_of_1_mib_is_read(shared):
    body = io.BytesIO(b'{"action": "disconnect", "ice_names": []}'.ljust(MAX_BODY))
    headers = {"Content-Type": "application/json"}
    answer = await shared.admin.call("POST", "/ices/bulk", data=body, headers=headers)
    assert answer.status == 200


@changes_nothing
async def test_compressed_body_is_400_and_never_unpacked(shared):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = await shared.admin.call(
        "POST", "/ices", data=b"no gzip", headers=headers, skip_auto_headers=["Content-Encoding"]
    )
    expect_refused(answer, 400, "malformed-json")


@pytest.mark.parametrize(
    ("call", "status", "code"),
    [
        ("GET /", 404, "not-found"),
        ("GET /no-such-path", 404, "not-found"),
        ("GET /ices/", 404, "not-found"),
        ("GET /ices/mine/", 404, "not-found"),
        ("POST /ices/mine/delete", 404, "not-found"),
        ("POST /ices/mine/x/y", 404, "not-found"),
        ("PUT /ices", 405, "method-not-allowed"),
        ("DELETE /events", 405, "method-not-allowed"),
        ("GET /ices/mine/deregister", 405, "method-not-allowed"),
        ("PUT /ices/bulk/deregister", 405, "method-not-allowed"),
        ("OPTIONS /ices", 405, "method-not-allowed"),
    ],
)
@changes_nothing
async def test_no_such_call(shared, call, status, code):
    answer = await shared.admin.call(*call.split())
    expect_refused(answer, status, code)
    assert ("Allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize(
    "path", ["/nothing", "/ice/v2", "/adminx", "/admin/" + 64 * "/", "/admin/" + 2000 * "a/"]
)
@changes_nothing
async def test_path_outside_is_a_problem_too(shared, path):
    headers = {"Authorization": f"Bearer {shared.admin.token}"}
    status, answered, text = await raw(shared, "GET", path, headers)
    assert (status, json.loads(text)["code"]) == (404, "not-found")
    assert answered["Content-Type"] == "application/problem+json"
    assert answered["Cache-Control"] == "no-store"
    assert answered["Server"] == "ice-gateway"


@changes_nothing
async def test_head_is_get_without_a_body(shared):
    answer = await shared.admin.call("HEAD", "/ices/mine")
    assert (answer.status, answer.headers["ETag"], answer.body) == (200, '"1"', b"")


@changes_nothing
async def test_answers_name_no_libraries(shared):
    assert (await shared.admin.get("/ices")).headers["Server"] == "ice-gateway"


@pytest.mark.gateway(tuning=Tuning(timeouts=Timeouts(body=0.05)))
async def test_body_that_stops_half_way_is_408(running):
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(running.url).port)
    writer.write(
        f"POST {API}/ices HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {running.admin.token}\r\nContent-Length: 100\r\n\r\n"
        '{"ice_name":'.encode()
    )
    async with asyncio.timeout(PATIENCE):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        [length] = [line[16:] for line in head.split("\r\n") if line.startswith("Content-Length")]
        body = json.loads(await reader.readexactly(int(length)))
    writer.close()
    assert head.startswith("HTTP/1.1 408 "), head
    assert body["code"] == "timeout"
    assert "Cache-Control: no-store" in head
    assert (await running.admin.get("/ices")).json["items"] == []


# --- faults ------------------------------------------------------------------------------------

CHANGES = [
    ("/ices", NEW),
    ("/ices/lab-1/reregister", None),
    ("/ices/lab-1/deregister", None),
    ("/ices/lab-1/disconnect", None),
    ("/ices/bulk", {"action": "deregister", "ice_names": ["lab-1"]}),
]


@pytest.mark.sqlite
async def test_locked_store_is_503_and_nothing_is_half_done(running):
    ice = await running.provision()
    connection = await ice.connect()
    shown = await running.eventually("/ices/lab-1", lambda answer: answer.json["connection"])
    seq = await last_seq(running)
    engine = running.gateway.engine
    await engine._writer.execute("PRAGMA busy_timeout=1")
    other = sqlite3.connect(engine.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for path, body in CHANGES:
        answer = await running.admin.post(path, body)
        expect_refused(answer, 503, "store-unavailable")
        assert int(answer.headers["Retry-After"]) >= 1
    other.execute("ROLLBACK")
    other.close()
    await connection.round_trip()
    after = await running.admin.get("/ices")
    assert [{**ice, "lastseen": None} for ice in after.json["items"]] == [
        {**shown.json, "lastseen": None}
    ]
    assert await last_seq(running) == seq
    for path, body in CHANGES[::2]:
        assert (await running.admin.post(path, body)).status < 300, f"{path} must work again"


async def test_what_nobody_knows_is_not_said_to_be_undone(running, monkeypatch):
    await (await running.provision()).connect()

    async def unsure(*_):
        raise OutcomeUnknown("the disk did not say")

    monkeypatch.setattr(running.gateway.engine, "write", unsure)
    for path, body in CHANGES:
        refused = expect_refused(await running.admin.post(path, body), 503, "store-unavailable")
        assert "It is not known whether this was done: look before" in refused["detail"]


@pytest.mark.sqlite
async def test_store_that_is_gone_is_503_until_it_is_back(running):
    await running.provision()
    path = running.gateway.engine.path
    away = path.rename(path.with_suffix(".away"))
    for call in ("/ices", "/ices/lab-1", "/ices/lab-1/connections", "/events", "/events/stream"):
        expect_refused(await running.admin.get(call), 503, "store-unavailable")
    for call, body in CHANGES:
        expect_refused(await running.admin.post(call, body), 503, "store-unavailable")
    nobody = Api(running.session, running.url, None)
    expect_refused(await nobody.get("/ices"), 401, "unauthenticated")
    away.rename(path)
    assert [event["action"] for event in (await running.admin.get("/events")).json["items"]][
        -1
    ] == "provision"
    await running.act("lab-1", "reprovision")


async def test_lost_keys_are_503_for_what_needs_them(running):
    ice = await running.provision()
    await ice.connect()
    running.gateway.settings.key_file.unlink()
    for path, body in CHANGES[:2]:
        expect_refused(await running.admin.post(path, body), 503, "keys-unavailable")
    assert (await running.act("lab-1", "deregister"))["ice"]["status"] == "deregistered"


async def test_fault_of_ours_tells_nothing(running, monkeypatch):
    async def fault(*_):
        raise RuntimeError("the innermost secret")

    monkeypatch.setattr(running.gateway.admin.ices, "page", fault)
    headers = {"Authorization": f"Bearer {running.admin.token}"}
    status, answered, text = await raw(running, "GET", f"{API}/ices", headers)
    assert (status, json.loads(text)["code"]) == (500, "internal")
    assert answered["Content-Type"] == "application/problem+json"
    assert answered["Cache-Control"] == "no-store"
    assert "secret" not in text
    assert "Traceback" not in text


# --- behind a proxy ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trusted", "forwarded", "address"),
    [
        ([], "10.0.0.9", "127.0.0.1"),
        (["127.0.0.1"], "10.0.0.9", "10.0.0.9"),
        (["127.0.0.0/8"], "10.0.0.8, 10.0.0.9, 127.0.0.2", "10.0.0.9"),
        (["127.0.0.1"], "10.0.0.9, forged", "127.0.0.1"),
        (["127.0.0.1"], "", "127.0.0.1"),
        (["10.0.0.1"], "10.0.0.9", "127.0.0.1"),
        (["::ffff:127.0.0.1"], "203.0.113.7:51008", "203.0.113.7"),
        (["127.0.0.1"], "[2001:db8::17]:47011", "2001:db8::17"),
        (["127.0.0.1"], "::ffff:203.0.113.7", "203.0.113.7"),
        (["127.0.0.1"], "203.0.113.7, ", "203.0.113.7"),
        (["127.0.0.1"], "203.0.113.7, fe80::1%eth0", "127.0.0.1"),
        (["127.0.0.0/8"], "203.0.113.7" + ", 127.0.0.2" * 31, "203.0.113.7"),
        (["127.0.0.0/8"], "203.0.113.7" + ", 127.0.0.2" * 32, "127.0.0.2"),
        (["127.0.0.1"], "203.0.113.7" + "," * 32_000, "127.0.0.1"),
    ],
)
async def test_log_has_the_address_that_trusted_proxies_tell(tmp_path, trusted, forwarded, address):
    async with harness(tmp_path, server__trusted_proxies=trusted) as running:
        headers = {"X-Forwarded-For": forwarded}
        assert (await running.admin.post("/ices", NEW, headers=headers)).status == 201
        [event] = (await running.admin.get("/events?action=provision")).json["items"]
        assert event["address"] == address


@pytest.mark.parametrize("prefix", ["/ice", "/ices/x/operations"])
async def test_api_is_answered_with_and_without_the_prefix(tmp_path, prefix):
    async with harness(tmp_path, server__public_url=f"https://example.org{prefix}") as running:
        headers = {"Authorization": f"Bearer {running.admin.token}"}
        for number, used in enumerate(("", prefix)):
            api = f"{running.url}{used}{API}"
            name = "ices" if number else "lab"
            body = {**NEW, "ice_name": name}
            async with running.session.post(f"{api}/ices", headers=headers, json=body) as answer:
                assert answer.headers["Location"] == f"{used}{API}/ices/{name}"
                token = (await answer.json())["token"]
            htu = f"https://example.org{prefix}/ice/v1"
            await (await running.ice(token).connect(htu=htu)).close()
            body = {"kind": "execute"}
            async with running.session.post(
                f"{api}/ices/{name}/operations", headers=headers, json=body
            ) as answer:
                operation = (await answer.json())["id"]
                assert answer.headers["Location"] == f"{used}{API}/operations/{operation}"
            _, _, text = await raw(running, "GET", f"{used}{API}/openapi.json")
            assert json.loads(text)["servers"] == [{"url": used + API}]


@pytest.mark.parametrize("url", ["https://example.org", "http://127.0.0.1:1"])
async def test_every_answer_asks_for_https_where_it_is_set(tmp_path, url):
    async with harness(tmp_path, server__public_url=url, server__hsts="1h") as running:
        admin = {"Authorization": f"Bearer {running.admin.token}"}
        answers = [
            await raw(running, "GET", f"{API}/ices", admin),
            await raw(running, "GET", f"{API}/ices"),
            await raw(running, "GET", "/admin/login"),
            await raw(running, "GET", "/admin/static/icon.svg"),
            await raw(running, "GET", "/healthz"),
            await raw(running, "GET", "/none"),
            await raw(running, "GET", "/" * 100),
            await raw(running, "GET", "/ice/v1"),
            await raw(running, "GET", "/ice/v1", {"Upgrade": "websocket"}),
            await raw(running, "GET", f"/?{'x' * 9_000}"),
        ]
        assert [status for status, *_ in answers] == [
            200,
            401,
            200,
            200,
            200,
            404,
            404,
            426,
            400,
            414,
        ]
        for _, headers, _ in answers:
            told = headers.get("Strict-Transport-Security")
            assert told == ("max-age=3600" if url.startswith("https") else None)


@pytest.mark.parametrize(
    "path", [f"{API}/ices", f"{API}/none", f"{API}/openapi.json", "/healthz", "/none", "/ice/v1"]
)
@changes_nothing
async def test_no_browser_takes_an_answer_for_a_page(shared, path):
    _, headers, _ = await raw(shared, "GET", path)
    assert headers["X-Content-Type-Options"] == "nosniff"


# --- the description ---------------------------------------------------------------------------


@changes_nothing
async def test_description_is_valid_and_open_to_all(shared):
    status, answered, text = await raw(shared, "GET", f"{API}/openapi.json")
    assert status == 200
    assert answered["Content-Type"].startswith("application/json")
    assert answered["Cache-Control"] == "no-store"
    document = json.loads(text)
    assert document["openapi"].startswith("3.1.")
    assert document["servers"] == [{"url": API}]
    # Only this test loads it: it takes each process 0.15 s.
    import openapi_spec_validator  # noqa: PLC0415

    openapi_spec_validator.validate(document)


@changes_nothing
async def test_description_names_exactly_the_calls_there_are(shared):
    _, _, text = await raw(shared, "GET", f"{API}/openapi.json")
    told = {
        (method.upper(), path)
        for path, item in json.loads(text)["paths"].items()
        for method in item
        if method != "parameters"
    }
    routes = {
        (route.method, route.resource.canonical)
        for route in api_app(None).router.routes()
        if route.method != "HEAD"
    }
    assert told == routes - {("GET", "/openapi.json")}


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nNo colon in SECRET\r\n\r\n", "400", "bad-request"),
        (b"\x16\x03\x01SECRET\r\n\r\n", "400", "bad-request"),
        (
            b"GET /ice/v1 HTTP/1.1\r\nHost: x\r\nDPoP: SECRET" + b"a" * 40_000 + b"\r\n\r\n",
            "431",
            "headers-too-large",
        ),
    ],
)
async def test_what_is_no_http_is_a_problem_that_quotes_nothing(running, sent, status, code):
    host, port = running.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    async with asyncio.timeout(10):
        answer = (await reader.read()).decode()
    writer.close()
    assert answer.split()[1] == status, f"a problem was expected for {sent[:40]!r}"
    assert f'"code":"{code}"' in answer
    assert "aiohttp" not in answer, "the answer names the libraries"
    assert "SECRET" not in answer, "the answer quotes what was sent"


async def test_who_loses_the_right_while_the_body_comes_has_none(running):
    """Headers and half a body as an admin, then disabled, then the rest."""
    boss = await running.api("boss", Role.ADMIN)
    body = b'{"ice_name": "late", "ice_type": "ci-cd"}'
    host, port = running.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST {API}/ices HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {boss.token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body[:10])
    # The gateway has seen it once somebody who came later is answered.
    assert (await boss.get("/ices")).status == 200
    await running.gateway.services.accounts.disable(ADMIN, "boss")
    writer.write(body[10:])
    async with asyncio.timeout(10):
        status = (await reader.readline()).decode()
    writer.close()
    assert status.split()[1] == "401", f"a refusal was expected, not {status}"
    assert (await running.admin.get("/ices/late")).status == 404
