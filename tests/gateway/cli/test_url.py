"""The commands over the API: what they do there, and what they say when it does not work."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.cli.api_admin import ApiAdmin
from gateway.cli.api_client import Access, ApiClient
from gateway.core.roles import Role
from tests.support.authority import Authority
from tests.support.harness import command
from tests.support.work import asked, connected, finished, in_state, log, progress, take

TOKEN = re.compile(r"eyJ[\w-]+\.\.[\w-]+\.[\w-]+\.[\w-]+\n")


async def test_an_ice_lives_through_commands_over_the_api(running, there):
    made = await there("ices", "provision", "lab-1", "--type", "normal", "--user", "ALICE")
    assert TOKEN.fullmatch(made.stdout)
    renewed = await there("ices", "reprovision", "LAB-1")
    connection = await running.ice(renewed.stdout.strip()).connect()
    shown = json.loads((await there("ices", "show", "lab-1", "--json")).stdout)
    assert shown == (await running.admin.get("/ices/lab-1")).json
    assert shown["status"] == "registered"

    for name in ("ci-1", "ci-2"):
        await there("ices", "provision", name, "--type", "ci-cd")
    listed = ("ices", "list", "--json")
    for backend in (there, running.command):
        names = [
            [ice["ice_name"] for ice in json.loads((await backend(*listed, *more)).stdout)]
            for more in ((), ("--search", "LAB"), ("--connected",), ("--sort", "-name"))
        ]
        assert names == [["ci-1", "ci-2", "lab-1"], ["lab-1"], ["lab-1"], ["lab-1", "ci-2", "ci-1"]]
        for option in ("--version-below", "--lastseen-before", "--lastseen-after", "--label"):
            refused = await backend("ices", "list", option, "x", status=2)
            assert f"'{option}'" in refused.stderr or option == "--label"
        await backend("ices", "list", "--lastseen-after", "2026-11-22T18:00:00+01:00")
        refused = await backend("ices", "show", "lab-9", status=1)
        assert refused.stderr.startswith("ice-gateway: Not registered: ")
        refused = await backend("ices", "provision", "ci-1", "--type", "ci-cd", status=1)
        assert refused.stderr == (
            "ice-gateway: ICE Provision Failed! ICE Name or User already exists\n"
        )
        refused = await backend(
            *("ices", "provision", "lab-2", "--type", "normal", "--user", "bob"), status=1
        )
        assert refused.stderr.startswith("ice-gateway: --user: there is no user of this name")

    assert (await there("ices", "deregister", "lab-1")).output == ""
    await connection.expect_dropped(4101)
    [event] = [
        event
        for event in (await running.admin.get("/events?ice_name=lab-1")).json["items"]
        if event["action"] == "deregister"
    ]
    assert (event["actor"], event["via"]) == ("root", "api")


async def test_a_listing_is_read_page_by_page(running, there):
    names = [f"ci-{number:03}" for number in range(201)]
    new = [{"ice_name": name, "ice_type": "ci-cd"} for name in names]
    await running.admin.post("/ices/bulk", {"action": "provision", "ices": new})
    listed = json.loads((await there("ices", "list", "--json")).stdout)
    assert [ice["ice_name"] for ice in listed] == names


async def test_an_operation_is_followed_by_its_stream(running, there):
    ice = await connected(running)
    run = (
        "operations",
        "run",
        "lab-1",
        "--kind",
        "execute",
        "--params",
        '{"n": 12345678901234567890123}',
    )
    following = asyncio.create_task(there(*run, "--follow"))
    operation = await take(ice)
    progress(ice, operation, fraction=0.5, message="half", data={"step": 1})
    await running.eventually(f"/operations/{operation}", lambda answer: answer.json["progress"])
    await running.settled()
    await finished(ice, operation, result={"exit": 0})
    done = await following
    assert json.loads(done.stdout) == {"exit": 0}
    assert f"ice-gateway: operation {operation}\n" in done.stderr

    shown = (await there("operations", "show", operation, "--json")).stdout
    assert "12345678901234567890123" in shown, "JSON is shown as it was sent"
    assert json.loads(shown) == (await running.admin.get(f"/operations/{operation}")).json
    failing = asyncio.create_task(there(*run, "--follow", status=1))
    second = await take(ice)
    # Not by a command: two at once in one process write to one stderr.
    assert (await running.admin.post(f"/operations/{second}/cancel")).status == 200
    assert "ice-gateway: cancelled: cancelled: cancelled by root\n" in (await failing).stderr
    await in_state(running, second, "cancelled")
    for more, ids in (((), [second, operation]), (("--limit", "1"), [second])):
        listed = await there("operations", "list", "lab-1", *more, "--json")
        assert [each["id"] for each in json.loads(listed.stdout)] == ids
    third = await asked(running.admin)
    assert (await there("operations", "cancel", third)).output == ""
    await in_state(running, third, "cancelled")
    for action in ("show", "cancel"):
        gone = await there("operations", action, "none", status=1)
        assert gone.stderr == "ice-gateway: There is no such operation.\n"


async def test_who_may_not_is_told_and_no_secret_shows(running, there, tmp_path):
    token = tmp_path / "member.token"
    token.write_text((await running.api("eve", Role.MEMBER)).token)
    token.chmod(0o644)
    refused = await there(
        "ices", "provision", "ci-1", "--type", "ci-cd", status=1, token_file=token
    )
    assert refused.stderr.splitlines() == [
        f"ice-gateway: warning: everybody on this machine can read {token}",
        "ice-gateway: Your role does not allow this.",
    ]
    token.write_text("icegw_secret")
    token.chmod(0o600)
    refused = await there("ices", "list", status=1, token_file=token)
    assert f"refuses the API token in {token}" in refused.stderr
    assert "icegw_secret" not in refused.output


async def test_users_and_api_tokens_are_kept_over_the_api(running, there, tmp_path):
    assert (await there("users", "add", "Bob", "--role", "member", "--no-password")).output == ""
    taken = await there("users", "add", "bob", "--role", "member", "--no-password", status=1)
    assert taken.stderr == "ice-gateway: the user bob already exists\n"
    await there("ices", "provision", "lab-1", "--type", "normal", "--user", "bob")
    assert (await there("users", "set-role", "BOB", "auditor")).output == ""
    assert (await there("users", "disable", "bob")).stdout.splitlines()[1:] == ["lab-1"]
    listed = json.loads((await there("users", "list", "--json")).stdout)
    assert listed == json.loads((await running.command("users", "list", "--json")).stdout)
    assert [
        (user["role"], user["disabledon"] is None) for user in listed if user["name"] == "Bob"
    ] == [("auditor", False)]
    await there("users", "enable", "bob")
    missing = await there("users", "set-role", "eve", "admin", status=1)
    assert "no user eve" in missing.stderr

    create = ("api-tokens", "create", "--user", "bob", "--name", "CI")
    made = await there(*create, "--expires-in", "12h")
    assert re.fullmatch(r"icegw_[\w-]{43}\n", made.stdout)
    listed = json.loads((await there("api-tokens", "list", "--json")).stdout)
    assert listed == json.loads((await running.command("api-tokens", "list", "--json")).stdout)
    assert listed[-1]["madeby"].startswith("token ")
    assert "36500d" in (await there(*create, "--expires-in", "9999999d", status=2)).stderr
    file = tmp_path / "bob.token"
    file.touch(0o600)
    file.write_text(made.stdout)
    assert "lab-1" in (await there("ices", "list", token_file=file)).stdout
    denied = await there(*create, status=1, token_file=file)
    assert len(denied.stderr.splitlines()) == 1
    assert (await there("api-tokens", "revoke", listed[-1]["id"])).output == ""
    assert (
        "refuses the API token" in (await there("ices", "list", status=1, token_file=file)).stderr
    )


@pytest.mark.sqlite
async def test_the_audit_log_is_proven_and_exported(running, there):
    await running.provision("lab-1")
    head = (await there("audit", "head")).stdout
    assert head == (await running.command("audit", "head")).stdout
    verify = ("audit", "verify", "--head", head.strip())
    assert (await there(*verify)).stdout == (await running.command(*verify)).stdout
    for name in ("jsonl", "csv"):
        export = ("audit", "export", "--format", name)
        assert (await there(*export)).stdout == (await running.command(*export)).stdout
    wrong = await there("audit", "verify", "--head", f"1:{head.strip().split(':')[1]}", status=1)
    assert len(wrong.stderr.splitlines()) == 1
    assert "no node serves" in (await there("nodes", "list")).stderr
    missing = await there("nodes", "drain", "node-x", status=1)
    assert missing.stderr == "ice-gateway: There is no node node-x.\n"


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        (("--url", "http://192.0.2.1", "--token-file", "T", "ices", "list"), 1, "plain http"),
        (("--url", "ftp://h", "--token-file", "T", "ices", "list"), 2, "must look like https://"),
        (
            ("--url", "http://127.0.0.1:1", "--token-file", "T", "ices", "list"),
            1,
            "cannot connect to",
        ),
        (("--url", "http://127.0.0.1:1", "ices", "list"), 2, "needs --token-file"),
        (
            ("--url", "http://127.0.0.1:1", "--token-file", "none", "ices", "list"),
            78,
            "No such file",
        ),
        (
            ("--url", "http://127.0.0.1:1", "--token-file", "empty", "ices", "list"),
            78,
            "no API token",
        ),
        (
            ("--url", "http://127.0.0.1:1", "--token-file", "T", "--ca-file", "T", "ices", "list"),
            78,
            "T holds no PEM certificate",
        ),
        (
            (
                "--url",
                "http://127.0.0.1:1",
                "--token-file",
                "T",
                "ices",
                "list",
                "--database",
                "sqlite:///x",
            ),
            2,
            "leave out --url",
        ),
        (("--url", "http://127.0.0.1:1", "keys", "list"), 2, "leave out --url"),
        (("--url", "http://127.0.0.1:1", "audit", "prune", "--keep", "1d"), 2, "leave out --url"),
        (("--token-file", "T", "ices", "list"), 2, "--token-file needs --url"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else None,
)
async def test_what_cannot_work_is_a_line(tmp_path, monkeypatch, args, status, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "T").write_text("icegw_x")
    (tmp_path / "T").chmod(0o600)
    (tmp_path / "empty").touch()
    done = await command(*args, status=status)
    assert says in done.stderr
    assert done.stdout == ""
    if status != 2:
        assert len(done.stderr.splitlines()) == 1


async def test_what_answers_may_be_a_stranger(tmp_path):
    """By TLS and a prefix; none of it may learn the token by a redirect, or end in a traceback."""
    token = tmp_path / "T"
    token.touch(0o600)
    token.write_text("icegw_x")
    seen = []

    async def answer(request):
        seen.append((request.path, request.headers["Authorization"]))
        name = request.match_info["name"]
        if name == "cut":
            request.transport.abort()
        problem = '{"status": 500, "title": "x", "code": "x", "detail": "a\\u001b[31m b"}'
        return {
            "away": web.Response(status=302, headers={"Location": "https://192.0.2.1/"}),
            "proxy": web.Response(status=502, text="<h1>Bad Gateway</h1>"),
            "other": web.json_response({"ice_name": 1}),
            "bytes": web.Response(body=b"\xff"),
            "steers": web.Response(status=500, text=problem),
        }.get(name, web.Response())

    authority = Authority(tmp_path)
    app = web.Application()
    app.router.add_get("/prefix/admin/api/v1/ices/{name}", answer)
    server = TestServer(app, scheme="https", host="127.0.0.1")
    await server.start_server(ssl=authority.server_context("127.0.0.1"))
    url = f"https://127.0.0.1:{server.port}"
    options = ("--url", f"{url}/prefix/", "--token-file", str(token))
    refused = await command(*options, "ices", "show", "other", status=1)
    assert refused.stderr.startswith(
        f"ice-gateway: the certificate of {url}/prefix is not accepted: "
    )
    assert seen == []
    for name, says in (
        ("away", "answered 302 and not as a gateway does"),
        ("proxy", "answered 502 and not as a gateway does"),
        ("other", "does not understand: is its gateway of another version?"),
        ("bytes", "does not understand"),
        ("cut", "ended before the answer"),
        ("steers", "a\\x1b[31m b"),
    ):
        refused = await command(
            *options, "--ca-file", str(authority.file), "ices", "show", name, status=1
        )
        assert says in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
        assert seen.pop() == (f"/prefix/admin/api/v1/ices/{name}", "Bearer icegw_x")
    await server.close()


async def test_a_stream_that_breaks_is_read_again(running, tmp_path):
    """A proxy may cut it, and a gateway may restart."""
    ice = await connected(running)
    operation = await asked(running.admin)
    await take(ice)
    log(ice, operation, "before\n")
    progress(ice, operation, fraction=0.25, message="so far")
    await running.eventually(f"/operations/{operation}/log", lambda answer: answer.body)
    await running.eventually(f"/operations/{operation}", lambda answer: answer.json["progress"])
    path = f"/admin/api/v1/operations/{operation}/stream"
    authorization = {"Authorization": f"Bearer {running.admin.token}"}
    seen = []

    async def pass_on(request):
        """Cut the first stream after a piece; give the rest as the gateway does."""
        seen.append(request.path)
        async with running.session.request(
            *(request.method, f"{running.url}{request.path}"),
            data=await request.read(),
            headers={
                **authorization,
                "Content-Type": "application/json",
                **{
                    name: request.headers[name]
                    for name in ("Last-Event-ID",)
                    if name in request.headers
                },
            },
        ) as answer:
            if request.path != path:
                return web.Response(
                    status=answer.status, body=await answer.read(), content_type="application/json"
                )
            response = web.StreamResponse()
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
                if seen.count(path) == 1 and b"so far" in piece:
                    log(ice, operation, "after\n")
                    await finished(ice, operation, result={"exit": 0})
                    request.transport.abort()
                    break
            return response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", pass_on)
    server = TestServer(app, host="127.0.0.1")
    await server.start_server()
    file = tmp_path / "T"
    file.touch(0o600)
    file.write_text("icegw_x")
    async with ApiClient.open(
        Access.of(f"http://127.0.0.1:{server.port}", file, None, insecure=False)
    ) as client:
        admin = ApiAdmin(client)
        news = [one async for one in admin.follow(await admin.operation(operation))]
        assert [one async for one in admin.operation_log(operation)] == ["before\nafter\n"]
    assert [one for one in news if isinstance(one, str)] == ["before\n", "after\n"]
    found = [one for one in news if not isinstance(one, str)]
    assert any(one.progress and one.progress.message == "so far" for one in found[:-1])
    assert [one.state for one in found if one.finished] == ["succeeded"]
    assert json.loads(bytes(found[-1].result)) == {"exit": 0}
    assert seen.count(path) == 2
    await server.close()
