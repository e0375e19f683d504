"""Who may use a workdir, and what a resumed run may change."""

import dataclasses
import json
import os

import pytest

from emo_jax.config import Config, ModelConfig, TrainConfig, to_dict
from emo_jax.data.store import TokenStore
from emo_jax.errors import EXIT_USAGE, EmoError, UsageError
from emo_jax.files.atomic import write_atomic
from emo_jax.run.workdir import claim_workdir, read_workdir_config
from emo_jax.training.init_from import read_record
from emo_jax.training.run_source import keep_tokenizer
from emo_jax.training.trackers import _known

CONFIG = Config(
    name="tiny",
    model=ModelConfig(
        vocab_size=64, num_layers=2, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16
    ),
    train=TrainConfig(steps=4000, batch_size=8),
)


def changed(**sections):
    """CONFIG with fields replaced: changed(train={"steps": 1})."""
    made = {
        name: dataclasses.replace(getattr(CONFIG, name), **fields)
        if isinstance(fields, dict)
        else fields
        for name, fields in sections.items()
    }
    return dataclasses.replace(CONFIG, **made)


def as_json(config):
    return json.loads(json.dumps(to_dict(config)))


def text_of(folder):
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("made", [False, True])
def test_a_new_or_empty_folder_is_claimed(tmp_path, made):
    workdir = tmp_path / "deep" / "run"
    if made:
        workdir.mkdir(parents=True)
    assert claim_workdir(workdir, CONFIG) is False
    assert read_workdir_config(workdir) == CONFIG
    assert [p.name for p in workdir.iterdir()] == ["config.json"]
    assert json.loads((workdir / "config.json").read_text()) == as_json(CONFIG)


def test_the_same_config_resumes(tmp_path):
    claim_workdir(tmp_path, CONFIG)
    (tmp_path / "checkpoints").mkdir()
    before = text_of(tmp_path)
    assert claim_workdir(tmp_path, CONFIG) is True
    assert text_of(tmp_path) == before


@pytest.mark.parametrize(
    "change",
    [
        {"train": {"log_every": 3}},
        {"train": {"eval_every": 5, "eval_windows": 7}},
        {"checkpoint": {"save_every": 7, "keep_last": 9, "keep_every": 14}},
        {"mesh": {"fsdp": 2, "replica": 4}},
        {"data": {"store": "/elsewhere", "prefetch": 5}},
        {"init": {"expected_changes": ("model", "train.steps")}},
    ],
)
def test_what_does_not_alter_the_run_may_change(tmp_path, change):
    claim_workdir(tmp_path, CONFIG)
    assert claim_workdir(tmp_path, changed(**change)) is True
    assert read_workdir_config(tmp_path) == changed(**change)  # as the run is now


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train": {"steps": 5000}}, "train.steps: 4000 -> 5000"),
        ({"train": {"batch_size": 16}}, "train.batch_size: 8 -> 16"),
        ({"data": {"seed": 1}}, "data.seed: 0 -> 1"),
        ({"model": {"num_layers": 3}}, "model.num_layers: 2 -> 3"),
        ({"train": {"micro_batches": 2}}, "train.micro_batches: 1 -> 2"),
        ({"name": "other"}, "name: 'tiny' -> 'other'"),
        ({"seed": 4, "train": {"log_every": 1}}, "seed: 0 -> 4"),
    ],
)
def test_another_experiment_is_refused_and_nothing_overwritten(tmp_path, change, said):
    claim_workdir(tmp_path, CONFIG)
    before = text_of(tmp_path)
    with pytest.raises(UsageError) as error:
        claim_workdir(tmp_path, changed(**change))
    text = str(error.value)
    assert said in text and str(tmp_path) in text and "\n" not in text
    assert "log_every" not in text  # that one may change
    assert error.value.exit_code == EXIT_USAGE
    assert text_of(tmp_path) == before


