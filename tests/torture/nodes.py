"""Real nodes on one PostgreSQL while it, their network and they themselves fail, in rounds.

    python -m tests.torture.nodes [--rounds 100] [--seed N] [--mutate NAME]

In each round an ICE is connected at one node, something fails (a node, its network, the primary, the server's clock), and an admin takes the ICE out at another. From
the moment at which a node has confirmed (or, where it has not, its lease must have run out) nothing that is
sent with the old token is acted on there: neither a message over the open session nor a handshake. Then all
nodes have to know of every event, and to admit whoever they should. A webhook has to get every event of all
rounds, in the order of the log.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.ice import Connection, Nomad
from tests.support.node import Node, api_token, run_command, running
from tests.support.postgres import Postgres, faketime, postgres
from tests.support.relay import relaying
from tests.torture.callers import EVERY, Callers, Taken, admitted
from tests.torture.webhook_log import LogReceiver, log_receiver

NAMES = ("gw-1", "gw-2", "gw-3")
_ALLOWED = {"WEBHOOKS__ALLOW": "127.0.0.0/8"}
_CATCH_UP = 120.0
"""Seconds in which the webhook gets the last event after the last round: a message that was not taken waits up to 80 s."""


# --- the processes -------------------------------------------------------------------------------


def _without_leases() -> None:
    from gateway.node.lease import Lease  # noqa: PLC0415 - in the process of a node alone

    Lease.valid = property(lambda _: True)  # type: ignore[method-assign,assignment]
    Lease.until = property(lambda _: 1e9, lambda *_: None)  # type: ignore[assignment]


def _confirming_what_it_has_not_done() -> None:
    from gateway.node.hub import Hub  # noqa: PLC0415

    Hub.apply = lambda *_: []  # type: ignore[method-assign]


MUTATIONS: dict[str, Callable[[], None]] = {
    "none": lambda: None,
    "without-leases": _without_leases,
    "confirming-what-it-has-not-done": _confirming_what_it_has_not_done,
}


def _be_a_node(mutation: str) -> None:
    from gateway.cli import main  # noqa: PLC0415

    MUTATIONS[mutation]()
    main(["serve"])


# --- the cluster ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What happens in the rounds."""

    lease: float = 3.0
    """Seconds of a node's lease."""
    long: float = 10.0
    """Seconds for which a node stands still in one of eight rounds of that kind."""
    faults: tuple[str, ...] = ("nothing", "broken", "restarted", "stopped", "cut", "killed")
    """Names of `FAULTS`."""
    mutation: str = "none"
    """What is broken on purpose: a name of `MUTATIONS`."""


@dataclass
class Cluster(Callers):
    """The nodes and the admin, and what fails around them."""

    plan: Plan = field(kw_only=True)
    standby: Postgres = field(kw_only=True)
    servers: contextlib.ExitStack = field(kw_only=True)
    webhook: LogReceiver = field(kw_only=True)


@contextlib.asynccontextmanager
async def cluster(plan: Plan) -> AsyncIterator[Cluster]:
    """Three nodes that serve."""
    async with contextlib.AsyncExitStack() as stack:
        servers = stack.enter_context(contextlib.ExitStack())
        server, standby = await asyncio.to_thread(_replicated, servers)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ice-nodes-")))
        nodes = []
        for name in NAMES:
            relay = stack.enter_context(relaying(("127.0.0.1", server.port)))
            host, port = relay.address
            node = Node(
                *(folder, name, f"postgresql://ice@{host}:{port}/ice", Nomad.PUBLIC),
                program=("tests.torture.nodes", "--node", plan.mutation),
                NODE__LEASE=f"{plan.lease:.0f}s",
                SERVER__INSECURE="true",
                **_ALLOWED,
            )
            node.relay = relay
            nodes.append(node)
        await stack.enter_async_context(running(nodes))
        token = await api_token(folder, server.url("ice"))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        webhook = await stack.enter_async_context(log_receiver(random.Random(plan.lease)))
        database = server.url("ice")
        events = ("--url", webhook.url, "--event", "*")
        webhook.trust(
            await run_command(folder, database, "webhooks", "create", "log", *events, **_ALLOWED)
        )
        callers = nodes, server, session, token
        yield Cluster(*callers, plan=plan, standby=standby, servers=servers, webhook=webhook)


