"""Where a node counts what it does with operations; `web.operation_metrics` fulfils it.

Tested in tests/gateway/web/test_operation_metrics.py.
"""

from __future__ import annotations

from typing import Protocol

from gateway.core.operation import Operation


class OperationMeters(Protocol):
    """What happens to operations."""

    def sent_operation(self, operation: Operation) -> None:
        """An operation was sent to its ICE."""

    def ended_operation(self, operation: Operation) -> None:
        """This node ended an operation."""
