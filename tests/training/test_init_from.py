"""A run that begins from another's checkpoint: what it takes over, and that it may be killed."""

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
import runs
from cases import few
from tiny import NO_POOL, UNIFORM, tiny_batch, tiny_config

from emo_jax.batch import Batch
from emo_jax.checkpoint.checkpointer import Checkpointer
from emo_jax.checkpoint.reading import restore_params
from emo_jax.config import InitConfig, MeshConfig, from_config_dict, to_dict
from emo_jax.config.file import load_config
from emo_jax.data.loader import Loader
from emo_jax.data.raw import RawTokens
from emo_jax.data.run_windows import in_order
from emo_jax.data.windows import Windows, open_windows
from emo_jax.errors import UsageError
from emo_jax.model.functions import ModelFunctions
from emo_jax.parallel.mesh import make_mesh, windows_sharding
from emo_jax.run.workdir import claim_workdir
from emo_jax.training.init_from import InitFrom, _check_steps
from emo_jax.training.optimizer import make_optimizer
from emo_jax.training.start import plan_start
from emo_jax.training.state import init_state
from emo_jax.training.step import jit_train_step

STD, ANNEAL = runs.REPO / "experiments/stdmoe_tiny.py", runs.REPO / "experiments/anneal_tiny.py"
BEFORE, AFTER, BATCH = 12, 24, 4  # steps of the standard run, and of its anneal; windows a step


def argv_of(experiment: str, store: Path, workdir: Path, **fields) -> list[str]:
    """Like `runs.train_argv`, of another experiment file; one without pools takes no sizes."""
    argv = runs.train_argv(store, workdir, train__eval_every=0, checkpoint__keep_every=0, **fields)
    argv[argv.index("--config") + 1] = experiment
    standard = experiment == str(STD)
    return [word for word in argv if not (standard and "moe.pool." in word)]


@pytest.fixture(scope="module")
def std_run(tmp_path_factory, env, store) -> Path:
    """A finished standard run; do not change it."""
    workdir = tmp_path_factory.mktemp("std") / "run"
    fields = dict(train__steps=BEFORE, checkpoint__save_every=6)
    done = runs.emo(argv_of(str(STD), store, workdir, **fields), env)
    assert done.returncode == 0, done.stderr
    return workdir


def anneal_argv(store: Path, workdir: Path, source: Path, **fields) -> list[str]:
    fields = dict(
        train__steps=AFTER,
        optimizer__decay_steps=AFTER - BEFORE,
        checkpoint__save_every=4,
        **fields,
    )
    argv = argv_of(f"{ANNEAL}:std_to_emo", store, workdir, **fields)
    return [*argv, "--init-from", f"{source}@{BEFORE}"]


# --- an anneal, as it is run ---------------------------------------------------------------------


def windows_in_order(argv: list[str], first: int, count: int) -> np.ndarray:
    """Tokens of windows of a run's order, one by one."""
    at = argv.index("--config") + 1
    overrides = [word for word in argv if word.startswith("--config.")]
    config = load_config(argv[at], overrides)
    loader = Loader(in_order(open_windows(config.data), config.data.seed), batch_size=1)
    return np.concatenate([loader.batch(first + i).tokens for i in range(count)])


@pytest.fixture(scope="module")
def annealed(tmp_path_factory, env, store, std_run):
    """The anneal of the standard run to EMO: (workdir, what it said, windows it saw)."""
    folder = tmp_path_factory.mktemp("anneal")
    argv = anneal_argv(store, folder / "run", std_run)
    done, seen = runs.recorded(argv, env, folder / "seen.npy")
    return folder / "run", done.stderr, seen, argv


