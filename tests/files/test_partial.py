"""What a killed `emo prepare` leaves behind: real processes, killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import runs

from emo_jax.data.store_writer import PARTIAL, TOP
from emo_jax.files.partial import partial_folder, remove_left_over
from emo_jax.preparation.prepare import prepare
from emo_jax.tokenizer.load import byte_tokenizer

# Works in both folders of `emo prepare` until it is killed.
WORK = """
import sys, time
from pathlib import Path
from emo_jax.files.partial import partial_folder
target = Path(sys.argv[1])
with partial_folder(target, "spool") as a, partial_folder(target, "tmp") as b:
    (a / "tokens").write_bytes(b"x")
    (b / "train").mkdir()
    (b / "train/c").write_bytes(b"x")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def worker(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, str(tmp_path / "store")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()


def hidden(folder):
    return sorted(p.name.rpartition(".")[2] for p in folder.iterdir() if p.name[0] == ".")


def test_of_a_killed_process_goes_with_the_next_run(worker, tmp_path):
    corpus = runs.write_corpus(tmp_path / "corpus.jsonl")
    assert hidden(tmp_path) == ["spool", "tmp"]
    report = prepare([corpus], tmp_path / "store", byte_tokenizer())
    assert not report.notes and hidden(tmp_path) == ["spool", "tmp"]  # it is at work
    (tmp_path / "store").rename(tmp_path / "first")
    prepare([corpus], tmp_path / "other", byte_tokenizer())
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    prepare([corpus], tmp_path / "another", byte_tokenizer())
    assert hidden(tmp_path) == ["spool", "tmp"]  # of another name
    report = prepare([corpus], tmp_path / "store", byte_tokenizer())
    assert not hidden(tmp_path)
    assert len(report.notes) == 2 and all("removed" in note for note in report.notes)


def test_an_interrupted_one_cleans_up(worker, tmp_path):
    os.kill(worker.pid, signal.SIGINT)
    worker.wait()
    assert not hidden(tmp_path)


@pytest.mark.parametrize("name", [".store.0123456789abcdef.tmp", ".store.tmp", ".store.mine.tmp"])
def test_what_it_did_not_make_stays(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").write_text("precious")
    (tmp_path / ".store.0123456789abcde0.tmp").symlink_to(tmp_path / name)
    (tmp_path / ".store.0123456789abcde1.tmp").write_text("a file")
    assert remove_left_over(tmp_path / "store", (PARTIAL,), TOP) == []
    assert (tmp_path / name / "thesis.tex").exists() and len(list(tmp_path.iterdir())) == 3


def test_locks_that_do_not_work(tmp_path, monkeypatch):
    """Some network file systems have none: then nothing can be said, and nothing is removed."""

    def none(*_):
        raise OSError(95, "Operation not supported")

    (tmp_path / ".store.0123456789abcdef.tmp").mkdir()
    monkeypatch.setattr("fcntl.flock", none)
    (note,) = remove_left_over(tmp_path / "store", (PARTIAL,), TOP)
    assert "left by another command (Operation not supported); remove it" in note
    with partial_folder(tmp_path / "store", PARTIAL) as folder:
        assert folder.is_dir()
    assert hidden(tmp_path) == ["tmp"]
