"""Handlers for `ice-client conformance`: the operations that the kit asks of an ICE program.

    ice-client conformance --state-dir DIR -- ice-client run --handlers client.examples.conformance

docs/protocol.md, section 8, says what each does.

Tested in tests/client/test_client_conformance.py.
"""

from __future__ import annotations

import asyncio
from typing import Any

from client.agent import IceClient
from client.handlers import Settings
from client.operations import Operation, OperationFailed, Report


def register(ice: IceClient, _: Settings) -> None:
    """Add the handler."""
    runs = 0

    @ice.operation("execute")
    async def execute(operation: Operation, report: Report) -> Any:
        nonlocal runs
        match operation.params:
            case {"conformance": "echo", "value": value}:
                return value
            case {"conformance": "count"}:
                runs += 1
                return {"count": runs}
            case {"conformance": "sleep", "seconds": float() | int() as seconds}:
                await asyncio.sleep(seconds)
                return {}
            case {"conformance": "fail", "code": str(code), "message": str(message)}:
                raise OperationFailed(code, message)
            case {"conformance": "report", "message": str(message), "log": str(text)}:
                await report(0.5, message)
                await operation.log(text)
                return {}
            case {"conformance": "big", "bytes": int(size)}:
                return "x" * size
        raise OperationFailed("bad-params", "the conformance kit sends nothing else")
