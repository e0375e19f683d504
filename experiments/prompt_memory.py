"""emo generate with all experts, and with those that the prompt chooses: memory and first token.

    python experiments/prompt_memory.py make FOLDER    # the shape of emo_1b14b, synthetic bfloat16
    python experiments/prompt_memory.py measure FOLDER --keep 12.5%
    python experiments/prompt_memory.py measure FOLDER --whole

`make` writes 27 GB (`--layers` for fewer). `measure` takes any model, runs a process with the files
out of the page cache, and prints the seconds of the whole command with one new token, and the most
memory that was resident.
"""

import json
import os
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path

import click

PROMPT = "The court finds that the plaintiff has standing, and that the claim was made in time."
_RANDOM = 1 << 22  # different numbers, repeated from another place for each tensor
_SHARD = 5_000_000_000


@click.group()
def main() -> None:
    """See the module."""


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--layers", default=16, show_default=True)
@click.option("--layout", default="qwen2_moe", show_default=True)
def make(folder: Path, layers: int, layout: str) -> None:
    """Writes a folder of random bfloat16 weights, of standard deviation 0.02, norms of ones."""
    import ml_dtypes
    import numpy as np

    from emo_jax.config import from_config_dict, presets
    from emo_jax.hf.hf_config import ids_for_others, to_hf
    from emo_jax.hf.layouts import layout_for
    from emo_jax.tokenizer.load import byte_tokenizer

    given = presets.emo_1b14b()
    given.model.num_layers = layers
    config = from_config_dict(given)
    chosen, tokenizer = layout_for(config, layout), byte_tokenizer()
    tokenizer.save(folder)
    fields = to_hf(chosen, config, special_ids=ids_for_others(tokenizer))
    (folder / "config.json").write_text(json.dumps(fields, indent=1))
    draw = np.random.default_rng(0)
    block = (draw.standard_normal(_RANDOM, np.float32) * 0.02).astype(ml_dtypes.bfloat16)
    twice = np.concatenate([block, block])
    shards, size = [[]], 0
    for tensor in chosen.tensors(config):
        if size > _SHARD:
            shards, size = [*shards, []], 0
        shards[-1].append(tensor)
        size += tensor.nbytes // 2
    names: dict[str, str] = {}
    for n, tensors in enumerate(shards, 1):
        file = folder / f"model-{n:05d}-of-{len(shards):05d}.safetensors"
        header, at = {}, 0
        for tensor in tensors:
            header[tensor.name] = {
                "dtype": "BF16",
                "shape": tensor.shape,
                "data_offsets": [at, at := at + tensor.nbytes // 2],
            }
            names[tensor.name] = file.name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with file.open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            for tensor in tensors:
                count = tensor.nbytes // 4
                if tensor.path is None or "norm" in tensor.name:
                    value = 1.0 if tensor.path else tensor.fill
                    stream.write(np.full(count, value, ml_dtypes.bfloat16).tobytes())
                    continue
                while count:
                    first = int(draw.integers(_RANDOM))
                    piece = twice[first : first + min(count, _RANDOM)]
                    stream.write(piece.tobytes())
                    count -= len(piece)
        print(f"{file}: {file.stat().st_size / 1e9:.1f} GB", flush=True)
    index = {"metadata": {"total_size": 0}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--keep", default="12.5%", show_default=True)
@click.option("--whole", is_flag=True, help="All experts instead.")
@click.option("--max-tokens", default=1, show_default=True)
def measure(model: Path, keep: str, whole: bool, max_tokens: int) -> None:
    """Runs emo generate, and prints what it took."""
    for file in model.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    argv = [sys.executable, "-m", "emo_jax.cli", "generate", str(model), "--prompt", PROMPT]
    argv += ["--max-tokens", str(max_tokens)]
    argv += [] if whole else ["--experts-from-prompt", keep]
    begin = time.perf_counter()
    code = subprocess.run(argv, check=False).returncode
    seconds = time.perf_counter() - begin
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{'all experts' if whole else keep}: {seconds:.1f} s"
        f" ({used.ru_utime + used.ru_stime:.1f} s of a core), at most"
        f" {used.ru_maxrss / 1e6 * 1.024:.2f} GB resident, exit code {code}"
    )


if __name__ == "__main__":
    main()