@pytest.mark.system
def test_an_anneal_goes_on_with_steps_rate_and_data(annealed, std_run):
    workdir, said, seen, argv = annealed
    assert f"begins from step {BEFORE} of {std_run}: all of it, window {BEFORE * BATCH}" in said
    for line in ("moe.pool.kind: 'none' -> 'uniform'", "train.steps: 12 -> 24"):
        assert f"changed: {line}\n" in said
    records = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    records = [r for r in records if "loss" in r]
    assert [r["step"] for r in records] == list(range(BEFORE + 1, AFTER + 1))
    for r in records:
        exact = 4e-4 * (AFTER - r["step"]) / (AFTER - BEFORE)
        assert r["learning_rate"] == pytest.approx(exact, rel=1e-6, abs=0)
        assert max(r["pool_size_by_layer"]) < 7  # seven routed experts: pools are drawn
    before = json.loads((std_run / "metrics.jsonl").read_text().splitlines()[BEFORE - 1])
    assert records[0]["ce_loss"] < before["ce_loss"] + 0.2 < 5.0  # ln 259 is 5.6
    extra = restore_params(workdir)[1]
    assert extra["windows"] == AFTER * BATCH
    assert (extra["init"]["step"], extra["init"]["mode"]) == (BEFORE, "all")
    assert extra["init"] == json.loads((workdir / "init.json").read_text())
    wanted = windows_in_order(argv, BEFORE * BATCH, (AFTER - BEFORE) * BATCH)
    np.testing.assert_array_equal(seen[: len(wanted)], wanted)
    assert (workdir / "tokenizer/tokenizer.json").exists()


@pytest.mark.parametrize("when", few(["after one", "before its first checkpoint"], 0))
def test_an_anneal_that_is_killed_is_the_same_anneal(env, store, std_run, annealed, tmp_path, when):
    workdir, log = tmp_path / "run", tmp_path / "log"
    argv = anneal_argv(store, workdir, std_run)
    process = runs.start(argv, env, log)
    if when == "after one":
        runs.wait_until((workdir / "checkpoints/16/manifest.json").exists, process, log)
    else:
        runs.wait_until(lambda: "begins from" in log.read_text(), process, log)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = runs.emo(argv, env)
    assert done.returncode == 0, done.stderr
    if when == "after one":
        again = "is not read again: the run goes on from its own checkpoint"
        assert f"--init-from {std_run}@{BEFORE} {again}" in done.stderr
        assert "resumed at step" in done.stderr
    assert runs.log_as_written(workdir) == runs.log_as_written(annealed[0])
    assert runs.equal_trees(restore_params(workdir)[0], restore_params(annealed[0])[0])
    assert runs.emo(argv[:-2], env).returncode == 0  # finished; without --init-from too


@pytest.mark.system
def test_more_steps_go_on_as_the_refusal_says(env, store, std_run, tmp_path):
    """Elsewhere, at the learning rate of the longer schedule, and with the next windows."""
    argv = argv_of(str(STD), store, std_run, train__steps=BEFORE + 4)
    refused = runs.emo(argv, env)
    assert refused.returncode == 2
    assert f"(train.steps: {BEFORE} -> {BEFORE + 4}); to go on" in refused.stderr
    options = refused.stderr.partition("give another workdir and ")[2].partition(";")[0].split()
    assert options == ["--init-from", str(std_run), "--config.init.expected_changes=train.steps"]
    argv[argv.index("--workdir") + 1] = str(tmp_path / "longer")
    _, seen = runs.recorded([*argv, *options], env, tmp_path / "seen.npy")
    records = [json.loads(x) for x in (tmp_path / "longer/metrics.jsonl").read_text().splitlines()]
    records = [r for r in records if "loss" in r]
    assert [r["step"] for r in records] == list(range(BEFORE + 1, BEFORE + 5))
    for r in records:  # from 4 steps of warm-up down to a tenth
        turn = np.pi * (r["step"] - 4) / BEFORE
        exact = 4e-3 * (0.1 + 0.9 * (1 + np.cos(turn)) / 2)
        assert r["learning_rate"] == pytest.approx(exact, rel=1e-5)
    wanted = windows_in_order(argv, BEFORE * BATCH, 4 * BATCH)
    np.testing.assert_array_equal(seen[: len(wanted)], wanted)


@pytest.mark.system
def test_another_batch_size_loses_no_window_and_sees_none_twice(env, store, finished_run, tmp_path):
    """From step 20 of batches of 4, windows 80 on, four steps of two micro-batches of 6."""
    workdir = tmp_path / "run"
    argv = argv_of(
        str(runs.EXPERIMENT),
        store,
        workdir,
        train__steps=24,
        train__batch_size=12,
        train__micro_batches=2,
        init__expected_changes="train.steps,train.batch_size,train.micro_batches",
    )
    argv = [*argv, "--init-from", f"{finished_run}@20"]
    done, seen = runs.recorded(argv, env, tmp_path / "seen.npy")
    assert "changed: train.batch_size: 4 -> 12\n" in done.stderr
    wanted = windows_in_order(argv, 0, 80 + 4 * 12)
    np.testing.assert_array_equal(seen[: 4 * 12], wanted[80:])
    assert len({row.tobytes() for row in wanted}) == len(wanted)  # or the order would not show
    records = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "loss" in r] == [21, 22, 23, 24]
    assert restore_params(workdir)[1]["windows"] == 80 + 4 * 12


