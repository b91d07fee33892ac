"""The handshake of contract section 5: who is admitted, and every refusal, to the letter."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import secrets
import sqlite3
import time

import pytest

from gateway.app import Tuning
from gateway.core.ice import IceType
from gateway.core.replay import Nonces
from gateway.core.times import utc_now
from gateway.core.tokens import Key as SealingKey
from gateway.core.tokens import KeyRing
from gateway.node.node import NodeLimits, NodeState
from gateway.store.key_file import KeyStore
from gateway.web.connection import Timeouts
from tests.support.clock import StandingClock
from tests.support.harness import harness
from tests.support.ice import Key, b64, b64_json, until

RETRIED = {
    "draining",
    "overloaded",
    "too-many-attempts",
    "use-dpop-nonce",
    "store-unavailable",
}
TIMED = RETRIED - {"use-dpop-nonce"}


def expect(refused, status, code, *, retry=None):
    """This refusal, whole: its problem document and its headers. Returns the document."""
    problem, headers = refused.problem, refused.headers
    assert (refused.status, refused.code) == (status, code), problem
    assert set(problem) == {"status", "title", "detail", "code", "retry"}
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert problem["retry"] is (code in RETRIED if retry is None else retry)
    assert headers["Content-Type"] == "application/problem+json"
    assert headers["Cache-Control"] == "no-store"
    challenge = headers.get("WWW-Authenticate")
    assert (challenge is not None) is (status == 401), headers
    if code == "use-dpop-nonce":
        assert challenge == 'DPoP error="use_dpop_nonce"'
    elif challenge is not None:
        assert challenge.startswith("DPoP ")
    assert ("DPoP-Nonce" in headers) is (code == "use-dpop-nonce")
    assert ("Retry-After" in headers) is (code in TIMED), headers
    assert int(headers.get("Retry-After", 1)) >= 1
    return problem


@pytest.fixture
def clock():
    return StandingClock()


@pytest.fixture
async def timed(tmp_path, clock):
    """A gateway whose time is `clock`'s."""
    async with harness(tmp_path, clock=clock, monotonic=clock.monotonic) as started:
        yield started


def seal(running, name="lab-1", ice_type=IceType.NORMAL, generation=1):
    """A genuine envelope that no action of an admin has made."""
    ring = KeyStore(running.gateway.settings.key_file).for_sealing(may_create=False)
    return ring.seal(name, ice_type, generation, utc_now()).reveal()


async def change_entry(running, name, assignment):
    """Behind everybody's back; in a thread, since it may wait for the gateway to write."""

    def change():
        path = running.gateway.settings.database_path
        with contextlib.closing(sqlite3.connect(path)) as database:
            statement = f"UPDATE ice_tokens SET {assignment} WHERE ice_name = ?"  # noqa: S608
            database.execute(statement, [name])
            database.commit()

    await asyncio.to_thread(change)


@contextlib.contextmanager
def database_gone(running):
    path = running.gateway.settings.database_path
    away = path.with_suffix(".away")
    path.rename(away)
    try:
        yield
    finally:
        away.rename(path)


async def page(running, path):
    async with running.session.get(f"{running.url}{path}") as response:
        return response.status, await response.json()


async def until_ready(running, *, ready=True):
    gateway = running.gateway
    await until(lambda: (gateway.node.log.current and gateway.engine.fault is None) is ready)
    assert (await page(running, "/readyz"))[0] == (200 if ready else 503)


@pytest.fixture
def hold_look_ups(running, monkeypatch):
    """Hold the look-ups of all handshakes; returns how many are held, and what lets them go."""
    loader = running.gateway.node.admission.loader
    find, held, go = loader.find, [], asyncio.Event()

    async def holding(name, *proof):
        held.append(name)
        await go.wait()
        return await find(name, *proof)

    monkeypatch.setattr(loader, "find", holding)
    return held, go


# --- 400: not a proper handshake -----------------------------------------------------------------

