"""The same command again, another one, and two at once."""

import json
import os
import shutil

import pytest

from emo_jax.data import store_writer
from emo_jax.errors import DataError, UsageError
from emo_jax.preparation import buckets, plan, scratch, workers
from emo_jax.preparation.prepare import prepare
from emo_jax.preparation.scratch import open_scratch
from emo_jax.tokenizer.load import byte_tokenizer


def fail(*_):
    raise OSError(28, "No space left on device")


@pytest.fixture
def full(monkeypatch):
    """A disk that is full when the store is written; `full.undo()` frees it."""
    monkeypatch.setattr(store_writer, "_write", fail)
    monkeypatch.setattr(plan, "PIECE_BYTES", 2_000)
    return monkeypatch


@pytest.fixture
def full_earlier(full):
    """A disk that is full when the first documents have been sorted."""
    real = buckets.sort_bucket
    left = [1]

    def sort_one(*of):
        return real(*of) if left and left.pop() else fail()

    full.setattr(buckets, "sort_bucket", sort_one)
    full.setattr(buckets, "BUCKET_BYTES", 6_000)
    full.setattr(plan, "_BIN_BYTES", 500)
    return full


@pytest.fixture
def inputs(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(4):
        lines = [json.dumps({"text": f"text {i}" * 9, "id": f"{n}/{i}"}) for i in range(20)]
        (folder / f"{n}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def interrupted(inputs, output, **settings):
    with pytest.raises(DataError, match="No space left"):
        prepare([inputs], output, byte_tokenizer(), **settings)
    (folder,) = output.parent.glob(f".{output.name}.*.prepare")
    return folder


def test_inputs_that_have_changed_are_read_again(full_earlier, inputs, tmp_path):
    full = full_earlier
    folder = interrupted(inputs, tmp_path / "s")
    with (inputs / "2.jsonl").open("a") as file:
        file.write(json.dumps({"text": "one more", "id": "new"}) + "\n")
    (inputs / "1.jsonl").write_text((inputs / "1.jsonl").read_text().replace("text 1", "word 1"))
    os.utime(inputs / "1.jsonl", (0, 0))  # of the same size
    full.undo()
    full.setattr(plan, "PIECE_BYTES", 2_000)
    made = prepare([inputs], tmp_path / "s", byte_tokenizer())
    (note,) = [note for note in made.notes if "changed" in note]
    assert note.startswith("note: inputs have changed since this command was interrupted; 2 pieces")
    assert made.documents_read == 41 and made.read.documents == 81
    fresh = prepare([inputs], tmp_path / "fresh", byte_tokenizer())
    assert made.store.fingerprint == fresh.store.fingerprint
    assert not folder.exists()


def test_what_was_lost_is_made_again(full_earlier, inputs, tmp_path):
    """Files of finished tasks that are gone, or cut short."""
    full = full_earlier
    folder = interrupted(inputs, tmp_path / "s")
    runs = sorted((folder / "runs").iterdir())
    assert len(runs) > 2
    runs[0].unlink()
    runs[1].write_bytes(runs[1].read_bytes()[:-1])
    next((folder / "buckets").iterdir()).unlink()
    (folder / "done" / f"{runs[2].name.partition('.')[0]}.json").write_text("{")
    full.undo()
    full.setattr(plan, "PIECE_BYTES", 2_000)
    made = prepare([inputs], tmp_path / "s", byte_tokenizer())
    assert made.documents_read == 60
    fresh = prepare([inputs], tmp_path / "fresh", byte_tokenizer())
    assert made.store.fingerprint == fresh.store.fingerprint


def test_sorted_documents_that_were_lost(full, inputs, tmp_path):
    """Their runs are gone: everything is read again."""
    folder = interrupted(inputs, tmp_path / "s")
    assert not (folder / "runs").exists()
    next((folder / "buckets").iterdir()).write_bytes(b"")
    full.undo()
    full.setattr(plan, "PIECE_BYTES", 2_000)
    made = prepare([inputs], tmp_path / "s", byte_tokenizer())
    assert made.documents_read == 80
    fresh = prepare([inputs], tmp_path / "fresh", byte_tokenizer())
    assert made.store.fingerprint == fresh.store.fingerprint


def test_another_command_leaves_it(full, inputs, tmp_path):
    folder = interrupted(inputs, tmp_path / "s")
    full.undo()
    made = prepare([inputs], tmp_path / "s", byte_tokenizer(), seed=1)
    (note,) = made.notes
    assert note.startswith(f"note: {folder} is the unfinished work of another command")
    assert folder.is_dir() and made.documents_read == 80


@pytest.mark.parametrize("settings", [{}, {"seed": 1}])
def test_two_at_once(inputs, tmp_path, settings):
    """Of the same command and of another one for the same store."""
    with open_scratch(tmp_path / "s", "0123456789abcdef", None):
        with pytest.raises(UsageError, match="another emo prepare is making this store; wait"):
            prepare([inputs], tmp_path / "s", byte_tokenizer(), **settings)
        prepare([inputs], tmp_path / "t", byte_tokenizer())
    assert sorted(os.listdir(tmp_path)) == [".s.0123456789abcdef.prepare", "in", "t"]
    with (
        open_scratch(tmp_path / "s", "0123456789abcdef", None),
        pytest.raises(UsageError, match="another emo prepare"),
        open_scratch(tmp_path / "s", "0123456789abcdef", None),
    ):
        pass


def test_scratch_elsewhere(full, inputs, tmp_path):
    elsewhere = tmp_path / "large disk"
    folder = interrupted(inputs, tmp_path / "out" / "s", scratch=elsewhere)
    assert sorted(p.name for p in folder.iterdir()) == ["lock", "store"]
    (work,) = elsewhere.iterdir()
    assert {"done", "ranks", "buckets"} <= {p.name for p in work.iterdir()}
    full.undo()
    full.setattr(plan, "PIECE_BYTES", 2_000)
    made = prepare([inputs], tmp_path / "out" / "s", byte_tokenizer(), scratch=elsewhere)
    assert made.documents_read == 0 and not list(elsewhere.iterdir())
    assert os.listdir(tmp_path / "out") == ["s"]


def test_choice_of_workers(monkeypatch, inputs, tmp_path):
    for settings, message in (
        ({"workers": 0}, "--workers 0: must be at least 1"),
        ({"workers": 2, "beam": "--runner=X"}, "--workers and --beam: give one"),
    ):
        with pytest.raises(UsageError, match=message):
            prepare([inputs], tmp_path / "s", "bytes", **settings)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for settings in ({"workers": 2}, {"beam": "--runner=X"}):
        with pytest.raises(UsageError, match=r"needs Apache Beam; pip install 'emo-jax\[beam\]'"):
            prepare([inputs], tmp_path / "s", "bytes", **settings)
    assert isinstance(workers.choose(1, None), workers.Here)
    assert os.listdir(tmp_path) == ["in"]


def test_a_store_that_another_command_finishes_meanwhile(inputs, tmp_path, monkeypatch):
    made = prepare([inputs], tmp_path / "made", byte_tokenizer()).store
    lock = scratch._lock

    def late(stack, home, target):
        lock(stack, home, target)  # waited for the other, which has made it
        shutil.copytree(made.path, target)

    monkeypatch.setattr(scratch, "_lock", late)
    with pytest.raises(UsageError, match="is a token store; give a new folder"):
        prepare([inputs], tmp_path / "s", byte_tokenizer())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "made", "s"]
