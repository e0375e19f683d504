"""Looking at a run changes no bit of it: evaluation, logging, prefetching."""

import itertools

import jax
import numpy as np
import pytest
import runs

import emo_jax
from emo_jax.config.file import load_config
from emo_jax.errors import PreemptedError
from emo_jax.run.metrics_file import read_metrics
from emo_jax.training.stop import StopRequest

STEPS, STOP = 9, 5
UNSEEN = {"train.eval_windows": 0, "train.log_every": 1000, "data.prefetch": 1}
LOOKS = {
    "every step": {
        "train.eval_every": 1,
        "train.eval_keep": "(5,3)",
        "train.log_every": 1,
        "data.prefetch": 3,
    },
    "now and then": {"train.eval_every": 4, "train.log_every": 3, "data.prefetch": 6},
    "at the end": {"train.eval_keep": "(4,)", "train.eval_windows": 3, "train.log_every": 2},
}


def _config(store, looks):
    """Pools drawn at random for each document, layer and step; two micro-batches, skipped steps."""
    fields = runs.TINY | {
        "data.store": store,
        "train.steps": STEPS,
        "train.batch_size": 16,
        "train.micro_batches": 2,
        "optimizer.skip_window": 6,
        "checkpoint.save_every": 4,
        **looks,
    }
    return load_config(
        str(runs.EXPERIMENT), [f"--config.{name}={value}" for name, value in fields.items()]
    )


def _bits(state):
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def _differences(state, reference):
    ours, theirs = _bits(state), _bits(reference)
    assert ours.keys() == theirs.keys() and len(ours) > 20
    return [name for name in ours if ours[name] != theirs[name]]


@pytest.fixture(scope="module")
def unseen(store, tmp_path_factory):
    """The state of a run that nobody looks at."""
    workdir = tmp_path_factory.mktemp("unseen") / "run"
    state = emo_jax.train(_config(store, UNSEEN), workdir)
    records = read_metrics(workdir)
    assert [r["step"] for r in records] == [1, STEPS] and "heldout_loss" not in str(records)
    return state


@pytest.mark.parametrize(
    "looks",
    [
        LOOKS["every step"],
        *(pytest.param(LOOKS[n], marks=pytest.mark.system) for n in [*LOOKS][1:]),
    ],
    ids=LOOKS,
)
@pytest.mark.system
def test_a_run_that_is_looked_at_ends_with_the_same_bits(unseen, store, tmp_path, looks):
    state = emo_jax.train(_config(store, looks), tmp_path / "run")
    assert _differences(state, unseen) == []
    records = read_metrics(tmp_path / "run")
    logged = [r["step"] for r in records if "loss" in r]
    every = looks.get("train.log_every", 1)
    assert logged == sorted({1, *range(every, STEPS + 1, every), STEPS})
    evaluated = {r["step"] for r in records if "heldout_loss" in r}
    every = looks.get("train.eval_every", STEPS)
    assert evaluated == {*range(every, STEPS + 1, every), STEPS}


@pytest.mark.system
def test_a_run_may_be_looked_at_in_another_way_after_a_restart(unseen, store, tmp_path):
    stop, steps = StopRequest(), itertools.count()
    stop.agreed = lambda: next(steps) >= STOP
    with pytest.raises(PreemptedError, match=f"step {STOP} is saved"):
        emo_jax.train(_config(store, LOOKS["every step"]), tmp_path / "run", stop=stop)
    state = emo_jax.train(_config(store, LOOKS["now and then"]), tmp_path / "run")
    assert _differences(state, unseen) == []
