"""A run of the loop as a process of its own: what it logs, keeps and refuses."""

import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import runs

from emo_jax.checkpoint.reading import restore_params
from emo_jax.data.store import TokenStore
from emo_jax.run.goodput import BADPUT
from emo_jax.tokenizer.load import load_tokenizer
from emo_jax.training import flops
from emo_jax.training.stop import ASK_SECONDS, StopRequest

SCALARS = {
    *("step", "loss", "ce_loss", "lm_z_loss", "grad_norm", "learning_rate", "router_aux_loss"),
    *("masked_labels", "masked_windows"),
}
BY_LAYER = {
    f"{name}_by_layer"
    for name in (
        *("load_balance_loss", "router_z_loss", "load_imbalance", "experts_used"),
        *("token_entropy", "token_entropy_no_pool", "pool_size"),
    )
}
SPEED = {"tokens_per_second", "mfu"}
GOODPUT = {"goodput", "wall_seconds", *(f"badput/{name}" for name in BADPUT)}
STEPS, LAYERS, ROUTED = 40, 2, 7


@pytest.fixture(scope="module")
def records(finished_run) -> list[dict]:
    return [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def steps(records) -> list[dict]:
    return [record for record in records if "loss" in record]


# --- the log -------------------------------------------------------------------------------------


def test_every_step_is_logged_once_with_all_fields(steps):
    assert [record["step"] for record in steps] == list(range(1, STEPS + 1))
    for record in steps:
        assert set(record) - SPEED - GOODPUT == SCALARS | BY_LAYER and set(record) > GOODPUT
        assert all(math.isfinite(record[name]) for name in SCALARS)
        assert all(len(record[name]) == LAYERS for name in BY_LAYER)
        assert record["masked_labels"] == record["masked_windows"] == 0


def test_the_loss_is_the_sum_of_its_parts(steps):
    for record in steps:
        parts = record["ce_loss"] + record["lm_z_loss"] + record["router_aux_loss"]
        assert record["loss"] == pytest.approx(parts, rel=1e-5)
        balance, z = (record[f"{n}_by_layer"] for n in ("load_balance_loss", "router_z_loss"))
        aux = (0.1 * sum(balance) + 0.001 * sum(z)) / LAYERS
        assert record["router_aux_loss"] == pytest.approx(aux, rel=1e-4)


def test_values_by_layer_are_possible(steps):
    drawn = np.array([record["pool_size_by_layer"] for record in steps])
    assert drawn.min() >= 2 and drawn.max() <= ROUTED
    assert drawn.std() > 0.1  # drawn anew at each step
    assert not np.allclose(drawn[:, 0], drawn[:, 1])  # and in each layer
    for record in steps:
        for layer in range(LAYERS):
            value = {
                name: record[f"{name}_by_layer"][layer]
                for name in (
                    "experts_used",
                    "load_imbalance",
                    "token_entropy",
                    "token_entropy_no_pool",
                    "load_balance_loss",
                )
            }
            assert 2 <= value["experts_used"] <= ROUTED
            assert value["experts_used"] == int(value["experts_used"])
            assert 1 <= value["load_imbalance"] <= ROUTED / 2  # two picks a token
            assert 0 < value["token_entropy"] < math.log(ROUTED)
            assert 0 < value["token_entropy_no_pool"] < math.log(ROUTED)
            assert value["load_balance_loss"] > 0


def test_the_learning_rate_warms_up_and_falls_to_a_tenth(steps):
    rates = [record["learning_rate"] for record in steps]
    assert rates[:4] == pytest.approx([1e-3, 2e-3, 3e-3, 4e-3], rel=1e-5)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(4e-4, rel=0.02)


def test_speed_is_logged_without_an_mfu_on_cpu(steps):
    measured = [record for record in steps if set(record) >= SPEED]
    # The first step compiles; those before a save are logged early, so that the time since the
    # last line is not theirs.
    missing = {record["step"] for record in steps} - {record["step"] for record in measured}
    assert missing == {1, 10, 20, 30, 40}
    assert all(record["mfu"] is None for record in measured)
    assert all(record["tokens_per_second"] > 0 for record in measured)


def test_held_out_losses_are_of_each_domain_with_and_without_pool(records, steps, store):
    held = [record for record in records if "heldout_loss" in record]
    assert [record["step"] for record in held] == [20, 40]
    domains = TokenStore.open(store).domains
    expected = {"step"}
    for pool in ("", " (pool=4)"):
        expected |= {f"heldout_loss{pool}", *(f"heldout_loss/{d}{pool}" for d in domains)}
    for record in held:
        assert set(record) == expected
        for pool in ("", " (pool=4)"):
            low, high = sorted(record[f"heldout_loss/{d}{pool}"] for d in domains)
            assert low <= record[f"heldout_loss{pool}"] <= high
        assert record["heldout_loss"] != record["heldout_loss (pool=4)"]
    assert held[1]["heldout_loss"] == pytest.approx(steps[-1]["ce_loss"], rel=0.3)


def test_the_loss_goes_down(steps):
    losses = [record["ce_loss"] for record in steps]
    assert losses[0] == pytest.approx(math.log(259), rel=0.05)  # knows nothing
    assert np.mean(losses[-5:]) < losses[0] / 1.8
    assert np.mean(losses[-5:]) < np.mean(losses[15:20]) < np.mean(losses[5:10])


def test_documents_may_be_longer_than_the_window(store):
    """The shared corpus has them, or the runs above would not show that they train."""
    documents = TokenStore.open(store).documents("train", 0, 300)
    assert max(len(d.tokens) for d in documents) > 3 * runs.TINY["data.seq_len"]
    assert min(len(d.tokens) for d in documents) < runs.TINY["data.seq_len"] / 4


# --- the process ---------------------------------------------------------------------------------

_LOOK = """
import sys
from emo_jax.cli import main
try:
    main()
except SystemExit as e:
    heavy = {"tensorflow", "tensorflow_datasets", "seqio", "torch", "transformers", "t5"}
    heavy |= {"pandas", "boto3"}
    print("exit", e.code, "imported", sorted(heavy & {m.partition(".")[0] for m in sys.modules}))
"""


def test_the_step_compiles_once_and_nothing_heavy_is_imported(env, finished_run, store, tmp_path):
    argv = [sys.executable, "-c", _LOOK, *runs.train_argv(store, tmp_path / "run")]
    done = subprocess.run(
        *(argv,), env=env | {"JAX_LOG_COMPILES": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.splitlines()[-1] == "exit 0 imported []", done.stderr[-2000:]
    compiled = [line for line in done.stderr.splitlines() if "Compiling jit(" in line]
    assert sum("jit(train_step)" in line for line in compiled) == 1
    assert sum("jit(eval_step)" in line for line in compiled) == 2  # without and with a pool
    # The same run again is the same run.
    assert runs.log_as_written(tmp_path / "run") == runs.log_as_written(finished_run)


def test_a_run_keeps_the_tokenizer_and_names_the_store(finished_run, store):
    opened = TokenStore.open(store)
    kept = load_tokenizer(finished_run / "tokenizer")
    assert kept.fingerprint == opened.tokenizer_fingerprint
    assert (kept.eos_token, kept.pad_token) == ("</s>", "<pad>")
    assert restore_params(finished_run)[1]["store"] == opened.fingerprint
    assert [p.name for p in finished_run.iterdir() if p.name.startswith(".")] == []


def test_a_finished_run_does_nothing_more(env, finished_run, store, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    times = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    done = runs.emo(runs.train_argv(store, workdir), env)
    assert done.returncode == 0, done.stderr
    assert "already finished at step 40; nothing to do" in done.stderr
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*")} == times


def test_retention_keeps_the_last_and_every_so_many(finished_run):
    # save_every 10, keep_last 2, keep_every 20
    assert runs.checkpoints(finished_run) == [20, 30, 40]


def test_a_changed_batch_size_is_another_experiment(finished_run, store, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    assert runs.emo_here(*runs.train_argv(store, workdir, train__batch_size=8)) == 2
    line = capsys.readouterr().err
    assert line.startswith("emo: ") and "train.batch_size: 4 -> 8" in line
    assert runs.checkpoints(workdir) == [20, 30, 40]


def test_a_moved_store_and_other_checkpointing_are_the_same_experiment(
    env, finished_run, store, tmp_path
):
    workdir, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(finished_run, workdir)
    shutil.copytree(store, moved)
    changed = runs.train_argv(moved, workdir, checkpoint__keep_every=0, train__log_every=5)
    done = runs.emo(changed, env)
    assert done.returncode == 0, done.stderr
    config = json.loads((workdir / "config.json").read_text())
    assert config["data"]["store"] == str(moved)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5e12),
        ("NVIDIA H200", 989.5e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5e", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU v6e", 918e12),
        ("cpu", None),
    ],
)
def test_the_peak_of_a_device(kind, peak):
    assert flops.peak_flops(SimpleNamespace(device_kind=kind)) == peak


def test_several_processes_agree_to_stop_every_few_seconds(monkeypatch):
    """Steps of one second here; the other process is twice as fast, and the slower one counts."""
    asked, clock, others = [], [100.0], 10

    def gather(value):
        asked.append(value)
        return [value, others]

    monkeypatch.setattr("emo_jax.parallel.processes.gather", gather)
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    stop = StopRequest()

    def stopped(steps):
        found = []
        for step in steps:
            clock[0] += 1
            if stop.agreed():
                found.append(step)
        return found

    assert not stopped(range(20)) and not asked  # one process
    monkeypatch.setattr("jax.process_count", lambda: 2)
    # Nothing is known of the steps at first: after one it is asked again, then the wait doubles.
    assert not stopped(range(17)) and asked == [1, 2, 4, 5, 5]
    stop.requested = True
    assert stopped(range(17, 20)) == [17, 18, 19] and asked[5] == 0
    stop.requested, others = False, 0  # the other process was told to stop
    assert stopped([20]) == [20]


@pytest.mark.parametrize("seconds", [[20.0, 0.002, 1.0], [30.0, 0.002, 0.002, 0.002, 0.002, 3.0]])
def test_a_step_that_was_only_dispatched_does_not_put_off_the_next_agreement(monkeypatch, seconds):
    """`seconds` are those of the first steps, which include dispatches; the last goes on."""
    clock, asked = [100.0], []

    def gather(value):
        asked.append(clock[0])
        return [value, value]

    monkeypatch.setattr("emo_jax.parallel.processes.gather", gather)
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr("jax.process_count", lambda: 2)
    stop = StopRequest()
    assert not stop.agreed()
    for step in range(60):
        clock[0] += seconds[min(step, len(seconds) - 1)]
        assert not stop.agreed()
    limit = max(2 * ASK_SECONDS, 5 * seconds[-1])
    assert max(later - sooner for sooner, later in itertools.pairwise(asked[1:])) <= limit
    assert clock[0] - asked[-1] <= limit


def test_a_request_is_one_however_often_it_is_entered_and_a_second_sigint_does_not_wait():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        with stop:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested  # still watched: the inner one did not end it
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


# --- micro-batches -------------------------------------------------------------------------------


@pytest.mark.system
def test_four_micro_batches_give_the_parameters_of_one(env, store, tmp_path):
    """But for the load balance, whose counts are of a micro-batch: its weight is 0 here."""
    params, logs = [], []
    for micro_batches in (1, 4):
        workdir = tmp_path / f"run{micro_batches}"
        argv = runs.train_argv(
            *(store, workdir),
            train__micro_batches=micro_batches,
            train__steps=5,
            train__eval_windows=0,
            moe__load_balance_weight=0,
        )
        done = runs.emo(argv, env)
        assert done.returncode == 0, done.stderr
        params.append(restore_params(workdir)[0])
        logs.append(runs.log_as_written(workdir))
    for one, four in zip(*logs, strict=True):
        for name in ("loss", "ce_loss", "lm_z_loss", "grad_norm", "router_aux_loss"):
            assert float(four[name]) == pytest.approx(float(one[name]), rel=2e-5), name
        for name in ("pool_size_by_layer", "learning_rate"):
            assert four[name] == one[name], name  # the same draws, whatever the micro-batch
    differences = runs.relative_differences(*params)
    assert max(differences.values()) < 1e-4, differences
