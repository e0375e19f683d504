"""Data of somebody else: no command runs code, or goes to places, that a file names."""

import os
import shutil
import sys

import pytest
import runs

from emo_jax.data.store import TokenStore
from emo_jax.errors import DataError
from emo_jax.tokenizer.load import load_tokenizer

FAILED, USAGE = 1, 2
MODULE = """
import pathlib
import seqio

pathlib.Path(__file__).with_suffix(".ran").touch()


class Letters(seqio.ByteVocabulary):
    def _encode(self, s):
        return super()._encode(s.swapcase())
"""
NAME = "seqio:emo_named_by_a_file:Letters"


@pytest.fixture(scope="module")
def foreign(tmp_path_factory, finished_run):
    """A folder with a store and a run whose vocabulary is code, which has not run yet."""
    folder = tmp_path_factory.mktemp("foreign")
    module = folder / "emo_named_by_a_file.py"
    module.write_text(MODULE)
    sys.path.insert(0, str(folder))
    corpus = runs.write_corpus(folder / "corpus.jsonl")
    argv = ["prepare", corpus, "--output", folder / "store", "--tokenizer", NAME]
    assert runs.emo_here(*argv) == 0  # typed by the user, who so names the code
    assert module.with_suffix(".ran").exists()
    shutil.copytree(finished_run, folder / "run")
    shutil.rmtree(folder / "run/tokenizer")
    shutil.copytree(folder / "store/tokenizer", folder / "run/tokenizer")
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def unseen(foreign):
    """Likewise, with the module not imported."""
    sys.modules.pop("emo_named_by_a_file", None)
    (foreign / "emo_named_by_a_file.ran").unlink(missing_ok=True)
    yield foreign
    sys.modules.pop("emo_named_by_a_file", None)


def _commands(folder, out):
    pairs = out / "pairs.jsonl"
    pairs.write_text('{"prompt": "a", "answer": "b"}\n')
    run, store = folder / "run", folder / "store"
    return {
        "generate": [run, "--prompt", "the", "--max-tokens", 2],
        "eval": [run, "--data", store, "--windows", 8],
        "explore": [run, "--data", store, "--output", out / "page.html"],
        "finetune": [run, "--data", pairs, "--workdir", out / "tuned"],
        "select": [run, "--data", folder / "corpus.jsonl", "--keep", 4, "--output", out / "law"],
        "prepare": [
            folder / "corpus.jsonl",
            "--output",
            out / "s",
            "--tokenizer",
            run / "tokenizer",
        ],
    }


COMMANDS = ["generate", "eval", "explore", "finetune", "select", "prepare"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_vocabulary_that_a_file_names_is_not_imported(refused, unseen, tmp_path, command):
    argv = _commands(unseen, tmp_path)[command]
    line = refused(USAGE, command, *argv)
    assert "tokenizer/vocabulary.json" in line and NAME in line and "--trust" in line
    assert [p.name for p in tmp_path.iterdir()] == ["pairs.jsonl"]
    assert not (unseen / "emo_named_by_a_file.ran").exists()
    assert "emo_named_by_a_file" not in sys.modules


@pytest.mark.parametrize("command", ["generate", "eval", "prepare"])
def test_a_vocabulary_that_is_trusted(run, unseen, tmp_path, command):
    assert run(command, *_commands(unseen, tmp_path)[command], "--trust") == 0
    assert (unseen / "emo_named_by_a_file.ran").exists()


def test_what_needs_no_text_needs_no_trust(run, unseen, tmp_path):
    store, hf = unseen / "store", tmp_path / "hf"
    assert run("export", unseen / "run", "--output", hf) == 0
    argv = ["--data", store, "--keep", 4, "--method", "random", "--output", tmp_path / "law"]
    assert run("select", unseen / "run", *argv) == 0
    assert not (unseen / "emo_named_by_a_file.ran").exists()


def test_the_store_that_a_config_names_is_not_looked_into(run, refused, finished_run, tmp_path):
    """A workdir of somebody else may name any folder of this machine as its store."""
    workdir = shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(workdir / "tokenizer")
    assert run("export", workdir, "--output", tmp_path / "hf") == 0
    assert not (tmp_path / "hf/tokenizer.json").exists()
    line = refused(USAGE, "generate", workdir, "--prompt", "the")
    assert f"{workdir}: no tokenizer.json with the model" in line


def _pipe(path):
    path.unlink()
    os.mkfifo(path)


def _link(path):
    """To the same content elsewhere."""
    path.rename(path.parents[2] / f"mine {path.name}")
    path.symlink_to(path.parents[2] / f"mine {path.name}")


def _linked_folder(path):
    _link(path.parent)


FOREIGN_FILES = [
    ("tokenizer.json", _pipe, "not a regular file"),
    ("tokenizer.json", _link, "outside of its folder"),
    ("tokenizer.json", _linked_folder, "outside of its folder"),
    ("tokenizer_config.json", _link, "outside of its folder"),
    ("special_tokens_map.json", _pipe, "not a regular file"),
]


@pytest.mark.parametrize(("name", "change", "said"), FOREIGN_FILES)
def test_a_tokenizer_of_a_run_is_its_own_files(
    refused, store, finished_run, tmp_path, name, change, said
):
    workdir = shutil.copytree(finished_run, tmp_path / "given/run")
    change(workdir / "tokenizer" / name)
    for command, *options in (
        ("export", "--output", tmp_path / "hf"),
        ("generate", "--prompt", "the"),
        ("eval", "--data", store),
    ):
        line = refused(FAILED, command, workdir, *options)
        assert f"{workdir}/tokenizer/{name}: " in line and said in line
    assert not (tmp_path / "hf").exists()
    with pytest.raises(DataError, match=said):  # as a run that goes on asks
        TokenStore.open(store).check_tokenizer_in(workdir / "tokenizer")


@pytest.mark.parametrize(("name", "change", "said"), FOREIGN_FILES)
def test_a_tokenizer_of_a_store_is_its_own_files(store, tmp_path, name, change, said):
    theirs = shutil.copytree(store, tmp_path / "given/store")
    change(theirs / "tokenizer" / name)
    with pytest.raises(DataError, match=f"{name}: .*{said}"):
        TokenStore.open(theirs, verify=False).tokenizer()


def test_a_tokenizer_of_the_hub_cache(store, tmp_path):
    """Whose files are links to its blobs, also those of a folder in a repository."""
    snapshot = tmp_path / "datasets--a--b/snapshots/0123"
    shutil.copytree(store, snapshot)
    blobs = tmp_path / "datasets--a--b/blobs"
    blobs.mkdir()
    for number, file in enumerate((snapshot / "tokenizer").iterdir()):
        file.rename(blobs / str(number))
        file.symlink_to(f"../../../blobs/{number}")
    found = TokenStore.open(snapshot).tokenizer().fingerprint
    assert found == load_tokenizer(snapshot / "tokenizer").fingerprint
    assert found == TokenStore.open(store).tokenizer_fingerprint
