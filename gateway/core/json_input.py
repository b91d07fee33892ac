"""Checks that untrusted text is JSON before objects are built from it. Pure.

Building objects from a MiB takes up to 150 ms (1.3 s for floats); skipping through it takes 3 ms.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from client.protocol import MAX_DEPTH, JsonTooComplex

T = TypeVar("T")
_SKIP: Final = msgspec.json.Decoder(msgspec.Raw)


class NotJson(ValueError):
    """The text is not one JSON value in UTF-8."""


def check_syntax(data: bytes) -> None:
    """Reject what is not JSON (RFC 8259).

    Decoding into a typed struct costs time linear in the size. Only values that are stored as they were
    sent also need `client.protocol.check_json`.

    Raises:
        NotJson: it is not JSON.
        JsonTooComplex: it is nested too deeply for the parser.
    """
    try:
        data.decode()  # msgspec validates UTF-8 in strings only when it builds them
        _SKIP.decode(data)
    except RecursionError:
        # msgspec stops at 1,000 levels. Text with unbalanced brackets is certainly not JSON.
        if any(data.count(begin) != data.count(end) for begin, end in ((b"[", b"]"), (b"{", b"}"))):
            raise NotJson from None
        raise _too_deep() from None
    except (UnicodeDecodeError, msgspec.DecodeError):
        raise NotJson from None


def decode(data: bytes, shape: type[T]) -> T:
    """The objects that `data` describes.

    Raises:
        NotJson: it is not JSON.
        JsonTooComplex: it is nested too deeply for the parser.
        msgspec.ValidationError: it has another shape. Like the others it is a ValueError.
    """
    check_syntax(data)
    try:
        return msgspec.json.decode(data, type=shape)
    except RecursionError:
        raise _too_deep() from None


def shape_fault(error: msgspec.ValidationError) -> tuple[str, str]:
    """The field that the error names, or `body`, and the reason.

    An example of msgspec's text: Expected `str`, got `int` - at `$.ice_name`.
    """
    # Split from the right, since the sentence may quote the input; without a path the whole text is the reason.
    reason, found, place = str(error).rpartition(" - at `$")
    if not found:
        reason, place = place, ""
    field = place.rstrip("`").lstrip(".")
    if not field and "field `" in reason:  # the sentence names a missing or unknown member
        field = reason.split("field `")[1].split("`")[0]
    return field or "body", reason[:1].lower() + reason[1:]


def _too_deep() -> JsonTooComplex:
    return JsonTooComplex(f"it is deeper than {MAX_DEPTH} levels")
