"""The token, the key, the handshake, and what must not be sent.

Tested in tests/client/test_client_conformance.py.
"""

from __future__ import annotations

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from client import platform
from client.conformance.gateway import Attempt, Gateway, Session
from client.conformance.sentences import Sentence
from client.conformance.stage import Scenario, Stage, Unmet, is_method
from client.protocol import RefusalCode

_REQUEST: Final = frozenset(
    {
        *(Sentence.HANDSHAKE, Sentence.AUTHORIZATION, Sentence.PROOF_FORM, Sentence.PROOF_KEY),
        *(Sentence.PROOF_CLAIMS, Sentence.PROOF_TIME, Sentence.PROOF_FRESH),
    }
)


async def _connects(stage: Stage) -> None:
    """A first start with a token file as Windows' editor writes it, and a gateway whose clock differs."""
    await stage.start()
    first = await stage.attempt(Sentence.HANDSHAKE)
    sent = first.request.all("Authorization")
    trimmed = sent == [f"DPoP {stage.gateway.token}"]
    stage.check(Sentence.TOKEN_TRIMMED, trimmed, "another text was sent than the token")
    first.refuse_as(RefusalCode.USE_DPOP_NONCE, headers={"DPoP-Nonce": "nonce-1"})
    second = await stage.comes_back(Sentence.NONCE, first.answered)
    _check_nonce(stage, Sentence.NONCE, second, "nonce-1")
    second.refuse_as(RefusalCode.USE_DPOP_NONCE, headers={"DPoP-Nonce": "nonce-2"})
    third = await stage.comes_back(Sentence.NONCE_AGAIN, second.answered)
    _check_nonce(stage, Sentence.NONCE_AGAIN, third, "nonce-2")
    await stage.admit(third)


def _check_nonce(stage: Stage, sentence: Sentence, attempt: Attempt, nonce: str) -> None:
    if not attempt.proof.thumbprint:
        raise Unmet(Sentence.PROOF_FORM, "its proof cannot be read")
    found = attempt.proof.nonce
    stage.check(sentence, found == nonce, f"the proof has the nonce {found!r}, not {nonce}")


async def _prefix(stage: Stage) -> None:
    await stage.start()
    await stage.attempt(Sentence.PREFIX)


async def _key(stage: Stage) -> None:
    """Killed during its first attempt, and again once it is admitted."""
    await stage.start()
    first = await stage.attempt(Sentence.KEY_KEPT)
    exposed = [path.name for path in _readable_by_others(stage.place.state_dir)]
    seen = f"others may read {', '.join(exposed)}"
    stage.check(Sentence.KEY_PRIVATE, not exposed, seen)
    await stage.restart()
    second = await stage.attempt(Sentence.KEY_KEPT)
    _check_key(stage, first, second, "after a kill during its first attempt")
    session = await stage.admit(second)
    instance = _instance(session)
    session = await stage.reconnect(session, Sentence.INSTANCE)
    same = _instance(session) == instance is not None
    stage.check(Sentence.INSTANCE, same, f"{instance!r}, then {_instance(session)!r}")
    await stage.restart()
    third = await stage.attempt(Sentence.KEY_KEPT)
    _check_key(stage, second, third, "after a restart")
    other = _instance(await stage.admit(third))
    stage.check(Sentence.INSTANCE, other != instance, f"{instance!r} before and after a restart")


def _readable_by_others(folder: Path) -> list[Path]:
    """The files with content that other users can read, unless the folder is closed to them."""
    if not folder.is_dir() or not platform.open_to_others(folder):
        return []
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    return [path for path in files if platform.open_to_others(path)]


def _check_key(stage: Stage, before: Attempt, after: Attempt, when: str) -> None:
    same = before.proof.thumbprint == after.proof.thumbprint != ""
    stage.check(Sentence.KEY_KEPT, same, f"another key {when}")


def _instance(session: Session) -> str | None:
    [hello, *_] = session.all(is_method("ice.hello"))
    found = hello["params"].get("instance")
    return found if isinstance(found, str) else None


async def _no_subprotocol(stage: Stage) -> None:
    await stage.start()
    attempt = await stage.attempt(Sentence.NO_SUBPROTOCOL)
    session = await stage.gateway.admit(attempt, subprotocol="")
    left = await session.wait(lambda: session.ended is not None, stage.waits.timeout)
    stage.check(Sentence.NO_SUBPROTOCOL, left, "it stayed")
    if session.ended is not None:
        await stage.comes_back(Sentence.NO_SUBPROTOCOL, session.ended)


async def _sends_nothing(stage: Stage, sentence: Sentence) -> None:
    """To this gateway; to another one it does, or it would prove nothing."""
    await stage.start()
    await stage.stays_away(sentence, "its start")
    async with Gateway(stage.report, stage.gateway.token) as stage.gateway:
        await stage.restart()
        await stage.attempt(sentence)
        await stage.program.kill()


async def _one_process(stage: Stage) -> None:
    await stage.start()
    session = await stage.session(Sentence.ONE_PROCESS)
    await stage.start()
    await stage.stays_away(Sentence.ONE_PROCESS, "a second start")
    await stage.alive(session, Sentence.ONE_PROCESS, "a second process was started")


def _untrusted() -> ssl.SSLContext:
    """A server with a self-signed certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "conformance")])
    now = datetime.now(UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with platform.scratch_folder() as folder:
        file = Path(folder, "server.pem")
        pem = serialization.Encoding.PEM
        private = key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file.write_bytes(certificate.public_bytes(pem) + private)
        context.load_cert_chain(file)
    return context


SCENARIOS: Final = (
    Scenario(
        "connects",
        _REQUEST | {Sentence.TOKEN_TRIMMED, Sentence.NONCE, Sentence.NONCE_AGAIN},
        _connects,
        token_file="\ufeff \t{}\r\n\n",  # noqa: S106 - the token comes in its place
    ),
    Scenario("prefix", frozenset({Sentence.PREFIX}), _prefix, prefix="/some/path"),
    Scenario("key", frozenset({Sentence.KEY_KEPT, Sentence.KEY_PRIVATE, Sentence.INSTANCE}), _key),
    Scenario("no-subprotocol", frozenset({Sentence.NO_SUBPROTOCOL}), _no_subprotocol),
    Scenario(
        "certificate",
        frozenset({Sentence.CERTIFICATE}),
        partial(_sends_nothing, sentence=Sentence.CERTIFICATE),
        tls=_untrusted,
    ),
    # What is sent there reaches a listener on loopback, but it is no address of loopback.
    Scenario(
        "plain-http",
        frozenset({Sentence.PLAIN_HTTP}),
        partial(_sends_nothing, sentence=Sentence.PLAIN_HTTP),
        host="0.0.0.0",  # noqa: S104 - as said
    ),
    Scenario("one-process", frozenset({Sentence.ONE_PROCESS}), _one_process),
)
