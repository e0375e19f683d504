"""Round trips, retention, replacement and mismatches, in one process of eight devices."""

import json
import threading

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import PartitionSpec
from states import abstract_of, assert_same, mesh_of, state_of

from emo_jax.checkpoint import manifest as manifest_lib
from emo_jax.checkpoint.checkpointer import Checkpointer
from emo_jax.checkpoint.reading import open_params, restore_params
from emo_jax.config import CheckpointConfig
from emo_jax.errors import CheckpointError


def checkpointer(workdir, **config):
    return Checkpointer(workdir, CheckpointConfig(**{"save_every": 1, **config}))


def save(workdir, *steps, **config):
    with checkpointer(workdir, **config) as c:
        for step in steps:
            c.save(step, state_of(step), {"windows": 8 * step})
    return c


@pytest.mark.parametrize("sizes", [(8,), (2, 3), (1,)])
def test_restores_bit_for_bit_onto_another_mesh(tmp_path, sizes):
    state = state_of(7, mesh_of(4))
    with checkpointer(tmp_path) as c:
        assert c.save(7, state, {"windows": 56, "config": {"name": "tiny"}})
        mesh = mesh_of(*sizes)
        spec = PartitionSpec("a") if len(sizes) == 1 else PartitionSpec("a", None)
        abstract = abstract_of(state, mesh, spec)
        got, extra, step = c.restore(abstract)
    assert step == 7
    assert (extra["windows"], extra["config"], extra["step"]) == (56, {"name": "tiny"}, 7)
    assert extra["versions"]["jax"] == jax.__version__
    assert_same(got, state)
    assert got["params"]["embed"].sharding == abstract["params"]["embed"].sharding
    assert isinstance(got["windows"], np.ndarray)  # no sharding asked for


def test_a_donated_state_is_saved_as_it_was(tmp_path):
    state = state_of(1, mesh_of(8), rows=2**16)
    want = jax.tree.map(lambda x: np.array(x), state["params"])
    counter = np.array(3)
    step = jax.jit(lambda p: jax.tree.map(lambda x: x * 0 - 1, p), donate_argnums=0)
    with checkpointer(tmp_path) as c:
        c.save(1, {"params": state["params"], "counter": counter}, {})
        params = state["params"]
        counter += 1
        for _ in range(3):
            params = step(params)
        jax.block_until_ready(params)
        got, _, _ = c.restore({"params": abstract_of(want), "counter": abstract_of(np.array(0))})
    assert_same(got["params"], want)
    assert got["counter"] == 3


def test_save_does_not_wait_for_the_files(tmp_path, monkeypatch):
    go = threading.Event()
    publish = manifest_lib.publish
    monkeypatch.setattr(
        "emo_jax.checkpoint.checkpointer.publish", lambda *args: go.wait(30) and publish(*args)
    )
    with checkpointer(tmp_path) as c:
        c.save(1, state_of(1), {})
        assert c.steps() == []
        go.set()
        c.wait()
        assert c.steps() == [1] and c.latest_step() == 1


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_orbax_itself_reads_the_arrays(tmp_path):
    save(tmp_path, 3)
    tree = ocp.PyTreeCheckpointer().restore(tmp_path / "checkpoints/3/data/params")
    assert np.array_equal(tree["params"]["embed"], state_of(3)["params"]["embed"])


@pytest.mark.parametrize(
    ("config", "steps", "left"),
    [
        ({"keep_last": 1}, range(1, 6), [5]),
        ({"keep_last": 2}, range(1, 6), [4, 5]),
        ({"keep_last": 1, "keep_every": 2}, range(1, 8), [2, 4, 6, 7]),
        ({"keep_last": 3, "keep_every": 4}, range(1, 10), [4, 7, 8, 9]),
    ],
)
def test_retention(tmp_path, config, steps, left):
    c = save(tmp_path, *steps, **config)
    assert c.steps() == left
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == left


def test_retention_does_not_count_later_steps_of_another_run(tmp_path):
    save(tmp_path, 8, 9, keep_last=2)
    with checkpointer(tmp_path, keep_last=2) as c:
        for step in (4, 5, 6):
            c.save(step, state_of(step), {})
    assert c.steps() == [5, 6, 8, 9]


