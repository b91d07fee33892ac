"""The text of a person's files, whatever editor or shell wrote it."""

from __future__ import annotations

import codecs


def decoded(data: bytes, errors: str = "strict") -> str:
    """The text: UTF-8, or what Windows' editors and shells write with a byte order mark.

    Raises `UnicodeDecodeError` unless `errors` says otherwise.
    """
    is_utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if is_utf_16 else "utf-8-sig", errors)
