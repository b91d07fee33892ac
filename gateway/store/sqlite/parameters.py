"""Parameters as the driver takes them.

Tested in tests/contract/test_ices.py.
"""

from __future__ import annotations

from collections.abc import Sequence


def numbered(params: Sequence[object]) -> dict[str, object]:
    """Parameters by number, so that `$1` is the first."""
    return {str(number): value for number, value in enumerate(params, 1)}
