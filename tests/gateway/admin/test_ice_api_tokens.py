"""API tokens made for one ICE or pool: what makes them, what they are refused, what ends them."""

from __future__ import annotations

import json

import pytest
import pytest_asyncio

from gateway.admin import openapi
from gateway.core.roles import Caller, Role
from gateway.core.secret import Secret
from tests.support.harness import ADMIN, expect_refused, harness, hold_to_description

CREATE = ("api-tokens", "create", "--user", "root", "--name", "ci")


@pytest.fixture(autouse=True)
def described(monkeypatch):
    hold_to_description(monkeypatch)


async def last_seq(running):
    return await running.gateway.admin.events.last()


async def recognised(running, token):
    return await running.gateway.services.accounts.authenticate(Secret(token))


# --- made by command ---------------------------------------------------------------------------


async def test_command_names_the_ice_as_it_is_written(running):
    await running.provision("Lab-1")
    seq = await last_seq(running)
    made = await running.command(*CREATE, "--ice", "LAB-1")
    token = made.stdout.strip()
    caller = await recognised(running, token)
    assert caller == Caller("root", Role.ADMIN, "Lab-1", caller.token, accounts=False)
    assert " of root, for Lab-1 alone, expires: 2" in made.stderr

    listed = json.loads((await running.command("api-tokens", "list", "--json")).stdout)
    assert [(each["name"], each["ice_name"]) for each in listed] == [
        ("test", None),
        ("ci", "Lab-1"),
    ]
    table = (await running.command("api-tokens", "list")).stdout.splitlines()
    assert [line.split()[3] for line in table] == ["ICE", "-", "Lab-1"]

    [event] = (await running.admin.get(f"/events?after={seq}")).json["items"]
    assert event["action"] == "create-api-token"
    assert (event["detail"]["user"], event["detail"]["ice_name"]) == ("root", "Lab-1")


@pytest.mark.parametrize(
    "name", ["lab-9", "", " lab-1", "\N{LATIN SMALL LETTER LONG S}lab", "%", "x" * 10_000]
)
async def test_command_refuses_an_unknown_ice(running, name):
    """An empty name, too: a script whose variable is not set must not get a token that may do all."""
    await running.provision("lab-1")
    seq = await last_seq(running)
    refused = await running.command(*CREATE, "--ice", name, status=1)
    assert refused.stdout == "", "no token was expected"
    assert refused.stderr.startswith("ice-gateway: ice: there is no ICE")
    assert refused.stderr.count("\n") == 1, f"not one line: {refused.stderr!r}"
    assert await last_seq(running) == seq


# --- what it may -------------------------------------------------------------------------------


def is_operating(path):
    """Whether this is what such a token is made for; tests of operations see to that."""
    return "/operations" in path


def calls():
    """Every other call of the description, with a body that is fine."""
    document = openapi.document()
    for path, item in document["paths"].items():
        if is_operating(path):
            continue
        for method, operation in item.items():
            if method == "parameters":
                continue
            body = None
            if "requestBody" in operation:
                content = operation["requestBody"]["content"]["application/json"]
                for schema in content["schema"].get("oneOf", [content["schema"]]):
                    shape = schema["$ref"].rpartition("/")[2]
                    body = (
                        body or document["components"]["schemas"][shape].get("examples", [None])[-1]
                    )
            yield f"{method.upper()} {path}", body


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory):
    """A gateway with tokens for `Mine`, of an admin, an auditor, and a member who does not own it."""
    async with harness(tmp_path_factory.mktemp("shared")) as started:
        await started.provision("Mine", "ci-cd")
        await started.provision("theirs")
        roles = {"root": None, "eve": Role.AUDITOR, "bob": Role.MEMBER, "alice": None}
        started.tokens = [await started.api(user, role, "mine") for user, role in roles.items()]
        await started.make_pool("Lab", {"os": "linux"})
        started.of_pool = [await started.api(user, pool="lab") for user in roles]
        yield started


