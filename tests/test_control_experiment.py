"""experiments/control.py: the variants, their figures and their page."""

import itertools
import json
from pathlib import Path

import matplotlib.text
import numpy as np
import pytest
import runs
from test_modularity_experiment import small

from emo_jax.errors import UsageError


def test_every_knob_is_a_variant():
    control = runs.script("control")
    stores = control.modularity.Stores(Path("store"), Path("held_out"))
    configs = {name: control.config_of(name, stores) for name in control.VARIANTS}
    assert {"decay", "span-64", "emo-half-rate", "standard-double-rate"} <= configs.keys()
    assert not {"emo", "standard"} & configs.keys()  # those of modularity.py
    digests = {control.modularity.config_digest(config) for config in configs.values()}
    assert len(digests) == len(configs)
    assert configs["emo-half-rate"].optimizer.peak_lr * 2 == configs["decay"].optimizer.peak_lr


def test_names_of_points_do_not_cover_each_other():
    tools = runs.script("report_tools")
    figure, axes = tools.axes()
    points = {"emo": (0.0, 1.0), "penalty-4": (0.0, 1.001), "decay": (0.001, 0.999), "far": (9, 9)}
    for where in points.values():
        axes.plot(*where, "o")
    tools.label_points(axes, points)
    figure.canvas.draw()
    text_only = matplotlib.text.Text.get_window_extent  # without the line to the point
    boxes = {text.get_text(): text_only(text) for text in axes.texts}
    assert boxes.keys() == points.keys()
    pairs = itertools.combinations(boxes.values(), 2)
    assert not any(one.overlaps(other) for one, other in pairs)


@pytest.mark.slow
def test_figures_and_page(store, tmp_path, monkeypatch):
    control = runs.script("control")
    modularity = control.modularity
    monkeypatch.setattr(modularity, "WINDOWS", 8)
    monkeypatch.setattr(modularity.presets, "modularity_tiny", small(modularity.presets))
    results = tmp_path / "docs/results/control"
    results.mkdir(parents=True)
    for arm in control.PAIR:
        file = f"modularity-{arm}-0.json"
        (results.parent / file).write_text((runs.REPO / "docs/results" / file).read_text())
    stores = modularity.Stores(store, store)
    for _ in range(2):  # the second finds it there
        control.perform("sizes-16-64", tmp_path, results, stores, 4)
    found = json.loads((results / "sizes-16-64.json").read_text())
    select, full, rises = control.point(found)
    assert select == pytest.approx(np.mean(found["select"]["full"]))
    assert full == pytest.approx(np.mean(found["test"]["full"])) and len(rises) == 2
    with pytest.raises(UsageError, match="of another experiment"):
        control.perform("sizes-16-64", tmp_path, results, stores, 5)
    text = control.page(control.points(results))
    row = next(line for line in text.splitlines() if line.startswith("| sizes-16-64 |"))
    assert f"| {full:.3f} |" in row and f"| {rises[1]:+.3f} |" in row
    assert "| decay | – | – | – | – |" in text and "{" not in text
    # EMO's row is that of docs/results.md.
    emo = json.loads((results.parent / "modularity-emo-0.json").read_text())["trained"]["losses"]
    assert f"| emo | {np.mean(emo['full']):.3f} |" in text
    control.plot(control.points(results), results / "curve.svg")
    assert (results / "curve.svg").stat().st_size > 1000
