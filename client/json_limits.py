"""How complex JSON from outside may be: its depth and its numbers (contract section 6). Pure.

`client.protocol` offers both names of this module: ICE and gateway refuse the same.
"""

from __future__ import annotations

import math
import re
from array import array
from itertools import accumulate
from typing import Final

MAX_DEPTH: Final = 100
"""Levels of arrays and objects."""
MAX_DIGITS: Final = 30
"""Digits of a number, its exponent's included."""


class JsonTooComplex(ValueError):
    """JSON that is deeper than `MAX_DEPTH`, or has a number that is not finite or has too many digits."""


_STEPS: Final = bytes(
    1 if char in b"[{" else 0xFF for char in range(256)
)  # +1 and -1, as signed bytes
_NOT_BRACKETS: Final = bytes(char for char in range(256) if char not in b"[]{}")
# A byte of a number becomes 0, the one before an exponent becomes e.
_NUMBER_BYTES: Final = bytes(
    ord("0") if char in b"0123456789.+-" else ord("e") if char in b"eE" else ord(" ")
    for char in range(256)
)
_DIGITS: Final = bytes(ord("0") if char in b"0123456789" else ord(" ") for char in range(256))
# With fewer digits before it, an exponent below 279 makes no number of MAX_DIGITS infinite.
_HUGE: Final = re.compile(
    rb"(?<![0-9.])[0-9.]+[eE]\+?0*(?:279|2[89][0-9]|[3-9][0-9]{2}|[1-9][0-9]{3,})"
)


def check_json(data: bytes) -> None:
    """Refuse JSON that would cost its readers more than its size suggests (contract section 6).

    At most `MAX_DEPTH` levels; numbers finite (as IEEE 754 doubles) and of at most `MAX_DIGITS` digits.
    `data` is valid JSON: the caller has parsed it, or skipped through it as `msgspec.Raw`. The cost is
    a microsecond for a message, 5 ms for a usual MiB, and 80 ms for one of nothing but huge numbers.

    Raises:
        JsonTooComplex: the text says what was exceeded.
    """
    shallow = data.count(b"[") + data.count(b"{") <= MAX_DEPTH
    numbers = data.translate(_NUMBER_BYTES)
    # Without an exponent of three digits, 27 digits before it are neither too many nor infinite.
    plain = not _has_run(numbers, MAX_DIGITS - 2) and b"e000" not in numbers
    if shallow and plain:
        return
    outside = _without_strings(data)
    if not shallow and _depth(outside) > MAX_DEPTH:
        raise JsonTooComplex(f"it is deeper than {MAX_DEPTH} levels")
    if plain:
        return
    if _has_run(outside.translate(_DIGITS, b".eE+-"), MAX_DIGITS + 1):
        raise JsonTooComplex(f"a number has more than {MAX_DIGITS} digits")
    if math.inf in map(float, _HUGE.findall(outside)):
        raise JsonTooComplex("a number is not finite")


def _without_strings(data: bytes) -> bytes:
    """What stands outside of strings, which may hold anything."""
    return b" ".join(data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])


def _has_run(zeros: bytes, length: int) -> bool:
    """Whether `length` zeros stand together; a plain search would begin anew at each of them."""
    quarters, rest = divmod(length, 4)
    shorter = zeros.replace(b"0000", b"1")
    return b"1" * quarters + b"0" * rest in shorter or b"1" * (quarters + 1) in shorter


def _depth(outside: bytes) -> int:
    steps = array("b", outside.translate(_STEPS, _NOT_BRACKETS))
    return max(accumulate(steps), default=0)