changes_nothing = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(("call", "body"), [*calls()], ids=lambda value: str(value)[:40])
@changes_nothing
async def test_every_other_call_is_refused(shared, call, body):
    method, path = call.split()
    seq = await last_seq(shared)
    for api in shared.tokens:
        if "/ices/" in path and method in ("PUT", "DELETE"):  # names are final for every caller
            answer = await api.call(
                method, path.format(ice_name="mine", name="bob", id="none", message="none")
            )
            expect_refused(answer, 405, "method-not-allowed")
            continue
        answer = await api.call(
            method, path.format(ice_name="mine", name="bob", id="none", message="none"), json=body
        )
        refused = expect_refused(answer, 403, "forbidden")
        assert refused["detail"] == "This API token may operate Mine and nothing else."
        if "{ice_name}" not in path:
            continue
        theirs = await api.call(method, path.format(ice_name="theirs", id="none"), json=body)
        none = await api.call(method, path.format(ice_name="none", id="none"), json=body)
        assert expect_refused(theirs, 404, "not-registered") == none.json, "it exists for others"
    assert await last_seq(shared) == seq, "a refusal must change nothing"


@changes_nothing
async def test_the_token_of_a_pool_is_refused_every_other_call(shared):
    """It sees no ICE, its user's own neither."""
    seq = await last_seq(shared)
    for api in shared.of_pool:
        for call, body in calls():
            method, path = call.split()
            path = path.format(ice_name="mine", name="lab", id="none", message="none")
            answer = await api.call(method, path, json=body)
            if "/ices/mine" in path:
                final = method in ("PUT", "DELETE")
                refusal = (405, "method-not-allowed") if final else (404, "not-registered")
                expect_refused(answer, *refusal)
                continue
            refused = expect_refused(answer, 403, "forbidden")
            assert refused["detail"] == "This API token may operate the pool Lab and nothing else."
    assert await last_seq(shared) == seq, "a refusal must change nothing"


@pytest.mark.parametrize(
    ("call", "status"),
    [
        ("GET /ices?limit=0", 422),
        ("GET /ices?cursor=x", 422),
        ("GET /ices?provisionedto=alice", 403),
        ("GET /ices?q=theirs", 403),
        ("GET /events?limit=0", 422),
        ("POST /ices/theirs/deregister", 404),
        ("POST /ices/mine/deregister", 403),
    ],
)
@changes_nothing
async def test_precedence(shared, call, status):
    for api in shared.tokens:
        answer = await api.call(*call.split(), headers={"If-Match": '"9"'})
        assert answer.status == status, f"{call} must give {status}, got {answer}"


@changes_nothing
async def test_page_has_nothing_for_it(shared):
    """A page asks for a login, and no login is for one ICE."""
    for api in shared.tokens:
        headers = {"Authorization": f"Bearer {api.token}"}
        async with shared.session.get(
            f"{shared.url}/admin/", headers=headers, allow_redirects=False
        ) as answer:
            assert (answer.status, answer.headers["Location"]) == (302, "./login")


# --- what ends it ------------------------------------------------------------------------------


async def test_it_goes_on_through_all_that_becomes_of_its_ice(running):
    ice = await running.provision("lab-1")
    api = await running.api("root", ice="lab-1")
    await ice.connect()
    for action in ("deregister", "reregister", "reprovision"):
        await running.act("lab-1", action)
        assert (await recognised(running, api.token)).ice == "lab-1", f"after {action}"


@pytest.mark.parametrize("end", ["disable", "revoke"])
async def test_it_ends_with_its_user_or_alone(running, end):
    await running.provision("lab-1")
    api = await running.api("bob", Role.MEMBER, "lab-1")
    expect_refused(await api.get("/ices/lab-1"), 403, "forbidden")
    accounts = running.gateway.services.accounts
    if end == "disable":
        await accounts.disable(ADMIN, "bob")
    else:
        [token] = [token for token in await accounts.tokens() if token.user == "bob"]
        await accounts.revoke_token(ADMIN, token.id)
    expect_refused(await api.get("/ices/lab-1"), 401, "unauthenticated")


async def test_no_role_makes_it_more(running):
    await running.provision("lab-1")
    api = await running.api("bob", Role.MEMBER, "lab-1")
    await running.gateway.services.accounts.set_role(ADMIN, "bob", Role.ADMIN)
    expect_refused(await api.get("/ices"), 403, "forbidden")
