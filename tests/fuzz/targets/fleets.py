"""The CSV file of a fleet: each row is read, or a fault names its line in one line; what is read can be written again."""

from __future__ import annotations

import csv
import io
import re
from typing import Any

from gateway.core.csv_table import CsvFault
from gateway.core.fleet_csv import Fleet, read_fleet
from gateway.core.text import decoded
from tests.fuzz.target import Target, require

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_MAX_ROWS = 20


def check_faults(text: str, faults: list[CsvFault]) -> None:
    """Each fault names a line of the file, and is one line that a person can read."""
    lines = len(re.split(r"\r\n|\r|\n", text))
    for fault in faults:
        require(1 <= fault.line <= lines, f"there is no line {fault.line} of {lines}")
        said = str(fault)
        require(len(said) < 1000, f"a fault of {len(said)} characters")
        require(said.startswith(f"line {fault.line}: "), said)
    require([one.line for one in faults] == sorted(one.line for one in faults), f"{faults}")


def check(data: bytes, product: Any) -> None:
    """See the module."""
    try:
        text = decoded(data)
    except UnicodeDecodeError:
        return  # refused by page and command before it is read
    fleet: Fleet = product(text, _MAX_ROWS)
    check_faults(text, fleet.faults)
    rows = fleet.rows
    require(rows or fleet.faults, "nothing was read, and nothing was said of it")
    require(len(rows) <= _MAX_ROWS, f"{len(rows)} rows")
    folded = [row.ice_name.lower() for row in rows]
    require(len(set(folded)) == len(folded), f"a name twice in {folded}")
    require([row.line for row in rows] == sorted(row.line for row in rows), f"{rows}")
    for row in rows:
        require(_NAME.fullmatch(row.ice_name), f"{row.ice_name!r} is no name")
        require((row.ice_type == "normal") == (row.user is not None), f"{row}")
        require(row.user is None or (row.user.isprintable() and len(row.user) <= 128), f"{row}")
        require(len(row.labels) <= 64, f"{row}")
    if rows:
        found = len(rows) + len({fault.line for fault in fleet.faults})
        require(found >= min(_records(text), _MAX_ROWS), f"{found} rows of {text!r}")
    again: Fleet = product(_written(fleet), _MAX_ROWS)
    require([*map(_cells, again.rows)] == [*map(_cells, rows)], f"{rows} is read again as {again}")


def _records(text: str) -> int:
    """The rows after the header that are not blank; 0 where the text is not CSV."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    try:
        return sum(any(cell.strip() for cell in record) for record in reader) - 1
    except csv.Error:
        return 0


def _cells(row: Any) -> tuple[Any, ...]:
    return row.ice_name, row.ice_type, row.user, row.labels


def _written(fleet: Fleet) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["labels", "user", "ice_type", "ice_name"])
    for row in fleet.rows:
        labels = ";".join(f"{key}={value}" for key, value in row.labels.items())
        writer.writerow([labels, row.user, row.ice_type, row.ice_name])
    return text.getvalue()


TARGET = Target(
    read_fleet,
    check,
    (
        b"ice_name,ice_type,user,labels\nlab-1,normal,alice,a=b;c=d\nci-1,ci-cd,,\n",
        b'\xef\xbb\xbfICE_NAME, ice_type\r\n"ci-1",CI-CD\r\n\r\nci-1,ci-cd\r\n',
        "ice_name,ice_type,user\nlab-1,normal,ålice\n".encode("utf-16"),
        b"",
        b"ice_name\nlab-1\n",
        b"ice_name,ice_type,ice_type,colour\n",
        b'ice_name,ice_type\n"lab-1,normal\nlab-2,ci-cd\n',
        b"ice_name,ice_type\nlab-1,ci-cd,,,\n-,other\nx,normal\n",
        b"ice_name,ice_type\n" + b"".join(b"a%d,ci-cd\n" % number for number in range(22)),
        b"ice_name,ice_type,labels\nlab-1,ci-cd,a=b;a=c\nlab-2,ci-cd,=\n",
    ),
    (
        b"ice_name",
        b"ice_type",
        b"user",
        b"labels",
        b"normal",
        b"ci-cd",
        b'""',
        b"\r\n",
        b"\xe2\x80\xa8",
    ),
)