KEY = base64.b64encode(bytes(16)).decode()
BAD = {
    "no upgrade at all": ({"Upgrade": None, "Connection": None}, 426),
    "only Connection": ({"Upgrade": None}, 426),
    "another upgrade": ({"Upgrade": "h2c"}, 400),
    "Connection without Upgrade": ({"Connection": "keep-alive"}, 400),
    "no Connection": ({"Connection": None}, 400),
    "no version": ({"Sec-WebSocket-Version": None}, 400),
    "another version": ({"Sec-WebSocket-Version": "8"}, 400),
    "two versions": ({"Sec-WebSocket-Version": ["13", "8"]}, 400),
    "no key": ({"Sec-WebSocket-Key": None}, 400),
    "a short key": ({"Sec-WebSocket-Key": base64.b64encode(bytes(15)).decode()}, 400),
    "a key that is not base64": ({"Sec-WebSocket-Key": "?" * 24}, 400),
    "two keys": ({"Sec-WebSocket-Key": [KEY, KEY]}, 400),
    "no subprotocol": ({"Sec-WebSocket-Protocol": None}, 400),
    "other subprotocols": ({"Sec-WebSocket-Protocol": "ice.v2, chat"}, 400),
    "a subprotocol of another case": ({"Sec-WebSocket-Protocol": "ICE.V1"}, 400),
    "a body": ({"Content-Length": "3"}, 400),
    "a body in chunks": ({"Transfer-Encoding": "chunked"}, 400),
    "a body of unknown form": ({"Transfer-Encoding": "identity"}, 400),
}


async def test_what_is_no_proper_handshake_is_refused(running, subtests):
    ice = await running.provision()
    for name, (headers, status) in BAD.items():
        with subtests.test(name):
            refused = await ice.refused(headers)
            expect(refused, status, "bad-handshake")
            assert refused.headers.get("Upgrade") == ("websocket" if status == 426 else None)
            spoken = "13" if "version" in name else None
            assert refused.headers.get("Sec-WebSocket-Version") == spoken
    with subtests.test("HTTP/1.0"):
        expect(await ice.refused(version="1.0"), 400, "bad-handshake")
    with subtests.test("HTTP/2.0"):
        expect(await ice.refused(version="2.0"), 400, "bad-handshake")
    assert await running.status("lab-1") == "provisioned"
    await ice.connect({"Content-Length": "0"})


async def test_only_get_is_a_handshake(running):
    ice = await running.provision()
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        refused = await ice.refused(method=method)
        assert (refused.status, refused.code) == (405, "method-not-allowed")
        assert refused.headers["Allow"] == "GET"


GOOD = {
    "as it is": {},
    "of any case": {"Upgrade": "WebSocket", "Connection": "upgrade"},
    "with other connection options": {"Connection": "keep-alive, Upgrade"},
    "several subprotocols": {"Sec-WebSocket-Protocol": "chat, ice.v1,ice.v2"},
    "subprotocols in two headers": {"Sec-WebSocket-Protocol": ["chat", "ice.v1"]},
    "extensions": {"Sec-WebSocket-Extensions": "permessage-deflate"},
}


async def test_the_answer_to_a_proper_handshake(running, subtests):
    ice = await running.provision()
    for name, headers in GOOD.items():
        with subtests.test(name):
            reader, writer = await ice.begin({**headers, "Sec-WebSocket-Key": KEY})
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            writer.close()
            digest = hashlib.sha1(
                f"{KEY}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode(), usedforsecurity=False
            ).digest()
            assert lines == [
                "HTTP/1.1 101 Switching Protocols",
                "Upgrade: websocket",
                "Connection: Upgrade",
                f"Sec-WebSocket-Accept: {base64.b64encode(digest).decode()}",
                "Sec-WebSocket-Protocol: ice.v1",
                "",
                "",
            ]


async def test_a_connection_that_was_refused_serves_the_next_attempt(running):
    """As a client's pool may do, with what it sends already on its way."""
    ice = await running.provision()
    reader, writer = await ice.dial()
    writer.write(ice.request(ath="wrong") + ice.request())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    assert head.startswith("HTTP/1.1 401")
    length = next(line for line in head.split("\r\n") if line.startswith("Content-Length"))
    await reader.readexactly(int(length.split(": ")[1]))
    await (await ice.finish(reader, writer)).round_trip()


# --- the order -------------------------------------------------------------------------------------


