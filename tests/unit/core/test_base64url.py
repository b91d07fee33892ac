"""base64url with one spelling only: RFC 7515 section 2."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import base64url


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        (b"f", "Zg"),
        (b"fo", "Zm8"),
        (b"foo", "Zm9v"),
        (b"\xfb\xff", "-_8"),
        (bytes([3, 236, 255, 224, 193]), "A-z_4ME"),  # RFC 7515 appendix C
    ],
)
def test_the_one_spelling(data, text):
    assert base64url.encode(data) == text
    assert base64url.decode(text) == data


@pytest.mark.parametrize(
    "text",
    [
        "Zg==",  # padding
        "Zh",  # trailing bits that are not zero
        "Zm9",
        "+_8",  # the alphabet of base64
        "-/8",
        "Zm 8",
        "Zm8\n",
        "\nZm8",
        "Z",
        "Zm9vY",
        "=",
        "Zm\u00e9",
        "Zm\ud800",
        "\u210d\u2119AA",
    ],
)
def test_every_other_spelling_is_refused(text):
    with pytest.raises(ValueError, match=r".+"):
        base64url.decode(text)


@given(st.text("ABYZabyz0189-_=+/ \n", max_size=12))
def test_no_two_texts_give_the_same_bytes(text):
    try:
        data = base64url.decode(text)
    except ValueError:
        return
    assert base64url.encode(data) == text


def test_text_has_to_be_utf_8():
    assert base64url.decode_text("w6Q") == "\u00e4"
    with pytest.raises(ValueError, match="utf-8"):
        base64url.decode_text("_w")