def test_many_differences_are_counted(tmp_path):
    claim_workdir(tmp_path, CONFIG)
    model = {"num_layers": 3, "embed_dim": 9, "num_heads": 3, "head_dim": 6, "mlp_dim": 5}
    with pytest.raises(UsageError, match="and 2 more"):
        claim_workdir(tmp_path, changed(model=model, name="x", seed=9))


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match=r"not a workdir.*thesis\.tex"):
        claim_workdir(tmp_path, CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_files_come_before_the_config_and_are_written_again(tmp_path):
    claim_workdir(tmp_path, CONFIG, files={"init.json": "1"})
    claim_workdir(tmp_path, CONFIG)
    assert (tmp_path / "init.json").read_text() == "1"
    claim_workdir(tmp_path, CONFIG, files={"init.json": "2"})
    assert (tmp_path / "init.json").read_text() == "2"
    with pytest.raises(UsageError):
        claim_workdir(tmp_path, changed(name="x"), files={"init.json": "3"})
    assert (tmp_path / "init.json").read_text() == "2"
    (tmp_path / "config.json").unlink()  # a kill between the two
    assert claim_workdir(tmp_path, CONFIG) is False


def test_the_caller_says_which_changes_are_refused(tmp_path):
    claim_workdir(tmp_path, CONFIG)
    other = changed(name="x", train={"steps": 5000})
    assert claim_workdir(tmp_path, other, refused=lambda ours, theirs: []) is True
    assert read_workdir_config(tmp_path) == other
    with pytest.raises(UsageError, match="because"):
        claim_workdir(tmp_path, other, refused=lambda ours, theirs: ["because"])


def test_a_claim_cut_short_can_be_made_again(tmp_path):
    (left := tmp_path / ".config.json.0123abcd.tmp").write_text('{"name"')
    os.utime(left, (0, 0))
    assert claim_workdir(tmp_path, CONFIG) is False
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_a_file_is_no_workdir(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError) as error:
            claim_workdir(folder, CONFIG)
        assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "not a workdir"),
        ("{", "cannot be read"),
        ("[]", "config = \\[\\]: must be a section"),
        ('{"name": "x", "colour": 1}', "no such field"),
    ],
)
def test_reading_a_config_that_is_not_there_or_not_one(tmp_path, content, said):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match=said) as error:
        read_workdir_config(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    if content is not None:
        with pytest.raises(UsageError):
            claim_workdir(tmp_path, CONFIG)
        assert (tmp_path / "config.json").read_text() == content


def test_reading_a_missing_workdir(tmp_path):
    with pytest.raises(UsageError, match="no such workdir"):
        read_workdir_config(tmp_path / "none")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text("old")

    def fail(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"


@pytest.mark.parametrize("name", ["config.json", "init.json", "tracking.json"])
def test_a_file_of_a_run_is_no_link_to_one_elsewhere(tmp_path, name):
    """It would be read, and what it holds written into the workdir."""
    workdir, mine = tmp_path / "run", tmp_path / "mine"
    claim_workdir(workdir, CONFIG)
    mine.write_text((workdir / "config.json").read_text())
    (workdir / name).unlink(missing_ok=True)
    (workdir / name).symlink_to(mine)
    reads = {"config.json": read_workdir_config, "init.json": read_record}
    read = reads.get(name, lambda folder: _known(folder / name))
    with pytest.raises(EmoError, match="outside of its folder") as refused:
        read(workdir)
    assert str(refused.value).startswith(f"{workdir / name}: ")


def test_a_tokenizer_is_kept_in_the_workdir_alone(tmp_path, store):
    workdir, mine = tmp_path / "run", tmp_path / "mine"
    for made in (workdir, mine):
        made.mkdir()
    (workdir / ".tokenizer.tmp").symlink_to(mine)
    keep_tokenizer(workdir, TokenStore.open(store))
    assert (workdir / "tokenizer/tokenizer.json").is_file()
    assert not (workdir / "tokenizer").is_symlink() and not list(mine.iterdir())
