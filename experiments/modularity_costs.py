"""The cost of a module of a model: bytes on disk, resident memory, tokens per second, loss.

    python experiments/modularity_costs.py --output runs/modularity --results docs/results

Selects modules of modularity.py's run emo-0, and of a larger untrained model (0.4 B parameters,
experts chosen at random), into OUTPUT/modules, and measures each in its own process: one text at a
time, in float32. Existing folders are reused. Writes costs.json.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from emo_jax.files.atomic import write_atomic

KEEPS = ("100%", "50%", "25%", "12.5%")
PROMPT, NEW_TOKENS = 16, 400


def measure(folder: str) -> dict[str, Any]:
    """Measures a Hugging Face folder in this process."""
    import jax
    import numpy as np

    from emo_jax.generation.decode import Generator
    from emo_jax.model.functions import ModelFunctions
    from emo_jax.saved.load import load_model

    def resident() -> int:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(status.partition("VmRSS:")[2].split()[0])

    jax.block_until_ready(jax.numpy.zeros(1))
    before = resident()
    loaded = load_model(folder)
    config = loaded.config
    # No id ends the text, so every model generates the same number of tokens.
    generator = Generator(ModelFunctions(config), jax.device_put(loaded.params), eos_id=-1)
    del loaded
    prompt = np.random.default_rng(0).integers(256, size=PROMPT).tolist()
    rates = []
    for _ in range(4):  # the first compiles
        generator.speed.new_tokens, generator.speed.new_seconds = 0, 0.0
        generator.generate([prompt], NEW_TOKENS)
        rates.append(generator.speed.new_tokens / generator.speed.new_seconds)
    leaves = jax.tree.leaves(generator.params)
    return {
        "disk_bytes": sum(f.stat().st_size for f in Path(folder).glob("*.safetensors")),
        "weight_bytes": sum(leaf.nbytes for leaf in leaves),
        "resident_bytes": resident() - before,
        "tokens_per_second": float(np.median(rates[1:])),
    }


def select(model: Path, folder: Path, keep: str, *how: str) -> None:
    """Selects a module, unless it exists."""
    if folder.exists():
        return
    command = [sys.executable, "-m", "emo_jax.cli"]
    if keep == "100%":
        command += ["export", str(model), "--output", str(folder)]
    else:
        command += ["select", str(model), "--keep", keep, "--output", str(folder), *how]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def loss_of(folder: Path, store: Path, domain: str) -> float:
    """Loss of the folder itself, on the domain's part of the test split."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "eval.json"
        command = [sys.executable, "-m", "emo_jax.cli", "eval", str(folder), "--data", str(store)]
        subprocess.run([*command, "--json", str(file)], check=True, stdout=subprocess.DEVNULL)
        found = json.loads(file.read_text(encoding="utf-8"))
    return found["domains"][domain]["loss_nats_per_token"]


def make_untrained(folder: Path) -> None:
    """Exports the larger model, untrained, unless the folder exists."""
    if folder.exists():
        return
    from modularity import get_config

    from emo_jax.config import from_config_dict
    from emo_jax.files.trees import flatten
    from emo_jax.hf.export import export_leaves
    from emo_jax.hf.sources import TreeSource
    from emo_jax.model.functions import ModelFunctions

    fields = get_config("emo")
    fields.name = "untrained"
    fields.model.update({"num_layers": 8, "embed_dim": 512, "num_heads": 8, "head_dim": 64})
    fields.moe.expert_dim = 512
    config = from_config_dict(fields)
    params = ModelFunctions(config).init(0)
    export_leaves(TreeSource(flatten(params)), config, folder)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), help="That of modularity.py.")
@click.option("--domain", default="law", show_default=True)
@click.option("--results", type=click.Path(path_type=Path))
@click.option("--measure", "only", default=None, help="Measure one folder, print JSON.")
def main(output: Path, domain: str, results: Path, only: str | None) -> None:
    """Measures the modules."""
    if only:
        print(json.dumps(measure(only)))
        return
    if (results / "costs.json").exists():
        return
    untrained = output / "untrained"
    make_untrained(untrained)
    rows = []
    for label, model, how in (
        (f"EMO, module of {domain}", output / "emo-0", ("--data", f"{output / 'store'}:{domain}")),
        (
            "0.4 B parameters, untrained",
            untrained,
            ("--data", f"{output / 'store'}:{domain}", "--method", "random"),
        ),
    ):
        for keep in KEEPS:
            folder = output / "modules" / f"{model.name}-{keep.strip('%')}"
            folder.parent.mkdir(exist_ok=True)
            if keep == "100%" and model == untrained:
                folder = untrained
            else:
                select(model, folder, keep, *how)
            command = [sys.executable, __file__, "--measure", str(folder)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            kept = int(64 * float(keep.strip("%")) / 100)
            loss = None if model == untrained else loss_of(folder, output / "store", domain)
            rows.append({"model": label, "kept": kept, "of": 64, **found, "loss": loss})
            click.echo(json.dumps(rows[-1]))
    write_atomic(results / "costs.json", json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