@pytest.mark.system
def test_an_imported_model_is_trained(env, store, finished_run, tmp_path):
    """Its checkpoint holds parameters alone; both ways to begin from it are the same run."""
    hf, imported, new = tmp_path / "hf", tmp_path / "imported", tmp_path / "new"
    assert runs.emo(["export", finished_run, "--output", hf], env).returncode == 0
    assert runs.emo(["import", hf, "--workdir", imported], env).returncode == 0
    changes = "moe.pool"
    fields = dict(
        train__steps=6, checkpoint__save_every=3, init__expected_changes=changes, train__log_every=1
    )
    argv = argv_of(str(runs.EXPERIMENT), store, new, **fields)
    for mode in ("all", "weights+optimizer"):
        done = runs.emo([*argv, "--init-from", imported, "--init", mode], env)
        assert done.returncode == 2 and "parameters only" in done.stderr, done.stderr
        assert not new.exists()
    done = runs.emo([*argv, "--init-from", imported, "--init", "weights"], env)
    assert done.returncode == 0, done.stderr
    log = runs.log_as_written(new)
    assert float(log[0]["ce_loss"]) < 5.0 and log[0]["step"] == "1"
    # And as a run of its own.
    argv = argv_of(str(runs.EXPERIMENT), store, imported, **fields)
    refused = runs.emo([*argv, "--config.moe.top_k=2"], env)
    assert refused.returncode == 2 and "moe.top_k: 3 -> 2" in refused.stderr, refused.stderr
    done = runs.emo(argv, env)
    assert done.returncode == 0 and "the optimizer starts fresh" in done.stderr, done.stderr
    assert runs.log_as_written(imported) == log
    assert runs.emo(argv, env).returncode == 0  # its own checkpoints from now on


# --- what each mode takes over, leaf by leaf -----------------------------------------------------


def _tokens(folder: Path) -> RawTokens:
    """The same few tokens, whatever the folder."""
    np.zeros(8192, np.uint32).tofile(folder / "tokens.npy")
    return RawTokens([str(folder / "tokens.npy")])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """(workdir, config, state) of three real steps of a standard model, by eight devices."""
    workdir = tmp_path_factory.mktemp("source") / "run"
    config = tiny_config(pool=NO_POOL)
    mesh = make_mesh(MeshConfig())
    model, optimizer = ModelFunctions(config, mesh), make_optimizer(config)
    state, step = init_state(model, optimizer, seed=0), jit_train_step(config, model, optimizer)
    batch = tiny_batch(config)
    batch = Batch(*(jax.device_put(a, windows_sharding(mesh)) for a in batch))
    for _ in range(3):
        state, _ = step(state, batch)
    claim_workdir(workdir, config)
    with Checkpointer(workdir, config.checkpoint) as checkpointer:
        store = _tokens(workdir.parent).fingerprint
        extra = {"config": to_dict(config), "windows": 24, "store": store}
        checkpointer.save(3, state, extra)
    return workdir, config, jax.device_get(state)


@pytest.mark.parametrize("mode", ["weights", "weights+optimizer", "all"])
def test_what_a_mode_takes_over(source, tmp_path, mode):
    workdir, theirs, before = source
    config = dataclasses.replace(
        theirs,
        moe=dataclasses.replace(theirs.moe, pool=UNIFORM),
        init=InitConfig(expected_changes=("moe.pool",)),
        mesh=MeshConfig(fsdp=2, replica=4),
    )
    model, optimizer = ModelFunctions(config, make_mesh(config.mesh)), make_optimizer(config)
    with Checkpointer(tmp_path / "new", config.checkpoint) as checkpointer:
        start = plan_start(
            tmp_path / "new",
            config,
            InitFrom.parse(str(workdir), mode),
            checkpointer=checkpointer,
            source=_tokens(tmp_path),
            windows=in_order(Windows(_tokens(tmp_path), 4), 0),
            model=model,
            optimizer=optimizer,
        )
        state, step, window = start.make()
    assert (start.record["step"], start.record["mode"], start.resumes) == (3, mode, False)
    jax.tree.map(np.testing.assert_array_equal, before.params, state.params)
    (_, adam, _), schedule = state.opt_state
    (_, adam_before, _), schedule_before = before.opt_state
    assert int(adam_before.count) == int(schedule_before.count) == 3
    if mode == "all":
        assert (step, window, int(state.step)) == (3, 24, 3)
        jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state))
    else:
        assert (step, window, int(state.step), int(schedule.count)) == (0, 0, 0, 0)
    if mode == "weights+optimizer":
        jax.tree.map(np.testing.assert_array_equal, adam_before, adam)
    if mode == "weights":
        assert int(adam.count) == 0
        assert not any(leaf.any() for leaf in jax.tree.leaves((adam.mu, adam.nu)))
    # On this run's mesh, not the other's; and the step takes it.
    where = model.param_shardings()["embed"]["embedding"]
    assert state.params["embed"]["embedding"].sharding.is_equivalent_to(where, 2)
    batch = Batch(*(jax.device_put(a, windows_sharding(model.mesh)) for a in tiny_batch(config)))
    state, metrics = jit_train_step(config, model, optimizer)(state, batch)
    assert np.isfinite(float(metrics["loss"]))