def test_an_unfinished_save_is_no_checkpoint_and_goes_with_the_next(tmp_path):
    save(tmp_path, 1)
    left_over = tmp_path / "checkpoints/2/data.orbax-checkpoint-tmp"
    left_over.mkdir(parents=True)
    (left_over / "_METADATA").write_text("{}")
    with checkpointer(tmp_path) as c:
        assert c.steps() == [1]
        assert c.restore(abstract_of(state_of(1)))[2] == 1
        assert c.skipped[0][0] == 2 and "no manifest.json" in c.skipped[0][1]
        c.save(3, state_of(3), {})
    assert not left_over.parent.exists()
    assert c.steps() == [1, 3]


def test_a_step_this_run_has_is_not_saved_again(tmp_path):
    with checkpointer(tmp_path) as c:
        assert c.save(1, state_of(1), {})
        assert not c.save(1, state_of(1), {})
    with checkpointer(tmp_path) as c:
        c.restore(abstract_of(state_of(1)))
        assert not c.save(1, state_of(1), {})


def test_a_step_of_another_run_is_not_replaced(tmp_path):
    save(tmp_path, 1)
    with checkpointer(tmp_path) as c:
        with pytest.raises(CheckpointError, match=r"already holds step 1.*use a new workdir"):
            c.save(1, state_of(5), {})
        assert_same(c.restore(abstract_of(state_of(1)))[0], state_of(1))


def _full_disk(*args):
    raise OSError(28, "No space left on device")


def test_old_checkpoints_outlive_a_failed_save(tmp_path, monkeypatch):
    with checkpointer(tmp_path, keep_last=1) as c:
        c.save(1, state_of(1), {})
        c.wait()
        with monkeypatch.context() as m:
            m.setattr("emo_jax.checkpoint.checkpointer.publish", _full_disk)
            c.save(2, state_of(2), {})
            with pytest.raises(CheckpointError) as error:
                c.save(3, state_of(3), {})
        assert "\n" not in str(error.value)
        for part in ("step 2", str(tmp_path), "No space left", "step 1 is the last good one"):
            assert part in str(error.value)
        assert c.steps() == [1]
        assert not (tmp_path / "checkpoints/2").exists()
        assert_same(c.restore(abstract_of(state_of(1)))[0], state_of(1))
        c.save(3, state_of(3), {})  # the error was told once; with space again, saving goes on
    assert c.steps() == [3]


@pytest.mark.parametrize("how", ["wait", "close", "with"])
def test_a_failed_save_surfaces(tmp_path, monkeypatch, how):
    monkeypatch.setattr("emo_jax.checkpoint.checkpointer.publish", _full_disk)
    c = checkpointer(tmp_path)
    c.save(1, state_of(1), {})
    with pytest.raises(CheckpointError, match="there is no earlier one"):
        if how == "with":
            with c:
                pass
        else:
            getattr(c, how)()
    c.close()  # told once


def test_the_error_of_the_run_is_not_hidden_by_a_failed_save(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("emo_jax.checkpoint.checkpointer.publish", _full_disk)
    with pytest.raises(ZeroDivisionError), checkpointer(tmp_path) as c:
        c.save(1, state_of(1), {})
        raise ZeroDivisionError
    assert "checkpoint of step 1 was not saved" in caplog.text


def test_a_folder_that_cannot_be_made_is_told_at_once(tmp_path):
    (tmp_path / "checkpoints").write_text("a file in the way")
    with checkpointer(tmp_path) as c, pytest.raises(CheckpointError, match="was not saved") as e:
        c.save(1, state_of(1), {})
    assert "\n" not in str(e.value)


def test_params_alone(tmp_path):
    save(tmp_path, 1, 2)
    want = state_of(2)["params"]
    params, extra, step = restore_params(tmp_path)
    assert (step, extra["windows"]) == (2, 16)
    assert np.array_equal(params["layers"]["1"]["w"], want["layers"][1]["w"])
    assert params["none_shared"].shape == (2, 0, 4)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(params))

    abstract = abstract_of(want, mesh_of(8), PartitionSpec("a"))
    got, _, step = restore_params(tmp_path, step=1, abstract_params=abstract)
    assert step == 1
    assert_same(got, state_of(1)["params"])
    assert got["embed"].sharding == abstract["embed"].sharding

    reader, extra, _ = open_params(tmp_path)
    assert extra["windows"] == 16
    shapes = {"embed": (16, 8), "none_shared": (2, 0, 4)}
    assert reader.shapes == shapes | {f"layers/{i}/w": (4, 16, 6) for i in (0, 1)}
    block = (slice(1, 3), slice(0, 16), slice(2, 5))
    for i in (0, 1):
        part = reader.read(f"layers/{i}/w", block)
        assert part.dtype == want["layers"][i]["w"].dtype
        assert np.array_equal(part, want["layers"][i]["w"][block])
    assert reader.read("none_shared", (slice(0, 2), slice(0, 0), slice(0, 4))).shape == (2, 0, 4)