class Case:
    """A handshake of an ICE of its own, to which faults are added."""

    def __init__(self, running, monkeypatch, ice, name):
        self.running = running
        self.endpoint = running.gateway.endpoint
        self.monkeypatch = monkeypatch
        self.stack = contextlib.AsyncExitStack()
        self.ice = ice
        self.name = name
        self.headers = {}
        self.claims = {}

    async def register(self):
        await (await self.ice.connect()).leave()

    async def change_entry(self, assignment):
        await change_entry(self.running, self.name, assignment)


async def bad_handshake(case):
    case.headers["Sec-WebSocket-Key"] = "none"


async def draining(case):
    case.monkeypatch.setattr(case.running.gateway.node, "state", NodeState.DRAINING)


async def overloaded(case):
    case.monkeypatch.setattr(case.endpoint, "handshakes", 1_000_000)


async def token_missing(case):
    case.headers["Authorization"] = None


async def token_invalid(case):
    case.headers["Authorization"] = "DPoP garbage"


async def proof_invalid(case):
    case.claims["ath"] = "another token's"


async def clock_off(case):
    case.claims["iat"] = time.time() - 3600


async def store_gone(case):
    case.stack.enter_context(database_gone(case.running))


async def wrong_hash(case):
    await case.change_entry(f"ice_token = '{secrets.token_hex(32)}'")


async def deregistered(case):
    await case.register()
    await case.running.act(case.name, "deregister")


async def deregistered_in_this_generation(case):
    await deregistered(case)
    await case.change_entry("generation = 1")


async def reregistered(case):
    await case.register()
    await case.running.act(case.name, "reregister")


async def registered_elsewhere(case):
    renewed = await case.running.act(case.name, "reregister")
    await case.running.ice(renewed["token"], Key()).connect()


async def expired(case):
    await case.change_entry("expireson = '2020-01-01T00:00:00.000000Z'")


async def another_key(case):
    await case.register()
    case.ice.key = Key()


async def full(case):
    hub, names = case.running.gateway.node.hub, (f"{case.name}-{number}" for number in range(SEATS))
    while len(hub) < SEATS:
        connection = await (await case.running.provision(next(names))).connect()
        case.stack.push_async_callback(connection.leave)


SEATS = 3
"""Sessions that the gateway of these cases takes."""
ORDER = [
    # Two faults at once, neighbours in the contract's table, and the one that answers.
    ([draining, bad_handshake], 400, "bad-handshake"),
    ([overloaded, bad_handshake], 400, "bad-handshake"),
    ([draining, overloaded], 503, "draining"),
    ([draining, token_missing], 503, "draining"),
    ([overloaded, token_missing], 503, "overloaded"),
    ([overloaded, token_invalid], 503, "overloaded"),
    ([proof_invalid, token_missing], 401, "token-missing"),
    ([proof_invalid, token_invalid], 401, "token-invalid"),
    ([store_gone, token_invalid], 401, "token-invalid"),
    ([clock_off, proof_invalid], 401, "proof-invalid"),
    ([wrong_hash, clock_off], 401, "use-dpop-nonce"),
    ([store_gone, clock_off], 401, "use-dpop-nonce"),
    ([wrong_hash, store_gone], 503, "store-unavailable"),
    ([deregistered, store_gone], 503, "store-unavailable"),
    ([deregistered_in_this_generation, wrong_hash], 401, "token-invalid"),
    # The token of an ICE that was deregistered is an old one, too.
    ([deregistered], 403, "deregistered"),
    ([reregistered, expired], 401, "token-replaced"),
    ([another_key, registered_elsewhere], 401, "token-replaced"),
    ([expired, full], 401, "token-expired"),
    ([another_key, full], 403, "key-mismatch"),
    ([full], 503, "overloaded"),
]


@pytest.mark.sqlite
@pytest.mark.gateway(ice__max_connections=SEATS)
async def test_the_first_of_the_table_answers(running, monkeypatch, subtests):
    for number, (faults, status, code) in enumerate(ORDER):
        name = f"lab-{number}"
        ice = await running.provision(name)
        with (
            subtests.test(" and ".join(fault.__name__ for fault in faults)),
            monkeypatch.context() as patch,
        ):
            case = Case(running, patch, ice, name)
            async with case.stack:
                for fault in faults:
                    await fault(case)
                expect(await ice.refused(case.headers, **case.claims), status, code)
        await until_ready(running)


