"""What a search of ICEs compares: the folded words that were typed, and the folded text of each ICE. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gateway.core.accounts import fold_user

MAX_WORDS: Final = 16
"""Words of one search: each is looked for in the text of every ICE."""


def words_of(text: str) -> tuple[str, ...]:
    """The folded words of a search; an ICE matches if it has all of them somewhere."""
    return tuple(dict.fromkeys(fold_user(text).split()))


def own_text(ice_name: str, user: str | None, labels: Mapping[str, str], note: str) -> str:
    """What is searched of what an admin says of an ICE, folded."""
    pairs = (f"{key}={value}" for key, value in labels.items())
    return "\n".join(fold_user(text) for text in (ice_name, user, *pairs, note) if text)


def session_text(address: str, hostname: str | None) -> str:
    """What is searched of an ICE's newest session, folded; an address is so already."""
    return f"{address}\n{fold_user(hostname)}" if hostname else address
