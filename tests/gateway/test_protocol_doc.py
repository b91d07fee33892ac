"""`docs/protocol.md` is true: its worked handshake is played byte by byte, its tables are the code's."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from websockets.frames import Opcode

from client.backoff import BASE, CAP, STEADY
from client.conformance.sentences import CANNOT_TRY, Sentence
from client.environment import Waits
from client.journal import KEPT
from client.protocol import CancelReason, CloseCode, EnrolmentCode, RefusalCode, RpcRefusal
from gateway.core import base64url
from gateway.core.audit_event import Event
from gateway.core.dpop import Jwk, thumbprint_of
from gateway.core.enrolment import EnrolmentKey
from gateway.core.ice import Ice, IceType
from gateway.core.secret import Secret
from gateway.store import enrolments, ices
from tests.support.harness import ADMIN, harness
from tests.support.ice import Connection
from tests.support.work import connected, show

DOC = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
NOW = datetime(2026, 11, 22, 14, 1, tzinfo=UTC)


def block(name: str) -> str:
    found = re.search(rf"```{name}\n(.*?)\n```", DOC, re.DOTALL)
    assert found is not None, f"docs/protocol.md has no block {name!r}"
    return found[1]


def rows(heading: str) -> dict[str, list[str]]:
    """The first table behind a heading, by the word in its second column."""
    lines = re.search(r"(?:^\|.*\n)+", DOC.split(heading)[1], re.MULTILINE)[0].splitlines()
    table = [line.strip("|").split("|") for line in lines]
    return {cells[1].strip().strip("`"): [cell.strip() for cell in cells] for cells in table[2:]}


@pytest.fixture
async def example(tmp_path):
    """A gateway as the worked example supposes it: its key, its entry, its time."""
    key = base64url.encode(bytes(range(32)))
    file = tmp_path / "ice.keys.json"
    file.touch(mode=0o600)
    file.write_text(
        json.dumps({"keys": [{"kty": "oct", "kid": "example", "k": key}], "seals": "example"})
    )
    async with harness(
        tmp_path, clock=lambda: NOW, server__public_url="https://gateway.example"
    ) as running:
        ice = Ice.provision(
            "lab-1",
            IceType.NORMAL,
            "alice",
            Secret(block("token")).digest(),
            key_id="k1",
            now=NOW,
            expires=None,
        )
        event = Event(NOW, ADMIN, "provision", "lab-1", 1)
        await running.gateway.engine.write(lambda tx: ices.insert(tx, ice, event))
        yield running


async def test_the_worked_handshake_is_answered_to_the_byte(example):
    host, port = example.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(block("request").replace("\n", "\r\n").encode() + b"\r\n\r\n")
    async with asyncio.timeout(5):
        answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.decode() == block("response").replace("\n", "\r\n") + "\r\n\r\n"
    connection = Connection(reader, writer)
    welcome = await connection.message()
    expected = json.loads(block("welcome"))
    expected["params"]["session"] = welcome["params"]["session"]
    assert welcome == expected
    await connection.close()


async def test_the_worked_enrolment_is_answered_as_it_stands_there(example):
    """The tokens are opened, because each has random bits of its own."""
    secret = block("enrolment-secret")
    key = EnrolmentKey(
        id=secret.split("_")[1],
        name="lab PCs",
        secret_hash=Secret(secret).digest(),
        ice_type=IceType.NORMAL,
        provisionedto="alice",
        name_prefix="lab-",
        max_uses=1,
        uses=0,
        approval=False,
        createdby="root",
        createdon=NOW,
        expireson=NOW + timedelta(days=7),
    )
    await example.gateway.engine.write(lambda tx: enrolments.add_key(tx, key))
    host, port = example.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(block("enrolment-request").replace("\n", "\r\n").encode())
    async with asyncio.timeout(5):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        length = next(line for line in head if line.startswith("Content-Length: "))
        body = json.loads(await reader.readexactly(int(length.split()[1])))
    writer.close()
    lines, shown = block("enrolment-response").split("\n\n")
    assert head[0] == lines.splitlines()[0]
    assert set(lines.splitlines()) <= set(head)
    documented = json.loads(shown)
    keys = example.gateway.services.provisioning.keys
    made, opened = (keys.open(Secret(one.pop("token"))) for one in (body, documented))
    assert body == documented
    assert msgspec.structs.replace(made, digest="") == msgspec.structs.replace(opened, digest="")
    assert made.thumbprint in DOC


@pytest.mark.parametrize(
    ("request_", "scheme", "secret", "claims"),
    [
        ("request", "DPoP", "token", "proof-claims"),
        ("enrolment-request", "Bearer", "enrolment-secret", "enrolment-claims"),
    ],
)
def test_the_examples_can_be_made_again(request_, scheme, secret, claims):
    head, _, body = block(request_).partition("\n\n")
    request = dict(line.split(": ", 1) for line in head.splitlines()[1:])
    assert request["Authorization"] == f"{scheme} {block(secret)}"
    assert int(request.get("Content-Length", 0)) == len(body)
    # The private key of RFC 8037 appendix A.1.
    private = Ed25519PrivateKey.from_private_bytes(
        base64url.decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A")
    )
    signed = ".".join(base64url.encode(block(part).encode()) for part in ("proof-header", claims))
    assert request["DPoP"] == f"{signed}.{base64url.encode(private.sign(signed.encode()))}"
    jwk = msgspec.convert(json.loads(block("proof-header"))["jwk"], Jwk)
    assert thumbprint_of(jwk) in DOC


async def test_the_worked_operation_is_played_to_the_letter(running):
    """Its lines are sent as they stand there, but for the id and the deadline, which are the gateway's."""
    lines = [line.split(None, 1) for line in block("operation").splitlines()]
    documented = json.loads(lines[0][1])["params"]
    ice = await connected(running)
    # Its params reach the ICE as they were sent, blanks and all.
    body = msgspec.json.encode({"kind": documented["kind"], "params": documented["params"]})
    headers = {"Content-Type": "application/json"}
    answer = await running.admin.call("POST", "/ices/lab-1/operations", data=body, headers=headers)
    operation = answer.json["id"]
    deadline = (await show(running.admin, operation))["deadline"]
    for sender, text in lines:
        own = text.replace(documented["id"], operation).replace(documented["deadline"], deadline)
        if sender == "ICE":
            ice.send_frame(Opcode.TEXT, own.encode())
        else:
            frame = await ice.frame()
            assert frame.data.decode() == own
    shown = await show(running.admin, operation)
    assert (shown["state"], shown["result"]) == ("succeeded", {"exit": 0})
    assert shown["progress"]["message"] == "3 of 6"