@pytest.mark.parametrize("part", ["params", "rest", "both"])
def test_a_step_says_what_it_holds(tmp_path, part):
    state = {"params": {"w": np.ones(3)}, "step": np.int32(1)}
    names = {"params": ["params"], "rest": ["step"], "both": ["params", "step"]}[part]
    with checkpointer(tmp_path) as c:
        c.save(1, {name: state[name] for name in names}, {})
        c.wait()
        assert c.items(1) == ({"params", "rest"} if part == "both" else {part})
        with pytest.raises(CheckpointError, match=r"step 2 .*no manifest"):
            c.items(2)


def test_params_alone_need_no_optimizer_state(tmp_path):
    save(tmp_path, 1)
    for path in (tmp_path / "checkpoints/1/data/rest").rglob("*"):
        if path.is_file():
            path.unlink()
    params, _, step = restore_params(tmp_path)
    assert step == 1 and np.array_equal(params["embed"], state_of(1)["params"]["embed"])


def test_another_structure_is_told_by_leaf(tmp_path):
    save(tmp_path, 1)
    abstract = abstract_of(state_of(1))
    abstract["params"]["embed"] = jax.ShapeDtypeStruct((16, 9), np.float32)
    abstract["params"]["extra"] = jax.ShapeDtypeStruct((1,), np.float32)
    abstract["step"] = jax.ShapeDtypeStruct((), np.float32)
    del abstract["windows"]
    with checkpointer(tmp_path) as c, pytest.raises(CheckpointError) as error:
        c.restore(abstract)
    text = str(error.value)
    assert "\n" not in text
    assert "params/embed is float32(16, 8) there, float32(16, 9) here" in text
    assert "params/extra is not in the checkpoint" in text
    assert "step is int32() there, float32() here" in text
    assert "and 1 more" in text
    del abstract["params"]["extra"]
    with pytest.raises(CheckpointError, match="params/embed is"):
        restore_params(tmp_path, abstract_params=abstract["params"])


def test_an_integer_that_devices_would_cut_is_refused(tmp_path):
    """orbax 0.12.8 restores 2⁴⁰ + 5 to a device as 5."""
    with checkpointer(tmp_path) as c:
        c.save(1, {"params": {"w": np.zeros(2)}, "seen": np.int64(2**40 + 5)}, {})
        shape, device = ((), np.int64), jax.sharding.SingleDeviceSharding(jax.devices()[0])
        params = {"w": jax.ShapeDtypeStruct((2,), np.float64)}
        got, _, _ = c.restore({"params": params, "seen": jax.ShapeDtypeStruct(*shape)})
        assert got["seen"] == 2**40 + 5 and got["seen"].dtype == np.int64
        with pytest.raises(CheckpointError, match=r"state seen: int64 does not fit devices"):
            c.restore({"params": params, "seen": jax.ShapeDtypeStruct(*shape, sharding=device)})


def test_what_cannot_be_saved_is_told_by_leaf(tmp_path):
    with checkpointer(tmp_path) as c:
        for leaf, said in (
            (jax.random.key(0), "key_data"),
            ("text", "a str cannot be saved"),
            (2**40, "32-bit"),
        ):
            with pytest.raises(CheckpointError, match=f"state params/x.*{said}"):
                c.save(1, {"params": {"x": leaf}}, {})
        with pytest.raises(CheckpointError, match="extra is not JSON"):
            c.save(1, state_of(1), {"config": object()})
    assert c.steps() == []


def test_read_extra_and_missing_steps(tmp_path):
    c = save(tmp_path, 1)
    assert c.read_extra(1)["windows"] == 8
    with pytest.raises(CheckpointError, match="step 9"):
        c.read_extra(9)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 9 .*\[1\]"):
        c.restore(abstract_of(state_of(1)), step=9)
    with pytest.raises(CheckpointError, match="nothing was saved"):
        restore_params(tmp_path / "new")


def test_the_manifest_is_plain_json(tmp_path):
    save(tmp_path, 1)
    content = json.loads((tmp_path / "checkpoints/1/manifest.json").read_text())
    files = {
        str(p.relative_to(tmp_path / "checkpoints/1/data")): p.stat().st_size
        for p in (tmp_path / "checkpoints/1/data").rglob("*")
        if p.is_file()
    }
    assert {name: f["size"] for name, f in content["files"].items()} == files
    assert all(len(f["sha256"]) == 64 for f in content["files"].values())
