"""Tasks are registered in a module of their own, as users' are."""

import sys

import pytest

from emo_jax.data.documents import Document, read_documents
from emo_jax.data.seqio_tasks import check
from emo_jax.errors import DataError, UsageError

MODULE = """
import functools
import seqio
import tensorflow as tf

VOCABULARY = seqio.ByteVocabulary()
FEATURES = {"targets": seqio.Feature(VOCABULARY, add_eos=True, dtype=tf.int32)}


def source(texts):
    def dataset(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensor_slices({"targets": texts})
    return seqio.FunctionDataSource(dataset, splits=["train"])


def add(name, texts, steps, features=FEATURES):
    seqio.TaskRegistry.add(name, source(texts), preprocessors=steps, output_features=features)


add("emo_kept", ["one", "na\\u00efve"], [seqio.preprocessors.tokenize])
add(
    "emo_ids",
    ["two"],
    [functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
     seqio.preprocessors.append_eos],
)
add("emo_other", ["x"], [], {"inputs": seqio.Feature(VOCABULARY)})
seqio.MixtureRegistry.add("emo_mix", [("emo_kept", 1), ("emo_ids", 9)])
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "emo_test_tasks.py").write_text(MODULE, encoding="utf-8")
    sys.path.insert(0, str(folder))
    yield "emo_test_tasks"
    sys.path.remove(str(folder))


def test_mixture(module):
    assert list(read_documents([f"seqio:{module}:emo_mix"])) == [
        Document("two", "emo_ids:0", "emo_ids"),
        Document("one", "emo_kept:0", "emo_kept"),
        Document("naïve", "emo_kept:1", "emo_kept"),
    ]


def test_task_without_targets(module):
    with pytest.raises(DataError, match="task 'emo_other' has no feature 'targets'"):
        list(read_documents([f"seqio:{module}:emo_other"]))


def test_unknown_names(module):
    with pytest.raises(UsageError, match=r"no_such_module.*must register the task"):
        list(read_documents(["seqio:no_such_module:x"]))
    with pytest.raises(UsageError, match=r"emo_none.*must register the task"):
        list(read_documents([f"seqio:{module}:emo_none"]))
    with pytest.raises(UsageError, match="must be seqio:MODULE:TASK"):
        read_documents(["seqio:wiki"])


def test_seqio_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'emo-jax\[prepare\]'"):
        check("seqio:a:b")
