"""Reads a CSV file of users and the subjects by which an issuer knows them. Pure.

Source: docs/administration.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from gateway.core.accounts import MAX_USER_NAME, fold_user
from gateway.core.csv_table import CsvFault, CsvTable
from gateway.core.login_rules import SUBJECT_RULE, is_subject

TABLE: Final = CsvTable(("user", "subject"), "user")
MAX_ROWS: Final = 100_000


@dataclass(frozen=True, slots=True)
class UserLink:
    """A user and their subject, and the line on which they stand."""

    line: int
    user: str
    subject: str


def read_user_links(text: str, at_most: int = MAX_ROWS) -> tuple[list[UserLink], list[CsvFault]]:
    """The rows without a fault, and the faults, both in order of lines."""
    links: list[UserLink] = []
    faults: list[CsvFault] = []
    users: dict[str, int] = {}
    subjects: dict[str, int] = {}
    for each in TABLE.rows(text, at_most):
        if isinstance(each, CsvFault):
            faults.append(each)
            continue
        line, cells = each
        link = UserLink(line, cells["user"], cells["subject"])
        wrong = [*_faults(link, users, subjects)]
        faults += wrong
        if not wrong:
            links.append(link)
    return links, faults


def _faults(link: UserLink, users: dict[str, int], subjects: dict[str, int]) -> Iterator[CsvFault]:
    """What is wrong with a row. The lines of users and subjects before this one get this one's."""
    line = link.line
    if not 1 <= len(link.user) <= MAX_USER_NAME:
        yield CsvFault(line, "user", f"a user name has 1 to {MAX_USER_NAME} characters")
    elif (first := users.setdefault(fold_user(link.user), line)) != line:
        yield CsvFault(line, "user", f"is on line {first} already")
    if not is_subject(link.subject):
        yield CsvFault(line, "subject", f"needs {SUBJECT_RULE}")
    elif (first := subjects.setdefault(link.subject, line)) != line:
        yield CsvFault(line, "subject", f"is on line {first} already")
