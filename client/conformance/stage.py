"""What a scenario works with: a gateway, the ICE program with a folder of its own, and checks of what the ICE does.

Tested in tests/client/test_client_conformance.py.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

from aiohttp import WSMsgType

from client import protocol
from client.conformance.backoff_rules import Wait, bound, judge_bound
from client.conformance.gateway import Attempt, Gateway, Message, Session
from client.conformance.program import Place, Program
from client.conformance.report import Finding, Report
from client.conformance.sentences import Sentence

AT_ONCE: Final = '{"retry_after": 0}'
"""The reason of a 1012 after which an ICE comes back soonest, a second later."""
_EARLY: Final = 0.05
"""Seconds by which an ICE may come early: clocks of timers are coarse."""


@dataclass(frozen=True, slots=True)
class Waits:
    """How long the kit waits, in seconds."""

    timeout: float = 10.0
    """Until what a program should do at once counts as missing."""
    quiet: float = 2.5
    """For what it should not do; an ICE that tries again does so within a second."""


class Unmet(Exception):
    """A scenario cannot go on."""

    def __init__(self, sentence: Sentence, seen: str) -> None:
        super().__init__(seen)
        self.sentence = sentence


def make_token(issued: float) -> str:
    """A token of the kit, in the form of the gateway's; its content is random."""
    header = {"alg": "dir", "enc": "A256GCM", "kid": "conformance", "iat": issued}
    parts = [json.dumps(header).encode(), b"", *(secrets.token_bytes(n) for n in (12, 90, 16))]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def make_secret() -> str:
    """The secret of an enrolment key of the kit, in the form of the gateway's."""
    return f"iceek_{secrets.token_hex(16)}_{secrets.token_urlsafe(32)}"


