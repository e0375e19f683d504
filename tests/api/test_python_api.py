"""The public functions: found without JAX, callable whatever was imported, without side effects."""

import importlib
import inspect
import logging
import os
import pickle
import pkgutil
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import runs

import emo_jax
from emo_jax.batch import from_documents
from emo_jax.errors import DataError
from emo_jax.model.functions import ModelFunctions
from emo_jax.training.step import micro_batch_loss


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_or_its_configs_loads_no_jax():
    heavy = "{'jax', 'orbax', 'tensorstore', 'flax', 'grain'} & set(sys.modules)"
    for module in ("emo_jax", "emo_jax.config", "emo_jax.config.presets", "emo_jax.config.file"):
        assert run(f"import {module}, sys; print({heavy})") == "set()\n", module


def test_every_public_name_is_there_after_every_module_was_imported():
    """A package of a function's name would be put over the function when it is imported."""
    for found in pkgutil.walk_packages(emo_jax.__path__, "emo_jax."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    for name in emo_jax.__all__:
        assert callable(getattr(emo_jax, name)), name
        assert name in dir(emo_jax)
    packages = {found.name for found in pkgutil.iter_modules(emo_jax.__path__)}
    assert not packages & set(emo_jax.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = emo_jax.trian


def test_public_functions_are_typed_and_described():
    for name in emo_jax.__all__:
        public = getattr(emo_jax, name)
        assert inspect.getdoc(public), name
        if inspect.isfunction(public):
            doc, signature = inspect.getdoc(public), inspect.signature(public)
            assert signature.return_annotation is not inspect.Signature.empty, name
            for parameter in signature.parameters.values():
                assert parameter.annotation is not inspect.Parameter.empty, (name, parameter)
                assert re.search(rf"\b{parameter.name}[:,]", doc), (name, parameter.name)
            assert "Raises:" in doc, name


def _state():
    """What a library could change for its caller."""
    loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
    return (
        {logger.name: (logger.level, list(logger.filters)) for logger in loggers},
        list(logging.getLogger().handlers),
        dict(os.environ),
        list(sys.path),
        {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)},
        sys.unraisablehook,
        sys.excepthook,
    )


def test_loading_and_using_a_model_changes_nothing_for_the_caller(finished_run, tmp_path):
    emo_jax.load(finished_run)  # libraries it imports make their loggers
    before = _state()
    model = emo_jax.load(finished_run)
    model.generate("a", max_tokens=2)
    model.loss("a text")
    emo_jax.export(finished_run, tmp_path / "hf")
    emo_jax.import_(tmp_path / "hf", tmp_path / "run")
    after = _state()
    known = before[0].keys()
    assert {name: x for name, x in after[0].items() if name in known} == before[0]
    assert after[1:] == before[1:]


def test_what_a_model_says_of_itself(finished_run):
    model = emo_jax.load(finished_run)
    shown = repr(model)
    assert shown.startswith("<Model 'emo_tiny' of ") and f"step {model.step:,}: " in shown
    assert "experts" in shown and "\n" not in shown and len(shown) < 400


def test_a_seed_and_a_sampling_are_those_of_the_call(finished_run):
    """One generator serves all calls; its programs are kept by what they were compiled for."""
    model = emo_jax.load(finished_run)

    def texts(model, **options):
        return [text.text for text in model.generate(["a", ""], max_tokens=6, **options)]

    hot = {"temperature": 1.0}
    ways = [{}, hot, hot | {"seed": 1}, {"temperature": 9.0, "top_k": 2}]
    first = [texts(model, **way) for way in ways]
    assert [texts(model, **way) for way in reversed(ways)] == first[::-1]
    assert [texts(emo_jax.load(finished_run), **way) for way in ways] == first
    assert first[1] != first[2]
    compiled = model._generator.speed.compile_seconds
    texts(model, temperature=1.0, seed=7)
    assert model._generator.speed.compile_seconds == compiled


def test_the_loss_of_a_text_is_that_of_training(finished_run):
    """Of a document alone in its window, without a pool, by the code of the step."""
    model = emo_jax.load(finished_run)
    texts = ["The court finds.", "x", "Simmer for an hour, then stir. " * 3]
    losses = model.loss(texts)
    assert losses.shape == (3,) and losses.dtype == np.float64
    functions, S = ModelFunctions(model.config), model.config.data.seq_len
    for text, loss in zip(texts, losses, strict=True):
        (ids,) = model.tokenizer.documents([text])
        nats, labels = 0.0, 0
        for at in range(0, len(ids) - 1, S - 1):
            piece = ids[at : at + S]
            tokens, segments = np.zeros((1, S), np.int32), np.full((1, S), -1, np.int32)
            tokens[0, : len(piece)], segments[0, : len(piece)] = piece, 0
            batch = from_documents(tokens, segments)
            _, metrics = micro_batch_loss(
                model.params, batch, None, np.float32(1), config=model.config, model=functions
            )
            nats, labels = nats + float(metrics["ce_loss"]), labels + int(batch.loss_mask.sum())
        assert labels == len(ids) - 1
        np.testing.assert_allclose(loss, nats / labels, rtol=1e-5)
    assert model.loss([]).shape == (0,)
    assert model.loss(texts[0]).shape == (1,)
    assert np.isfinite(model.loss([""])).all() == (model.tokenizer.first_id is not None)


def test_the_windows_of_a_dataset_are_those_of_the_run(store):
    config = emo_jax.load_config(
        "experiments/emo_tiny.py",
        [f"--config.data.store={store}", "--config.data.seq_len=64", "--config.train.batch_size=4"],
    )
    from emo_jax.data.loader import Loader
    from emo_jax.data.run_windows import in_order
    from emo_jax.data.windows import open_windows

    dataset = emo_jax.dataset(config)
    with Loader(in_order(open_windows(config.data), config.data.seed), batch_size=4) as loader:
        batch = loader.batch(8)
    for row in range(4):
        for ours, theirs in zip(dataset[8 + row], batch, strict=True):
            np.testing.assert_array_equal(ours, theirs[row])
    held_out = emo_jax.dataset(config, split="test")
    assert held_out[0].tokens.shape == (64,)


def test_a_dataset_goes_to_other_processes(store, tmp_path):
    copied = shutil.copytree(store, tmp_path / "store")
    config = emo_jax.load_config(
        "experiments/emo_tiny.py", [f"--config.data.store={copied}", "--config.data.seq_len=64"]
    )
    dataset = emo_jax.dataset(config)
    sent = pickle.dumps(dataset.batch(4))
    assert len(sent) < 10_000
    for ours, theirs in zip(dataset[9], pickle.loads(sent)[2], strict=True):
        np.testing.assert_array_equal(ours, theirs[1])
    shutil.rmtree(copied)
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(40):
        (texts / f"{i}.txt").write_text(f"another text {i} " * 40)
    assert runs.emo_here("prepare", texts, "--output", copied, "--tokenizer", "bytes") == 0
    with pytest.raises(DataError, match="was replaced while it was in use"):
        pickle.loads(sent)


def test_a_model_is_taken_where_a_path_is(finished_run, tmp_path):
    model = emo_jax.load(finished_run)
    assert os.fspath(model) == f"{finished_run}@{model.step}" and hash(model) == hash(model)
    emo_jax.export(model, tmp_path / "hf")
    again = emo_jax.load(tmp_path / "hf")
    assert os.fspath(again) == str(tmp_path / "hf") and again != model
    np.testing.assert_array_equal(again.loss("a text"), model.loss("a text"))


@pytest.mark.parametrize(
    ("keep", "found"),
    [(np.int64(4), [4]), ([8, "50%"], [8, 4]), (np.array([5]), [5]), (0.5, None), ("half", None)],
)
def test_numbers_of_experts_of_any_kind(store, finished_run, keep, found):
    def evaluated():
        return emo_jax.evaluate(finished_run, store, keep=keep, windows=2)

    if found is None:
        with pytest.raises(emo_jax.EmoError, match="must be a count like 16 or a share like 25%"):
            evaluated()
        return
    result = evaluated()
    assert [way for way in result.losses.ce_sum_CM if "keep" in way] == [f"keep={n}" for n in found]
    assert repr(result).startswith("<Evaluation: emo_tiny, step ") and "keep=" in repr(result)


def test_packages_are_attributes_too():
    assert run("import emo_jax; print(emo_jax.errors.EmoError.exit_code)") == "1\n"
    assert emo_jax.config.presets.emo_tiny().name == "emo_tiny"
