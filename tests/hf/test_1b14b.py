"""All 128 experts of EMO 1b14b at a tiny width: import, a step of training, export, transformers.

Needs torch and transformers (CI installs them before `-m system`).
"""

import json

import numpy as np
import pytest
import runs

from emo_jax.checkpoint.checkpointer import Checkpointer
from emo_jax.checkpoint.reading import restore_params
from emo_jax.config.file import load_config
from emo_jax.files.trees import flatten
from emo_jax.hf import export_model, import_model
from emo_jax.model.functions import ModelFunctions

pytestmark = pytest.mark.system

EXPERIMENT = f"{runs.REPO}/experiments/emo_1b14b.py:130b"
WIDTH = {
    "model.vocab_size": 259,
    "model.num_layers": 2,
    "model.embed_dim": 32,
    "model.num_heads": 2,
    "model.head_dim": 16,
    "model.compute_dtype": "float32",
    "model.init_std": 0.2,
    "moe.expert_dim": 8,
    "data.seq_len": 64,
    "optimizer.warmup_steps": 0,
    "train.steps": 1,
    "train.batch_size": 4,
    "train.loss_chunk": 64,
    "train.eval_windows": 8,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return runs.shared_store(tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize("layout", [pytest.param("emo", marks=pytest.mark.slow), "qwen2_moe"])
def test_import_train_export_and_load_in_stock_transformers(store, tmp_path, layout):
    import torch
    from transformers import AutoModelForCausalLM

    overrides = [f"--config.{name}={value}" for name, value in WIDTH.items()]
    config = load_config(EXPERIMENT, overrides)
    assert (config.moe.num_experts, config.moe.top_k) == (128, 8)
    fresh = ModelFunctions(config).init(seed=7)
    hf, workdir, out = (tmp_path / name for name in ("hf", "run", "out"))
    export_model(fresh, config, hf, layout=layout)

    env = runs.environment()

    def emo(*argv):
        done = runs.emo(list(argv), env)
        assert done.returncode == 0, done.stderr

    emo("import", hf, "--workdir", workdir)
    emo(
        *("train", "--config", EXPERIMENT, "--workdir", workdir),
        *(*overrides, f"--config.data.store={store}"),
    )
    with Checkpointer(workdir, config.checkpoint) as checkpointer:
        assert checkpointer.items(1) == {"params", "rest"}
    params, _, step = restore_params(workdir)
    assert step == 1
    before = flatten(import_model(hf)[0])
    moved = {
        path: float(np.abs(leaf - before[path]).max()) for path, leaf in flatten(params).items()
    }
    # One step of Adam moves a number by the learning rate, so the step began at the import.
    assert all(0 < most < 0.1 for most in moved.values()), moved

    emo("export", workdir, "--output", out)
    said = json.loads((out / "config.json").read_text())
    assert (said["num_experts"], said["num_experts_per_tok"]) == (127, 7)
    model, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = np.random.default_rng(1).integers(0, 256, (2, 40))
    with torch.no_grad():
        theirs = model.eval()(torch.as_tensor(tokens)).logits.numpy()
    ours = our_logits(params, config, tokens)
    worst = float(np.abs(theirs - ours).max())
    print(f"largest logit difference {worst:.2e}, logits up to {np.abs(ours).max():.1f}")
    assert worst < 1e-4


def our_logits(params, config, tokens):
    """Without a pool, one document a row, as transformers sees it."""
    from emo_jax.batch import from_documents

    batch = from_documents(tokens, np.zeros_like(tokens))
    logits = ModelFunctions(config).logits(params, batch)
    return np.asarray(logits)[..., : config.model.vocab_size]
