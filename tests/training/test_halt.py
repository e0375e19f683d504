"""A loss that is not finite: nothing is updated, and the run stops with the state before it."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import runs
from cases import few
from tiny import dense_config, tiny_batch, tiny_config

from emo_jax.batch import Batch
from emo_jax.checkpoint.reading import restore_params
from emo_jax.config import MeshConfig
from emo_jax.config.file import load_config
from emo_jax.data.loader import Loader
from emo_jax.data.run_windows import in_order
from emo_jax.data.windows import open_windows
from emo_jax.model.functions import ModelFunctions
from emo_jax.parallel.mesh import make_mesh, windows_sharding
from emo_jax.training import halt
from emo_jax.training.optimizer import make_optimizer
from emo_jax.training.state import init_state
from emo_jax.training.step import jit_train_step


@pytest.mark.parametrize("bad", few([np.nan, np.inf]))
@pytest.mark.parametrize("make", [tiny_config, dense_config], ids=["emo", "dense, skipping"])
def test_no_later_step_changes_what_was_there_before_the_bad_one(make, bad):
    config, mesh = make(), make_mesh(MeshConfig())
    if config.moe is None:
        optimizer_config = dataclasses.replace(config.optimizer, skip_window=6)
        config = dataclasses.replace(config, optimizer=optimizer_config)
    model, optimizer = ModelFunctions(config, mesh), make_optimizer(config)
    state, step = init_state(model, optimizer, seed=0), jit_train_step(config, model, optimizer)

    def put(batch):
        return Batch(*(jax.device_put(a, windows_sharding(mesh)) for a in batch))

    good = tiny_batch(config)
    mask = good.loss_mask.copy()
    mask[3, 5] = bad
    for _ in range(2):
        state, metrics = step(state, put(good))
        assert not halt.is_halted(metrics)
    before = jax.device_get(state)
    assert int(before.step) == 2 and not before.halted
    for batch in (good._replace(loss_mask=mask), good, good):
        state, metrics = step(state, put(batch))
        assert halt.is_halted(metrics)
    assert bool(state.halted)
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(halt.go_on(state)))
    state, metrics = step(halt.go_on(state), put(good))
    assert not halt.is_halted(metrics) and int(state.step) == 3
    assert step._cache_size() == 1


# A run whose step N gets a batch with a mask that is no number.
_POISONED = """
import sys
from emo_jax.cli import main
from emo_jax.training.loop import Trainer

bad = int(sys.argv.pop(1))
batches = Trainer._batches

def poisoned(self, window, *watched):
    size = self.config.train.batch_size
    for consumed, batch in batches(self, window, *watched):
        if consumed == bad * size:
            batch = batch._replace(loss_mask=batch.loss_mask.at[1, 2].set(float("nan")))
        yield consumed, batch

Trainer._batches = poisoned
main()
"""


@pytest.mark.parametrize(
    "bad", few([10], 0) + [pytest.param(n, marks=pytest.mark.slow) for n in (1, 17)]
)
def test_a_run_stops_at_the_first_bad_step_and_again(env, finished_run, store, tmp_path, bad):
    """Step 10 saves, 17 is between logged steps; without the poison the run goes on to the bit."""
    workdir = tmp_path / "run"
    argv = runs.train_argv(store, workdir, train__log_every=1 if bad == 1 else 8)
    command = [sys.executable, "-c", _POISONED, str(bad), *argv]
    for attempt in range(2):
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 1, done.stderr
        last = done.stderr.splitlines()[-1]
        kept = f"the state before is step {bad - 1} in {workdir}"
        file = workdir / f"bad_batch_step{bad}.npz"
        assert last.startswith(f"emo: step {bad}: the loss is nan and the gradient norm is nan; ")
        assert kept in last and str(file) in last and "Traceback" not in done.stderr
        assert max(runs.checkpoints(workdir)) == bad - 1
        assert runs.steps_logged(workdir) < bad
        if attempt and bad > 1:
            assert f"resumed at step {bad - 1}\n" in done.stderr
    _, _, experiment, _, _, *overrides = argv
    config = load_config(experiment, overrides)
    loader = Loader(in_order(open_windows(config.data), config.data.seed), batch_size=4)
    batch = loader.batch(4 * (bad - 1))
    with np.load(file) as arrays:
        for name, array in batch._asdict().items():
            if name == "loss_mask":
                assert np.isnan(arrays[name][1, 2])
                array[1, 2] = np.nan
            np.testing.assert_array_equal(arrays[name], array)
    assert sorted(p.name for p in workdir.iterdir() if p.name.startswith(".")) == []

    done = runs.emo(argv, env)
    assert done.returncode == 0, done.stderr
    params, extra, step = restore_params(workdir)
    expected, expected_extra, expected_step = restore_params(finished_run)
    assert (step, extra["windows"]) == (expected_step, expected_extra["windows"])
    assert runs.equal_trees(params, expected)


@pytest.mark.system
def test_a_run_that_diverges(env, store, tmp_path):
    workdir = tmp_path / "run"
    argv = runs.train_argv(store, workdir, optimizer__peak_lr=1e38, checkpoint__save_every=1)
    argv = [word for word in argv if "keep_every" not in word]
    done = runs.emo(argv, env)
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("emo: step 2: ") and "optimizer.peak_lr" in last
    assert runs.checkpoints(workdir) == [1]  # step 2 was due to be saved, and was not
    records = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [1] and np.isfinite(records[0]["loss"])


def test_a_batch_file_of_rows_on_eight_devices(tmp_path):
    config, mesh = tiny_config(), make_mesh(MeshConfig())
    batch = tiny_batch(config)
    put = Batch(*(jax.device_put(a, windows_sharding(mesh)) for a in batch))
    file = halt.keep_batch(tmp_path, 3, put)
    with np.load(file) as arrays:
        assert set(arrays) == set(Batch._fields)
        for name, array in batch._asdict().items():
            np.testing.assert_array_equal(arrays[name], array)
    shutil.rmtree(tmp_path)
    with pytest.raises(halt.EmoError, match=r"bad_batch_step3\.npz cannot be written"):
        halt.keep_batch(tmp_path, 3, put)
