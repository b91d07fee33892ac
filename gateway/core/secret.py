"""A secret is a type of its own, so that it cannot slip into a log, an error or a listing."""

from __future__ import annotations

import hashlib
import hmac
from typing import NoReturn


class Secret:
    """A text that masks itself: `repr`, `str` and formatting show asterisks, comparison takes constant time.

    Only `reveal()` gives the text; whoever reads the code can search for that word.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the one place that has to show or send it."""
        return self._text

    def digest(self) -> str:
        """Lowercase hex SHA-256 of the text: what a table may keep of it."""
        return hashlib.sha256(self._text.encode()).hexdigest()

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._bytes(), other._bytes())

    def _bytes(self) -> bytes:
        # A header may bring bytes that are no UTF-8; they come as surrogates.
        return self._text.encode(errors="surrogatepass")

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")
