"""kill -9 while machines enrol: no machine is stranded, no use of a key is lost or made twice.

    python -m tests.torture.enrolment [--rounds 300] [--seed N] [--engine postgresql] [--mutate NAME]

In each round machines enrol and register with a key of their own, some wait for an admin, some want the same
name, some ask again as though an answer was lost, and an admin may revoke the key. Meanwhile the gateway dies
before, within or behind one of its next transactions, and is started again on the same database.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import random
import secrets
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from gateway.app import run_gateway
from gateway.core import enrolment as rules
from gateway.core.dpop import Jwk, thumbprint_of
from gateway.runtime.logs import configure
from gateway.store import enrolments
from tests.support.harness import harness, settings_for
from tests.support.ice import Ice, Refused
from tests.support.machine import CI_CD, ENROLMENTS, Machine, new_key
from tests.support.postgres import postgres
from tests.torture.operations import Caller, Process
from tests.torture.victim import kill_itself

ENGINES = ("sqlite", "postgresql")
MOMENTS = ("before", "within", "committed")
_OURS = ("EnrolmentService.", "EnrolmentKeyService.", "Admission.")
"""Whose transactions count."""
_PATIENCE = 60.0
"""Seconds for the machines of a round to come to their end."""
_AGAIN = 0.01
"""Seconds until a machine asks again."""
_LOST = (aiohttp.ClientError, OSError, TimeoutError, asyncio.IncompleteReadError, AssertionError)
"""What a client meets whose gateway dies before it has answered."""
_AWAY = (aiohttp.ClientConnectorError, ConnectionRefusedError)


# --- the gateway ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Aim:
    """Die at the `nth` of the next transactions; `delay` are seconds from its beginning."""

    nth: int
    moment: str
    delay: float = 0.0


def serve(folder: Path, options: dict[str, Any], mutation: str | None, notes: Any) -> None:
    """A gateway; notes that it listens, and takes an `Aim` from then on."""
    configure("json", "error")
    if mutation is not None:
        MUTATIONS[mutation]()

    async def run() -> None:
        async with run_gateway(settings_for(folder, **options)) as gateway:
            _doom(gateway.engine._writes, notes)
            notes.send("listens")
            await asyncio.Event().wait()

    asyncio.run(run())


def _doom(writer: Any, notes: Any) -> None:
    aims: list[Aim] = []
    begun = 0
    write_group = writer._write_group

    async def doomed(group: Any) -> bool:
        nonlocal begun
        begun += bool(aims) and any(_whose(unit).startswith(_OURS) for unit, _ in group)
        aim = aims[0] if aims and begun == aims[0].nth else None
        if aim is not None and aim.moment == "before":
            kill_itself(0.0)
        if aim is not None and aim.moment == "within":
            threading.Thread(target=kill_itself, args=(aim.delay,)).start()
        done: bool = await write_group(group)
        if aim is not None and aim.moment == "committed":
            kill_itself(0.0)  # those who wait have not run since
        return done

    writer._write_group = doomed

    def hear() -> None:
        try:
            aims.append(notes.recv())
        except EOFError:  # whoever started this process has gone
            kill_itself(0.0)

    asyncio.get_running_loop().add_reader(notes.fileno(), hear)


def _whose(unit: Any) -> str:
    """The name of the function that makes a unit, or that does it with others."""
    return str(getattr(getattr(unit, "work", unit), "__qualname__", ""))


# --- faults that this has to find ----------------------------------------------------------------


def _renew_nothing() -> None:
    rules.may_renew = lambda enrolment, ice: False


def _count_apart() -> None:
    count_uses = enrolments.count_uses

    async def apart(transaction: Any, key_id: str, uses: int) -> None:
        await transaction.run("COMMIT")
        time.sleep(0.2)  # noqa: ASYNC251 - SQLite runs it in a thread, which cannot wait for the loop
        await transaction.run("BEGIN IMMEDIATE")
        await count_uses(transaction, key_id, uses)

    enrolments.count_uses = apart


_RENEW, _APART = "renew-nothing", "count-in-another-transaction"
MUTATIONS: dict[str, Callable[[], None]] = {_RENEW: _renew_nothing, _APART: _count_apart}


# --- the story -----------------------------------------------------------------------------------


@dataclass
class Told:
    """A machine was given a token: of which ICE, when it had asked, and for which enrolment, if for one."""

    ice_name: str
    asked: float
    enrolment: str | None


@dataclass
class Member:
    """A machine of a round, and what became of it: `registered`, or the code of a refusal."""

    machine: Machine
    end: str = ""
    detail: str = ""
    told: list[Told] = field(default_factory=list)
    generation: int | None = None

    @property
    def thumbprint(self) -> str:
        return thumbprint_of(Jwk(**self.machine.key.jwk))

    @property
    def wants(self) -> str:
        return self.machine.hostname


@dataclass
class Round:
    """A key and its machines, and what an admin did; `lost` counts the answers that were."""

    number: int
    key_id: str
    approval: bool
    max_uses: int
    members: list[Member]
    lost: int = 0
    approving: set[str] = field(default_factory=set)
    """Enrolments for which an approval was sent."""
    revokes_in: float | None = None
    """Seconds after which the admin revokes the key."""
    revoking: bool = False
    revoked_at: float | None = None
    """When the admin was told that the key is revoked."""


@dataclass
class Outcome:
    """How all rounds ended."""

    ends: Counter[str] = field(default_factory=Counter)
    deaths: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    faults: list[str] = field(default_factory=list)


class Torture:
    """Rounds at one gateway that is started again and again."""

    def __init__(
        self, gateway: Process, url: str, session: aiohttp.ClientSession, api_token: str
    ) -> None:
        self._gateway = gateway
        self._url = url
        self._session = session
        admin = {"Authorization": f"Bearer {api_token}"}
        self._admin_session = aiohttp.ClientSession(headers=admin)
        self._caller = Caller(self._admin_session, url)

    async def close(self) -> None:
        await self._admin_session.close()

    async def play(
        self, number: int, chance: random.Random, outcome: Outcome, aim: Aim | None = None
    ) -> None:
        """One round; adds to `outcome`. With an `aim`, nobody has to approve."""
        one = await self._begin(number, chance, approval=aim is None and chance.random() < 0.5)
        if aim is None and chance.random() < 0.25:
            one.revokes_in = chance.uniform(0, 0.3)
        aim = aim or Aim(chance.randint(1, 6), chance.choice(MOMENTS), chance.uniform(0, 0.02))
        self._gateway.tell(aim)
        tasks = [asyncio.create_task(self._live(one, member, chance)) for member in one.members]
        admin = asyncio.create_task(self._decide_all(one, chance))
        try:
            async with asyncio.timeout(_PATIENCE):
                aimed = await self._gateway.ended(chance.uniform(0.2, 0.5))
                await self._gateway.kill()  # at a random moment where it has not come so far
                outcome.deaths[aim.moment if aimed else "between"] += 1
                await self._gateway.start("listens")
                await asyncio.gather(*tasks)
        except TimeoutError:
            ends = [(member.wants, member.end) for member in one.members]
            outcome.faults.append(f"round {number}: machines did not come to an end: {ends}")
        finally:
            for task in (admin, *tasks):
                task.cancel()
            await asyncio.gather(admin, *tasks, return_exceptions=True)
        outcome.lost += one.lost
        outcome.ends.update(member.end for member in one.members)
        outcome.faults += [f"round {number}: {fault}" for fault in await self._judge(one)]

    async def _begin(self, number: int, chance: random.Random, *, approval: bool) -> Round:
        count = chance.randint(3, 5)
        uses = max(1, count - chance.choice((0, 0, 1, 2)))
        body = {
            **CI_CD,
            "name_prefix": f"r{number}-x-",
            "labels": {"round": str(number)},
            "approval": approval,
            "max_uses": uses,
        }
        status, made = await self._caller.call("POST", "/enrolment-keys", body)
        assert status == 201, f"a key was refused: {status} {made}"
        names = [f"pc-{place}" for place in range(count)]
        if chance.random() < 0.3:
            names[-1] = names[0]  # two want to be the same
        members = [
            Member(Machine(self._session, self._url, made["secret"], name)) for name in names
        ]
        return Round(number, made["enrolment_key"]["id"], approval, uses, members)

    # --- machines --------------------------------------------------------------------------------

    async def _live(self, one: Round, member: Member, chance: random.Random) -> None:
        """Ask until there is an ICE or a refusal for good, and register."""
        enrolment: str | None = None
        while not member.end:
            asked = time.monotonic()
            status, body = await self._ask(one, member, enrolment)
            if status == 202:
                enrolment = body["enrolment"]
                await asyncio.sleep(_AGAIN)
            elif status in (200, 201):
                member.told.append(Told(body["ice_name"], asked, enrolment))
                if chance.random() > 0.2:  # or it asks again, as though this answer was lost
                    await self._register(one, member, body["token"])
            else:
                member.end, member.detail = body["code"], body["detail"]

    async def _ask(self, one: Round, member: Member, enrolment: str | None) -> tuple[int, Any]:
        """An answer for good to a request or a poll."""
        machine, nonce = member.machine, {}
        method, path = ("GET", f"{ENROLMENTS}/{enrolment}") if enrolment else ("POST", ENROLMENTS)
        body = None if enrolment else {"hostname": machine.hostname, "platform": "test"}
        while True:
            try:
                headers = machine.headers(method, path, **nonce)
                status, answer, fields = await machine.send(method, path, headers, json=body)
            except _AWAY:
                pass
            except (*_LOST, ValueError):
                one.lost += 1
            else:
                code = answer.get("code")
                if code == "use-dpop-nonce":  # the gateway was started after the proof was made
                    nonce = {"nonce": fields["DPoP-Nonce"]}
                    continue
                if status < 500:
                    return status, answer
            await asyncio.sleep(_AGAIN)

    async def _register(self, one: Round, member: Member, token: str) -> None:
        ice, claims = Ice(self._url, token, member.machine.key), {}
        while True:
            try:
                connection = await ice.connect(**claims)
            except Refused as refused:
                if refused.code == "use-dpop-nonce":
                    claims = {"nonce": refused.headers["DPoP-Nonce"]}
                    continue
                if refused.status < 500:
                    member.end, member.detail = refused.code, "at its handshake"
                    return
            except _AWAY:
                pass
            except _LOST:
                one.lost += 1
            else:
                member.end, member.generation = "registered", connection.welcome["generation"]
                await connection.close()
                return
            await asyncio.sleep(_AGAIN)

    # --- the admin -------------------------------------------------------------------------------

    async def _decide_all(self, one: Round, chance: random.Random) -> None:
        """Decide on the machines that wait, and perhaps revoke the key, until the round is over."""
        began = time.monotonic()
        while True:
            due = one.revokes_in is not None and time.monotonic() - began > one.revokes_in
            if due and not one.revoking:
                one.revoking = True
                await self._caller.call("DELETE", f"/enrolment-keys/{one.key_id}")
                one.revoked_at = time.monotonic()
            _, page = await self._caller.call("GET", "/enrolments?state=waiting&limit=200")
            for item in page["items"]:
                if item["enrolment_key"] == one.key_id:
                    await self._decide(one, item["id"], rejects=chance.random() < 0.1)
            await asyncio.sleep(_AGAIN)

    async def _decide(self, one: Round, enrolment: str, *, rejects: bool) -> None:
        path = f"/enrolments/{enrolment}"
        if not rejects:
            one.approving.add(enrolment)
            status, _ = await self._caller.call("POST", f"{path}/approve")
            rejects = status == 409  # decided before its answer was lost, or the name is taken
        if rejects:
            await self._caller.call("POST", f"{path}/reject")

    # --- the verdict -----------------------------------------------------------------------------

    async def _judge(self, one: Round) -> list[str]:
        _, key = await self._caller.call("GET", f"/enrolment-keys/{one.key_id}")
        _, found = await self._caller.call("GET", f"/ices?label=round={one.number}&limit=200")
        events: list[Any] = []
        actors = [f"enrolment:{one.key_id}", *(item["ice_name"] for item in found["items"])]
        for actor in actors:
            _, page = await self._caller.call("GET", f"/events?actor={actor}&limit=200")
            events += page["items"]
        return faults_of(one, key["uses"], found["items"], events)

    async def verify(self) -> list[str]:
        """Whether the audit log is whole."""
        _, verdict = await self._caller.call("GET", "/audit/verification")
        return [] if verdict["fault"] is None else [f"the audit log: {verdict['fault']}"]


def faults_of(
    one: Round, uses: int, ices: list[dict[str, Any]], events: list[dict[str, Any]]
) -> list[str]:
    """What does not agree: what machines were told, the key's uses, the ICEs and their events."""
    made = [event for event in events if event["action"] in ("provision", "reregister")]
    faults = []
    if uses > one.max_uses:
        faults.append(f"{uses} uses of {one.max_uses}")
    if uses != len(made):
        faults.append(f"{uses} uses, and {len(made)} ICEs made")
    names = Counter(event["ice_name"] for event in made if event["action"] == "provision")
    if names != Counter(ice["ice_name"] for ice in ices):
        faults.append(f"{sorted(names)} were made, there are {[ice['ice_name'] for ice in ices]}")
    faults += _stranded(one, uses, ices)
    faults += _shared(one, events)
    for member in one.members:
        faults += _early_or_late(one, member)
    return faults


