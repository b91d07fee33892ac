"""Ten faults for `ice.mjs`, each a change of its text, and the sentences that the conformance kit should then name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client.conformance.sentences import Sentence

FOLDER: Final = Path(__file__).parent
SOURCE: Final = "ice.mjs"


@dataclass(frozen=True)
class Fault:
    """A fault: `old` stands once in the source, and `new` in its place breaks `breaks`."""

    old: str
    new: str
    breaks: frozenset[Sentence]

    def write(self, folder: Path) -> Path:
        """Write the ICE with this fault into a folder."""
        text = (FOLDER / SOURCE).read_text("utf-8")
        assert text.count(self.old) == 1, f"{self.old!r} stands {text.count(self.old)} times there"
        path = folder / SOURCE
        path.write_text(text.replace(self.old, self.new), "utf-8")
        (folder / "handlers.mjs").write_bytes((FOLDER / "handlers.mjs").read_bytes())
        return path


FAULTS: Final = {
    "a new key at each start": Fault(
        "if (!stored('key.pem')) store(", "store(", frozenset({Sentence.KEY_KEPT})
    ),
    "no nonce": Fault(
        "if (nonces) nonce = headers['dpop-nonce']",
        "if (nonces) nonce = ''",
        frozenset({Sentence.NONCE, Sentence.NONCE_AGAIN}),
    ),
    "Retry-After is ignored": Fault(
        "atLeast(headers['retry-after']) : 0",
        "0 : 0",
        frozenset({Sentence.RETRY_AFTER, Sentence.RETRY_AFTER_LEAST}),
    ),
    "every refusal is retried": Fault(
        "stop(`${problem.code}: ${problem.detail}`)",
        "backoff()",
        frozenset({Sentence.FINAL, Sentence.UNKNOWN_REFUSAL, Sentence.FINAL_ADMITTED}),
    ),
    "the backoff does not grow": Fault(
        "Math.min(60, 2 ** failures++)",
        "1",
        frozenset({Sentence.BACKOFF_GROWS, Sentence.BACKOFF_SESSIONS}),
    ),
    "unknown requests are not answered": Fault(
        "refuse(id, -32601, `no method ${method}`)",
        "id",
        frozenset({Sentence.UNKNOWN_REQUEST}),
    ),
    "a known id is run again": Fault(
        "if (!known) run(",
        "run(",
        frozenset({Sentence.ID_ONCE, Sentence.ID_ONCE_RESTARTED}),
    ),
    "a finish is sent once": Fault(
        "if (waiting.length) send(operations.get(waiting.shift()).finish)",
        "waiting = []",
        frozenset({Sentence.FINISH_REPEATED, Sentence.FINISH_LATER, Sentence.EIGHT_FINISHES}),
    ),
    "4101 and 4102 are followed by a reconnection": Fault(
        "if (code === 4101 || code === 4102) stop(`closed ${code} ${reason}: a person must act`)",
        "if (code === 4101 || code === 4102) return backoff()",
        frozenset({Sentence.CLOSE_STOPS}),
    ),
    "a cancel is ignored": Fault(
        "running.get(params.id)?.(",
        "void (",
        frozenset({Sentence.CANCEL}),
    ),
}
