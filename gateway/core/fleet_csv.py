"""Reads a CSV file of ICEs to provision: page and command read the same file alike. Pure.

Source: docs/administration.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from gateway.core.accounts import MAX_USER_NAME
from gateway.core.csv_table import CsvFault, CsvTable
from gateway.core.ice import NAME_RULE, IceType, fold, valid_name
from gateway.core.labels import Labels, labels_of

TABLE: Final = CsvTable(("ice_name", "ice_type"), "ICE", ("user", "labels"))
"""`user` is empty for a `ci-cd` ICE; `labels` is `key=value;key=value`."""
MAX_ROWS: Final = 100_000


@dataclass(frozen=True, slots=True)
class FleetRow:
    """An ICE to provision, and the line on which it begins."""

    line: int
    ice_name: str
    ice_type: IceType
    user: str | None = None
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fleet:
    """The rows without a fault, and the faults, both in order of lines."""

    rows: list[FleetRow]
    faults: list[CsvFault]


def read_fleet(text: str, at_most: int = MAX_ROWS) -> Fleet:
    """Read the text of a CSV file. Nothing is read after a line that is not CSV, or after `at_most` rows."""
    rows: list[FleetRow] = []
    faults: list[CsvFault] = []
    seen: dict[str, int] = {}
    for each in TABLE.rows(text, at_most):
        row = [each] if isinstance(each, CsvFault) else _row(*each, seen)
        if isinstance(row, FleetRow):
            rows.append(row)
        else:
            faults += row
    return Fleet(rows, faults)


def _row(line: int, given: dict[str, str], seen: dict[str, int]) -> FleetRow | list[CsvFault]:
    """The row, or what is wrong with it.

    `seen` has the lines of the folded names before this one, and gets this one's.
    """
    name, user = given["ice_name"], given["user"] or None
    faults: list[CsvFault] = []
    if not valid_name(name):
        faults.append(CsvFault(line, "ice_name", f"needs {NAME_RULE}"))
    elif seen.setdefault(fold(name), line) != line:
        faults.append(CsvFault(line, "ice_name", f"is on line {seen[fold(name)]} already"))
    try:
        ice_type = IceType(given["ice_type"].lower())
    except ValueError:
        ice_type = IceType.CI_CD
        faults.append(CsvFault(line, "ice_type", f"needs {' or '.join(IceType)}"))
    else:
        fault_of_user = _user_fault(ice_type, user)
        if fault_of_user is not None:
            faults.append(CsvFault(line, "user", fault_of_user))
    labels = labels_of(given["labels"])
    if isinstance(labels, str):
        faults.append(CsvFault(line, "labels", labels))
        return faults
    return faults or FleetRow(line, name, ice_type, user, labels)


def _user_fault(ice_type: IceType, user: str | None) -> str | None:
    if ice_type is IceType.CI_CD:
        return "a ci-cd ICE has no user" if user else None
    if user is None:
        return "a normal ICE needs a user"
    if len(user) > MAX_USER_NAME or not user.isprintable():
        return f"a user name has 1 to {MAX_USER_NAME} printable characters"
    return None
