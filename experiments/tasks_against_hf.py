"""Requests a second of our model in lm-evaluation-harness, against the harness's own `hf` model.

  python experiments/tasks_against_hf.py

CPU, float32, the shape of emo_tiny with random parameters, exported. Requests: four continuations
of passages of this repository's documentation, of several tokens or of one. Runs are interleaved;
medians are printed, with the largest difference of a log-likelihood. Compiling is not counted: it
is printed apart. Needs torch, transformers and lm_eval[hf]. About 4 minutes on two cores.
"""

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import emo_jax
from emo_jax.config import from_config_dict
from emo_jax.config.presets import emo_tiny
from emo_jax.evals.by_domain import eval_mesh
from emo_jax.hf import export_model
from emo_jax.model.functions import ModelFunctions
from emo_jax.selection.variants import within_documents
from emo_jax.tasks.harness import require
from emo_jax.tokenizer.load import train_bpe

DOCS = Path(__file__).parents[1] / "docs"


def made_requests(items: int, words: int) -> list[tuple[str, str]]:
    """(prompt, continuation): four continuations of each passage."""
    draw = random.Random(0)
    text = " ".join(path.read_text() for path in sorted(DOCS.glob("*.md"))).split()

    def some(count: int) -> str:
        at = draw.randrange(len(text) - count)
        return " ".join(text[at : at + count])

    found = []
    for _ in range(items):
        prompt = some(draw.randint(20, 120))
        found += [(prompt, f" {some(words) if words else 'ABCD'[n]}") for n in range(4)]
    return found


def main() -> None:
    """Prints a table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--items", type=int, default=250)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 32])
    given = options.parse_args()
    require()
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from emo_jax.tasks.lm import EmoLM

    config = from_config_dict(emo_tiny())
    params = jax.device_get(ModelFunctions(config).init(0))
    with tempfile.TemporaryDirectory() as folder:
        texts = (path.read_text() for path in sorted(DOCS.glob("*.md")))
        train_bpe(texts, config.model.vocab_size).save(f"{folder}/tokenizer")
        out = export_model(
            params, config, Path(folder) / "model", tokenizer_dir=Path(folder) / "tokenizer"
        )
        loaded = emo_jax.load(out)
        mesh = eval_mesh(within_documents(loaded.config))
        ours = EmoLM(loaded.config, loaded.params, loaded.need_tokenizer(), mesh)
        theirs = {
            f"hf, batch {size}": HFLM(str(out), device="cpu", dtype="float32", batch_size=size)
            for size in given.batch_sizes
        }
        models = {"emo_jax": ours, **theirs}
        for name, words in (("4 continuations of 8 words", 8), ("4 letters", 0)):
            pairs = made_requests(given.items, words)
            requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
            begun = time.monotonic()
            expected = ours.loglikelihood(requests)
            compiled = time.monotonic() - begun
            seconds: dict[str, list[float]] = {model: [] for model in models}
            worst = 0.0
            for _ in range(given.rounds):
                for model, lm in models.items():
                    begun = time.monotonic()
                    found = lm.loglikelihood(requests, disable_tqdm=True)
                    seconds[model].append(time.monotonic() - begun)
                    differences = np.subtract([f[0] for f in found], [e[0] for e in expected])
                    worst = max(worst, float(np.abs(differences).max()))
            print(f"{name}: {len(requests)} requests; the first time {compiled:.1f} s;", end=" ")
            print(f"largest difference {worst:.1e}")
            for model, took in seconds.items():
                print(f"  {model:14} {len(requests) / statistics.median(took):8.0f} requests/s")


if __name__ == "__main__":
    main()