# --- the token -------------------------------------------------------------------------------------


async def test_without_a_token(running, subtests):
    ice = await running.provision()
    for value in (None, "Basic cm9vdDpyb290", f"Bearer {ice.token}", "DPoP", "DPoP ", ice.token):
        with subtests.test(str(value)[:10]):
            expect(await ice.refused({"Authorization": value}), 401, "token-missing")


@pytest.mark.sqlite
async def test_what_is_no_token_of_this_gateway(running, subtests):
    ice = await running.provision()
    foreign = SealingKey.generate(utc_now())
    header, *others = ice.token.split(".")
    tokens = {
        "garbage": "garbage",
        "cut off": ice.token[:-1],
        "with more behind it": f"{ice.token}A",
        "changed": ".".join([header, *others[:-1], others[-1][::-1]]),
        "too long": "e" * 5000,
        "not ASCII": "schlüssel",
        "of another gateway": KeyRing([foreign], foreign.kid)
        .seal("lab-1", IceType.NORMAL, 1, utc_now())
        .reveal(),
        "two of them": [ice.token, ice.token],
        # Genuine envelopes that the entry does not bear out:
        "no entry": seal(running, "lab-2"),
        "no entry of exactly this name": seal(running, "LAB-1"),
        "of a generation to come": seal(running, generation=2),
        "of this generation, with another text": seal(running),
        "of another type": seal(running, ice_type=IceType.CI_CD),
    }
    for name, tokens_ in tokens.items():
        with subtests.test(name):
            texts = [tokens_] if isinstance(tokens_, str) else tokens_
            ath = b64(hashlib.sha256(texts[0].encode()).digest())
            headers = {"Authorization": [f"DPoP {text}" for text in texts]}
            expect(await ice.refused(headers, ath=ath), 401, "token-invalid")
    await change_entry(running, "lab-1", f"ice_token = '{'0' * 64}'")
    expect(await ice.refused(), 401, "token-invalid")
    assert await running.status("lab-1") == "provisioned"
    # The admin sees those that opened.
    answer = await running.eventually(
        "/ices/lab-1/connections",
        lambda answer: sum(item["count"] for item in answer.json["items"]) == 4,
    )
    assert {item["code"] for item in answer.json["items"]} == {"token-invalid"}


async def test_every_older_token_was_replaced(running):
    ice = await running.provision()
    first = ice.token
    second = (await running.act("lab-1", "reprovision"))["token"]
    expect(await running.ice(first).refused(), 401, "token-replaced")
    await running.ice(second).connect()
    third = (await running.act("lab-1", "reregister"))["token"]
    for older in (first, second):
        expect(await running.ice(older).refused(), 401, "token-replaced")
    await running.ice(third).connect()
    await running.act("lab-1", "deregister")
    for older in (first, second, third):
        expect(await running.ice(older).refused(), 403, "deregistered")


async def test_a_token_is_good_for_one_key(running):
    ice = await running.provision()
    await (await ice.connect()).leave()
    expect(await running.ice(ice.token, Key()).refused(), 403, "key-mismatch")
    await ice.connect()


async def test_an_ice_that_lost_the_answer_connects_again(running):
    ice = await running.provision()
    reader, writer = await ice.begin()
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()
    again = await ice.connect()
    assert (again.welcome["status"], again.welcome["generation"]) == ("registered", 1)
    actions = [item["action"] for item in (await running.admin.get("/events")).json["items"]]
    assert actions.count("register") == 1


async def test_a_token_expires_unless_it_was_used(timed, clock):
    used, unused = await timed.provision("used"), await timed.provision("unused")
    await (await used.connect(iat=clock.unix())).leave()
    clock.skip(days=7, microseconds=-1)
    await (await (await timed.provision("late")).connect(iat=clock.unix())).leave()
    await timed.admin.post("/ices/unused/disconnect")
    clock.skip(microseconds=1)
    expect(await unused.refused(iat=clock.unix()), 401, "token-expired")
    assert await timed.status("unused") == "provisioned"
    await used.connect(iat=clock.unix())
    renewed = await timed.act("unused", "reprovision")
    await timed.ice(renewed["token"]).connect(iat=clock.unix())


