"""The seeds of the fuzzer are replayed, so that what was mended stays so; and each property finds a broken product.

Fuzzing itself is `make fuzz`.
"""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest

from gateway.core.dpop import Proof
from gateway.core.fleet_csv import Fleet
from gateway.core.oidc import Identity
from gateway.core.tokens import OpenedToken
from gateway.runtime.settings import BadSetting
from tests.fuzz.target import SEEDS, TARGETS, Failed, TooSlow, load, seeds_of


@pytest.fixture(scope="module", autouse=True)
def closed():
    """Closes what the targets have started."""
    yield
    for name in TARGETS:
        load(name).close()


@pytest.mark.parametrize("name", TARGETS)
def test_the_property_holds_for_each_example_and_seed(name):
    target = load(name)
    for data in [*target.examples, *(file.read_bytes() for file in seeds_of(name))]:
        target.check(data, target.product)


def test_each_folder_of_seeds_is_that_of_a_target():
    folders = [*SEEDS.iterdir()]
    assert {folder.name for folder in folders} <= set(TARGETS)
    size = sum(file.stat().st_size for folder in folders for file in folder.iterdir())
    assert size < 200_000, "choose the seeds again: python -m tests.fuzz --keep"


def opens_whatever_it_is(keys, token, retired=()):
    return OpenedToken("lab-1", "normal", 7, token.digest())


def valid_unsigned(text, **how):
    """Reads the claims, and looks at no signature."""
    part = text.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(part + "=="))
    return Proof("t", claims["jti"], claims["iat"], claims.get("nonce"))


def without_pongs(pieces):
    receiver, _, codes = load("frames").product(pieces)
    return receiver, b"", codes


def in_one_piece_more(pieces):
    receiver, sent, codes = load("frames").product([*pieces, b"\x81\x80\0\0\0\0"])
    return receiver, sent, codes


def answers_twice(texts):
    done, end = load("messages").product(texts)
    for _, noted in done:
        noted.sent += noted.sent
    return done, end


def shows_the_password(file, environ):
    raise BadSetting(f"database.url: {file.read_text()!r}")


def in_two_lines(command, words):
    import click  # noqa: PLC0415

    raise click.UsageError("one\ntwo")


def forgets_a_row(text, at_most):
    fleet = load("fleet").product(text, at_most)
    return Fleet(fleet.rows[:1], fleet.faults)


def takes_a_user_twice(text, at_most):
    links, faults = load("links").product(text, at_most)
    return links * 2, faults


def one_instant_late(*asked):
    found, newest, early, words = load("cron").product(*asked)
    return found[1:], newest, early, words


def of_anybody(name, given):
    return (
        Identity("a-1", None, {}) if name == "identify" else load("id-token").product(name, given)
    )


def dials_what_it_is_told(url, allowed, addresses):
    return addresses, [], "cannot connect"


def with_an_unknown_code(pieces):
    body = b'{"status":400,"code":"nonsense"}'
    head = b"HTTP/1.1 400 Bad\r\nServer: ice-gateway\r\nContent-Type: application/problem+json\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


BROKEN = [
    ("token", opens_whatever_it_is),
    ("proof", valid_unsigned),
    ("frames", without_pongs),
    ("frames", in_one_piece_more),
    ("messages", answers_twice),
    ("settings", shows_the_password),
    ("client-settings", in_two_lines),
    ("fleet", forgets_a_row),
    ("links", takes_a_user_twice),
    ("cron", one_instant_late),
    ("id-token", of_anybody),
    ("webhook-url", dials_what_it_is_told),
    ("handshake", with_an_unknown_code),
    ("bodies", with_an_unknown_code),
]


@pytest.mark.parametrize(("name", "product"), BROKEN, ids=lambda it: getattr(it, "__name__", it))
def test_a_broken_product_is_found_by_the_examples(name, product):
    """Or else the property would prove nothing."""
    target = load(name)

    def check_all():
        for data in target.examples:
            target.check(data, product)

    with pytest.raises(Failed):
        check_all()


def test_a_product_that_takes_too_long_is_found():
    target = replace(load("links"), base_ms=0.0, kib_ms=0.0)
    with pytest.raises(TooSlow, match="are allowed"):
        target.judge(target.examples[0])


def test_every_target_has_a_broken_product():
    assert {name for name, _ in BROKEN} == set(TARGETS)