@pytest.mark.system
def test_a_history_of_spikes_starts_anew_with_the_schedule(source):
    from emo_jax.training.optimizer import moments_only

    _, config, before = source
    settings = dataclasses.replace(config.optimizer, skip_window=6)
    optimizer = make_optimizer(dataclasses.replace(config, optimizer=settings))
    state = optimizer.init(before.params)
    for loss in (1.0, 2.0):
        _, state = optimizer.update(before.params, state, before.params, loss=loss)
    fresh = optimizer.init(before.params)
    (skip, schedule), (fresh_skip, _) = moments_only(state, fresh), fresh
    jax.tree.map(np.testing.assert_array_equal, skip.inner, state[0].inner)
    assert (int(skip.inner[1].count), int(schedule.count), int(skip.seen)) == (2, 0, 0)
    np.testing.assert_array_equal(skip.losses_W, fresh_skip.losses_W)


def test_a_source_that_went_on_is_read_at_the_step_that_was_begun_from(source, tmp_path):
    """A run killed before its first checkpoint begins again where it began."""
    workdir, config, _ = source
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    shutil.copytree(copy / "checkpoints/3", copy / "checkpoints/7")  # of a later step
    manifest = json.loads((workdir / "checkpoints/3/manifest.json").read_text())
    assert manifest["step"] == 3
    model, optimizer = ModelFunctions(config, make_mesh(config.mesh)), make_optimizer(config)

    def planned(record):
        new = tmp_path / "new"
        new.mkdir(exist_ok=True)
        if record is not None:
            (new / "init.json").write_text(json.dumps(record))
        with Checkpointer(new, config.checkpoint) as checkpointer:
            return plan_start(
                *(new, config, InitFrom.parse(str(copy), "weights")),
                checkpointer=checkpointer,
                source=_tokens(tmp_path),
                windows=in_order(Windows(_tokens(tmp_path), 4), 0),
                model=model,
                optimizer=optimizer,
            ).record

    newest = planned(None)
    assert newest["step"] == 7
    assert planned(newest | {"step": 3})["step"] == 3
    assert planned(newest | {"step": 3, "mode": "all"})["step"] == 7  # another start


def test_weights_by_step_need_the_batch_size_that_counts_them():
    asked, values = InitFrom(Path("run"), 10, "all"), to_dict(tiny_config())
    values["train"] |= {"batch_size": 8, "micro_batches": 1}

    def check(window, from_step):
        later = {"store": "b", "weight": 1.0, "from_step": from_step}
        values["data"] |= {"store": "", "sources": [{"store": "a", "weight": 1.0}, later]}
        _check_steps(asked, from_config_dict(values), 10, window)

    check(80, 15)  # the same batch size as before
    check(40, 10)  # nothing changes any more
    with pytest.raises(UsageError, match=r"at window 40, which is not where step 10 begins"):
        check(40, 15)


def test_a_step_after_at_and_folders_with_an_at(tmp_path):
    parse = lambda text: InitFrom.parse(str(text), "all")[:2]  # noqa: E731
    assert parse(tmp_path / "run@30") == (tmp_path / "run", 30)
    assert parse(tmp_path / "run") == (tmp_path / "run", None)
    assert parse(tmp_path / "run@last") == (tmp_path / "run@last", None)
    (tmp_path / "run@30").mkdir()
    assert parse(tmp_path / "run@30") == (tmp_path / "run@30", None)