async def test_without_a_ttl_no_token_expires(tmp_path, clock):
    async with harness(tmp_path, clock=clock, tokens__registration_ttl="0") as running:
        ice = await running.provision()
        clock.skip(days=3650)
        await ice.connect(iat=clock.unix())


# --- too many attempts -----------------------------------------------------------------------------


async def test_too_many_attempts_without_a_genuine_token(timed, clock):
    ice = await timed.provision()
    garbage = {"Authorization": "DPoP garbage"}
    unknown = timed.ice(seal(timed, "lab-2"))
    async with asyncio.TaskGroup() as attempts:
        fifty = [attempts.create_task(ice.refused(garbage)) for _ in range(50)]
        without = [attempts.create_task(ice.refused({"Authorization": None})) for _ in range(49)]
    assert {task.result().code for task in fifty} == {"token-invalid"}
    assert {task.result().code for task in without} == {"token-missing"}
    expect(await unknown.refused(iat=clock.unix()), 401, "token-invalid")  # the hundredth

    refused = await ice.refused(garbage)
    expect(refused, 429, "too-many-attempts")
    assert int(refused.headers["Retry-After"]) <= 60
    expect(await unknown.refused(iat=clock.unix()), 429, "too-many-attempts")
    expect(await ice.refused({"Authorization": None}), 401, "token-missing")
    # Genuine tokens are never refused for their address.
    expect(await ice.refused(ath="wrong", iat=clock.unix()), 401, "proof-invalid")
    await ice.connect(iat=clock.unix())

    clock.skip(seconds=60)
    expect(await ice.refused(garbage), 401, "token-invalid")


# --- the proof -------------------------------------------------------------------------------------


def unsigned(ice, alg):
    """A proof under another algorithm; HMAC with the public key, a classic."""
    head, body, _ = ice.key.proof(ice.htu, ice.token, header={"alg": alg}).split(".")
    return f"{head}.{body}."


async def test_proofs_that_do_not_hold(running, subtests):
    ice = await running.provision()
    key, good = ice.key, ice.key.proof
    other = Key()
    head, body, signature = good(ice.htu, ice.token).split(".")
    proofs = {
        "missing": None,
        "empty": "",
        "two": [good(ice.htu, ice.token), good(ice.htu, ice.token)],
        "garbage": "garbage",
        "no JWS": f"{head}.{body}",
        "no JSON": f"{b64(b'{')}.{body}.{signature}",
        "not signed": f"{head}.{body}.",
        "signed with another key": good(ice.htu, ice.token, header={"jwk": other.jwk}),
        "another body": f"{head}.{b64_json({'jti': '1'})}.{signature}",
        "alg none": unsigned(ice, "none"),
        "alg HS256": unsigned(ice, "HS256"),
        "alg RS256": unsigned(ice, "RS256"),
        "alg of another key": good(ice.htu, ice.token, header={"alg": "EdDSA"}),
        "typ": good(ice.htu, ice.token, header={"typ": "jwt"}),
        "private key": good(ice.htu, ice.token, header={"jwk": {**key.jwk, "d": "AA"}}),
        "htm": good(ice.htu, ice.token, htm="POST"),
        "another token": good(ice.htu, "another"),
        **{f"no {claim}": good(ice.htu, ice.token, **{claim: None}) for claim in CLAIMS},
    }
    for name, proof in proofs.items():
        with subtests.test(name):
            expect(await ice.refused({"DPoP": proof}), 401, "proof-invalid")
    assert await running.status("lab-1") == "provisioned"


CLAIMS = ("jti", "htm", "htu", "iat", "ath")


async def test_a_proof_is_good_once(running):
    ice = await running.provision()
    headers = ice.headers()
    await ice.connect(headers)
    expect(await ice.refused(headers), 401, "proof-invalid", retry=True)
    # Another proof under the same jti is used before, too; under another fault that is not told.
    again = {"jti": "only once"}
    await ice.connect(**again)
    expect(await ice.refused(**again), 401, "proof-invalid", retry=True)
    expect(await ice.refused(**again, ath="wrong"), 401, "proof-invalid", retry=False)
    # The jti counts per key.
    expect(await running.ice(ice.token, Key()).refused(**again), 403, "key-mismatch")


