"""Long tests of many cases: a few always, all of them in CI and before a release."""

from collections.abc import Iterable
from typing import Any

import pytest


def few(cases: Iterable[Any], most: int = 1) -> list[Any]:
    """The first `most` of a parametrised test; the others run with `-m system`."""
    found = list(cases)
    return found[:most] + [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.system)
        for case in found[most:]
    ]
