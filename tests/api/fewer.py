"""The exceptions, and of the wrong types of one value only the first: each is refused by the same line.

Loaded in place of `exceptions.py` by `test_api_document.py`; `make torture` sends all of them.
"""

from __future__ import annotations

import schemathesis
from schemathesis.generation.meta import CoveragePhaseData, CoverageScenario

import tests.api.exceptions  # noqa: F401 - its hooks

_sent = set()


@schemathesis.hook
def filter_case(context, case) -> bool:
    """Keep a case unless another one has had a wrong type in the same place."""
    data = case.meta.phase.data
    if (
        not isinstance(data, CoveragePhaseData)
        or data.scenario is not CoverageScenario.INCORRECT_TYPE
    ):
        return True
    call = case.operation.definition.raw.get("operationId")
    place = (call, data.parameter_location, data.parameter, data.location)
    new = place not in _sent
    _sent.add(place)
    return new
