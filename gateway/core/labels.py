"""The rules of labels and notes: what an admin says of an ICE. Pure. Source: docs/api.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from gateway.core.problems import quoted

MAX_LABELS: Final = 32
MAX_NOTE: Final = 1000
"""Characters of a note."""
KEY_PATTERN: Final = "[a-z0-9][a-z0-9._-]{0,62}"
_KEY: Final = re.compile(KEY_PATTERN, re.ASCII)
MAX_VALUE: Final = 63

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


def note_fault(note: str) -> str | None:
    """What is wrong with a note; None if nothing is."""
    if len(note) > MAX_NOTE:
        return f"a note has at most {MAX_NOTE:,} characters"
    if not all(character.isprintable() or character in "\n\t" for character in note):
        return "a note has printable characters and line breaks alone"
    return None


def merged(labels: Labels, changes: LabelChanges) -> Labels | None:
    """The labels after the changes, by key; None if they are too many."""
    kept = {key: value for key, value in labels.items() if key not in changes}
    new = kept | {key: value for key, value in changes.items() if value is not None}
    return None if len(new) > MAX_LABELS else dict(sorted(new.items()))


def labels_of(text: str) -> Labels | str:
    """The labels that a person has written as `KEY=VALUE;KEY=VALUE`, or what is wrong with the text."""
    labels: Labels = {}
    for pair in filter(None, (part.strip() for part in text.split(";"))):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            return f"{quoted(pair)} is no key=value"
        fault = label_fault(key, value)
        if fault is not None:
            return fault
        if key in labels:
            return f"has the key {key} twice"
        labels[key] = value
    if len(labels) > MAX_LABELS:
        return f"an ICE has at most {MAX_LABELS} labels"
    return labels
