"""The text of a person's files, whatever editor or shell wrote it, and of the system, whatever its octets are."""

from __future__ import annotations

import codecs


def decoded(data: bytes, errors: str = "strict") -> str:
    """The text: UTF-8, or what Windows' editors and shells write with a byte order mark.

    Raises `UnicodeDecodeError` unless `errors` says otherwise.
    """
    is_utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if is_utf_16 else "utf-8-sig", errors)


def encodable(text: str) -> str:
    """`text` fit for a message: U+FFFD for each lone surrogate, as in names of the system that are no UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