def _replicated(servers: contextlib.ExitStack) -> tuple[Postgres, Postgres]:
    """A primary and the standby that has all that it has acknowledged."""
    server = servers.enter_context(
        postgres(
            *("wal_level=replica", "max_wal_senders=4", "wal_retrieve_retry_interval=100ms"),
            steppable=faketime(),
        )
    )
    server.sql("CREATE DATABASE ice")
    standby = servers.enter_context(server.replica())
    server.sql("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
    return server, standby


# --- what fails ----------------------------------------------------------------------------------


async def _nothing(*_: Any) -> None:
    await asyncio.sleep(0.2)


async def _broken(cluster: Cluster, *_: Any) -> None:
    """All connections of the database break, and what it had to tell is lost with them."""
    await asyncio.to_thread(
        cluster.server.sql,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'ice'",
    )
    await asyncio.sleep(0.2)


async def _restarted(cluster: Cluster, *_: Any) -> None:
    await asyncio.to_thread(cluster.server.stop)
    await asyncio.sleep(0.2)
    await asyncio.to_thread(cluster.server.start)


async def _stopped(_: Cluster, node: Node, seconds: float) -> None:
    node.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        node.signal(signal.SIGCONT)


async def _cut(_: Cluster, node: Node, seconds: float) -> None:
    node.relay.cut()
    try:
        await asyncio.sleep(seconds)
    finally:
        node.relay.mend()


async def _killed(_: Cluster, node: Node, seconds: float) -> None:
    node.signal(signal.SIGKILL)
    await node.ended()
    await asyncio.sleep(min(seconds, 1.0))
    await node.start()


async def _forgotten(_: Cluster, node: Node, seconds: float) -> None:
    """A firewall forgets the node's connections: the server keeps all that they hold."""
    node.relay.forget()
    await asyncio.sleep(seconds)


async def _vanished(cluster: Cluster, node: Node, seconds: float) -> None:
    """The node's machine loses power, and comes back."""
    node.relay.forget()
    await _killed(cluster, node, seconds)


async def _failed_over(cluster: Cluster, *_: Any) -> None:
    """The primary is lost, and the standby takes its place and address."""

    def fail_over() -> None:
        cluster.server.stop("immediate")
        cluster.standby.promote()
        cluster.server = cluster.standby
        for node in cluster.nodes:
            node.relay.targets = [("127.0.0.1", cluster.server.port)]
        cluster.standby = cluster.servers.enter_context(cluster.server.replica())

    await asyncio.to_thread(fail_over)


async def _stepped(cluster: Cluster, _: Node, seconds: float) -> None:
    """The server's wall clock is stepped, there and back."""
    for step in (-5, 3600, 0):
        cluster.server.step(step)
        await asyncio.sleep(seconds / 3)


FAULTS: dict[str, Callable[[Cluster, Node, float], Awaitable[None]]] = {
    "nothing": _nothing,
    "broken": _broken,
    "restarted": _restarted,
    "stopped": _stopped,
    "cut": _cut,
    "killed": _killed,
    # Only by `make torture`: they take up to 20 s each, and the last needs libfaketime.
    "forgotten": _forgotten,
    "vanished": _vanished,
    "failed over": _failed_over,
    "stepped": _stepped,
}


# --- a round -------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What all rounds came to."""

    kinds: Counter[str] = field(default_factory=Counter)
    unconfirmed: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    elapsed: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    webhook: str = ""
    """What the webhook got, in a line."""


async def play(cluster: Cluster, number: int, chance: random.Random, outcome: Outcome) -> None:
    """One round. Raises `TimeoutError` or `OSError` where it did not come to its end."""
    plan = cluster.plan
    kind = chance.choice(plan.faults)
    holder, failing, acting = (chance.choice(cluster.nodes) for _ in range(3))
    if chance.random() < 0.7:
        failing = holder
    if acting is failing:
        acting = next(node for node in cluster.nodes if node is not failing)
    action = chance.choice(("deregister", "reregister"))
    seconds = chance.uniform(0.2, 2 * plan.lease) if chance.random() < 7 / 8 else plan.long
    name = f"ice-{number}"
    what = f"round {number}: {kind} at {failing.name}, {action} at {acting.name}, {name} at {holder.name}"
    outcome.kinds[kind] += 1
    made = await cluster.done(201, "POST", "/ices", {"ice_name": name, "ice_type": "ci-cd"})
    ice = Nomad(holder.url, made["token"])
    session = await ice.connect()
    session.patience = None
    await session.round_trip()

    failure = asyncio.create_task(FAULTS[kind](cluster, failing, seconds))
    try:
        await asyncio.sleep(chance.uniform(0.0, 0.3))
        taken = await cluster.take_out(acting, name, action, plan.lease)
    except TimeoutError:
        await failure  # or else it would go on in the next round
        raise
    outcome.elapsed += taken.elapsed
    outcome.unconfirmed.update(taken.unconfirmed)
    over = asyncio.Event()
    watching = [
        asyncio.create_task(_over_the_session(session, holder, taken, over)),
        *(asyncio.create_task(_by_handshakes(ice, node, taken, over)) for node in cluster.nodes),
    ]
    await failure
    try:
        await cluster.all_known()
        if taken.unconfirmed:
            await asyncio.sleep(max(0.0, taken.at + plan.lease + 2 * EVERY - time.monotonic()))
    finally:
        over.set()  # the watches would otherwise go on in the next round
    for watch in watching:
        attempts, violation = await watch
        outcome.attempts += attempts
        if violation is not None:
            outcome.violations.append(f"{what}: {violation}; {taken}")
    await session.close()
    for node in cluster.nodes:
        welcome = await admitted(Nomad(node.url, taken.token or made["token"], ice.key))
        if welcome is not (taken.token is not None):
            outcome.violations.append(f"{what}: at the end {node.name} admitted it: {welcome}")


async def _over_the_session(
    session: Connection, node: Node, taken: Taken, over: asyncio.Event
) -> tuple[int, str | None]:
    """Send requests over the old session from when on none may be acted on."""
    await asyncio.sleep(max(0.0, taken.out_at(node.name) - time.monotonic()))
    sent = f"after-{secrets.token_hex(4)}"
    session.send({"jsonrpc": "2.0", "method": "no.such.method", "id": sent})

    async def heard() -> bool:
        with contextlib.suppress(AssertionError, OSError):  # it was closed
            while True:
                if (await session.message()).get("id") == sent:
                    return True
        return False

    listening = asyncio.create_task(heard())
    ending = asyncio.create_task(over.wait())
    await asyncio.wait((listening, ending), return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()
    if not listening.done():
        # Everything has come to rest: a session that is open still has outlived what it may.
        listening.cancel()
        return 1, f"{node.name} has not closed the session"
    return 1, f"{node.name} answered over the old session" if listening.result() else None


async def _by_handshakes(
    ice: Nomad, node: Node, taken: Taken, over: asyncio.Event
) -> tuple[int, str | None]:
    """Come with the old token from when on it may admit nowhere, until all is over; how often it was answered."""
    await asyncio.sleep(max(0.0, taken.out_at(node.name) - time.monotonic()))
    attempts = 0
    while True:
        welcome = await admitted(ice.at(node))
        attempts += welcome is not None
        if welcome:
            return attempts, f"{node.name} admitted the old token"
        if over.is_set() and attempts:
            return attempts, None
        await asyncio.sleep(EVERY)


# --- all rounds ----------------------------------------------------------------------------------


async def torture(rounds: int, seed: int, plan: Plan) -> Outcome:
    """So many rounds, one after the other, on one cluster."""
    outcome = Outcome()
    async with cluster(plan) as made:
        for number in range(rounds):
            chance = random.Random(f"{seed}/{number}")
            try:
                await play(made, number, chance, outcome)
            except (TimeoutError, OSError) as error:
                outcome.violations.append(f"round {number} did not come to its end: {error!r}")
                print(outcome.violations[-1], *map(_state, made.nodes), sep="\n  ", flush=True)
        await _followed(made, outcome)
    return outcome


def _state(node: Node) -> str:
    """Whether the node runs, and what it said last."""
    said = "\n    ".join(node.log.read_text().splitlines()[-8:])
    return f"{node.name}: {node.status}\n    {said}"


async def _followed(cluster: Cluster, outcome: Outcome) -> None:
    """Wait until the webhook has got the whole log."""
    end = await asyncio.to_thread(
        cluster.server.sql, "SELECT max(seq) FROM ice_events", database="ice"
    )
    await cluster.webhook.caught_up(int(end), _CATCH_UP)
    outcome.violations += cluster.webhook.violations
    outcome.webhook = cluster.webhook.figures()


def report(outcome: Outcome, seed: int) -> str:
    """The outcome in a few lines."""
    ordered = sorted(outcome.elapsed) or [0.0]
    lines = [
        f"{sum(outcome.kinds.values())} rounds of seed {seed}: "
        + ", ".join(f"{kind} {count}" for kind, count in sorted(outcome.kinds.items())),
        f"{outcome.attempts} attempts with what was taken back; {len(outcome.violations)} violations",
        f"not confirmed in time: {dict(outcome.unconfirmed)}",
        outcome.webhook,
        f"dropped {len(outcome.elapsed)} sessions, p50 {_middle(ordered):.1f} ms, the last {ordered[-1]:.1f} ms",
        *(
            ()
            if faketime() is not None
            else ("left out: stepped clocks (install libfaketime, or set FAKETIME_LIBRARY)",)
        ),
        *outcome.violations,
    ]
    return "\n".join(lines)


def _middle(ordered: list[float]) -> float:
    return ordered[len(ordered) // 2]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--mutate", choices=MUTATIONS, default="none")
    parser.add_argument("--node", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.node is not None:
        _be_a_node(options.node)
        return
    faults = tuple(name for name in FAULTS if name != "stepped" or faketime() is not None)
    plan = Plan(faults=faults, mutation=options.mutate)
    print(f"nodes: seed {options.seed}", flush=True)
    outcome = asyncio.run(torture(options.rounds, options.seed, plan))
    sys.stdout.write(report(outcome, options.seed) + "\n")
    sys.exit(bool(outcome.violations))


if __name__ == "__main__":
    main()
