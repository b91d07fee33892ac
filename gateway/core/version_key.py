"""Sorting versions as text: keys whose code points compare as PEP 440 orders the versions. Pure.

An ICE reports its version. The store keeps the key beside it, so that SQL can filter and sort by it.
"""

from __future__ import annotations

import functools
from typing import Final

from packaging.version import InvalidVersion, Version

_MAX_VERSION: Final = 64
"""Characters of a version; a longer text is none. It bounds the digits of each number to two decimals."""
_END: Final = " "
"""Sorts before everything that may continue a key, so a shorter release comes first."""


@functools.lru_cache(1024)
def version_key(version: str | None) -> str | None:
    """The key of a version; None for a text that PEP 440 does not read."""
    if version is None or len(version) > _MAX_VERSION:
        return None
    try:
        parsed = Version(version)
    except InvalidVersion:
        return None
    return "".join(
        (
            _number(parsed.epoch),
            *(f".{_number(part)}" for part in _without_zeros(parsed.release)),
            _END,
            _pre(parsed),
            "0" if parsed.post is None else f"1{_number(parsed.post)}",
            # A development release comes before what it leads to.
            "z" if parsed.dev is None else f"d{_number(parsed.dev)}",
            _local(parsed.local),
        )
    )


def _number(number: int) -> str:
    """Digits that compare as the number: their count comes first."""
    digits = str(number)
    return f"{len(digits):02d}{digits}"


def _without_zeros(release: tuple[int, ...]) -> tuple[int, ...]:
    """1.0.0 is the same version as 1."""
    while release and release[-1] == 0:
        release = release[:-1]
    return release


def _pre(parsed: Version) -> str:
    if parsed.pre is not None:
        letter, number = parsed.pre  # a, b or rc
        return f"{letter[0]}{_number(number)}"
    # 1.dev0 comes before 1a0; a release, and what follows it, after 1rc0.
    return "0" if parsed.post is None and parsed.dev is not None else "z"


def _local(local: str | None) -> str:
    if local is None:
        return "0"
    parts = (
        f"b{_number(int(part))}" if part.isdigit() else f"a{part}" for part in local.split(".")
    )
    return f"1{_END.join(parts)}{_END}"