@pytest.mark.sqlite
async def test_a_refused_proof_is_used_up_too(running):
    ice = await running.provision()
    headers = ice.headers()
    with database_gone(running):
        expect(await ice.refused(headers), 503, "store-unavailable")
    await until_ready(running)
    expect(await ice.refused(headers), 401, "proof-invalid", retry=True)


async def test_algorithms(running, subtests):
    for alg in ("ES256", "Ed25519", "EdDSA"):
        with subtests.test(alg):
            ice = await running.provision(alg)
            ice.key = Key() if alg == "ES256" else Key.ed25519()
            proof = ice.key.proof(ice.htu, ice.token, header={"alg": alg})
            await ice.connect({"DPoP": proof})
            # The two names of Ed25519 are one key.
            await ice.connect()


async def test_urls_without_a_public_url(running, subtests):
    ice = await running.provision()
    port = running.url.rsplit(":", 1)[1]
    here = f"127.0.0.1:{port}"
    for url in (
        f"http://{here}/ice/v1",
        f"ws://{here}/ice/v1",
        f"https://{here}/ice/v1",
        f"WSS://localhost:{port}/ice/v1",
        f"http://LocalHost:{port}/ice/v1",
        f"http://{here}/%69ce/v%31",
        f"http://{here}/ice/v1?x=1#y",
    ):
        with subtests.test(url):
            await ice.connect(htu=url)
    for url in (
        f"http://gateway.example:{port}/ice/v1",
        "http://127.0.0.1:1/ice/v1",
        "http://127.0.0.1/ice/v1",
        f"http://127.0.0.2:{port}/ice/v1",
        f"http://{here}/",
        f"http://{here}/ice/v1/",
        f"http://{here}/ICE/v1",
        f"http://a@{here}/ice/v1",
        f"ftp://{here}/ice/v1",
        "/ice/v1",
        "http://[/ice/v1",
    ):
        with subtests.test(url):
            # The Host header is never believed.
            host = url.split("/")[2] if url.startswith("http://gateway") else here
            problem = expect(await ice.refused({"Host": host}, htu=url), 401, "proof-invalid")
            assert url in problem["detail"]
            assert f"http://{here}/ice/v1" in problem["detail"]
    with subtests.test("any Host header"):
        await ice.connect({"Host": "gateway.example"})


async def test_public_urls(tmp_path, subtests):
    public = ["https://Gateway.example:443/lab", "http://10.1.2.3:8440"]
    async with harness(tmp_path, server__public_url=public) as running:
        ice = await running.provision()
        for path in ("/ice/v1", "/lab/ice/v1"):
            for url in (
                "https://gateway.example/lab/ice/v1",
                "wss://gateway.example:443/lab/ice/v1",
                "ws://gateway.example:80/lab/ice/v1",
                "ws://10.1.2.3:8440/ice/v1",
            ):
                with subtests.test(f"{url} at {path}"):
                    await ice.connect(path=path, htu=url)
            for url in (
                ice.htu,
                "https://gateway.example/ice/v1",
                "https://gateway.example:80/lab/ice/v1",
                "http://10.1.2.3:8440/lab/ice/v1",
                "http://10.1.2.3/ice/v1",
            ):
                with subtests.test(f"{url} at {path}"):
                    refused = await ice.refused({"Host": "gateway.example"}, path=path, htu=url)
                    problem = expect(refused, 401, "proof-invalid")
                    assert url in problem["detail"]
                    assert "https://Gateway.example:443/lab/ice/v1" in problem["detail"]
        refused = await ice.refused(path="/other/ice/v1")
        assert (refused.status, refused.code) == (404, "not-found")
        assert (await page(running, "/lab/readyz"))[0] == 200
        assert (await page(running, "/lab/healthz"))[0] == 200


# --- the nonce -------------------------------------------------------------------------------------


