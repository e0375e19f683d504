"""Ten faults, and the end is that of a run left alone. A longer soak: docs/reliability.md."""

import numpy as np
import pytest
import soak

pytestmark = pytest.mark.system


def test_ten_faults(tmp_path):
    # Two processes, which start in half the time of the four of a long soak.
    report = soak.soak(tmp_path, faults=10, seed=3, only="", hosts=False, processes=2)
    print(soak.table(report))
    assert [one for one in report["tries"] if one["trouble"]] == []
    assert report["differences"] == [] and len(report["tries"]) == 10


class Fake:
    """A run, as far as it is compared."""

    workdir = None

    def __init__(self, rows):
        self._rows = rows

    def numbers(self):
        return self._rows


def test_what_differs_is_found(monkeypatch):
    same = {1: {"loss": "2.0"}, 2: {"loss": "1.5"}}
    states = iter([{"w": np.ones(2)}] * 8)
    monkeypatch.setattr(soak.runs, "state_of", lambda workdir, step: next(states))
    assert soak.differences(Fake(same), Fake(same), 2) == []
    (found,) = soak.differences(Fake(same | {2: {"loss": "1.6"}}), Fake(same), 2)
    assert found.startswith("step 2: ")
    (found,) = soak.differences(Fake({1: same[1]}), Fake(same), 2)
    assert found.startswith("step 2: None is not ")
    states = iter([{"w": np.ones(2)}, {"w": np.array([1, 1 + 1e-16 * 2**4])}])
    assert soak.differences(Fake(same), Fake(same), 2) == ["the states of step 2 differ"]


def test_how_far_losses_are_apart():
    same = {1: {"loss": "2.0"}, 2: {"loss": "1.5"}}
    assert soak.furthest(Fake(same), Fake(same), 2) == 0
    assert soak.furthest(Fake({1: {"loss": "2.0"}}), Fake(same), 2) == float("inf")
    assert soak.furthest(Fake(same | {2: {"loss": "1.50003"}}), Fake(same), 2) > soak.TOLERANCE
