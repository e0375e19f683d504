"""Tasks in training change no bit of it, and give the figures of `emo tasks`."""

import harness_files
import jax
import numpy as np
import pytest
import runs

import emo_jax
from emo_jax.config.file import load_config
from emo_jax.errors import ConfigError, UsageError
from emo_jax.run.metrics_file import read_metrics

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return harness_files.write_tasks(tmp_path_factory.mktemp("tasks"), items=12)


def _config(store, **fields):
    given = runs.TINY | {
        "data.store": store,
        "data.seq_len": 256,
        "train.steps": 4,
        "train.batch_size": 8,
        "train.eval_windows": 0,
        "checkpoint.save_every": 4,
        **fields,
    }
    overrides = [f"--config.{name}={value}" for name, value in given.items()]
    return load_config(str(runs.EXPERIMENT), overrides)


def _bits(state):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def test_no_bit_is_changed_and_the_figures_are_those_of_emo_tasks(store, tasks, tmp_path):
    unseen = emo_jax.train(_config(store), tmp_path / "unseen")
    names = f"('{tasks['words']}','{tasks['writing']}')"
    watched = {"train.eval_tasks": names, "train.tasks_every": 2, "train.task_items": 7}
    config = _config(store, **watched, **{"train.eval_keep": "(5,)"})
    seen = emo_jax.train(config, tmp_path / "seen")
    assert _bits(seen) == _bits(unseen)
    records = [r for r in read_metrics(tmp_path / "seen") if "task_bits_per_byte/" in str(r)]
    assert [record["step"] for record in records] == [2, 4]
    last = records[-1]
    found = emo_jax.evaluate_tasks(
        tmp_path / "seen", [str(tasks["words"]), str(tasks["writing"])], limit=7
    )
    for row in found.rows:
        assert last[f"task_bits_per_byte/{row.unit}"] == pytest.approx(row.bits_per_byte, rel=1e-4)
    assert last["task_accuracy/emo_test_words"] == pytest.approx(found.rows[0].value)
    kept = last["task_bits_per_byte/emo_test_words (keep=5)"]
    assert kept != last["task_bits_per_byte/emo_test_words"]
    assert "task_accuracy/emo_test_writing" not in last


def test_what_cannot_be_measured_is_refused_before_anything(store, tasks, tmp_path):
    with pytest.raises(UsageError, match=r"--tasks none\.yaml: no such file"):
        emo_jax.train(_config(store, **{"train.eval_tasks": "('none.yaml',)"}), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"train\.task_items = 0"):
        _config(store, **{"train.task_items": 0})
    assert not (tmp_path / "run").exists()
