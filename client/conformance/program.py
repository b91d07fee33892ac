"""Starts and kills the ICE program that is tried.

Tested in tests/client/test_client_conformance.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client import platform
from client.conformance.report import Finding
from client.conformance.sentences import Sentence

_SHORTEST_PART: Final = 20
"""Characters of a secret that are looked for in the output; shorter parts may stand there by chance."""


class NotStarted(Exception):
    """The command cannot be started; the text is one line."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a program finds its gateway, its token, and its state."""

    gateway: str
    folder: Path
    enrols: bool = False
    """Whether the program gets the file of an enrolment key in place of the token's."""

    @property
    def token_file(self) -> Path:
        """The file with the token."""
        return self.folder / "token.txt"

    @property
    def enrolment_key_file(self) -> Path:
        """The file with the secret of an enrolment key."""
        return self.folder / "enrolment-key.txt"

    @property
    def state_dir(self) -> Path:
        """The folder for what the program keeps over restarts."""
        return self.folder / "state"

    def variables(self) -> dict[str, str]:
        """The same for the environment."""
        found = {
            "ICE_CLIENT_GATEWAY": self.gateway,
            "ICE_CLIENT_STATE_DIR": str(self.state_dir),
        }
        if self.enrols:
            return found | {"ICE_CLIENT_ENROLMENT_KEY_FILE": str(self.enrolment_key_file)}
        return found | {"ICE_CLIENT_TOKEN_FILE": str(self.token_file)}

    def words(self, command: Sequence[str]) -> list[str]:
        """The command with its placeholders filled in."""
        values = {
            "{gateway}": self.gateway,
            "{token_file}": str(self.token_file),
            "{enrolment_key_file}": str(self.enrolment_key_file),
            "{state_dir}": str(self.state_dir),
        }
        words = list(command)
        for name, value in values.items():
            words = [word.replace(name, value) for word in words]
        return words

    def judge_stored(self, secret: str) -> list[Finding]:
        """Whether the program has stored the secret of an enrolment key."""
        if not self.enrols:
            return []
        files = [path for path in self.state_dir.rglob("*") if path.is_file()]
        _, _, random = secret.split("_", 2)  # the last part, base64url, may have one, too
        found = [path.name for path in files if random.encode() in _content(path)]
        seen = f"it is in {', '.join(found)}"
        return [Finding(Sentence.ENROL_SECRET_KEPT, not found, seen)]


class Program:
    """One process of the ICE program, with its output in a file."""

    def __init__(self, command: Sequence[str], place: Place, number: int) -> None:
        self._command = command
        self._place = place
        self.output = place.folder / f"output-{number}.txt"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it. Raises `NotStarted`."""
        place = self._place
        environment = platform.environment(f"conformance of {place.folder}", **place.variables())
        try:
            with self.output.open("wb") as output:
                self._process = await asyncio.create_subprocess_exec(
                    *place.words(self._command),
                    env=environment,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=asyncio.subprocess.STDOUT,
                    **platform.OWN_GROUP,
                )
        except OSError as error:
            raise NotStarted(
                f"{self._command[0]} cannot be started: {error.strerror or error}"
            ) from None

    @property
    def status(self) -> int | None:
        """The status with which it ended; None while it runs."""
        return None if self._process is None else self._process.returncode

    async def ended(self) -> int:
        """Wait until it has ended."""
        assert self._process is not None  # noqa: S101 - it was started
        return await platform.exit_status(self._process)

    async def kill(self) -> None:
        """End it, and all that it has started, at once."""
        if self._process is not None:
            await platform.kill_group(self._process)

    def last_line(self) -> str:
        """The last line of its output."""
        lines = self.output.read_text("utf-8", errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")

    def judge_output(self, token: str, secret: str) -> list[Finding]:
        """Whether its output keeps the token, whose parts have dots between, and the secret of an enrolment key."""
        text = self.output.read_text("utf-8", errors="replace")
        parts = {part for part in token.split(".") if len(part) >= _SHORTEST_PART}
        found = any(part in text for part in parts)
        seen = f"see {self.output}"
        findings = [Finding(Sentence.TOKEN_SECRET, not found, seen)]
        if self._place.enrols:
            findings.append(Finding(Sentence.ENROL_SECRET_KEPT, secret not in text, seen))
        return findings


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # nobody may read it
        return b""
