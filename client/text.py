"""Decodes files that people write, and makes the system's names encodable.

Tested in tests/client/test_client_credentials.py and tests/client/test_client_agent.py.
"""

from __future__ import annotations

import codecs


def decoded(data: bytes, errors: str = "strict") -> str:
    """Decode UTF-8, or UTF-16 and UTF-8 with a byte order mark, as editors and shells on Windows write it.

    Raises `UnicodeDecodeError` unless `errors` says otherwise.
    """
    is_utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if is_utf_16 else "utf-8-sig", errors)


def encodable(text: str) -> str:
    """`text` with U+FFFD for each lone surrogate, as in system names that are not UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