async def test_a_clock_that_is_off_needs_a_nonce(timed, clock, subtests):
    ice = await timed.provision()
    for off in (-86400, -60.001, 60.001, 86400):
        with subtests.test(str(off)):
            claims = {"iat": clock.unix(off), "jti": f"the same in every proof {off}"}
            refused = await ice.refused(**claims)
            expect(refused, 401, "use-dpop-nonce")
            # What was answered so is not remembered.
            expect(await ice.refused(**claims), 401, "use-dpop-nonce")
            nonce = refused.headers["DPoP-Nonce"]
            clock.skip(seconds=299)
            await ice.connect(**claims, nonce=nonce)
            expect(await ice.refused(**claims, nonce=nonce), 401, "proof-invalid", retry=True)
            await ice.connect(iat=clock.unix(off), nonce=nonce)


async def test_a_clock_that_is_good_enough_needs_none(timed, clock):
    ice = await timed.provision()
    for off in (-60, 0, 60):
        await ice.connect(iat=clock.unix(off))


async def test_a_nonce_is_judged_alone(timed, clock, subtests):
    ice = await timed.provision()
    nonce = (await ice.refused(iat=0)).headers["DPoP-Nonce"]
    clock.skip(seconds=300)
    wrong = {
        "stale": nonce,
        "garbage": "garbage",
        "empty": "",
        "changed": nonce[:-1] + ("A" if nonce[-1] != "A" else "B"),
        "another gateway's": Nonces(lambda: [bytes(32)]).issue(clock.monotonic()),
    }
    for name, text in wrong.items():
        with subtests.test(name):
            # The iat is good.
            refused = await ice.refused(iat=clock.unix(), nonce=text)
            expect(refused, 401, "use-dpop-nonce")
            assert refused.headers["DPoP-Nonce"] != nonce
    fresh = refused.headers["DPoP-Nonce"]
    await ice.connect(iat=0, nonce=fresh)
    await ice.connect(iat=clock.unix(), nonce=fresh)


# --- the gateway's own state -----------------------------------------------------------------------


@pytest.mark.sqlite
async def test_without_its_store_nobody_is_admitted_and_nobody_dropped(running):
    ice, other = await running.provision(), await running.provision("lab-2")
    connection = await ice.connect()
    with database_gone(running):
        expect(await other.refused(), 503, "store-unavailable")
        await until_ready(running, ready=False)
        expect(await ice.refused(), 503, "store-unavailable")
        assert (await page(running, "/healthz"))[0] == 200
        await connection.round_trip()
    await until_ready(running)
    await other.connect()
    await connection.round_trip()
    # The admin is told afterwards.
    answer = await running.eventually(
        "/ices/lab-1/connections",
        lambda answer: answer.json["items"][0]["code"] == "store-unavailable",
    )
    assert answer.json["items"][0]["count"] == 1


async def test_a_gateway_that_drains_admits_nobody(running, hold_look_ups):
    held, go = hold_look_ups
    late = await running.provision("lab-2")
    streams = await late.begin()
    await until(lambda: held)
    ice = await running.provision()
    await running.gateway.node.drain(1)
    expect(await ice.refused(), 503, "draining")
    # A handshake in hand is refused, too.
    finishing = asyncio.ensure_future(late.finish(*streams))
    go.set()
    with pytest.raises(Exception, match="503 draining") as refused:
        await finishing
    expect(refused.value, 503, "draining")
    assert not list(running.gateway.node.hub)


@pytest.mark.gateway(ice__max_handshakes=2)
async def test_too_many_handshakes_at_once(running, hold_look_ups):
    held, go = hold_look_ups
    ices = [await running.provision(f"lab-{number}") for number in range(3)]
    waiting = [asyncio.ensure_future(ice.connect()) for ice in ices[:2]]
    await until(lambda: len(held) == 2)
    expect(await ices[2].refused(), 503, "overloaded")
    go.set()
    for handshake in waiting:
        await (await handshake).round_trip()
    await ices[2].connect()
    assert running.gateway.endpoint.handshakes == 0


async def test_the_limit_of_connections_is_checked_last(tmp_path):
    async with harness(tmp_path, ice__max_connections=1) as running:
        first, second = await running.provision(), await running.provision("lab-2")
        await first.connect()
        expect(await second.refused(), 503, "overloaded")
        assert await running.status("lab-2") == "registered"
        # Whoever has a session may replace it.
        connection = await first.connect()
        await connection.leave()
        await (await second.connect()).round_trip()
        expect(await first.refused(), 503, "overloaded")


