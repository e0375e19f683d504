"""experiments/engines: what it calls equal, and that the page shows what was measured."""

import json
import math
import sys

import numpy as np
import pytest
import runs

DOCS = runs.REPO / "docs"


@pytest.fixture(scope="module", autouse=True)
def engines_on_path():
    sys.path.insert(0, str(runs.REPO / "experiments/engines"))
    yield
    sys.path.remove(str(runs.REPO / "experiments/engines"))


def test_the_page_shows_the_figures():
    import tables

    results = json.loads((DOCS / tables.RESULTS_FILE).read_text())
    page = (DOCS / tables.PAGE).read_text()
    assert page.count(tables.BEGIN) == page.count(tables.END) == 1
    assert tables.section(results) in page


def test_every_engine_gives_our_tokens():
    """What was run: no NaN, no missing key, greedy tokens equal."""
    import engines
    import tables

    results = json.loads((DOCS / tables.RESULTS_FILE).read_text())
    assert set(results) == {engine.name for engine in engines.ENGINES}
    for engine in engines.ENGINES:
        for model, found in results.get(engine.name, {}).items():
            where = f"{engine.name}, {model}"
            assert "failed" not in found, where
            assert not found.get("nan") and not found["missing"] and not found["unexpected"], where
            assert found.get("greedy", "8 of 8") == found.get("ids", "8 of 8") == "8 of 8", where
            assert found.get("difference", found.get("scores")) < 1e-3, where


def test_nan_is_never_a_small_difference():
    import run
    import tables

    one = [np.zeros((2, 3), np.float32)]
    bad = [np.array([[0, np.nan, 0], [0, 1, 0]], np.float32)]
    found = run.difference(bad, one)
    assert found["nan"] == 1 and math.isnan(found["difference"])
    assert tables.cell({"difference": None, "greedy": "0 of 8"}) == "**NaN**, 0 of 8"
    assert run.difference(one, one)["difference"] == 0.0
    assert "failed" in run.difference([np.zeros((2, 4))], one)


def test_texts_end_with_their_document():
    from case import Case

    case = Case(model="", texts=[], ids=[], eos_id=7)
    assert case.up_to_eos([1, 2, 7, 3]) == [1, 2]
    assert case.up_to_eos([1, 2]) == [1, 2]
