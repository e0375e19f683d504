"""Checkpoints on the hosts' own disks: what is saved, and when a run goes on from it."""

import re
from pathlib import Path

import jax
import pytest
import runs
from jax.sharding import PartitionSpec
from states import abstract_of, assert_same, mesh_of, state_of

from emo_jax.checkpoint.checkpointer import Checkpointer
from emo_jax.checkpoint.local import LocalCheckpointer
from emo_jax.checkpoint.peers import Peers
from emo_jax.config import CheckpointConfig
from emo_jax.errors import ConfigError


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


@pytest.fixture
def config(tmp_path):
    return CheckpointConfig(save_every=10, local=str(tmp_path / "disk"), local_every=2)


def keep(workdir, config, *steps, mesh=None):
    local = LocalCheckpointer(workdir, config)
    for step in steps:
        local.save(step, state_of(step, mesh or mesh_of(4, 2)), {"windows": 8 * step})
    local.close()
    return local


def abstract(mesh=None):
    """Placed as `state_of` places a state: embeddings along one axis."""
    mesh, state = mesh or mesh_of(4, 2), state_of(0, mesh or mesh_of(4, 2))
    shapes = abstract_of(state, mesh)
    return jax.tree.map(
        lambda leaf, x: (
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=x.sharding)
            if isinstance(x, jax.Array)
            else leaf
        ),
        shapes,
        state,
    )


def found(workdir, config, wanted=None, accepts=lambda extra: True):
    local = LocalCheckpointer(workdir, config)
    best = local.find(abstract() if wanted is None else wanted, accepts)
    return None if best is None else best.step


def folder_of(config):
    """The only process's folder."""
    (folder,) = (p for p in Path(config.local).glob("*/process0/checkpoints"))
    return folder


def test_restores_bit_for_bit(workdir, config):
    keep(workdir, config, 2, 4, 6)
    local = LocalCheckpointer(workdir, config)
    best = local.find(abstract(), lambda extra: True)
    assert (best.step, best.extra["windows"]) == (6, 48)
    got = local.restore(abstract(), 6)
    assert_same(got, state_of(6, mesh_of(4, 2)))
    assert got["params"]["embed"].sharding == abstract()["params"]["embed"].sharding
    assert sorted(p.name for p in folder_of(config).iterdir()) == ["4", "6"]  # the newest two


def test_each_part_is_kept_once_though_many_devices_have_it(workdir, config):
    keep(workdir, config, 2)
    kept = runs.state_of(folder_of(config).parent, 2)
    parts = [name for name in kept if name.startswith("params/embed/")]
    assert len(parts) == 4 and {kept[name].shape for name in parts} == {(4, 8)}  # of 8 devices


def test_only_what_is_newer_than_all_shared_ones_is_used(workdir, config):
    with Checkpointer(workdir, config) as shared:
        shared.save(10, state_of(10), {})
        shared.wait()
        keep(workdir, config, 8)
        assert found(workdir, config) is None
        keep(workdir, config, 12)
        assert found(workdir, config) == 12
        shared.save(20, state_of(20), {})
    assert found(workdir, config) is None


def test_one_whose_shared_checkpoint_was_taken_away_is_not_used(workdir, config, caplog):
    """Whoever removes step 20 to go back to step 10 means it."""
    with Checkpointer(workdir, config) as shared:
        for step in (10, 20):
            shared.save(step, state_of(step), {})
    keep(workdir, config, 22)
    assert found(workdir, config) == 22
    (workdir / "checkpoints/20/manifest.json").unlink()
    assert found(workdir, config) is None
    assert "it came after step 20, which is no longer in" in caplog.text


def test_one_that_was_kept_while_a_shared_one_was_written_came_after_that(workdir, config):
    with Checkpointer(workdir, config) as shared:
        shared.save(10, state_of(10), {})
    local = LocalCheckpointer(workdir, config)
    local.save(22, state_of(22, mesh_of(4, 2)), {"windows": 176}, shared=20)
    local.close()
    assert found(workdir, config) is None
    with Checkpointer(workdir, config) as shared:
        shared.save(20, state_of(20), {})
    assert found(workdir, config) == 22


def test_after_going_back_the_same_steps_are_saved_anew(workdir, config):
    """As after a rollback, or where another host's disk had less."""
    local = keep(workdir, config, 2, 4)
    local.drop_after(2)
    assert found(workdir, config) == 2
    other = state_of(5, mesh_of(4, 2))
    local.save(4, other, {"windows": 99})
    local.close()
    best = local.find(abstract(), lambda extra: True)
    assert (best.step, best.extra["windows"]) == (4, 99)
    assert_same(local.restore(abstract(), 4), other)


def test_a_damaged_one_is_not_used(workdir, config):
    keep(workdir, config, 2, 4)
    runs.damage_checkpoint(folder_of(config).parent, 4)
    assert found(workdir, config) == 2


def test_another_place_other_data_or_another_run(workdir, config, tmp_path):
    keep(workdir, config, 2)
    assert found(workdir, config) == 2
    assert found(workdir, config, abstract(mesh_of(2, 2))) is None
    spec = PartitionSpec("a", "b")
    assert found(workdir, config, abstract_of(state_of(0), mesh_of(4, 2), spec)) is None
    assert found(workdir, config, accepts=lambda extra: extra["windows"] == 17) is None
    (workdir / ".run_id").unlink()  # a new run in a folder of the same name
    assert found(workdir, config) is None


def test_a_disk_that_cannot_be_written_is_said(workdir, config, tmp_path, caplog):
    (tmp_path / "disk").write_text("a file")
    keep(workdir, config, 2)
    assert re.search(r"process 0: checkpoint of step 2 was not saved in .*disk", caplog.text)
    assert found(workdir, config) is None


def test_what_different_starts_have_written_is_not_mixed(workdir, config, monkeypatch):
    """The other process, here a list of what it says, has step 4 of another start."""
    keep(workdir, config, 2)
    keep(workdir, config, 4)
    local = LocalCheckpointer(workdir, config)
    said = iter([4, "another", 2, "the same"])

    def gather(self, value):
        theirs = next(said)
        return [value, {"another": value + 1, "the same": value}.get(theirs, theirs)]

    monkeypatch.setattr(Peers, "gather", gather)
    assert local.find(abstract(), lambda extra: True).step == 2


def test_settings():
    with pytest.raises(ConfigError, match=r"checkpoint\.local_every"):
        CheckpointConfig(local="/scratch")
    with pytest.raises(ConfigError, match=r"checkpoint\.local_every"):
        CheckpointConfig(local_every=5)