def _stranded(one: Round, uses: int, ices: list[dict[str, Any]]) -> Iterator[str]:
    """Machines without an ICE that should have one, and ICEs without a machine."""
    for member in one.members:
        excused = (
            member.end == "registered"
            or (member.end == "ice-exists" and any(rival.told for rival in _rivals(one, member)))
            or (member.end == "enrolment-refused" and one.approval)
            or (member.end == "enrolment-key-invalid" and (one.revoking or uses == one.max_uses))
            # Another machine was approved in its place before it knew that it had registered.
            or (member.end == "token-replaced" and one.approval and _rivals(one, member))
        )
        if not excused:
            faults = f"{member.wants} ended with {member.end}: {member.detail}"
            yield f"{faults}, {uses} of {one.max_uses} used"
    for ice in ices:
        if ice["status"] != "registered" and not one.revoking:
            yield f"nobody has {ice['ice_name']}, which is {ice['status']}"


def _rivals(one: Round, member: Member) -> list[Member]:
    return [other for other in one.members if other is not member and other.wants == member.wants]


def _shared(one: Round, events: list[dict[str, Any]]) -> Iterator[str]:
    """Two machines with one generation of an ICE, and a registration by another key."""
    registered = {
        (event["ice_name"], event["generation"]): event["detail"]["key_thumbprint"]
        for event in events
        if event["action"] == "register"
    }
    if len(registered) != sum(event["action"] == "register" for event in events):
        yield "a generation was registered twice"
    for member in one.members:
        if member.generation is not None:
            place = member.told[-1].ice_name, member.generation
            if registered.get(place) != member.thumbprint:
                yield f"{member.wants} was welcomed as {place}, which another key has registered"
    owners: dict[str, set[str]] = {}
    for member in one.members:
        for told in member.told:
            owners.setdefault(told.ice_name, set()).add(member.thumbprint)
    for name, who in owners.items():
        if len(who) > 1 and not one.approval:
            yield f"{len(who)} machines got a token of {name}"