# --- clients that stop or vanish -------------------------------------------------------------------


@pytest.mark.gateway(tuning=Tuning(timeouts=Timeouts(head=0.5)))
async def test_a_request_that_stops_half_way_is_cut_off(running):
    ice = await running.provision()
    whole = ice.request()
    connections = [await ice.dial() for _ in range(3)]
    for (_, writer), part in zip(connections, (b"", whole[:10], whole[:-2]), strict=True):
        writer.write(part)
    for reader, writer in connections:
        # Where the part comes after the cut, the system answers it with a reset.
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
    await ice.connect()


async def test_clients_that_vanish_leave_nothing(running, hold_look_ups):
    held, go = hold_look_ups
    ice = await running.provision()
    await running.session.close()
    hub = running.gateway.node.hub
    await until(
        lambda: not [task for task in asyncio.all_tasks() if "RequestHandler" in repr(task)]
    )
    before = asyncio.all_tasks()
    whole = ice.request()
    for length in (0, 1, len(whole) // 2, len(whole) - 1, len(whole)):
        _, writer = await ice.dial()
        writer.write(whole[:length])
        if length == len(whole):
            await until(lambda: held)
        writer.transport.abort()
    assert hub._pending, "the last is waiting for its entry"
    go.set()
    await until(lambda: asyncio.all_tasks() <= before)
    assert hub._pending == {}
    assert list(hub) == []
    assert running.gateway.endpoint.handshakes == 0
    await (await ice.connect()).round_trip()


# --- whence ------------------------------------------------------------------------------------------

FORWARDED = {
    "203.0.113.7": "203.0.113.7",
    "6.6.6.6, 203.0.113.7": "203.0.113.7",
    "6.6.6.6, 2001:db8::7, 10.0.0.1": "2001:db8::7",
    "6.6.6.6, nonsense, 10.0.0.1": "10.0.0.1",
    "nonsense": "127.0.0.1",
    None: "127.0.0.1",
}


@pytest.mark.parametrize("trusted", [["127.0.0.1", "10.0.0.0/8"], ["10.0.0.0/8"], []], ids=str)
async def test_proxies_are_believed_only_if_trusted(tmp_path, subtests, trusted):
    async with harness(tmp_path, server__trusted_proxies=trusted) as running:
        for number, (header, behind) in enumerate(FORWARDED.items()):
            name = f"lab-{number}"
            ice = await running.provision(name)
            headers = {"X-Forwarded-For": header}
            await ice.connect(headers)
            await running.ice(ice.token, Key()).refused(headers)
            with subtests.test(header):
                address = behind if "127.0.0.1" in trusted else "127.0.0.1"
                answer = await running.eventually(
                    f"/ices/{name}/connections", lambda answer: len(answer.json["items"]) == 2
                )
                assert [item["address"] for item in answer.json["items"]] == [address] * 2
                shown = await running.admin.get(f"/ices/{name}")
                assert shown.json["connection"]["address"] == address
                events = await running.admin.get(f"/events?action=register&ice_name={name}")
                assert events.json["items"][0]["address"] == address


@pytest.mark.gateway(
    server__trusted_proxies=["127.0.0.1"], tuning=Tuning(node=NodeLimits(attempts=1))
)
async def test_attempts_are_counted_for_the_client_behind_the_proxy(running):
    ice = await running.provision()
    codes = [
        (await ice.refused({"Authorization": "DPoP x", "X-Forwarded-For": address})).code
        for address in ("203.0.113.7", "203.0.113.7", "203.0.113.8")
    ]
    assert codes == ["token-invalid", "too-many-attempts", "token-invalid"]


# --- refusals tell no more than they should ----------------------------------------------------------


async def test_no_refusal_quotes_a_token(running):
    ice = await running.provision()
    for how in ({"ath": "wrong"}, {"iat": 0}, {"htu": "http://other/"}):
        refused = await ice.refused(**how)
        told = json.dumps(refused.problem) + str(refused.headers)
        assert ice.token not in told
        assert ice.token[-40:] not in told
