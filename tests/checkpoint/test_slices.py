"""Leaves written and read slice by slice: what orbax and a run make of them."""

import itertools
import json
import math
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from states import assert_same, mesh_of

from emo_jax.checkpoint.checkpointer import Checkpointer
from emo_jax.checkpoint.reading import open_params, restore_params
from emo_jax.checkpoint.slices import SlicedLeaf, SliceReader, blocks, extent
from emo_jax.config import CheckpointConfig
from emo_jax.errors import CheckpointError

PARAMS = {
    "embed": {"table": (3000, 32)},
    "layers": {"experts": {"up": (3, 5, 64, 48)}, "norm": (3, 64), "query": (3, 64, 4, 8)},
    "scale": (7,),
}
SHAPES = {
    "embed/table": (3000, 32),
    "layers/experts/up": (3, 5, 64, 48),
    "layers/norm": (3, 64),
    "layers/query": (3, 64, 4, 8),
    "scale": (7,),
}


def arrays(dtype=np.float32):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(dtype),
        PARAMS,
        is_leaf=lambda x: type(x) is tuple,
    )


def sliced(tree, asked=None):
    """Every leaf as one that is read block by block; `asked` gets (bytes of the block)."""

    def leaf(path, value):
        def read(block):
            if asked is not None:
                asked.append(math.prod(extent(block)) * value.itemsize)
            return value[block]

        axes = (0, 1) if "up" in str(path) else (0,) if "layers" in str(path) else ()
        return SlicedLeaf(value.shape, value.dtype, read, axes)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def save(workdir, params, step=0):
    with Checkpointer(workdir, CheckpointConfig()) as checkpointer:
        checkpointer.save(step, {"params": params}, {"windows": 0})
    return checkpointer


@pytest.fixture
def small_slices(monkeypatch):
    """So that these small leaves are many slices."""
    monkeypatch.setattr("emo_jax.checkpoint.slices.WRITE_BYTES", 40_000)
    monkeypatch.setattr("emo_jax.checkpoint.writing.WRITE_BYTES", 20_000)


@pytest.mark.parametrize("shape", [(7,), (3, 5), (3, 5, 4), (1, 6, 2, 3)])
@pytest.mark.parametrize("size", [1, 6, 1000])
def test_blocks_tile_a_shape_with_whole_chunks(shape, size):
    for chunk in itertools.product(*(range(1, n + 1) for n in shape)):
        seen = np.zeros(shape, int)
        for block in blocks(shape, chunk, size):
            seen[block] += 1
            for part, c, n in zip(block, chunk, shape, strict=True):
                assert part.start % c == 0 and (part.stop % c == 0 or part.stop == n)
            assert math.prod(extent(block)) <= max(size, math.prod(chunk))
        assert (seen == 1).all()


@pytest.mark.parametrize("dtype", [np.float32, "bfloat16"])
def test_everybody_reads_what_was_written_in_slices(tmp_path, small_slices, dtype):
    want, asked = arrays(jax.numpy.dtype(dtype)), []
    checkpointer = save(tmp_path, sliced(want, asked))
    assert len(asked) > 10 and max(asked) <= 40_000
    assert checkpointer.items(0) == {"params"}
    assert_same(restore_params(tmp_path)[0], want)

    mesh = mesh_of(8)
    specs = {(3000, 32): PartitionSpec("a"), (3, 5, 64, 48): PartitionSpec(None, None, "a")}

    def abstract(leaf):
        sharding = NamedSharding(mesh, specs.get(leaf.shape, PartitionSpec()))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    with Checkpointer(tmp_path, CheckpointConfig()) as again:
        got, _, _ = again.restore({"params": jax.tree.map(abstract, want)})
    assert_same(got["params"], want)
    assert got["params"]["layers"]["experts"]["up"].sharding.spec == PartitionSpec(None, None, "a")


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_plain_orbax_reads_what_was_written_in_slices(tmp_path, small_slices):
    want = arrays()
    save(tmp_path, sliced(want))
    item = tmp_path / "checkpoints/0/data/params"
    for tree in (
        ocp.PyTreeCheckpointer().restore(item),
        ocp.StandardCheckpointer().restore(item),
        ocp.PyTreeCheckpointHandler().restore(item),
    ):
        assert_same(jax.tree.map(np.asarray, tree["params"]), want)
    metadata = json.loads((item / "_METADATA").read_text())
    types = {x["value_metadata"]["value_type"] for x in metadata["tree_metadata"].values()}
    assert types == {"np.ndarray"}  # nothing of ours is needed to read it


def test_a_failed_read_is_a_failed_save(tmp_path):
    def broken(block):
        raise OSError("the disk is gone")

    leaf = SlicedLeaf((4, 4), np.dtype(np.float32), broken)
    with pytest.raises(CheckpointError, match=r"step 0 was not saved .*the disk is gone"):
        save(tmp_path, {"w": leaf})
    assert not (tmp_path / "checkpoints/0").exists()


# --- reading -------------------------------------------------------------------------------------


def random_block(rng, shape):
    ends = [sorted(rng.choice(n + 1, 2, replace=False)) for n in shape]
    return tuple(slice(int(a), int(b)) for a, b in ends)


@pytest.mark.parametrize("how", ["arrays", "sharded", "slices"])
def test_any_block_is_read(tmp_path, monkeypatch, small_slices, how):
    monkeypatch.setattr("emo_jax.checkpoint.writing._CHUNK_BYTES", 10_000)
    want = arrays()
    params = {"arrays": lambda: want, "slices": lambda: sliced(want), "sharded": lambda: _put(want)}
    save(tmp_path, params[how]())
    reader, _, _ = open_params(tmp_path)
    assert reader.shapes == SHAPES
    rng = np.random.default_rng(1)
    for path in SHAPES:
        leaf = want
        for key in path.split("/"):
            leaf = leaf[key]
        for _ in range(10):
            block = random_block(rng, leaf.shape)
            np.testing.assert_array_equal(reader.read(path, block), leaf[block])


