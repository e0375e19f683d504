"""Every small JSON file of ours, as others may leave it: an error of one line, or what it says."""

import copy
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from emo_jax.analysis.activations import Activations
from emo_jax.checkpoint.checkpointer import Checkpointer
from emo_jax.checkpoint.reading import restore_params
from emo_jax.config import CheckpointConfig
from emo_jax.data.store import TokenStore
from emo_jax.data.store_writer import SplitContent, write_store
from emo_jax.errors import EmoError
from emo_jax.modules import finetune as finetuning
from emo_jax.quickstart import run as quickstart
from emo_jax.report.run import read_run
from emo_jax.run.metrics_file import METRICS_FILE
from emo_jax.run.workdir import read_workdir_config
from emo_jax.saved.load import is_hugging_face
from emo_jax.tokenizer.load import byte_tokenizer
from emo_jax.training import trackers
from emo_jax.training.init_from import read_record

READERS = {
    "config.json": read_workdir_config,
    "init.json": read_record,
    "store.json": TokenStore.open,
    "activations.json": Activations.open,
    "finetune.json": lambda folder: finetuning._check_same(folder, {"seed": 1}),
    "quickstart.json": lambda folder: quickstart._claim(folder, {"seed": 1}),
    "tracking.json": lambda folder: trackers._known(folder / "tracking.json"),
    "checkpoints/3/manifest.json": restore_params,
}
CONTENTS = {
    "empty": b"",
    "cut": b'{"format": 1, "x',
    "list": b"[1]",
    "null": b"null",
    "deep": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "less deep": b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}",
    "surrogate": b'{"a": "\\ud800"}',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "latin-1": '{"a": "é"}'.encode("latin-1"),
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", [*READERS, "hf", "report"])
def test_a_file_that_is_none_is_named_in_one_line(tmp_path, name, content):
    read, file = READERS.get(name), tmp_path / name
    if name in ("hf", "report"):
        read, file = {"hf": is_hugging_face, "report": read_run}[name], tmp_path / "config.json"
        (tmp_path / METRICS_FILE).write_text('{"step": 1, "loss": 2.0}\n')
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(CONTENTS[content])
    with pytest.raises(EmoError) as error:
        read(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000
    where = "step 3" if name.startswith("checkpoints") else file.name
    assert where in str(error.value)


# --- values of other kinds, under a checksum that fits --------------------------------------------

OTHERS = (None, [], {}, "x", "a\0", -1, 10**30, 0.5, True, [[]], {"": ".."}, ["../x"])


def _places(value, path=()):
    yield path
    inner = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value[:2]) if isinstance(value, list) else inner
    for key, each in inner:
        yield from _places(each, (*path, key))


def _changed(manifest, path, value):
    made = copy.deepcopy(manifest)
    node = made
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return made


def _try_all(manifest: dict, file: Path, read, signature: str) -> int:
    """Replaces every value by others; returns how many of the files were refused."""
    refused = 0
    for path in _places(manifest):
        for value in OTHERS if path and path != (signature,) else ():
            made = _changed(manifest, path, value)
            made.pop(signature, None)
            text = json.dumps(made, sort_keys=True)
            made[signature] = hashlib.sha256(text.encode()).hexdigest()
            file.write_text(json.dumps(made))
            try:
                read()
            except EmoError as error:
                assert "\n" not in str(error), (path, value)
                refused += 1
    return refused


def test_a_store_whose_manifest_says_something_else(tmp_path):
    folder, tokenizer = tmp_path / "store", byte_tokenizer()
    content = SplitContent(np.array([4, 5]), np.array([0, 1]), [np.arange(9)])
    write_store(folder, tokenizer=tokenizer, domains=["a", "b"], splits={"train": content})
    file = folder / "store.json"
    manifest = json.loads(file.read_text())

    def read():
        store = TokenStore.open(folder)
        for split in store.splits:
            store.documents(split, 0, 2)

    read()
    assert _try_all(manifest, file, read, "checksum") > 300


def test_a_checkpoint_whose_manifest_says_something_else(tmp_path, monkeypatch):
    with Checkpointer(tmp_path, CheckpointConfig()) as checkpointer:
        checkpointer.save(3, {"params": {"w": np.zeros(2)}, "step": 3}, {"windows": 1})
    file = tmp_path / "checkpoints/3/manifest.json"
    manifest = json.loads(file.read_text())
    monkeypatch.chdir(tmp_path)

    def read():
        return restore_params(".")[0]

    assert read()["w"].shape == (2,)
    assert _try_all(manifest, file, read, "sha256") > 100


# --- paths from Python ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, Path])
def test_a_relative_path_from_python(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    for step in (1, 2):
        with Checkpointer(kind("run"), CheckpointConfig()) as checkpointer:
            checkpointer.save(step, {"params": {"w": np.full(2, step)}, "step": step}, {})
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    params, _, step = restore_params(kind("../run"))
    assert step == 2 and params["w"].tolist() == [2, 2]
