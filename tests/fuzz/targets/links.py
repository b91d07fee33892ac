"""The CSV file of users and subjects: each user and each subject once, and a fault names its line in one line."""

from __future__ import annotations

from typing import Any

from gateway.core.accounts import MAX_USER_NAME, fold_user
from gateway.core.login_rules import is_subject
from gateway.core.text import decoded
from gateway.core.user_links_csv import read_user_links
from tests.fuzz.target import Target, require
from tests.fuzz.targets.fleets import check_faults

_MAX_ROWS = 20


def check(data: bytes, product: Any) -> None:
    """See the module."""
    try:
        text = decoded(data)
    except UnicodeDecodeError:
        return
    links, faults = product(text, _MAX_ROWS)
    check_faults(text, faults)
    require(links or faults, "nothing was read, and nothing was said of it")
    require(len(links) <= _MAX_ROWS, f"{len(links)} rows")
    for values in ([fold_user(link.user) for link in links], [link.subject for link in links]):
        require(len(set(values)) == len(values), f"one twice in {values}")
    for link in links:
        require(0 < len(link.user) <= MAX_USER_NAME, f"{link}")
        require(is_subject(link.subject), f"{link}")


TARGET = Target(
    read_user_links,
    check,
    (
        b"user,subject\nalice,a-1\nbob,b-2\n",
        b"subject,user\na-1,alice\na-1,bob\nb-1,ALICE\n",
        b"user,subject\n,\n" + b"x" * 200 + b"," + b"y" * 300 + b"\n",
        b"user,subject\n" + b"".join(b"u%d,s%d\n" % (number, number) for number in range(22)),
        b"user\n",
        b'user,subject\n"a"b,c\n',
    ),
    (b"user", b"subject", b'""', b"\r\n", b"\xc2\xa0", b"\xc3\x9f"),
)