def test_files_that_go_while_they_are_read_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("EMO_READ_WAIT", "0.2")
    want = arrays()
    save(tmp_path, want)
    reader, _, _ = open_params(tmp_path)
    step, folder, away = tmp_path / "checkpoints/0", tmp_path / "checkpoints", tmp_path / "away"

    def refused(message):
        with pytest.raises(CheckpointError, match=message) as error:
            reader.read("embed/table", (slice(0, 1), slice(0, 32)))
        assert "\n" not in str(error.value)

    item = step / "data/params"
    item.rename(away)
    refused(r"params: embed/table: cannot be read \(.*; bring it back and try again")
    away.rename(item)
    folder.rename(away)
    refused(r"0/manifest\.json: is not there any more; bring it back")
    away.rename(folder)
    whole = (slice(0, 3000), slice(0, 32))
    np.testing.assert_array_equal(reader.read("embed/table", whole), want["embed"]["table"])
    manifest = (step / "manifest.json").read_text()
    (step / "manifest.json").write_text(manifest.replace("0", "1"))  # of another save
    refused(r"manifest\.json: was replaced or changed")
    monkeypatch.setenv("EMO_READ_WAIT", "60")  # what is not to come back is not waited for
    shutil.rmtree(step)
    refused(r"0: was removed while it was read, as a run that is training does")


@pytest.mark.parametrize("ocdbt", [True, False])
def test_a_chunk_that_is_gone_is_no_zeros(tmp_path, monkeypatch, ocdbt):
    """Of a save by orbax with one file for each chunk, and with its database of chunks."""
    monkeypatch.setenv("EMO_READ_WAIT", "0.2")
    values = np.ones((8, 4), np.float32)
    item = tmp_path / "0/data/params"
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt)
    handler.save(item, args=ocp.args.PyTreeSave({"params": {"w": values}}))
    handler.finalize(item)
    (tmp_path / "0/manifest.json").write_text("{}")
    specs = {"w": jax.ShapeDtypeStruct(values.shape, values.dtype)}
    reader = SliceReader(epath.Path(item), specs, ("params",))
    whole = (slice(0, 8), slice(0, 4))
    np.testing.assert_array_equal(reader.read("w", whole), values)
    reader = SliceReader(epath.Path(item), specs, ("params",))
    for file in sorted(p for p in item.rglob("*") if p.is_file()):
        if "/d/" in str(file) or (not ocdbt and file.name == "0.0"):
            file.unlink()
    with pytest.raises(CheckpointError, match="params: w: cannot be read"):
        reader.read("w", whole)


def _put(tree):
    mesh = mesh_of(8)

    def put(leaf):
        axis = next((i for i in range(leaf.ndim - 1, -1, -1) if leaf.shape[i] % 8 == 0), None)
        spec = [None] * leaf.ndim
        if axis is not None:
            spec[axis] = "a"
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*spec)))

    return jax.tree.map(put, tree)


def chunk_of(workdir, path):
    reader, _, _ = open_params(workdir)
    reader.read(path, tuple(slice(0, 1) for _ in reader.shapes[path]))
    return reader._store.chunk


@pytest.mark.parametrize("sharded", [False, True])
def test_a_chunk_of_a_run_is_of_one_layer(tmp_path, monkeypatch, sharded):
    """Left to itself orbax cuts the longest axes, and a layer lies in every chunk."""
    monkeypatch.setattr("emo_jax.checkpoint.writing._CHUNK_BYTES", 30_000)
    save(tmp_path, _put(arrays()) if sharded else arrays())
    for path, shape in SHAPES.items():
        chunk = chunk_of(tmp_path, path)
        assert (chunk[0] == 1) == path.startswith("layers/")
        assert math.prod(chunk) * 4 <= max(30_000, math.prod(shape) * 4 // 8)


def test_a_chunk_of_an_import_is_of_few_experts(tmp_path):
    save(tmp_path, sliced(arrays()))
    assert chunk_of(tmp_path, "layers/experts/up") == (1, 1, 64, 48)
    assert chunk_of(tmp_path, "layers/query") == (1, 64, 4, 8)


def test_a_chunk_is_read_once_for_the_blocks_that_share_it(tmp_path, monkeypatch):
    """Expert after expert of a layer whose chunks hold parts of all experts."""
    monkeypatch.setattr("emo_jax.checkpoint.writing._CHUNK_BYTES", 20_000)
    want = arrays()
    save(tmp_path, want)
    path, leaf = "layers/experts/up", want["layers"]["experts"]["up"]
    chunk = chunk_of(tmp_path, path)
    assert chunk[1] == 5 and chunk[2] < 64, "this test is of experts that share chunks"
    reader, _, _ = open_params(tmp_path)
    opened = []
    open_store = SliceReader._open
    monkeypatch.setattr(SliceReader, "_open", lambda *a: (opened.append(a[1:]), open_store(*a)))
    for layer in range(3):
        for e in range(5):
            block = (slice(layer, layer + 1), slice(e, e + 1), slice(0, 64), slice(0, 48))
            np.testing.assert_array_equal(reader.read(path, block), leaf[block])
    # Once to see the chunks, once with room for the chunks of one layer.
    assert opened == [(path, 0), (path, leaf[0].nbytes)]
