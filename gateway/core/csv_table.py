"""Reads a CSV file with a header. Pure.

The file is RFC 4180; the header names the columns in any order. A fault names its line.

Tested in tests/unit/core/test_fleet_csv.py and tests/unit/core/test_user_links_csv.py.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.core.problems import quoted

_BEGIN: Final = "\ufeff"
"""The byte order mark of UTF-8, if the file was decoded with it."""


@dataclass(frozen=True, slots=True)
class CsvFault:
    """What is wrong on a line; `column` is None if it concerns the whole line."""

    line: int
    column: str | None
    reason: str

    def __str__(self) -> str:
        column = "" if self.column is None else f"{self.column}: "
        return f"line {self.line}: {column}{self.reason}"


@dataclass(frozen=True, slots=True)
class CsvTable:
    """What a file is to have.

    Attributes:
        required: the columns that it must have.
        optional: further columns.
        rows_of: what a row is, such as `ICE`.
    """

    required: Sequence[str]
    rows_of: str
    optional: Sequence[str] = ()

    @property
    def columns(self) -> list[str]:
        """All columns."""
        return [*self.required, *self.optional]

    def rows(self, text: str, at_most: int) -> Iterator[tuple[int, dict[str, str]] | CsvFault]:
        """Each row: its line, and its cells by column; empty ones for columns and cells that are left out.

        A row that cannot be read is a fault. Nothing is read after a line that is not CSV, or after `at_most` rows.
        """
        lines = _lines(text.removeprefix(_BEGIN))
        first = next(lines, None)
        if first is None:
            first = CsvFault(1, None, f"needs a header: {','.join(self.columns)}")
        if isinstance(first, CsvFault):
            yield first
            return
        line, header = first
        header = [name.lower() for name in header]
        faults = self._header_faults(line, header)
        yield from faults
        if faults:
            return
        number = 0
        for number, each in enumerate(lines, 1):
            if isinstance(each, CsvFault):
                yield each
                return
            line, cells = each
            if number > at_most:
                yield CsvFault(line, None, f"at most {at_most:,} {self.rows_of}s in one file")
                return
            if len(cells) > len(header):
                reason = (
                    f"has {len(cells)} cells, the header {len(header)}: put quotes around a comma"
                )
                yield CsvFault(line, None, reason)
            else:
                given = dict(zip(header, cells, strict=False))
                yield line, dict.fromkeys(self.columns, "") | given
        if not number:
            yield CsvFault(line, None, f"no {self.rows_of} follows the header")

    def _header_faults(self, line: int, header: list[str]) -> list[CsvFault]:
        columns = self.columns
        faults = [
            CsvFault(
                line, quoted(name) or None, f"is not a column; the columns are {', '.join(columns)}"
            )
            for name in header
            if name not in columns
        ]
        if faults and len(header) == 1:
            needed = f"needs a header with commas: {','.join(columns)}"
            return [CsvFault(line, None, needed)]
        faults += [
            CsvFault(line, name, "is missing in the header")
            for name in self.required
            if name not in header
        ]
        faults += [
            CsvFault(line, name, "is twice in the header")
            for name in columns
            if header.count(name) > 1
        ]
        return faults


def _lines(text: str) -> Iterator[tuple[int, list[str]] | CsvFault]:
    """Each line that is not blank: its number, or that of the first of its lines, and its cells."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield CsvFault(line, None, f"is not CSV: {error}")
            return
        cells = [cell.strip() for cell in cells]
        if any(cells):
            yield line, cells
