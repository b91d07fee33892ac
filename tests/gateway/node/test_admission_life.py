"""Admins, machines that enrol and an ICE in any order: only the current token comes in, and only with its own key.

The model is kept apart from the gateway, and says what each step has to answer.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway.app import Tuning
from gateway.core.times import utc_now
from gateway.node.node import NodeLimits
from gateway.services.key_rotation import Keys
from gateway.store import key_file
from tests.support.harness import ADMIN, Harness, harness
from tests.support.ice import Connection, Key, Refused
from tests.support.machine import CI_CD, Machine, new_key

MACHINES = 3
_WHO = st.integers(0, MACHINES - 1)
_NUMBERS = itertools.count()


def in_status(*wanted):
    return precondition(lambda self: self.status in wanted)


class World(RuleBasedStateMachine):
    """One ICE, machines that each have a key pair, and the token keys of a gateway that all examples share."""

    loop: ClassVar[asyncio.Runner]
    running: ClassVar[Harness]
    secret: ClassVar[str]
    keys: ClassVar[list[Key]]

    def __init__(self):
        super().__init__()
        self.name = f"ci-life-{next(_NUMBERS)}"
        self.status = "nothing"
        self.generation = 0
        self.token: str | None = None
        """The token of the current generation, while there is one."""
        self.sealed_with = ""
        self.owner: int | None = None
        """The machine for which the token was made, or which has registered; None: the first that comes."""
        self.enrolled: tuple[int, int] | None = None
        """The machine that has enrolled, and the generation that it got."""
        self.outdated: list[str] = []
        self.session: Connection | None = None

    def run(self, work):
        return self.loop.run(work)

    @property
    def ring(self):
        ring = key_file.read(self.running.gateway.settings.key_file)
        assert ring is not None
        return ring

    @property
    def rotation(self):
        gateway = self.running.gateway
        path = gateway.settings.key_file
        return Keys(engine=gateway.engine, path=path, clock=utc_now)

    def renewed(self, token: str, owner: int | None) -> None:
        self.outdate()
        self.status, self.token, self.owner = "provisioned", token, owner
        self.generation += 1
        self.sealed_with = self.ring.seals

    def outdate(self) -> None:
        if self.token is not None:
            self.outdated.append(self.token)
        self.token = None

    async def act(self, action):
        answer = await self.running.admin.post(f"/ices/{self.name}/{action}")
        assert answer.status == 200, f"{action} from {self.status} gave {answer}"
        return answer.json

    async def come(self, token: str, key: Key) -> Connection | Refused:
        try:
            return await self.running.ice(token, key).connect()
        except Refused as refused:
            return refused

    async def dropped(self, code):
        """The session, if there is one, ends with this code."""
        if self.session is not None:
            await self.session.expect_dropped(code)
            await self.session.close()
        self.session = None

    # --- admins ----------------------------------------------------------------------------------

    @in_status("nothing")
    @rule()
    def provision(self):
        body = {"ice_name": self.name, "ice_type": "ci-cd"}
        answer = self.run(self.running.admin.post("/ices", body))
        assert answer.status == 201, answer
        self.renewed(answer.json["token"], None)

    @in_status("provisioned")
    @rule()
    def reprovision(self):
        self.renewed(self.run(self.act("reprovision"))["token"], None)

    @in_status("registered", "deregistered")
    @rule()
    def reregister(self):
        self.renewed(self.run(self.act("reregister"))["token"], None)
        self.run(self.dropped(4102))

    @in_status("registered")
    @rule()
    def deregister(self):
        self.run(self.act("deregister"))
        self.run(self.dropped(4101))
        self.outdate()
        self.status, self.owner = "deregistered", None
        self.generation += 1

    @rule()
    def rotate_and_promote(self):
        async def turn():
            await self.rotation.promote(ADMIN, await self.rotation.rotate(ADMIN))

        if len(self.ring.keys) < 4:
            self.run(turn())
            self.running.gateway.services.provisioning.keys.reload()

    @rule()
    def retire(self):
        oldest = next((key.kid for key in self.ring.keys if key.kid != self.ring.seals), None)
        if oldest is None:
            return
        refused = self.run(self.rotation.retire(ADMIN, oldest))
        needed = self.status == "provisioned" and self.sealed_with == oldest
        assert (refused is not None) is needed, f"retiring {oldest} gave {refused}"
        self.running.gateway.services.provisioning.keys.reload()

    # --- machines --------------------------------------------------------------------------------

    @rule(who=_WHO)
    def enrol(self, who):
        running = self.running
        machine = Machine(running.session, running.url, self.secret, key=self.keys[who])
        status, answer = self.run(machine.ask(ice_name=self.name))
        renews = self.status == "provisioned" and self.enrolled == (who, self.generation)
        if self.status == "nothing" or renews:
            assert status == 201, f"enrolling from {self.status} gave {answer}"
            self.renewed(answer["token"], who)
            self.enrolled = who, self.generation
        else:
            assert (status, answer["code"]) == (409, "ice-exists"), answer

    @precondition(lambda self: self.token is not None)
    @rule(who=_WHO)
    def connect(self, who):
        came = self.run(self.come(self.token, self.keys[who]))
        if self.owner not in (None, who):
            assert isinstance(came, Refused), f"another key was admitted: {came.welcome}"
            assert came.code == "key-mismatch"
            return
        assert isinstance(came, Connection), f"{self.name} was refused: {came}"
        if self.session is not None:
            self.run(self.session.close())
        self.session, self.status, self.owner = came, "registered", who
        assert came.welcome["generation"] == self.generation

    @precondition(lambda self: self.outdated)
    @rule(who=_WHO, data=st.data())
    def connect_with_an_old_token(self, who, data):
        token = data.draw(st.sampled_from(self.outdated))
        came = self.run(self.come(token, self.keys[who]))
        assert isinstance(came, Refused), f"an old token was admitted: {came.welcome}"
        # Of a retired key it does not open: then nothing is known of it.
        expected = "deregistered" if self.status == "deregistered" else "token-replaced"
        assert came.code in (expected, "token-invalid")

    def teardown(self):
        if self.status == "provisioned":  # or it would keep its key from being retired
            self.connect(self.owner or 0)
        if self.session is not None:
            self.run(self.session.close())


@pytest.mark.parametrize("examples", [8, pytest.param(200, marks=pytest.mark.long)])
def test_only_the_current_token_comes_in_and_only_with_its_own_key(examples, tmp_path):
    async def begin():
        made = harness(tmp_path, tuning=Tuning(node=NodeLimits(attempts=1_000_000)))
        World.running = await made.__aenter__()
        _, World.secret = await new_key(World.running, CI_CD, max_uses=10_000)
        return made

    with asyncio.Runner() as World.loop:
        made = World.loop.run(begin())
        try:
            World.keys = [Key() for _ in range(MACHINES)]
            run_state_machine_as_test(
                World,
                settings=settings(
                    max_examples=examples,
                    stateful_step_count=30,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            World.loop.run(made.__aexit__(None, None, None))
