"""An import and an export hold a few slices of a model, never the model.

Each runs as a process of its own, whose peak is measured against the same command on a small model.
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import runs
import synthetic

from emo_jax.config import from_config_dict, presets

MODEL_MIB, SLICES_MIB = 286, 160  # measured: an import takes 100 above the small one, an export 110


def config_of(name, *, width, expert_dim, layers, vocab):
    config = presets.stdmoe_1b4b()
    config.name = name
    config.model.embed_dim, config.model.num_layers = width, layers
    config.model.num_heads, config.model.vocab_size = 4, vocab
    config.moe.expert_dim = expert_dim
    return from_config_dict(config)


def peak_mib(*argv):
    """Of the command `emo` with these arguments."""
    emo = [sys.executable, "-m", "emo_jax.cli", *map(str, argv)]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("synthetic.py"), "run", *emo],
        env=runs.environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(re.search(r"peak (\d+) MiB", done.stdout)[1])


@pytest.fixture(scope="module")
def peaks(tmp_path_factory):
    """(import, export) by model, and the folders of the large one."""
    base = tmp_path_factory.mktemp("memory")
    sizes = {
        "small": dict(width=64, expert_dim=32, layers=2, vocab=256),
        "large": dict(width=512, expert_dim=256, layers=4, vocab=20_000),
    }
    found = {}
    for name, size in sizes.items():
        folders = [base / f"{name}_{what}" for what in ("hf", "run", "again")]
        synthetic.make(config_of(name, **size), folders[0])
        found[name] = (
            peak_mib("import", folders[0], "--workdir", folders[1]),
            peak_mib("export", folders[1], "--output", folders[2]),
        )
        found[f"{name} folders"] = folders
    return found


@pytest.mark.system
def test_memory_does_not_grow_with_the_model(peaks):
    hf, _, again = peaks["large folders"]
    file = hf / "model.safetensors"
    assert file.stat().st_size > 0.95 * MODEL_MIB * 2**20
    for what, small, large in zip(
        ("import", "export"), *map(peaks.get, ("small", "large")), strict=True
    ):
        print(f"{what}: {small} MiB of a small model, {large} MiB of one of {MODEL_MIB} MiB")
        assert large - small < SLICES_MIB, what
    assert np.array_equal(np.memmap(file), np.memmap(again / file.name))
