"""Which passwords may be set."""

from __future__ import annotations

import pytest

from gateway.core.secret import Secret
from gateway.services.passwords import is_acceptable

SNOWMAN = "\N{SNOWMAN}"  # three bytes


@pytest.mark.parametrize(
    ("password", "does"),
    [
        ("", False),
        ("x" * 11, False),
        ("x" * 12, True),
        ("x" * 1024, True),
        ("x" * 1025, False),
        (SNOWMAN * 11, False),
        (SNOWMAN * 12, True),
        (SNOWMAN * 341, True),
        (SNOWMAN * 342, False),
        ("\udcff" * 12, False),  # a byte that is no UTF-8, as Python reads it (PEP 383)
    ],
)
def test_a_password_has_enough_characters_and_not_too_many_bytes(password, does):
    assert is_acceptable(Secret(password)) is does
