"""Whatever happens to a checkpoint's files, it is named and the one before is used."""

import logging
import re
import threading

import pytest
from states import abstract_of, assert_same, state_of

from emo_jax.checkpoint import manifest
from emo_jax.checkpoint.checkpointer import Checkpointer
from emo_jax.checkpoint.reading import restore_params
from emo_jax.config import CheckpointConfig
from emo_jax.errors import CheckpointError


def files_of(checkpoint, part="params"):
    found = (p for p in (checkpoint / "data" / part).rglob("*") if p.is_file())
    return sorted(found, key=lambda p: -p.stat().st_size)


def flip(path, where=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * where)] ^= 4
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def grow(path):
    path.write_bytes(path.read_bytes() + b"\0")


def directory(path):
    path.unlink()
    path.mkdir()


DAMAGE = {
    "flipped byte in the largest file": (lambda c: flip(files_of(c)[0]), "other bytes"),
    "flipped byte in the optimizer state": (lambda c: flip(files_of(c, "rest")[0]), "other bytes"),
    "flipped byte in the smallest file": (lambda c: flip(files_of(c)[-2]), "other bytes"),
    "truncated file": (lambda c: truncate(files_of(c)[0]), "bytes of"),
    "longer file": (lambda c: grow(files_of(c)[0]), "bytes of"),
    "deleted file": (lambda c: files_of(c)[0].unlink(), "is missing"),
    "folder instead of a file": (lambda c: directory(files_of(c)[0]), "bytes of|cannot be read"),
    "missing manifest": (lambda c: (c / "manifest.json").unlink(), "no manifest.json"),
    "empty manifest": (lambda c: (c / "manifest.json").write_text(""), "cannot be read"),
    "truncated manifest": (lambda c: truncate(c / "manifest.json"), "cannot be read"),
    "manifest of something else": (lambda c: (c / "manifest.json").write_text("[1]"), "read"),
    "empty folder": (lambda c: [p.rename(c.parent.parent / p.name) for p in c.iterdir()], "no man"),
}


@pytest.fixture
def run(tmp_path):
    """A run with the steps 1, 2 and 3, and a fresh Checkpointer on it."""
    config = CheckpointConfig(save_every=1, keep_last=5)
    with Checkpointer(tmp_path, config) as c:
        for step in (1, 2, 3):
            c.save(step, state_of(step), {"windows": step})
    return Checkpointer(tmp_path, config), tmp_path / "checkpoints"


@pytest.mark.parametrize("name", DAMAGE)
def test_the_one_before_is_used(run, caplog, name):
    c, folder = run
    damage, said = DAMAGE[name]
    damage(folder / "3")
    with caplog.at_level(logging.WARNING, "emo_jax"):
        got, extra, step = c.restore(abstract_of(state_of(1)))
    assert (step, extra["windows"]) == (2, 2)
    assert_same(got, state_of(2))
    ((skipped, why),) = c.skipped
    assert skipped == 3
    assert re.search(said, why), why
    (record,) = [r for r in caplog.records if r.name.startswith("emo_jax")]
    line = record.getMessage()
    assert "step 3" in line and why in line and "\n" not in line
    with pytest.raises(CheckpointError, match=r"step 3 in .* is damaged"):
        c.restore(abstract_of(state_of(1)), step=3)


@pytest.mark.parametrize("where", [0.02, 0.2, 0.4, 0.6, 0.8, 0.98])
def test_no_flipped_byte_of_a_manifest_is_believed(run, where):
    c, folder = run
    flip(folder / "3/manifest.json", where)
    assert c.restore(abstract_of(state_of(1)))[2] == 2


def test_a_changed_data_position_is_not_believed(run):
    c, folder = run
    path = folder / "3/manifest.json"
    text = path.read_text()
    assert '"windows": 3' in text
    path.write_text(text.replace('"windows": 3', '"windows": 9'))
    assert c.restore(abstract_of(state_of(1)))[1]["windows"] == 2
    with pytest.raises(CheckpointError, match="changed after it was written"):
        c.read_extra(3)


def test_all_damaged_names_all(run):
    c, folder = run
    flip(files_of(folder / "1")[0])
    truncate(files_of(folder / "2")[0])
    (folder / "3/manifest.json").unlink()
    with pytest.raises(CheckpointError) as error:
        c.restore(abstract_of(state_of(1)))
    text = str(error.value)
    assert "\n" not in text
    for part in ("no good checkpoint", "step 1: ", "step 2: ", "step 3: "):
        assert part in text


def test_params_fall_back_too(run):
    _, folder = run
    flip(files_of(folder / "3")[0])
    assert restore_params(folder.parent)[2] == 2
    with pytest.raises(CheckpointError, match="damaged"):
        restore_params(folder.parent, step=3)


def test_a_damaged_step_is_saved_anew_when_the_run_comes_by(run):
    c, folder = run
    flip(files_of(folder / "3")[0])
    c.restore(abstract_of(state_of(1)))
    assert c.save(3, state_of(3), {"windows": 33})
    got, extra, step = c.restore(abstract_of(state_of(1)), step=3)
    assert (step, extra["windows"]) == (3, 33)
    assert_same(got, state_of(3))
    c.close()


def test_a_damaged_one_does_not_push_out_a_good_one(run):
    _, folder = run
    flip(files_of(folder / "3")[0])
    with Checkpointer(folder.parent, CheckpointConfig(save_every=1, keep_last=2)) as c:
        c.restore(abstract_of(state_of(1)))
        c.save(4, state_of(4), {})
    assert c.steps() == [2, 4]


@pytest.mark.parametrize("seconds", ["20", "0.3"])
def test_a_file_system_that_is_away_while_it_is_read(run, monkeypatch, caplog, seconds):
    """What comes back in time is read; else the newest step is not silently another one."""
    monkeypatch.setenv("EMO_READ_WAIT", seconds)
    checkpointer, folder = run
    away, once = folder.with_name("away"), iter([1])
    back = threading.Timer(1.5, lambda: away.rename(folder))
    verify = manifest.verify

    def verified(*args):
        found = verify(*args)
        for _ in once:
            folder.rename(away)
            back.start()
        return found

    monkeypatch.setattr(manifest, "verify", verified)
    with caplog.at_level(logging.WARNING):
        if seconds == "20":
            state, extra, step = checkpointer.restore(abstract_of(state_of(0)))
            assert step == extra["windows"] == 3
            assert_same(state, state_of(3))
            assert "waiting up to 20 s for it" in caplog.text
        else:
            with pytest.raises(CheckpointError, match=r"no good checkpoint in .*step 3: .*no man"):
                checkpointer.restore(abstract_of(state_of(0)))
    back.join()