@dataclass(slots=True)
class Stage:
    """One scenario's gateway and program."""

    kit: Kit
    scenario: Scenario
    gateway: Gateway
    row: list[Wait] = field(default_factory=list)
    """The waits of the current process."""
    _programs: list[Program] = field(default_factory=list)

    @property
    def waits(self) -> Waits:
        """The seconds for which it waits."""
        return self.kit.waits

    @property
    def report(self) -> Report:
        """Where the verdicts go."""
        return self.gateway.report

    # --- the program ---------------------------------------------------------------------------------

    @property
    def place(self) -> Place:
        """Where the program finds what it needs."""
        scenario = self.scenario
        return Place(self.gateway.url, self.kit.folder / scenario.name, scenario.enrols)

    def write_token(self, token: str) -> None:
        """Make the folder, and write the token file, or that of the enrolment key."""
        self.gateway.token = token
        self.place.folder.mkdir(parents=True, exist_ok=True)
        if self.scenario.enrols:
            self.place.enrolment_key_file.touch(mode=0o600)
            self.place.enrolment_key_file.write_text(self.gateway.secret, encoding="utf-8")
        else:
            text = self.scenario.token_file.format(token)
            self.place.token_file.write_text(text, encoding="utf-8", newline="")

    @property
    def program(self) -> Program:
        """The process that was started last."""
        return self._programs[-1]

    @property
    def started(self) -> bool:
        """Whether a process was started."""
        return bool(self._programs)

    async def start(self) -> None:
        """Start a process with the same folder."""
        self.row = []
        number = len(self._programs) + 1
        program = Program(self.kit.command, self.place, number)
        self._programs.append(program)
        await program.start()

    async def restart(self) -> None:
        """Kill the process without a warning, and start another."""
        await self.program.kill()
        while not self.gateway.attempts.empty():
            self.gateway.attempts.get_nowait().hang_up()
        await self.start()

    async def end(self) -> None:
        """Kill what runs, and look at what was printed and stored."""
        for program in self._programs:
            await program.kill()
            self.report.add(*program.judge_output(self.gateway.token, self.gateway.secret))
        self.report.add(*self.place.judge_stored(self.gateway.secret))

    # --- attempts ------------------------------------------------------------------------------------

    async def attempt(
        self, sentence: Sentence, within: float | None = None, *, what: str = "its start"
    ) -> Attempt:
        """The next attempt, which is due after `what`; without one the scenario ends, and `sentence` has failed."""
        found = await self._next(self.waits.timeout if within is None else within)
        if found is None:
            self.fail(sentence, f"no attempt came after {what}{self._end()}")
        return found

    async def _next(self, within: float) -> Attempt | None:
        """The next attempt; None if none comes in time, or before the program has ended."""
        coming = asyncio.create_task(self.gateway.attempts.get())
        ended = asyncio.create_task(self.program.ended())
        first = asyncio.FIRST_COMPLETED
        try:
            await asyncio.wait({coming, ended}, timeout=within, return_when=first)
            await asyncio.wait({coming}, timeout=_EARLY)  # what it sent last may still arrive
            return coming.result() if coming.done() else None
        finally:
            coming.cancel()
            ended.cancel()

    async def comes_back(
        self,
        sentence: Sentence,
        since: float,
        *,
        least: float = 0.0,
        most: float | None = None,
        what: str = "this",
    ) -> Attempt:
        """The next attempt after one that failed at `since` by `what`, by the rules of the backoff.

        It comes no sooner than `least` seconds after that; `most` replaces the bound of the backoff.
        """
        number = len(self.row) + 1
        longest = max(least, bound(number)) if most is None else most
        within = longest + self.waits.timeout
        found = await self._next(within)
        if found is None:
            if most is None and self.program.status is None:
                seen = f"no attempt came within {within:g} s after {what}"
                self.note_failed(Sentence.BACKOFF_BOUND, seen)
            self.fail(sentence, f"no attempt came after {what}{self._end()}")
        waited = found.at - since
        self.check(sentence, waited >= least - _EARLY, f"it came back after {waited:.2f} s")
        if most is None:
            wait = Wait(number, waited)
            self.row.append(wait)
            if not least:
                self.report.add(judge_bound(wait, self.waits.timeout / 2))
                self.kit.first_waits.append(wait)
        return found

    async def stays_away(self, sentence: Sentence, what: str, *, may_end: bool = True) -> None:
        """Check that no attempt comes after `what`; a process that ends proves it, if it may."""
        found = await self._next(self.waits.quiet)
        if found is not None:
            found.hang_up()
            self.note_failed(sentence, f"it came back after {what}")
        elif self.program.status is not None and not may_end:
            self.note_failed(sentence, f"it ended after {what}{self._end()}")
        else:
            self.note_passed(sentence)

    async def session(self, sentence: Sentence, *, heartbeat: float = 30.0) -> Session:
        """Admit the next attempt, and wait for its hello."""
        return await self.admit(await self.attempt(sentence), heartbeat=heartbeat)

    async def admit(self, attempt: Attempt, *, heartbeat: float = 30.0) -> Session:
        """Admit this attempt, and wait for its hello."""
        try:
            session = await self.gateway.admit(attempt, heartbeat=heartbeat)
        except TimeoutError:
            self.fail(Sentence.HANDSHAKE, "its request is no WebSocket handshake")
        if await session.find(is_method("ice.hello"), self.waits.timeout) is None:
            self.fail(Sentence.HELLO, f"no hello came{self._end()}")
        return session

    async def reconnect(self, session: Session, sentence: Sentence) -> Session:
        """Let the ICE come back as soon as it may, and admit it again."""
        session.close(protocol.CloseCode.RESTART, AT_ONCE)
        attempt = await self.comes_back(sentence, time.monotonic(), most=1.0)
        return await self.admit(attempt)

    # --- verdicts ------------------------------------------------------------------------------------

    def check(self, sentence: Sentence, ok: bool, seen: str = "") -> None:  # noqa: FBT001 - a verdict
        """Note a verdict; `seen` is what the ICE did, should it have failed."""
        self.report.add(Finding(sentence, ok, seen))

    def note_passed(self, sentence: Sentence) -> None:
        """Note that a sentence has passed."""
        self.report.add(Finding(sentence, ok=True))

    def note_failed(self, sentence: Sentence, seen: str) -> None:
        """Note that a sentence has failed, and go on."""
        self.report.add(Finding(sentence, ok=False, seen=seen))

    def fail(self, sentence: Sentence, seen: str) -> NoReturn:
        """Note that a sentence has failed, and end the scenario."""
        self.note_failed(sentence, seen)
        raise Unmet(sentence, seen)

    def _end(self) -> str:
        """How the program ended, for a sentence about something else; empty while it runs."""
        status = self.program.status
        return "" if status is None else f" (status {status}: {self.program.last_line()})"

    # --- operations ----------------------------------------------------------------------------------

    async def alive(self, session: Session, sentence: Sentence, what: str) -> None:
        """Check that the session still answers after `what`."""
        before = len(session.pongs)
        session.frame(WSMsgType.PING, b"alive")
        answered = await session.wait(lambda: len(session.pongs) > before, self.waits.timeout)
        self.check(sentence, answered, f"no pong came after {what}")
        if not answered:
            raise Unmet(sentence, what)

    def run(self, session: Session, action: str, **params: Any) -> str:
        """Send an operation of the kit's own handler; returns its id."""
        name = session.new_id()
        self.send_run(session, name, {"conformance": action, **params})
        return name

    def send_run(
        self, session: Session, name: str, params: Any, kind: str = "execute", **members: Any
    ) -> None:
        """Send `operation.run`, with more `members` than it has."""
        deadline = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(time.time() + 3600))
        run = {"id": name, "kind": kind, "params": params, "deadline": deadline} | members
        session.request("operation.run", run, name)

    async def response(self, session: Session, name: str, sentence: Sentence) -> Message:
        """The answer to a request; without one the scenario ends."""
        found = await session.find(is_response(name), self.waits.timeout)
        if found is None:
            self.fail(sentence, f"no answer came{self._end()}")
        return found.message

    async def accepted(self, session: Session, name: str, sentence: Sentence) -> None:
        """Wait until an operation is accepted."""
        answer = await self.response(session, name, sentence)
        if answer.get("result") != {"accepted": True}:
            self.fail(sentence, f"the answer is {json.dumps(answer)[:200]}")

    async def finish(
        self, session: Session, name: str, sentence: Sentence, within: float | None = None
    ) -> Message:
        """The finish of an operation; without one the scenario ends."""
        found = await session.find(is_finish(name), within or self.waits.timeout)
        if found is None:
            self.fail(sentence, f"no finish came{self._end()}")
        return found.message

    async def done(
        self, session: Session, sentence: Sentence, action: str, **params: Any
    ) -> Message:
        """Run an operation to its end; returns the params of its finish, which is answered."""
        name = self.run(session, action, **params)
        await self.accepted(session, name, sentence)
        finish = await self.finish(session, name, sentence)
        session.answer(finish)
        found: Message = finish["params"]
        return found


