"""Ten faults, and the end is that of a run left alone. A longer soak: docs/reliability.md."""

import pytest
import soak

pytestmark = pytest.mark.system


def test_ten_faults(tmp_path):
    report = soak.soak(tmp_path, faults=10, seed=3, only="", hosts=False)
    print(soak.table(report))
    assert [one for one in report["tries"] if one["trouble"]] == []
    assert report["differences"] == [] and len(report["tries"]) == 10


def test_what_differs_is_found():
    """The comparison itself: of a number, of a step that is not there, of a state."""

    class Fake:
        def __init__(self, rows):
            self._rows = rows

        def numbers(self):
            return self._rows

    same = {1: {"loss": "2.0"}, 2: {"loss": "1.5"}}
    assert soak.furthest(Fake(same), Fake(same), 2) == 0
    assert soak.furthest(Fake({1: {"loss": "2.0"}}), Fake(same), 2) == float("inf")
    assert soak.furthest(Fake(same | {2: {"loss": "1.50003"}}), Fake(same), 2) > soak.TOLERANCE
