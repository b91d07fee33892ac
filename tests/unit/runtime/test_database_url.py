"""A database URL: what it names, and that its password is never shown."""

from __future__ import annotations

import pytest

from gateway.runtime.database_url import each_host, names_server, shown


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://ice:secret@db/ice", "postgresql://ice@db/ice"),
        ("postgres://ice:secret@db:5432/ice?sslmode=require", "postgres://ice@db:5432/ice"),
        ("postgresql://db/ice?password=secret", "postgresql://db/ice"),
        ("postgresql://ice:sec%2Fret@[::1]:5432/ice", "postgresql://ice@[::1]:5432/ice"),
        ("postgresql://ice:secret@a:1,b:2/ice", "postgresql://ice@a:1,b:2/ice"),
        ("postgresql:///ice?host=/run/postgresql", "postgresql:///ice"),
    ],
)
def test_a_url_is_shown_without_its_password(url, expected):
    assert names_server(url)
    assert shown(url) == expected


@pytest.mark.parametrize("mark", ["/", "#", "?", "@", ":/", "[", "]", "/[", "@[", "\n", "℀"])
@pytest.mark.parametrize(
    "form",
    [
        "postgresql://ice:{}@db/ice",
        "postgresql://ice:{}@db:5432/ice?sslmode=require",
        "postgresql://ice:12{}@db/ice",
        "postgresql://db/ice?password={}@x",
        "postgresql:/ice:{}@db/ice",
        "postgresql//ice:{}@db/ice",
        "ice:{}@db/ice",
    ],
)
def test_no_piece_of_a_password_is_shown_however_malformed_the_url(form, mark):
    url = form.format(f"first{mark}second")
    for piece in ("first", "second", "12"):
        assert piece not in shown(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ice:a/b@db/ice",
        "postgresql://ice:a#b@db/ice",
        "postgresql://ice:a?b@db/ice",
        "postgresql://ice:a@b@db/ice",
        "postgresql://ice:secret/ice",
        "postgresql://db/ice#x",
        "postgresql://db",
        "postgresql:///",
        "mysql://db/ice",
    ],
)
def test_what_has_two_readings_names_no_server(url):
    assert not names_server(url)


def test_each_host_stands_alone_with_the_rest_of_the_url():
    assert each_host("postgresql://ice:pw@a:1,[::1]:2,c/ice?sslmode=require") == [
        "postgresql://ice:pw@a:1/ice?sslmode=require",
        "postgresql://ice:pw@[::1]:2/ice?sslmode=require",
        "postgresql://ice:pw@c/ice?sslmode=require",
    ]
    assert each_host("postgresql:///ice?host=a,b") == ["postgresql:///ice?host=a,b"]
