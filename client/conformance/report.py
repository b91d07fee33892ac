"""The verdict on each sentence, and how it is shown.

Tested in tests/client/test_client_conformance_rules.py.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from client.conformance.sentences import CANNOT_TRY, CONNECTION, Sentence
from client.errors import one_line

_WIDTH: Final = max(map(len, Sentence))
_MAX_SEEN: Final = 3
"""Faults that are shown of one sentence."""


class Verdict(enum.StrEnum):
    """What became of a sentence."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_TRIED = "not tried"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule says of one sentence; `seen` is what the ICE did, in words."""

    sentence: Sentence
    ok: bool
    seen: str = ""


@dataclass(slots=True)
class Report:
    """The findings of a run. A sentence that failed once has failed."""

    chosen: frozenset[Sentence] = CONNECTION
    """The sentences that were asked for."""
    scenario: str = ""
    """Whose findings come; its folder has what the program printed."""
    _passed: set[Sentence] = field(default_factory=set)
    _failed: dict[Sentence, dict[str, str]] = field(default_factory=dict)
    """What was seen, and in which scenario first."""
    _skipped: dict[Sentence, str] = field(default_factory=dict)

    def of(self, scenario: str) -> Self:
        """The same report, for the findings of a scenario."""
        return replace(self, scenario=scenario)

    def add(self, *findings: Finding) -> None:
        """Note findings."""
        for finding in findings:
            if finding.ok:
                self._passed.add(finding.sentence)
            else:
                seen = self._failed.setdefault(finding.sentence, {})
                seen.setdefault(one_line(finding.seen), self.scenario)

    def skip(self, sentence: Sentence, why: str) -> None:
        """Note why a sentence is not tried, should nothing else be found."""
        self._skipped.setdefault(sentence, _placed(why, self.scenario))

    def verdict(self, sentence: Sentence) -> Verdict:
        """What became of a sentence."""
        if sentence in self._failed:
            return Verdict.FAILED
        return Verdict.PASSED if sentence in self._passed else Verdict.NOT_TRIED

    def failed(self) -> list[Sentence]:
        """The sentences that the program does not keep, among those asked for."""
        return [one for one in Sentence if one in self._failed and one in self.chosen]

    def _asked(self) -> Iterator[Sentence]:
        return (one for one in Sentence if one in self.chosen)

    def _seen(self, sentence: Sentence) -> str:
        match self.verdict(sentence):
            case Verdict.FAILED:
                found = [*self._failed[sentence].items()][:_MAX_SEEN]
                return "; ".join(_placed(*one) for one in found)
            case Verdict.NOT_TRIED:
                return self._skipped.get(sentence, "nothing was seen of it")
        return ""

    def lines(self) -> Iterable[str]:
        """The table for people."""
        for one in self._asked():
            yield f"{self.verdict(one):9}  {one:{_WIDTH}}  {one.text}"
            if seen := self._seen(one):
                yield f"{'':9}  {'':{_WIDTH}}  {seen}"
        counts = [sum(self.verdict(one) is which for one in self._asked()) for which in Verdict]
        yield ""
        yield f"{counts[0]} passed, {counts[1]} failed, {counts[2]} not tried"
        if self.chosen == CONNECTION:
            yield "This kit cannot try:"
            yield from (f"- {what}: {why}" for what, why in CANNOT_TRY.items())

    def as_json(self) -> dict[str, Any]:
        """The same for scripts."""
        return {
            "sentences": [
                {
                    "id": one.value,
                    "section": one.section,
                    "text": one.text,
                    "verdict": self.verdict(one).value,
                    "seen": self._seen(one),
                }
                for one in self._asked()
            ],
            "cannot_try": [{"what": what, "why": why} for what, why in CANNOT_TRY.items()],
        }


def _placed(seen: str, scenario: str) -> str:
    return f"{seen} (in {scenario})" if scenario else seen
