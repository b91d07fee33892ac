"""A type for secrets, so that they do not leak into a log, an error or a listing."""

from __future__ import annotations

import hashlib
import hmac
from typing import NoReturn


class Secret:
    """A text that masks itself: `repr`, `str` and formatting show asterisks. A comparison takes constant time.

    Only `reveal()` returns the text, so that a reviewer can search for that word.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for code that shows or sends it."""
        return self._text

    def digest(self) -> str:
        """Lowercase hex SHA-256 of the text, for storage."""
        return hashlib.sha256(self._text.encode()).hexdigest()

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._bytes(), other._bytes())

    def _bytes(self) -> bytes:
        # A header may hold bytes that are not UTF-8; they arrive as surrogates.
        return self._text.encode(errors="surrogatepass")

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")
