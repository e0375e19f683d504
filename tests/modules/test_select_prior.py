"""emo select --prior: the scores are those of the posterior."""

import numpy as np
import pytest

from emo_jax.data.store import TokenStore
from emo_jax.errors import UsageError
from emo_jax.modules.select import select
from emo_jax.saved.selection_file import read_selection


def _scores(folder):
    return np.array(read_selection(folder).scores)


def test_a_prior_draws_one_example_to_what_domains_do(finished_run, store, tmp_path):
    data = f"{store}:{TokenStore.open(store).domains[0]}"
    found = {}
    for name, options in (
        ("all", {}),
        ("one", {"examples": 1}),
        ("drawn", {"examples": 1, "prior": store}),
    ):
        (made,) = select(
            *(finished_run, data, tmp_path / name), keep="50%", method="global", **options
        )
        scores = _scores(made.folder)
        found[name] = scores / scores.sum(axis=-1, keepdims=True)
        assert read_selection(made.folder).about.get("prior") == (
            str(store) if "prior" in options else None
        )
    far = {name: np.abs(found[name] - found["all"]).sum() for name in ("one", "drawn")}
    assert 0 < far["drawn"] < far["one"]


def test_refusals(finished_run, store, tmp_path):
    with pytest.raises(UsageError, match=r"^--prior .*: is for --method global, not layerwise"):
        select(finished_run, str(store), tmp_path / "out", keep="50%", prior=store)
