"""The request headers that we read ourselves."""

from __future__ import annotations

import pytest

from gateway.web.http_headers import cookie, media_type, none_match


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("application/json", "application/json"),
        (" Application/JSON ; charset=utf-8", "application/json"),
        ('application/json;a="b;c"', "application/json"),
        ("", ""),
        (";" * 32_000, ""),
        ("a/b; " + "(" * 32_000, "a/b"),
        ("\udcff", "\udcff"),
    ],
    ids=lambda text: repr(text[:20]),
)
def test_media_type_is_the_text_before_the_parameters(header, expected):
    assert media_type(header) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], None),
        ([""], None),
        (["ice=1"], "1"),
        (["a=b; ice=1"], "1"),
        (["a=b;\tice= 1 ;c=d"], "1"),
        (["ice=1; ice=2"], "2"),
        (["ice=1", "ice=2"], "2"),
        (["xice=1; icex=2; ice"], None),
        (["a=ice=1"], None),
        (["ICE=1"], None),
        (["ice="], ""),
        (["ice=a=b"], "a=b"),
        ([";" * 16_000 + "ice=1" + ";" * 16_000], "1"),
    ],
)
def test_cookie_is_found_by_its_name(headers, expected):
    assert cookie(headers, "ice") == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], False),
        (["*"], True),
        (['"abc"'], True),
        (['W/"abc"'], True),
        (['"x", "abc"'], True),
        (['"x"', '"abc"'], True),
        (["abc"], False),
        (['"abcd", "x*"'], False),
        (['"1",' * 8_000], False),
    ],
)
def test_entity_tag_is_found_in_a_list(headers, expected):
    assert none_match(headers, "abc") is expected
