"""Small random models, and golden folders of the PyTorch reference."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import emo_jax
from emo_jax.config import Config, DataConfig, ModelConfig, MoeConfig, OptimizerConfig, TrainConfig
from emo_jax.files.trees import unflatten
from emo_jax.model.params import leaf_shapes

CASES = Path(emo_jax.__file__).parent / "checks" / "cases"


@pytest.fixture(params=["step_emo", "run_emo"])
def golden(request) -> Path:
    return CASES / request.param


@pytest.fixture
def step_emo() -> Path:
    return CASES / "step_emo"


@pytest.fixture(scope="session")
def make_model():
    """A config and random float32 parameters; padding rows and dead router rows are random too.

    `dense` gives a model without experts, `first` that many dense layers before two others, `fits`
    one that the layout of that name is for, `moe` further fields of that section.
    """

    def make(
        *,
        shared: int = 1,
        routed: int = 8,
        vocab: int = 96,
        head_dim: int = 8,
        kv_heads: int = 0,
        dense: bool = False,
        first: int = 0,
        fits: str | None = None,
        **moe,
    ):
        dense = dense or fits == "llama"
        if fits == "mixtral":
            shared, moe = 0, moe | {"normalize_picks": True}
        config = Config(
            name="small",
            model=ModelConfig(
                vocab_size=vocab,
                num_layers=2 + first,
                dense_layers=first,
                embed_dim=32,
                num_heads=4,
                head_dim=head_dim,
                num_kv_heads=kv_heads,
                norm_eps=1e-5,
                rope_theta=30_000.0,
                compute_dtype="float32",
                mlp_dim=24 if dense or first else 0,
            ),
            moe=None
            if dense
            else MoeConfig(
                num_experts=routed + shared,
                top_k=3 + shared,
                expert_dim=16,
                num_shared_experts=shared,
                **moe,
            ),
            data=DataConfig(seq_len=48),
            optimizer=OptimizerConfig(warmup_steps=3),
            train=TrainConfig(steps=7, batch_size=4),
        )
        rng = np.random.default_rng(0)
        leaves = {
            path: rng.normal(size=shape).astype(np.float32) * 0.3
            for path, shape in leaf_shapes(config).items()
        }
        return unflatten(leaves), config

    return make


@pytest.fixture
def make_older():
    """Gives a qwen2_moe folder the form of exports before biases and a gate above zero."""

    def make(folder: Path) -> Path:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"qkv_bias": False}))
        for file in folder.glob("*.safetensors"):
            held = {n: v for n, v in load_file(file).items() if not n.endswith("_proj.bias")}
            for name in held:
                if name.endswith("shared_expert_gate.weight"):
                    held[name] = np.zeros_like(held[name])
            save_file(held, file, {"format": "pt"})
        return folder

    return make


# What 4.57 needs beside what the newest version, and torch, have installed.
OLD = ("transformers==4.57.6", "tokenizers==0.22.2", "huggingface-hub==0.36.2")


@pytest.fixture(scope="session", params=["newest", "4.57"])
def transformers_at(request, tmp_path_factory) -> tuple[str, dict[str, str]]:
    """A version, and the environment in which `import transformers` gives it."""
    if request.param == "newest":
        return request.param, {}
    folder = tmp_path_factory.mktemp("transformers")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, *OLD], check=True)
    return request.param, {"PYTHONPATH": str(folder)}


# What config.json says beside our fields when transformers has written it.
SAVED_BY = {
    "4.57": {
        "dtype": "float32",
        "max_window_layers": 28,
        "rope_scaling": None,
        "rope_theta": 30_000.0,
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        "transformers_version": "4.57.6",
    },
    "5.24": {
        "dtype": "bfloat16",
        "layer_types": ["full_attention", "full_attention"],
        "max_window_layers": 28,
        "router_aux_loss_coef": 0.001,
        "sliding_window": 0,
        "transformers_version": "5.24.0",
    },
}


def fuse(folder, layers=(0, 1)):
    """Puts the experts of some layers together, as mergekit 0.1.5 writes them."""
    for file in folder.glob("*.safetensors"):
        held = load_file(file)
        for i in layers:
            prefix = f"model.layers.{i}.mlp.experts"
            found = {
                name: np.stack([held.pop(f"{prefix}.{e}.{name}_proj.weight") for e in range(8)])
                for name in ("gate", "up", "down")
            }
            both = np.concatenate([found["gate"], found["up"]], axis=1)
            held |= {f"{prefix}.gate_up_proj": both, f"{prefix}.down_proj": found["down"]}
        save_file(held, file, {"format": "pt"})
    return folder


def fuse_mixtral(folder):
    """As Mixtral is in the memory of transformers 5, and saved in that form."""
    for file in folder.glob("*.safetensors"):
        held = load_file(file)
        for i in (0, 1):
            prefix = f"model.layers.{i}.block_sparse_moe"
            found = {
                name: np.stack([held.pop(f"{prefix}.experts.{e}.{name}.weight") for e in range(8)])
                for name in ("w1", "w2", "w3")
            }
            both = np.concatenate([found["w1"], found["w3"]], axis=1)
            own = f"model.layers.{i}.mlp"
            held |= {
                f"{own}.gate.weight": held.pop(f"{prefix}.gate.weight"),
                f"{own}.experts.gate_up_proj": both,
                f"{own}.experts.down_proj": found["w2"],
            }
        save_file(held, file, {"format": "pt"})
    return folder


def say(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder
