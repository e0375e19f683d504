"""What a trace says that a step read is what the step was given."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import runs
from tiny import tiny_config

from emo_jax.config import DataConfig, SourceConfig, TrainConfig, to_dict
from emo_jax.data.loader import Loader
from emo_jax.data.run_windows import open_run_windows
from emo_jax.data.sources import open_data
from emo_jax.data.store import TokenStore
from emo_jax.errors import DataError, UsageError
from emo_jax.preparation.prepare import prepare
from emo_jax.run.workdir import CONFIG_FILE
from emo_jax.tokenizer.load import byte_tokenizer
from emo_jax.training.trace import Trace, steps_asked

BATCH, SEQ_LEN, STEPS = 6, 48, 40


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> list[Path]:
    """Two stores without a document in common."""
    folder, found = tmp_path_factory.mktemp("stores"), []
    for n in range(2):
        corpus = runs.write_corpus(folder / f"{n}.jsonl", documents=150 + 80 * n)
        prepare([corpus], folder / str(n), byte_tokenizer(), seed=n)
        found.append(folder / str(n))
    return found


def data_of(kind: str, stores: list[Path]) -> DataConfig:
    if kind == "mixture":
        one, two = (
            SourceConfig(store=str(store), weight=weight)
            for store, weight in zip(stores, (3, 1), strict=True)
        )
        late = dataclasses.replace(two, weight=6, from_step=20)
        return DataConfig(sources=(one, two, late), seq_len=SEQ_LEN, packing="best_fit")
    return DataConfig(store=str(stores[0]), seq_len=SEQ_LEN, packing=kind)


def workdir_of(data: DataConfig, folder: Path) -> Path:
    """The folder of a run that has just begun."""
    train = TrainConfig(steps=STEPS, batch_size=BATCH)
    config = dataclasses.replace(tiny_config(), data=data, train=train)
    folder.mkdir()
    (folder / CONFIG_FILE).write_text(json.dumps(to_dict(config)))
    return folder


def read_anew(reads, batch_size: int, seq_len: int, pad_id: int) -> np.ndarray:
    """A batch put together from what a trace says, by documents of stores alone."""
    tokens = np.full((batch_size, seq_len), pad_id)
    for read in reads:
        part, store = read.part, TokenStore.open(read.source)
        split = part.stream.rpartition("/")[2]
        (document,) = store.documents(split, part.document, part.document + 1)
        tokens[part.row, slice(*part.columns)] = document.tokens[slice(*part.tokens)]
        assert part.domain == store.domains[document.domain_id]
    return tokens


def digest(tokens: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(tokens, np.int32).tobytes()).hexdigest()


@pytest.mark.parametrize("kind", ["cut", "best_fit", "document", "mixture"])
def test_the_documents_of_a_step_are_its_batch(kind, stores, tmp_path):
    workdir = workdir_of(data_of(kind, stores), tmp_path / "run")
    trace = Trace.open(workdir)
    windows = open_run_windows(trace.config, open_data(trace.config.data))
    with Loader(windows, batch_size=BATCH) as loader:
        for step in (1, 2, 19, 21, STEPS):
            given = loader.batch((step - 1) * BATCH).tokens
            found = read_anew(trace.read(step), BATCH, SEQ_LEN, open_data(trace.config.data).pad_id)
            assert digest(found) == digest(given), step
            assert digest(given) != digest(loader.batch(step % STEPS * BATCH).tokens)
    some = list(trace.read(21, row=4))
    assert some == [read for read in trace.read(21) if read.part.row == 4] != []
    if kind == "mixture":
        both = {read.source for step in (19, 21) for read in trace.read(step)}
        assert both == {str(store) for store in stores}


@pytest.mark.parametrize("packing", ["cut", "best_fit"])
def test_token_files_of_others(packing, tmp_path):
    """Their documents are found by the end-of-document token."""
    draw, files = np.random.default_rng(0), {}
    for name in ("a", "b"):
        tokens = draw.integers(0, 50, 9000).astype(np.uint16)
        tokens.tofile(tmp_path / f"{name}.npy")
        files[str(tmp_path / f"{name}.npy")] = np.split(tokens, np.flatnonzero(tokens == 0) + 1)
    data = DataConfig(
        store=f"{tmp_path}/*.npy",
        seq_len=SEQ_LEN,
        packing=packing,
        raw_vocab_size=50,
        raw_eos_id=0,
        raw_pad_id=1,
    )
    trace = Trace.open(workdir_of(data, tmp_path / "run"))
    seen = set()
    with Loader(open_run_windows(trace.config, open_data(data)), batch_size=BATCH) as loader:
        for step in (1, 17):
            found = np.ones((BATCH, SEQ_LEN), np.int32)
            for read in trace.read(step):
                part = read.part
                document = files[part.stream][part.document]
                assert (read.source, part.length) == (data.store, len(document))
                found[part.row, slice(*part.columns)] = document[slice(*part.tokens)]
                seen.add(part.stream)
            assert digest(found) == digest(loader.batch((step - 1) * BATCH).tokens)
    assert seen == set(files)


def test_steps_and_rows_that_are_not(stores, tmp_path):
    trace = Trace.open(workdir_of(data_of("cut", stores), tmp_path / "run"))
    for step in (0, STEPS + 1):
        with pytest.raises(UsageError, match=f"step {step}"):
            list(trace.read(step))
    with pytest.raises(UsageError, match=r"rows 0\.\.5"):
        list(trace.read(1, row=BATCH))
    with pytest.raises(UsageError, match="no step yet"):
        steps_asked(trace, step=None, last=3, steps=None)
    with pytest.raises(UsageError, match="one of"):
        steps_asked(trace, step=1, last=3, steps=None)
    assert steps_asked(trace, step=None, last=None, steps=(2, 4)) == range(2, 5)


@pytest.mark.system
def test_a_run_and_the_run_that_goes_on_from_it(store, stores, env, tmp_path):
    """The second takes over place and step, with another batch size; only its own steps count."""
    first, second = tmp_path / "first", tmp_path / "second"
    few = {"train__eval_every": 0, "checkpoint__save_every": 3, "checkpoint__keep_every": 0}
    argv = runs.train_argv(store, first, train__steps=6, **few)
    _, seen = runs.recorded(argv, env, tmp_path / "a.npy")
    trace = Trace.open(first)
    assert (trace.begun, trace.last) == (0, 6)
    assert steps_asked(trace, step=None, last=2, steps=None) == range(5, 7)
    for step in (1, 5, 6):
        found = read_anew(trace.read(step), 4, 64, TokenStore.open(store).pad_id)
        assert digest(found) == digest(seen[(step - 1) * 4 : step * 4])

    argv = runs.train_argv(store, second, train__steps=9, train__batch_size=8, **few)
    changed = "--config.init.expected_changes=train"
    argv += ["--init-from", first, changed]
    _, seen = runs.recorded(argv, env, tmp_path / "b.npy")
    trace = Trace.open(second)
    assert (trace.begun, trace.last) == (6, 9)
    assert trace.places(7).tolist() == list(range(24, 32))
    for step in (7, 9):
        found = read_anew(trace.read(step), 8, 64, TokenStore.open(store).pad_id)
        assert digest(found) == digest(seen[(step - 7) * 8 : (step - 6) * 8])
    with pytest.raises(UsageError, match="the first step of this run is 7"):
        list(trace.read(6))

    config = json.loads((second / CONFIG_FILE).read_text())
    config["data"]["store"] = str(stores[0])
    (second / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(DataError, match="not what the run had read by step 9"):
        Trace.open(second)
