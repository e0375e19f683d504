"""Data of somebody else: no command runs code, or goes to places, that a file names."""

import shutil
import sys

import pytest
import runs

USAGE = 2
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