def test_every_refusal_of_a_request_is_documented_as_it_is():
    documented = {code: cells[0] for code, cells in rows("## 5. Operations").items()}
    assert documented == {code.value: str(code.number) for code in RpcRefusal}


def test_every_reason_to_cancel_is_documented():
    table = DOC.split("| `reason` | meaning |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(CancelReason)


def test_every_refusal_is_documented_as_it_is():
    documented = rows("## 3. Refusals")
    assert list(documented) == [
        "bad-handshake",
        "draining",
        "overloaded",
        "token-missing",
        "token-invalid",
        "too-many-attempts",
        "proof-invalid",
        "use-dpop-nonce",
        "store-unavailable",
        "deregistered",
        "token-replaced",
        "token-expired",
        "key-mismatch",
    ]
    assert set(documented) == set(RefusalCode), "a refusal is missing in docs/protocol.md"
    for code in RefusalCode:
        status, _, retry, _ = documented[code]
        assert str(code.status) in status.split(", "), code
        assert retry == msgspec.json.encode(code.retry).decode(), code


def test_every_refusal_of_an_enrolment_is_documented_as_it_is():
    documented = rows("### Refusals of an enrolment")
    assert list(documented) == [
        "draining",
        "overloaded",
        "enrolment-key-invalid",
        "too-many-attempts",
        "proof-invalid",
        "use-dpop-nonce",
        "store-unavailable",
        "malformed-json",
        "invalid",
        "not-found",
        "key-mismatch",
        "enrolment-refused",
        "ice-exists",
        "queue-full",
    ]
    assert set(EnrolmentCode) <= set(documented), "a refusal is missing in docs/protocol.md"
    codes = {code.value: code for code in (*RefusalCode, *EnrolmentCode)}
    for name, (status, _, retry, _) in documented.items():
        assert status == str(codes[name].status), name
        assert retry == msgspec.json.encode(codes[name].retry).decode(), name


def test_every_close_code_is_documented_with_its_reason():
    documented = {cells[0]: reason for reason, cells in rows("## 6. The end").items()}
    assert {int(code) for code in documented} == set(CloseCode)
    for code in CloseCode:
        if code is not CloseCode.RESTART:
            assert documented[str(code)] == code.reason


def test_the_times_of_the_reference_client_are_those_of_the_page():
    for sentence in (
        f"a\nsession that ended before it had lasted {STEADY:g} s",
        f"has no 101 and no refusal after {Waits().handshake:g} s",
        f"no welcome {Waits().handshake:g} s after it",
        f"Keep ids for {KEPT / 86_400:g} days.",
        f"min({CAP:g} s, {BASE:g} s · 2ⁿ⁻¹)",
    ):
        assert sentence in DOC, sentence


def test_every_sentence_of_the_conformance_kit_is_documented():
    """With a section that is there, so that a failed sentence leads to its details."""
    section = DOC.split("## 8. Conformance")[1]
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d|Enrolment) \| (.*) \|$", section, re.MULTILINE)
    assert rows == [(one.value, one.section, one.text) for one in Sentence]
    headings = re.findall(r"^## (\w+)", DOC, re.MULTILINE)
    assert {one.section for one in Sentence} < set(headings)
    untried = section.split("| what | why |")[1].strip().splitlines()[1:]
    assert untried == [f"| {what} | {why} |" for what, why in CANNOT_TRY.items()]