def is_method(method: str) -> Callable[[Message], bool]:
    """Matches calls of a method."""
    return lambda message: message.get("method") == method


def is_response(name: str) -> Callable[[Message], bool]:
    """Matches the response to a request."""
    return lambda message: "method" not in message and message.get("id") == name


def is_finish(name: str) -> Callable[[Message], bool]:
    """Matches the finish of an operation."""
    finish = is_method("operation.finish")
    return lambda message: finish(message) and message["params"].get("id") == name


Play = Callable[[Stage], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A play, the sentences that it tries, and the gateway that it needs."""

    name: str
    sentences: frozenset[Sentence]
    play: Play
    token_file: str = "{}"  # noqa: S105 - no password
    """What the token file holds; `{}` is the token."""
    enrols: bool = False
    """Whether the program gets the file of an enrolment key in place of the token's."""
    prefix: str = ""
    host: str = "127.0.0.1"
    tls: Callable[[], ssl.SSLContext] | None = None


@dataclass(slots=True)
class Kit:
    """What all scenarios of a run share; `folder` gets one for each."""

    command: Sequence[str]
    folder: Path
    waits: Waits = Waits()
    report: Report = field(default_factory=Report)
    first_waits: list[Wait] = field(default_factory=list)
    """The first waits of all processes."""

    @contextlib.asynccontextmanager
    async def staged(self, scenario: Scenario) -> AsyncIterator[Stage]:
        """Set the stage for a scenario."""
        token = make_token(float(int(time.time())))
        tls = scenario.tls() if scenario.tls else None
        gateway = Gateway(
            self.report.of(scenario.name),
            token,
            secret=make_secret(),
            prefix=scenario.prefix,
            host=scenario.host,
            tls=tls,
        )
        async with gateway:
            stage = Stage(self, scenario, gateway)
            stage.write_token(token)
            try:
                yield stage
            finally:
                await stage.end()
