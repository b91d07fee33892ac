"""A secret shows itself to nobody who does not ask for it by name."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import pickle
import traceback
from dataclasses import asdict, dataclass

import msgspec
import pytest

from gateway.core.secret import Secret

TEXT = "the-token-itself"
SECRET = Secret(TEXT)


@dataclass
class Holder:
    token: Secret


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        format,
        "{}".format,
        "{!r:>40}".format,
        lambda secret: f"{secret} {secret!s} {secret!r} {secret!a}",
        lambda secret: "%s %r" % (secret, [secret]),  # noqa: UP031 - how logging does it
        lambda secret: repr({"token": Holder(secret)}),
        lambda secret: json.dumps(secret, default=str),
        lambda secret: "".join(traceback.format_exception(ValueError(secret))),
    ],
)
def test_every_way_of_showing_it_shows_asterisks(show):
    shown = show(SECRET)
    assert "***" in shown
    assert TEXT not in shown


def test_a_log_shows_asterisks(caplog):
    logging.getLogger().error("opened %s", SECRET, extra={"token": SECRET})
    assert caplog.messages == ["opened Secret(***)"]
    assert TEXT not in repr(vars(caplog.records[0]))


@pytest.mark.parametrize(
    "take",
    [
        pickle.dumps,
        copy.copy,
        copy.deepcopy,
        json.dumps,
        msgspec.json.encode,
        vars,
        list,
        lambda secret: asdict(Holder(secret)),
    ],
)
def test_what_would_take_the_text_along_is_refused(take):
    with pytest.raises(TypeError) as refused:
        take(SECRET)
    assert TEXT not in str(refused.value)


def test_only_reveal_gives_the_text_and_digest_its_hash():
    assert SECRET.reveal() == TEXT
    assert SECRET.digest() == hashlib.sha256(TEXT.encode()).hexdigest()


def test_secrets_are_equal_by_their_text_and_to_nothing_else():
    assert Secret("\u00e9") == Secret("\u00e9")
    assert hash(SECRET) == hash(Secret(TEXT))
    assert Secret("other") != SECRET
    assert SECRET != TEXT