def _early_or_late(one: Round, member: Member) -> Iterator[str]:
    """Tokens without an approval, and tokens of a revoked key."""
    for told in member.told:
        if one.approval and told.enrolment not in one.approving:
            yield f"{member.wants} got a token that nobody approved"
        if one.revoked_at is not None and told.asked > one.revoked_at:
            yield f"{member.wants} got a token of a revoked key"


async def torture(
    rounds: int,
    seed: int,
    engine: str = "sqlite",
    *,
    mutation: str | None = None,
    aim: Aim | None = None,
) -> Outcome:
    """Do so many rounds, each with this `aim` if there is one; how they ended."""
    outcome = Outcome()
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="ice-enrolment-") as name:
        async with _started(Path(name), engine, mutation) as work:
            for number in range(rounds):
                await work.play(number, chance, outcome, aim)
                if mutation is not None and outcome.faults:
                    break
            outcome.faults += await work.verify()
    return outcome


@contextlib.asynccontextmanager
async def _started(folder: Path, engine: str, mutation: str | None) -> AsyncIterator[Torture]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with contextlib.ExitStack() as stack:
        options: dict[str, Any] = {"tokens__key_file": str(folder / "keys.json")}
        options["database__url"] = f"sqlite:///{folder}/ice.db"
        if engine == "postgresql":
            options["database__url"] = stack.enter_context(postgres()).database()
            options["node__lease"] = "2s"
        async with harness(folder, **options) as running:
            await new_key(running, CI_CD)  # makes the key file
            bearer = str(running.admin.token)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        gateway = Process(context, serve, folder, {**options, "server__port": port}, mutation)
        connector = aiohttp.TCPConnector(force_close=True)
        try:
            await gateway.start("listens")
            async with aiohttp.ClientSession(connector=connector) as session:
                work = Torture(gateway, f"http://127.0.0.1:{port}", session, bearer)
                try:
                    yield work
                finally:
                    await work.close()
        finally:
            await gateway.kill()


def report(outcome: Outcome, seed: int) -> str:
    """A line for each fault, and the seed."""
    return "\n".join([*outcome.faults, f"  seed {seed}"]) if outcome.faults else ""


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0])
    parser.add_argument("--mutate", choices=MUTATIONS, help="break the gateway on purpose")
    given = parser.parse_args()
    configure("text", "error")
    began = time.monotonic()
    outcome = asyncio.run(torture(given.rounds, given.seed, given.engine, mutation=given.mutate))
    print(
        report(outcome, given.seed) or "no machine is stranded, and no use was lost or made twice"
    )
    print(f"ends: {dict(outcome.ends)}; died: {dict(outcome.deaths)}; answers lost: {outcome.lost}")
    print(
        f"{given.rounds} rounds on {given.engine}, seed {given.seed}, {time.monotonic() - began:.1f} s"
    )
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
