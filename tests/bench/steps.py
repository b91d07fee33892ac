"""What each step of an admission costs alone, in CPU time of the whole process.

    python -m tests.bench.steps FOLDER COUNT

A database with COUNT ICEs is made in FOLDER. A step is done for all of them in a row, so that its code is in
the processor's caches; in a gateway the steps take turns, and each costs more: `together_us` is what they cost in
a gateway without sockets, `caches_us` what they cost more if each ICE takes all of them in turn, but for the two
that use the database. One JSON object on stdout: microseconds by step, the median of five passes.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import secrets
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from client.protocol import CloseCode
from gateway.app import run_gateway
from gateway.core import base64url, dpop, replay
from gateway.core.ice import Ice, IceType
from gateway.core.secret import Secret
from gateway.core.times import utc_now
from gateway.node.hub import Hub
from gateway.node.presence import Presence
from gateway.node.session import Session
from gateway.node.verdict import Admitted, Handshake
from gateway.runtime import eventloop, logs
from gateway.runtime.setting_sources import load
from gateway.runtime.settings import Settings
from gateway.store.ice_loader import IceLoader
from gateway.store.key_file import KeyStore
from gateway.store.sqlite.engine import SqliteEngine, open_sqlite
from gateway.web.metrics import Metrics
from tests.bench.fleet import Fleet, database_in

URL = "http://127.0.0.1:8440/ice/v1"
TOGETHER = 256
CURVE = ec.SECP256R1()
ECDSA = ec.ECDSA(hashes.SHA256())
PASSES = 5


class _Nobody:
    """Hears what sessions tell."""


async def _passes(each: Callable[[], Awaitable[None] | None], count: int) -> float:
    """Microseconds of CPU per ICE."""
    took = []
    for _ in range(PASSES):
        began = time.process_time()
        waiting = each()
        if waiting is not None:
            await waiting
        took.append((time.process_time() - began) / count * 1e6)
    return statistics.median(took)


class Steps:
    """The parts of a gateway, without the network, and what its ICEs would bring."""

    def __init__(self, fleet: Fleet, keys: KeyStore, engine: SqliteEngine) -> None:
        self._keys, self._engine = keys, engine
        brought = [fleet.handshake(number, URL) for number in range(fleet.size)]
        self._tokens = [Secret(token) for token, _ in brought]
        self._proofs = [text for _, text in brought]
        self._opened = [keys.open(token) for token in self._tokens]
        self._urls = frozenset({dpop.normalise(URL)})
        self._count = fleet.size

    async def measure(self) -> dict[str, float]:  # noqa: C901 - a step is a function
        signed = [_signed(text) for text in self._proofs]
        imported = [imported_key(dpop.Jwk(**jwk)) for jwk, _, _ in signed]
        verified = [self._check_form(number) for number in range(self._count)]
        read = [_read(text).signature for text in self._proofs]
        assert not any(one.fault() for one in read), "a good signature was refused"
        loader = IceLoader(self._engine)
        readings = [await loader.find(opened.ice_name) for opened in self._opened]
        ices = [reading.ice for reading in readings]
        metrics = Metrics()
        gauge, counter = (
            metric.labels(IceType.CI_CD) for metric in (metrics.sessions, metrics.admissions)
        )
        log = structlog.get_logger().bind()

        def signatures() -> None:
            for key, (_, signature, text) in zip(imported, signed, strict=True):
                r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
                key.verify(encode_dss_signature(r, s), text, ECDSA)

        def keys() -> None:
            for jwk, _, _ in signed:
                imported_key(dpop.Jwk(**jwk))

        def points() -> None:
            for one in read:
                ec.EllipticCurvePublicKey.from_encoded_point(CURVE, b"\x04" + one.key)

        def check_signature(number: int) -> None:
            read[number].fault()

        def open_token(number: int) -> None:
            self._keys.open(self._tokens[number])

        guard = replay.ReplayGuard(replay.Nonces(lambda: [b"key"]))

        def remember(number: int) -> None:
            nonlocal guard
            if number == 0:  # in each pass a proof counts once
                guard = replay.ReplayGuard(replay.Nonces(lambda: [b"key"]))
            one = verified[number]
            guard.used(one, one.iat, 0.0)
            guard.accept(one, one.iat, 0.0)

        hub: Hub[Session] = Hub()

        def decide(number: int) -> None:
            opened, one = self._opened[number], verified[number]
            pending = hub.expect(opened.ice_name, opened.generation)
            ices[number].judge(
                opened.ice_type, opened.generation, opened.digest, one.thumbprint, utc_now()
            )
            hub.forget(pending)

        def session(number: int) -> None:
            _session(ices[number], number).welcome(30.0)

        def count(_: int) -> None:
            gauge.inc()
            counter.inc()
            metrics.admission_seconds.observe(0.01)

        def write_log(number: int) -> None:
            facts = {"ice": ices[number].ice_name, "generation": 1, "address": "127.0.0.1"}
            log.info("admitted", **facts, connection="0123456789abcdef")

        async def look_up() -> None:
            for first in range(0, self._count, TOGETHER):
                some = self._opened[first : first + TOGETHER]
                await asyncio.gather(*(loader.find(opened.ice_name) for opened in some))

        presence = Presence(self._engine, "steps", utc_now)
        numbers = iter(range(PASSES * self._count))

        async def be_present() -> None:
            for first in range(0, self._count, TOGETHER):
                for ice in ices[first : first + TOGETHER]:
                    presence.opened(_session(ice, next(numbers)))
                await presence.flush()

        async def wait() -> None:
            for first in range(0, self._count, TOGETHER):
                await _wait_twice(min(TOGETHER, self._count - first))

        signature, key = await self._of(signatures), await self._of(keys)
        steps = {
            "open_token_us": open_token,
            "proof_us": self._check_form,
            "replay_us": remember,
            "decide_us": decide,
            "session_us": session,
            "metrics_us": count,
            "log_us": write_log,
        }
        alone = {name: await self._of(self._in_a_row(step)) for name, step in steps.items()}
        signed_alone = await self._of(self._in_a_row(check_signature))
        in_turn = await self._of(self._in_a_row(*steps.values(), check_signature))
        return {
            **alone,
            "signature_us": signature,
            "key_us": key,
            # To check the form, the thumbprint and the coordinates are made, which belong to the key.
            "proof_us": alone["proof_us"] - (key - await self._of(points)),
            "look_up_us": await self._of(look_up),
            "presence_us": await self._of(be_present),
            "waits_us": await self._of(wait),
            "caches_us": in_turn - signed_alone - sum(alone.values()),
        }

    def _in_a_row(self, *steps: Callable[[int], object]) -> Callable[[], None]:
        """Do these steps for one ICE after the other."""

        def run() -> None:
            for number in range(self._count):
                for step in steps:
                    step(number)

        return run

    async def _of(self, each: Callable[[], Awaitable[None] | None]) -> float:
        return await _passes(each, self._count)

    def _check_form(self, number: int) -> dpop.Proof:
        """Everything but the signature."""
        token = self._tokens[number].reveal()
        proof = _read(self._proofs[number]).proof(token=token, urls=self._urls, expected=URL)
        assert isinstance(proof, dpop.Proof), f"a good proof was refused: {proof}"
        return proof


async def together(fleet: Fleet, settings: Settings) -> float:
    """The same steps for one ICE after the other, 256 at a time, in a whole gateway but without sockets."""
    async with run_gateway(settings) as running:
        node = running.node
        # A proof counts once: each pass needs others.
        brought = [
            fleet.handshake(number, URL) for _ in range(PASSES) for number in range(fleet.size)
        ]
        left = (
            Handshake((f"DPoP {token}",), (proof,), "127.0.0.1", (URL,)) for token, proof in brought
        )

        def open_session(admitted: Admitted) -> Session:
            session = node.session(admitted, secrets.token_hex(8), "127.0.0.1")
            session.transport = _Nowhere(session)
            session.welcome(30.0)
            return session

        async def admit() -> None:
            for first in range(0, fleet.size, TOGETHER):
                some = itertools.islice(left, min(TOGETHER, fleet.size - first))
                outcomes = await asyncio.gather(*(node.admit(one, open_session) for one in some))
                assert all(isinstance(outcome, Session) for outcome in outcomes), outcomes[0]
                await node.presence.flush()

        eventloop.freeze_heap()  # as a gateway does
        took = []
        for _ in range(PASSES):
            began = time.process_time()
            await admit()
            took.append((time.process_time() - began) / fleet.size * 1e6)
            for session in node.hub:
                session.close(CloseCode.RESTART)
            await node.presence.flush()
        return statistics.median(took)


async def _wait_twice(count: int) -> None:
    """As many tasks as ICEs, each of which waits for its screening and for its look-up, and does nothing else."""
    loop = asyncio.get_running_loop()
    waiting: list[asyncio.Future[None]] = []

    async def wait() -> None:
        for _ in range(2):
            future = loop.create_future()
            waiting.append(future)
            await future

    tasks = [loop.create_task(wait()) for _ in range(count)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        answered, waiting[:] = waiting[:], []
        for future in answered:
            future.set_result(None)


class _Nowhere:
    """The transport of a session without a socket."""

    heard = 0.0

    def __init__(self, session: Session) -> None:
        self._session = session
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost.set_result(None)

    def send(self, text: bytes) -> None:
        """Send nothing."""

    def ping(self) -> None:
        """Send nothing."""

    def close(self, code: int, _: str | None = None) -> None:
        self._session.closed(code)


def _read(text: str) -> dpop.Signed:
    signed = dpop.read(text)
    assert isinstance(signed, dpop.Signed), f"a good proof was refused: {signed}"
    return signed


def _signed(text: str) -> tuple[dict[str, Any], bytes, bytes]:
    """The key of a proof, its signature, and what is signed."""
    head, claims, signature = text.split(".")
    jwk = json.loads(base64url.decode(head))["jwk"]
    return jwk, base64url.decode(signature), f"{head}.{claims}".encode()


def imported_key(jwk: dpop.Jwk) -> ec.EllipticCurvePublicKey:
    """The public key, of which the gateway also makes the thumbprint."""
    dpop.thumbprint_of(jwk)
    point = b"\x04" + dpop._key("ES256", jwk)
    return ec.EllipticCurvePublicKey.from_encoded_point(CURVE, point)


def _session(ice: Ice, number: int) -> Session:
    return Session(
        ice,
        session_id=f"{number:016x}",
        seq=1,
        address="127.0.0.1",
        since=utc_now(),
        observer=_Nobody(),  # type: ignore[arg-type]
    )


async def run(folder: Path, count: int) -> None:
    """Provision `count` ICEs in `folder`, measure with them, and print it."""
    fleet = Fleet(folder, count)
    await fleet.provision()
    settings = load(
        None, {}, {"database.url": database_in(folder), "server.port": 0, "metrics.listen": ""}
    )
    keys = KeyStore(settings.key_file)
    keys.load()
    async with open_sqlite(settings.database_path, serving=True) as engine:
        figures = await Steps(fleet, keys, engine).measure()
    print(json.dumps({**figures, "together_us": await together(fleet, settings)}))


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - where the log lines go, to the end
    # What one line costs is measured, not how many may be written.
    logs.NAMED_A_MINUTE = logs.ICE_LINES_A_MINUTE = sys.maxsize
    logs.configure("json", "info")
    eventloop.run(run(folder, count))


if __name__ == "__main__":
    main()
