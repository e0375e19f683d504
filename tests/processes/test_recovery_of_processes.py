"""Several processes that go back to a checkpoint and pass windows over do it together."""

import json

import bad_batches
import group
import numpy as np
import pytest
import runs

SYSTEM, SLOW = pytest.mark.system, pytest.mark.slow


@pytest.mark.parametrize(
    "policy", [pytest.param("rollback", marks=SYSTEM), pytest.param("skip", marks=SLOW)]
)
def test_all_pass_over_the_same_and_stay_so_after_a_kill(store, tmp_path_factory, tmp_path, policy):
    """Step 6 reads from window 40 on, and its loss is not a number."""
    env = runs.environment(tmp_path_factory.getbasetemp() / "compiled_by_processes")

    def train(name, processes=2, die="-"):
        argv = group.train_argv(store, tmp_path / name, train__on_nan=policy)[3:]
        reads = tmp_path / f"{name}.reads"
        command = bad_batches.command(argv, "nan", [40], die=die, reads=reads)
        return group.launch(command, env, processes, 8 // processes)

    for name, processes in (("one", 1), ("two", 2)):
        done = train(name, processes)
        assert done.returncode == 0, done.stderr
        assert "windows {}..47 are passed over".format(32 if policy == "rollback" else 40) in (
            done.stderr
        )
    said = [json.loads((tmp_path / name / "passed.json").read_text()) for name in ("one", "two")]
    assert said[0] == said[1]
    one, two = (
        [float(r["loss"]) for r in runs.log_as_written(tmp_path / name) if "loss" in r]
        for name in ("one", "two")
    )
    assert len(one) == 12
    np.testing.assert_allclose(two, one, rtol=1e-5)

    done = train("killed", die=80)  # after it went back, and saved again
    assert done.returncode != 0
    done = train("killed")
    assert done.returncode == 0 and "resumed at step 8" in done.stderr, done.stderr
    assert runs.log_as_written(tmp_path / "killed") == runs.log_as_written(tmp_path / "two")
    ours, theirs = (runs.state_of(tmp_path / name, 12) for name in ("killed", "two"))
    for key in theirs:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
