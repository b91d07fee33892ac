"""The bounds of JSON from outside: its depth and its numbers (docs/protocol.md).

Pure, and shared with the gateway through `protocol`. A byte limit alone does not limit the cost of reading JSON: a
parser may recurse, and a number of 5,000 digits is refused by some parsers and slow in others.
"""

from __future__ import annotations

import math
import re
from array import array
from itertools import accumulate, islice
from typing import Final

MAX_DEPTH: Final = 100
"""Maximum levels of arrays and objects in JSON from outside."""
MAX_DIGITS: Final = 30
"""Maximum digits of a number in JSON from outside, with those of its exponent."""


class JsonTooComplex(ValueError):
    """The JSON is too deep, or one of its numbers is not finite or has too many digits."""


_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # +1 and -1, as signed bytes
_NOT_BRACKETS: Final = bytes(char for char in range(256) if char not in b"[]{}")
# Each byte of a number becomes 0, the sign of an exponent e.
_NUMBER_BYTES: Final = bytes(
    ord("0") if char in b"0123456789.+-" else ord("e") if char in b"eE" else ord(" ")
    for char in range(256)
)
_LONG: Final = b"0" * (MAX_DIGITS - 2)
_SHORT: Final = 1024
"""Size in bytes below which a plain substring search is cheapest."""
_DIGITS: Final = bytes(ord("0") if char in b"0123456789" else ord(" ") for char in range(256))
# May be infinite: a number of one digit is finite if its exponent is below 308, one of MAX_DIGITS if it is
# below 279.
_HUGE_EXPONENT: Final = (
    rb"[eE](?:(?<=[0-9.][0-9].)\+?0*(?:279|2[89][0-9]|30[0-7])"
    rb"|\+?0*(?:30[89]|3[1-9][0-9]|[4-9][0-9]{2}|[1-9][0-9]{3,}))"
)
_MAY_BE_HUGE: Final = re.compile(_HUGE_EXPONENT)
_HUGE: Final = re.compile(rb"(?<![0-9.])[0-9.]+" + _HUGE_EXPONENT)
_WINDOW: Final = 64 * 1024
"""Bytes scanned in one call, during which no other thread runs."""
_LONGEST_NUMBER: Final = MAX_DIGITS + len("-.e+")


def check_json(data: bytes, levels: int = MAX_DEPTH) -> None:
    """Check the depth and the numbers of JSON (docs/protocol.md).

    `levels` is the limit: `MAX_DEPTH` plus the levels of an envelope. Numbers must be finite (as IEEE 754
    doubles) and have at most `MAX_DIGITS` digits. `data` must be valid JSON: the caller has parsed it, perhaps
    as `msgspec.Raw`. The cost is 0.3 microseconds for a message, 5 ms for a usual MiB, and 30 to 90 ms for a MiB of huge numbers.

    Raises:
        JsonTooComplex: the text says which bound.
    """
    size = len(data)
    # Each level takes two brackets.
    shallow = size <= 2 * levels or data.count(b"[") + data.count(b"{") <= levels
    numbers = data.translate(_NUMBER_BYTES)
    # Up to 27 digits without an exponent of three digits are neither too many nor infinite.
    long = _LONG in numbers if size <= _SHORT else _has_run(numbers, len(_LONG))
    plain = not long and b"e000" not in numbers
    if shallow and plain:
        return
    outside = _without_strings(data)
    if not shallow and _depth(outside) > levels:
        raise JsonTooComplex(f"the JSON is deeper than {MAX_DEPTH} levels")
    if plain:
        return
    if _has_run(outside.translate(_DIGITS, b".eE+-"), MAX_DIGITS + 1):
        raise JsonTooComplex(f"a number has more than {MAX_DIGITS} digits")
    for begin in range(0, size, _WINDOW):
        end = begin + _WINDOW + _LONGEST_NUMBER
        if _MAY_BE_HUGE.search(outside, begin, end) and math.inf in map(
            float, set(_HUGE.findall(outside, begin, end))
        ):
            raise JsonTooComplex("a number is not finite")


def _without_strings(data: bytes) -> bytes:
    """The JSON without the content of its strings."""
    return b" ".join(data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])


def _has_run(zeros: bytes, length: int) -> bool:
    """Whether there are `length` zeros in a row; a substring search would take quadratic time."""
    quarters, rest = divmod(length, 4)
    shorter = zeros.replace(b"0000", b"1")
    return b"1" * quarters + b"0" * rest in shorter or b"1" * (quarters + 1) in shorter


def _depth(outside: bytes) -> int:
    steps = array("b", outside.translate(_STEPS, _NOT_BRACKETS))
    depth = deepest = 0
    for begin in range(0, len(steps), _WINDOW):
        depths = list(accumulate(steps[begin : begin + _WINDOW], initial=depth))
        depth, deepest = depths[-1], max(deepest, *depths)
    return deepest


_TOKENS: Final = re.compile(rb'"[^"]*"?|[][{}]')
_MAX_TOKENS: Final = 1000


def outline(data: bytes, levels: int) -> bytes | None:
    """Cut JSON that is too deep for a parser: null for what is deeper than `levels`; None if that fails.

    It replaces everything from the first to the last such value, so that only the beginning and the end have to
    be read.
    """
    # The same length, without quotes inside strings.
    plain = data.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    begin, end = _deeper(plain, b"[{", levels), _deeper(plain[::-1], b"]}", levels)
    if begin is None or end is None:
        return None
    return data[:begin] + b"null" + data[len(data) - end :]


def _deeper(plain: bytes, opening: bytes, levels: int) -> int | None:
    """Where the first value deeper than `levels` begins."""
    depth = 0
    for token in islice(_TOKENS.finditer(plain), _MAX_TOKENS):
        if token[0][:1] != b'"':
            depth += 1 if token[0] in opening else -1
        if depth > levels:
            return token.start()
    return None
