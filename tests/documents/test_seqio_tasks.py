"""Tasks are registered in a module of their own, as users' are."""

import sys

import pytest

from emo_jax.documents.read import Document, ReadReport, read_documents
from emo_jax.documents.seqio_tasks import check
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


def split_source():
    def dataset(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensor_slices({"targets": [f"{split} a", f"{split} b"]})
    return seqio.FunctionDataSource(dataset, splits=["train", "validation"])


def add(name, texts, steps, features=FEATURES):
    seqio.TaskRegistry.add(name, source(texts), preprocessors=steps, output_features=features)


add("emo_kept", ["one", "na\\u00efve"], [seqio.preprocessors.tokenize])
add(
    "emo_ids",
    ["two"],
    [functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
     seqio.preprocessors.append_eos],
)
add("emo_wrong", ["text, not ids"], [])
add("emo_other", ["x"], [], {"inputs": seqio.Feature(VOCABULARY)})
seqio.TaskRegistry.add(
    "emo_split:v1", split_source(), preprocessors=[seqio.preprocessors.tokenize],
    output_features=FEATURES)
add("emo_passed", ["5 6"], [
    lambda d: d.map(lambda e: {"targets": tf.strings.to_number(
        tf.strings.split(e["targets"]), tf.int32)}),
], {"targets": seqio.Feature(seqio.PassThroughVocabulary(10, eos_id=1))})
seqio.TaskRegistry.add(
    "emo_inputs",
    seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(
            {"inputs": ["question"], "targets": ["answer"]}),
        splits=["train"]),
    preprocessors=[seqio.preprocessors.tokenize],
    output_features={**FEATURES, "inputs": seqio.Feature(VOCABULARY)},
)
def ids_of():
    return tf.ragged.constant(
        [[*VOCABULARY.encode("one"), 1, *VOCABULARY.encode("two"), 1, 0, 0],
         [*VOCABULARY.encode("three"), 1, 1, *VOCABULARY.encode("f\u00fcr")],
         VOCABULARY.encode("no end")])


seqio.TaskRegistry.add(
    "emo_packed",
    seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(
            {"targets": ids_of()}).map(lambda e: {"targets": tf.cast(e["targets"], tf.int32)}),
        splits=["train"]),
    preprocessors=[], output_features=FEATURES)
add("emo_latin", [b"good", b"caf\\xe9"], [seqio.preprocessors.tokenize])
add("emo_outside", [[5, 6], [5, 9000]], [lambda d: d.map(
    lambda e: {"targets": tf.cast(e["targets"], tf.int32)})])
seqio.MixtureRegistry.add("emo_mix", [("emo_kept", 1), ("emo_ids", 9)])


class Offline(seqio.FunctionDataSource):
    @property
    def splits(self):
        raise OSError("no network")


seqio.TaskRegistry.add(
    "emo_offline",
    Offline(lambda split, shuffle_files, seed=None: None, splits=["train"]),
    preprocessors=[], output_features=FEATURES)
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
    with pytest.raises(
        DataError, match=r"task 'emo_other' has no feature 'targets'; it has inputs"
    ):
        read_documents([f"seqio:{module}:emo_other"])


def test_another_feature(module):
    found = read_documents([f"seqio:{module}:emo_inputs"], text_field="inputs")
    assert [d.text for d in found] == ["question"]
    report = ReadReport()
    found = read_documents([f"seqio:{module}:emo_inputs"], report=report)
    assert [d.text for d in found] == ["answer"]
    (said,) = report.files_left_out()
    assert said.startswith("1 x feature 'inputs' beside 'targets' of a seqio task left out")


def test_examples_that_are_too_long(module):
    report = ReadReport()
    found = read_documents([f"seqio:{module}:emo_kept"], max_document_bytes=5, report=report)
    assert [d.text for d in found] == ["one"]  # the other has 5 characters and 6 bytes
    assert report.examples == ["emo_kept:1: longer than 5e-06 MB (emo prepare --max-document-mb)"]


def test_splits(module):
    spec = f"seqio:{module}:emo_split:v1"
    assert list(read_documents([spec])) == [
        Document("train a", "emo_split:v1:0", "emo_split:v1"),
        Document("train b", "emo_split:v1:1", "emo_split:v1"),
    ]
    assert list(read_documents([f"{spec}:validation"])) == [
        Document("validation a", "emo_split:v1:validation:0", "emo_split:v1"),
        Document("validation b", "emo_split:v1:validation:1", "emo_split:v1"),
    ]
    with pytest.raises(DataError, match=r"has no split 'test'; it has train, validation: name one"):
        read_documents([f"{spec}:test"])


def test_a_task_that_fails(module):
    with pytest.raises(DataError, match=r"emo_wrong: .* cannot be read .ValueError: .*type") as e:
        list(read_documents([f"seqio:{module}:emo_wrong"]))
    assert "\n" not in str(e.value)


def test_a_task_that_cannot_say_its_splits(module):
    """TFDS asks the network for them where the data is not on this machine."""
    with pytest.raises(DataError, match=r"'emo_offline' cannot say .* .OSError: no network"):
        read_documents([f"seqio:{module}:emo_offline"])


def test_ids_that_a_task_passes_through(module):
    report = ReadReport()
    with pytest.raises(DataError, match="the text is not a string"):
        list(read_documents([f"seqio:{module}:emo_passed"], report=report))
    assert report.skipped == {"the text is not a string": 1}
    (document,) = read_documents([f"seqio:{module}:emo_passed"], ids=True)
    assert document.text == "5 6"


def test_an_end_of_document_inside_of_an_example(module):
    """Nothing behind the first one is lost."""
    found = list(read_documents([f"seqio:{module}:emo_packed"]))
    assert [d.text for d in found] == ["one", "two", "three", "für", "no end"]
    numbers = [d.id.removeprefix("emo_packed:") for d in found]
    assert numbers == ["0~0", "0~1", "1~0", "1~1", "2"]


def test_examples_that_are_no_text(module):
    report = ReadReport()
    found = list(read_documents([f"seqio:{module}:emo_latin"], report=report))
    assert [d.text for d in found] == ["good"]
    assert dict(report.skipped) == {"invalid UTF-8": 1}
    with pytest.raises(DataError, match=r"'emo_outside' cannot be read .*outside of its"):
        list(read_documents([f"seqio:{module}:emo_outside"]))


def test_unknown_names(module, tmp_path, monkeypatch):
    """Found before the documents of other inputs are read."""
    with pytest.raises(UsageError, match=r"'no_such_module' cannot be imported .*PYTHONPATH"):
        read_documents(["seqio:no_such_module:x"])
    with pytest.raises(UsageError, match=r"no task or mixture 'emo_kep'; did you mean 'emo_kept'"):
        read_documents([f"seqio:{module}:emo_kep"])
    with pytest.raises(UsageError, match=r"no task or mixture 'emo_mi'; did you mean 'emo_mix'"):
        read_documents([f"seqio:{module}:emo_mi"])
    with pytest.raises(UsageError, match="must be seqio:MODULE:TASK"):
        read_documents(["seqio:wiki"])
    (tmp_path / "emo_broken_tasks.py").write_text("import seqio\nseqio.nothing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=r"cannot be imported .AttributeError.*") as caught:
        read_documents(["seqio:emo_broken_tasks:x"])
    assert "\n" not in str(caught.value)


def test_seqio_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'emo-jax\[prepare\]'"):
        check("seqio:a:b")
