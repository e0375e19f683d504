"""What is masked is seen, and a corpus of which all is masked stops the run."""

import json

import numpy as np
import pytest
import runs
import tiny

from emo_jax.batch import Batch
from emo_jax.data.windows import Windows
from emo_jax.errors import EmoError
from emo_jax.preparation.prepare import prepare
from emo_jax.tokenizer.load import byte_tokenizer
from emo_jax.training.labels import LabelWatch
from emo_jax.training.metrics import summarize
from emo_jax.training.progress import TrainProgress
from emo_jax.training.step import label_metrics


def _store(tmp_path, name, texts):
    file = tmp_path / f"{name}.jsonl"
    lines = [json.dumps({"text": text, "id": f"{name}{i}"}) for i, text in enumerate(texts)]
    file.write_text("\n".join(lines) + "\n")
    prepare([file], tmp_path / name, byte_tokenizer())
    return tmp_path / name


@pytest.fixture
def same(tmp_path):
    """Every window of it is masked."""
    return _store(tmp_path, "same", ["a" * 2000] * 100)


@pytest.fixture
def half(tmp_path):
    """About half of its windows are."""
    texts = ["a" * 300 if i % 2 else f"the court finds salt and bread {i} " * 8 for i in range(200)]
    return _store(tmp_path, "half", texts)


# --- shares ---------------------------------------------------------------------------------------


def test_shares_are_of_labels_and_windows_that_are_there():
    batch = tiny.tiny_batch(tiny.tiny_config(), rows=4)  # the last window ends in 5 of padding
    found = label_metrics(batch)
    assert float(found["masked_labels"]) == float(found["masked_windows"]) == 0
    mask = batch.loss_mask.copy()
    mask[1] = 0
    mask[2, :10] = 0
    found = label_metrics(batch._replace(loss_mask=mask))
    possible = 3 * 31 + 26
    assert float(found["masked_labels"]) == pytest.approx((31 + 10) / possible)
    assert float(found["masked_windows"]) == 1 / 4
    assert float(found["labels"]) == possible - 41
    assert float(found["loss_tokens"]) == possible - 41 + 32  # SPEC 5.5


def test_a_label_costs_what_it_costs_whatever_is_masked(capsys):
    """Two of four windows are masked: the loss over their tokens too is half of a label's."""
    config = tiny.dense_config()
    metrics = dict.fromkeys(("loss", "ce_loss"), 3.0)
    metrics |= dict.fromkeys(("lm_z_loss", "grad_norm", "learning_rate"), 0.5)
    metrics |= {"masked_labels": 0.5, "masked_windows": 0.5, "labels": 62.0, "loss_tokens": 126.0}
    record = {"step": 1, **summarize(config, metrics)}
    assert record["ce_loss_per_label"] == pytest.approx(3 * 126 / 62)
    TrainProgress("t", total=4, done=0).record(record)
    shown = capsys.readouterr().err
    assert "loss 3.0000 (6.0968 a label)" in shown and ", 50.0 % of labels masked" in shown
    record = {"step": 1, **summarize(config, metrics | {"masked_windows": 1.0, "labels": 0.0})}
    assert "ce_loss_per_label" not in record
    record = {"step": 1, **summarize(config, metrics | {"masked_windows": 0, "masked_labels": 0})}
    TrainProgress("t", total=4, done=0).record(record)
    shown = capsys.readouterr().err
    assert "a label" not in shown and "masked" not in shown


# --- none -----------------------------------------------------------------------------------------


def _watch(**settings):
    return LabelWatch(
        tiny.tiny_config(), **({"epoch": 10, "window": 0, "resumes": False} | settings)
    )


def _batch(labels):
    fields = [np.zeros((4, 8), np.float32)] * len(Batch._fields)
    return Batch(*fields)._replace(loss_mask=np.full((4, 8), labels, np.float32))


def _first_refused(watch, labels, *, batch=4, start=0):
    """Windows consumed when the watch stops the run; None: it never does."""
    for n, there in enumerate(labels, 1):
        watch.see(_batch(there))
        try:
            watch.check(start + n * batch, last=n == len(labels))
        except EmoError:
            return start + n * batch
    return None


def test_an_epoch_or_a_run_without_a_label_stops():
    assert _first_refused(_watch(), [0] * 9) == 12  # behind the first epoch
    assert _first_refused(_watch(), [0, 0]) == 8  # the run is shorter than an epoch
    assert _first_refused(_watch(), [0, 1]) is None
    assert _first_refused(_watch(), [1] + [0] * 20) == 32  # 12..20 is no whole epoch, 20..30 is
    assert _first_refused(_watch(), [0, 1, 0] * 20) is None


def test_a_run_that_goes_on_is_not_judged_by_its_last_steps():
    resumed = {"window": 28, "resumes": True}
    assert _first_refused(_watch(**resumed), [0, 0], start=28) is None
    assert _first_refused(_watch(**resumed), [0] * 9, start=28) == 40
    assert _first_refused(_watch(**resumed), [1, 0], start=28) is None


def test_the_filter_is_named(same):
    windows = Windows(_open(same), 64, repetition_filter=True)
    watch = _watch(epoch=len(windows))
    for n in range(len(windows)):
        watch.see(windows[n])
    with pytest.raises(EmoError, match=r"not one label in \d+ windows, .*the repetition filter"):
        watch.check(len(windows), last=False)


def _open(path):
    from emo_jax.data.store import TokenStore

    return TokenStore.open(path)


@pytest.mark.system
def test_a_corpus_without_a_label_ends_the_run(same, env, tmp_path):
    workdir = tmp_path / "run"
    done = runs.emo(runs.train_argv(same, workdir), env)
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        f"emo: {same}: not one label in 160 windows, so there is nothing to"
        " learn: the repetition filter masks every window"
    )
    assert "100.0 % of labels masked" in done.stderr
    assert runs.checkpoints(workdir)[-1] < 40  # the last step is no success


@pytest.mark.system
def test_half_a_corpus_is_said_at_every_step(half, env, tmp_path):
    workdir = tmp_path / "run"
    done = runs.emo(runs.train_argv(half, workdir), env)
    assert done.returncode == 0, done.stderr
    assert "% of labels masked" in done.stderr
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "ce_loss" in record]
    masked = [record for record in steps if 0 < record["masked_windows"] < 1]
    assert 0.25 < np.mean([record["masked_labels"] for record in steps]) < 0.75
    for record in masked:
        share = 1 - record["masked_windows"]
        assert record["ce_loss"] == pytest.approx(record["ce_loss_per_label"] * share, rel=0.02)
    assert masked[0]["ce_loss_per_label"] == pytest.approx(np.log(259), rel=0.05)
