"""The figures in docs/results are of the experiments as they are now."""

import json
from pathlib import Path

import pytest
import runs

from emo_jax.errors import UsageError

RESULTS = runs.REPO / "docs/results"


@pytest.mark.parametrize("file", sorted(RESULTS.glob("modularity-*.json")), ids=lambda f: f.stem)
def test_a_result_of_modularity_is_not_made_again(file):
    modularity = runs.script("modularity")
    arm, seed = file.stem.removeprefix("modularity-").rsplit("-", 1)
    stores = modularity.Stores(Path("store"), Path("held_out"))
    config = modularity.config_of(arm, int(seed), stores)
    made_of = {"config": modularity.config_digest(config), "measured": modularity.MEASURED}
    assert modularity.is_there(file, made_of)
    config = modularity.config_of(arm, int(seed), stores, 451)
    with pytest.raises(UsageError, match="of another experiment"):
        modularity.is_there(file, made_of | {"config": modularity.config_digest(config)})


def test_a_digest_is_of_what_determines_a_model():
    modularity = runs.script("modularity")
    stores = modularity.Stores(Path("store"), Path("held_out"))
    first, *others = (
        modularity.config_digest(modularity.config_of("emo", seed, modularity.Stores(*paths)))
        for seed, paths in ((0, stores), (0, (Path("elsewhere"), Path("held_out"))), (1, stores))
    )
    assert others[0] == first and others[1] != first


def test_results_of_the_baselines_are_those_of_the_plan():
    baselines = runs.script("baselines")
    found = sorted((RESULTS / "baselines").glob("*.json"))
    planned = {run.name: run for run in baselines.RUNS}
    assert {"emo-7.5m-0", "standard-7.5m-0"} <= {file.stem for file in found} <= planned.keys()
    arms, stores = runs.script("baseline_arms"), baselines.modularity.Stores(Path("a"), Path("b"))
    results = {file.stem: json.loads(file.read_text()) for file in found}
    for name, result in results.items():
        assert result["measured"] == baselines.MEASURED, name
        if (run := planned[name]).arm not in arms.STAGED:  # others' stages need the store
            assert result["config"] == arms.digest(arms.stages_of(run, stores)), name
    assert len({result["store"] for result in results.values()}) == 1


@pytest.mark.system  # the bootstraps take a while
def test_the_page_on_modularity_is_of_its_results():
    report = runs.script("modularity_report")
    page = report.page(report.Runs(RESULTS), RESULTS)
    assert page == (RESULTS.parent / "results.md").read_text()


@pytest.mark.system
def test_the_page_of_the_baselines_is_of_their_results():
    page = runs.script("baselines_report").page(RESULTS / "baselines")
    assert page == (RESULTS.parent / "baselines_results.md").read_text()


def test_the_control_curve_is_of_its_results():
    control = runs.script("control")
    stores = control.modularity.Stores(Path("a"), Path("b"))
    for file in sorted((RESULTS / "control").glob("*.json")):
        config = control.config_of(file.stem, stores)
        made_of = {
            "config": control.modularity.config_digest(config),
            "measured": control.MEASURED,
        }
        assert control.modularity.is_there(file, made_of), file
    page = control.page(control.points(RESULTS / "control"))
    assert page == (RESULTS.parent / "control_results.md").read_text()
