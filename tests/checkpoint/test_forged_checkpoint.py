"""Checkpoints whose checksums fit and whose manifest does not: somebody made them so."""

import hashlib
import json
import os
import shutil

import pytest
import tensorstore as ts

from emo_jax.checkpoint import manifest
from emo_jax.checkpoint.reading import restore_params
from emo_jax.errors import CheckpointError
from emo_jax.hf import export_model
from emo_jax.saved.load import load_model, open_model
from emo_jax.saved.transfer import export, import_


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A workdir with one checkpoint, of parameters."""
    import jax
    import numpy as np
    from tiny import tiny_config

    from emo_jax.model.functions import ModelFunctions

    folder, config = tmp_path_factory.mktemp("imported"), tiny_config()
    params = jax.tree.map(np.asarray, jax.jit(ModelFunctions(config).init, static_argnums=0)(3))
    export_model(params, config, folder / "hf")
    import_(folder / "hf", folder / "run")
    return folder / "run"


@pytest.fixture
def forged(imported, tmp_path):
    return shutil.copytree(imported, tmp_path / "run")


def _seal(workdir, change):
    file = workdir / "checkpoints/0/manifest.json"
    held = json.loads(file.read_text())
    del held["sha256"]
    change(held)
    file.write_text(json.dumps({**held, "sha256": manifest._checksum(held)}))


def _at(*place, value):
    def change(held):
        for key in place[:-1]:
            held = held[key]
        held[place[-1]] = value

    return change


def _also_inside(held):
    leaf = held["leaves"][0]
    held["leaves"].append({**leaf, "path": [*leaf["path"], "more"]})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_at("data", value="../../../elsewhere"), "is no name of a file inside of the folder"),
        (_at("data", value="/etc"), "is no name of a file inside of the folder"),
        (_at("files", "params/../../x", value={"size": 1, "sha256": ""}), "is no name of a file"),
        (_at("files", "/etc/passwd", value={"size": 1, "sha256": ""}), "is no name of a file"),
        (_at("leaves", 0, "path", value=["params", "../../x"]), "is no name of a file"),
        (_at("leaves", 0, "path", value=["params", "a/b"]), "path is not the names of one leaf"),
        (_at("leaves", 0, "path", value=[]), "path is not the names of one leaf"),
        (_at("leaves", 0, "path", value="params"), "leaves[0].path must be a list"),
        (_at("leaves", 0, "dtype", value="O"), "leaves[0].dtype is 'O'"),
        (_at("leaves", 0, "dtype", value="U1000000"), "leaves[0].dtype is"),
        (_at("leaves", 0, "dtype", value="f4,f4"), "leaves[0].dtype is"),
        (_at("leaves", 0, "shape", value=[2.5]), "leaves[0].shape must be sizes"),
        (lambda held: held["leaves"].append(held["leaves"][0]), "path is not the names of one"),
        (_also_inside, "leaves has one inside of another"),
    ],
)
def test_a_manifest_that_cannot_be(forged, change, named):
    restore_params(forged)
    _seal(forged, change)
    with pytest.raises(CheckpointError) as refused:
        restore_params(forged)
    assert named in str(refused.value) and "\n" not in str(refused.value)


def test_a_pipe_among_the_files(forged):
    """One that is not in the manifest, too: whoever opens it waits for ever."""
    os.mkfifo(forged / "checkpoints/0/data/params/more")
    with pytest.raises(CheckpointError, match="params/more is not a regular file"):
        load_model(str(forged))


def test_a_link_among_the_files(forged, tmp_path):
    """To one elsewhere, in no checksum: what orbax reads of it would be parameters to export."""
    data = forged / "checkpoints/0/data"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/key").write_text("mine")
    for link, target in (("params/d/more", "mine/key"), ("params/more", "mine")):
        (data / link).parent.mkdir(exist_ok=True)
        (data / link).symlink_to(tmp_path / target)
        with pytest.raises(CheckpointError, match=f"{link} is a link to .*, outside of its folder"):
            load_model(str(forged))
        (data / link).unlink()
    # As of a cache that puts links in place of large files: the content is known by its checksum.
    file = max((f for f in data.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    file.rename(tmp_path / "cached")
    file.symlink_to(tmp_path / "cached")
    load_model(str(forged))


@pytest.mark.parametrize("use", [load_model, open_model, lambda w: export(w, w + "-hf")])
@pytest.mark.parametrize(
    ("place", "size", "named"),
    [
        (("model", "num_layers"), 10**7, "params/layers/.* is float32"),
        (("model", "embed_dim"), 32, "params/embed/embedding is float32"),
        (("moe", "num_experts"), 16, "experts/.* is float32"),
    ],
)
def test_a_config_of_another_model(forged, use, place, size, named):
    """Shapes are compared before anything is read or grows with them."""
    file = forged / "config.json"
    config = json.loads(file.read_text())
    config[place[0]][place[1]] = size
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=named):
        use(str(forged))


@pytest.mark.parametrize("whole", [True, False])
def test_what_describes_an_array_is_read_by_us_first(forged, whole):
    """As in a token store; here it lies in a database of tensorstore's."""
    data = forged / "checkpoints/0/data"
    database = {"driver": "ocdbt", "base": f"file://{data}/params/"}
    opened = ts.KvStore.open(database).result()
    (name,) = [n.decode() for n in opened.list().result() if b"embedding/.zarray" in n]
    nested = "[" * 300 + "]" * 300
    content = opened.read(name).result().value.decode()
    opened.write(name, f'{{"dimension_names": {nested}, {content[1:]}'.encode()).result()

    def change(held):
        for file in (file for file in data.rglob("*") if file.is_file()):
            record = {"size": file.stat().st_size}
            record["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
            held["files"][file.relative_to(data).as_posix()] = record

    _seal(forged, change)
    with pytest.raises(CheckpointError, match="JSON that is nested too deep"):
        if whole:
            load_model(str(forged))
        else:
            open_model(str(forged)).source.read("embed/embedding", (slice(0, 1), slice(0, 1)))
