"""Reads a CSV file of ICEs to provision: page and command read the same file alike. Pure.

The file is RFC 4180 with a header, which names the columns in any order. A fault names its line.
Source: docs/administration.md.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from gateway.core.accounts import MAX_USER_NAME
from gateway.core.ice import NAME_RULE, IceType, fold, valid_name
from gateway.core.labels import Labels, labels_of
from gateway.core.problems import quoted

REQUIRED: Final = ("ice_name", "ice_type")
COLUMNS: Final = (*REQUIRED, "user", "labels")
"""`user` is empty for a `ci-cd` ICE; `labels` is `key=value;key=value`."""
MAX_ROWS: Final = 100_000
_BEGIN: Final = "\ufeff"
"""The byte order mark of UTF-8, if the file was decoded with it."""


@dataclass(frozen=True, slots=True)
class FleetRow:
    """An ICE to provision, and the line on which it begins."""

    line: int
    ice_name: str
    ice_type: IceType
    user: str | None = None
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FleetFault:
    """What is wrong on a line; `column` is None if it concerns the whole line."""

    line: int
    column: str | None
    reason: str

    def __str__(self) -> str:
        column = "" if self.column is None else f"{self.column}: "
        return f"line {self.line}: {column}{self.reason}"


@dataclass(frozen=True, slots=True)
class Fleet:
    """The rows without a fault, and the faults, both in order of lines."""

    rows: list[FleetRow]
    faults: list[FleetFault]


def read_fleet(text: str, at_most: int = MAX_ROWS) -> Fleet:
    """Read the text of a CSV file. Nothing is read after a line that is not CSV, or after `at_most` rows."""
    lines = _lines(text.removeprefix(_BEGIN))
    first = next(lines, None)
    if first is None:
        return Fleet([], [FleetFault(1, None, f"needs a header: {','.join(COLUMNS)}")])
    if isinstance(first, FleetFault):
        return Fleet([], [first])
    line, header = first
    columns = [name.lower() for name in header]
    faults = _header_faults(line, columns)
    if faults:
        return Fleet([], faults)
    rows: list[FleetRow] = []
    seen: dict[str, int] = {}
    for number, each in enumerate(lines):
        if isinstance(each, FleetFault):
            faults.append(each)
            break
        line, cells = each
        if number == at_most:
            faults.append(FleetFault(line, None, f"at most {at_most:,} ICEs in one file"))
            break
        row = _row(line, columns, cells, seen)
        if isinstance(row, FleetRow):
            rows.append(row)
        else:
            faults += row
    if not rows and not faults:
        faults.append(FleetFault(line, None, "no ICE follows the header"))
    return Fleet(rows, faults)


def _lines(text: str) -> Iterator[tuple[int, list[str]] | FleetFault]:
    """Each line that is not blank: its number, or that of the first of its lines, and its cells."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield FleetFault(line, None, f"is not CSV: {error}")
            return
        cells = [cell.strip() for cell in cells]
        if any(cells):
            yield line, cells


def _header_faults(line: int, columns: list[str]) -> list[FleetFault]:
    faults = [
        FleetFault(
            line, quoted(name) or None, f"is not a column; the columns are {', '.join(COLUMNS)}"
        )
        for name in columns
        if name not in COLUMNS
    ]
    if faults and len(columns) == 1:
        needed = f"needs a header with commas: {','.join(COLUMNS)}"
        return [FleetFault(line, None, needed)]
    faults += [
        FleetFault(line, name, "is missing in the header")
        for name in REQUIRED
        if name not in columns
    ]
    faults += [
        FleetFault(line, name, "is twice in the header")
        for name in COLUMNS
        if columns.count(name) > 1
    ]
    return faults


def _row(
    line: int, columns: list[str], cells: list[str], seen: dict[str, int]
) -> FleetRow | list[FleetFault]:
    """The row, or what is wrong with it; cells that are left out at the end are empty.

    `seen` has the lines of the folded names before this one, and gets this one's.
    """
    if len(cells) > len(columns):
        fault = f"has {len(cells)} cells, the header {len(columns)}: put quotes around a comma"
        return [FleetFault(line, None, fault)]
    given = dict.fromkeys(COLUMNS, "") | dict(zip(columns, cells, strict=False))
    name, user = given["ice_name"], given["user"] or None
    faults: list[FleetFault] = []
    if not valid_name(name):
        faults.append(FleetFault(line, "ice_name", f"needs {NAME_RULE}"))
    elif seen.setdefault(fold(name), line) != line:
        faults.append(FleetFault(line, "ice_name", f"is on line {seen[fold(name)]} already"))
    try:
        ice_type = IceType(given["ice_type"].lower())
    except ValueError:
        ice_type = IceType.CI_CD
        faults.append(FleetFault(line, "ice_type", f"needs {' or '.join(IceType)}"))
    else:
        fault_of_user = _user_fault(ice_type, user)
        if fault_of_user is not None:
            faults.append(FleetFault(line, "user", fault_of_user))
    labels = labels_of(given["labels"])
    if isinstance(labels, str):
        faults.append(FleetFault(line, "labels", labels))
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
