"""The rules of labels and notes: what an admin says of an ICE. Pure. Source: docs/api.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from gateway.core.problems import Problem, invalid, quoted

MAX_LABELS: Final = 32
TOO_MANY: Final = f"an ICE has at most {MAX_LABELS} labels"
MAX_NOTE: Final = 1000
"""Characters of a note."""
KEY_PATTERN: Final = "[a-z0-9][a-z0-9._-]{0,62}"
_KEY: Final = re.compile(KEY_PATTERN, re.ASCII)
MAX_VALUE: Final = 63
_PART: Final = re.compile(
    r"""([^=;]*)(?:=\s*(?:"((?:[^"]|"")*+)"(?=\s*(?:;|\Z))|([^;]*))\s*)?(?:;|\Z)"""
)
"""A label as a person writes it: its key, and its value in quotes or without."""

Labels = dict[str, str]
LabelChanges = Mapping[str, str | None]
"""New values by key; None removes the label."""


def label_fault(key: str, value: str | None) -> str | None:
    """What is wrong with a label, or with its removal; None if nothing is."""
    if not _KEY.fullmatch(key):
        return (
            "a label's key has 1 to 63 characters: lowercase letters, digits, '.', '_' and '-',"
            " the first a letter or digit"
        )
    if value is not None and not (len(value) <= MAX_VALUE and value.isprintable()):
        return f"a label's value has at most {MAX_VALUE} printable characters"
    return None


def labels_fault(changes: LabelChanges, field: str = "labels") -> Problem | None:
    """The refusal of labels or of changes to them, which names `field`; None if they are valid."""
    for key, value in changes.items():
        fault = label_fault(key, value)
        if fault is not None:
            return invalid(f"{field}.{key}", fault)
    given = sum(value is not None for value in changes.values())
    return invalid(field, TOO_MANY) if given > MAX_LABELS else None


def note_fault(note: str, what: str = "a note") -> str | None:
    """What is wrong with a note, which the sentence calls `what`; None if nothing is."""
    if len(note) > MAX_NOTE:
        return f"{what} has at most {MAX_NOTE:,} characters"
    if not all(character.isprintable() or character in "\n\t" for character in note):
        return f"{what} has only printable characters and line breaks"
    return None


def merged(labels: Labels, changes: LabelChanges) -> Labels | None:
    """The labels after the changes, by key; None if they are too many."""
    kept = {key: value for key, value in labels.items() if key not in changes}
    new = kept | {key: value for key, value in changes.items() if value is not None}
    return None if len(new) > MAX_LABELS else dict(sorted(new.items()))


def labels_of(text: str) -> Labels | str:
    """The labels that a person has written as `KEY=VALUE;KEY=VALUE`, or what is wrong with the text.

    A value between double quotes may have any character; a quote in it is written twice.
    """
    labels: Labels = {}
    for found in _PART.finditer(text):
        key, in_quotes, plain = found[1].strip(), found[2], found[3]
        if in_quotes is None and plain is None:
            if key:
                return f"{quoted(key)} is not key=value"
            continue
        value = plain.strip() if in_quotes is None else in_quotes.replace('""', '"')
        fault = label_fault(key, value)
        if fault is not None:
            return fault
        if key in labels:
            return f"has the key {key} twice"
        labels[key] = value
    if len(labels) > MAX_LABELS:
        return TOO_MANY
    return labels


def labels_text(pairs: Iterable[str]) -> str:
    """Labels, each as `KEY=VALUE`, in one text that `labels_of` reads."""
    return "; ".join(map(_quoted_if_needed, pairs))


def _quoted_if_needed(pair: str) -> str:
    key, equals, value = pair.partition("=")
    if ";" in value or value.startswith('"') or value != value.strip():
        value = '"' + value.replace('"', '""') + '"'
    return f"{key}{equals}{value}"
