r"""Does modularity emerge? EMO, a standard mixture of experts, and one of the size of a module.

    python experiments/modularity.py --output runs/modularity --results docs/results

Makes the corpus (fourteen domains, two of them held out of training and of the tokenizer), trains
every model with every seed, measures what each domain loses with a part of the experts and what a
module costs, and writes one JSON file per run into RESULTS, and docs/results.md with its plots.
Existing results are not repeated: an interrupted run continues from its checkpoint.

To do one of its runs alone, use this as a config file:

    emo train --config experiments/modularity.py:emo --config.data.store=STORE --workdir DIR

Hardware, hours and losses: docs/results.md. Legend: L layers, M domains, R routed experts.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import jax
import numpy as np
from ml_collections import ConfigDict

from emo_jax.batch import Batch
from emo_jax.checkpoint.manifest import versions
from emo_jax.config import Config, digest, from_config_dict, portable, presets
from emo_jax.data.loader import heldout_batches
from emo_jax.data.store import TokenStore
from emo_jax.data.windows import Windows
from emo_jax.documents.read import read_documents
from emo_jax.errors import EmoError, UsageError
from emo_jax.evals.heldout import evaluate, make_eval_step
from emo_jax.files.atomic import write_atomic
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import Params
from emo_jax.preparation.prepare import prepare
from emo_jax.quickstart.sample import ALL_DOMAINS, sample_corpus
from emo_jax.selection.budgets import budgets
from emo_jax.selection.examples import pack, store_examples
from emo_jax.selection.scores import choose_experts
from emo_jax.selection.variants import within_documents
from emo_jax.tokenizer.load import load_tokenizer, train_bpe
from emo_jax.training.loop import Trainer

# All of this was fixed before any test loss was seen.
HELD_OUT = ("biology", "religion")  # close to a trained domain (medicine), and close to none
CAP_MB = 4.0  # of text per domain
FRACTIONS = (0.90, 0.05, 0.05)  # train, select, test
TOKENIZER_MB = 8.0  # of text
ARMS = ("emo", "standard", "matched")
SEEDS = (0, 1, 2)
METHOD = "layerwise"
METHODS = (METHOD, "global", "easy_ep", "random")  # those of docs/results.md
KEEPS = (32, 16, 8)  # of 64 experts, including the shared one
SMALL_KEEPS = (16, 8)  # for other methods and single examples
WINDOWS = 256  # per split, at most
BATCH = 16  # windows
EXAMPLE_TOKENS, EXAMPLE_DRAWS = 512, 3  # per example; examples per domain, if it has that many
COMPOSED_KEEP, PARTNERS = 16, (1, 2, 3)  # each domain with those this many places after it
MEASURED = {  # stored with the figures: other values mean another experiment
    "method": METHOD,
    "keeps": list(KEEPS),
    "small_keeps": list(SMALL_KEEPS),
    "windows": WINDOWS,
    "example_tokens": EXAMPLE_TOKENS,
    "example_draws": EXAMPLE_DRAWS,
    "composed_keep": COMPOSED_KEEP,
    "partners": list(PARTNERS),
}


def get_config(arg: str = "emo") -> ConfigDict:
    return presets.modularity_tiny(arg or "emo")


# --- the corpus ----------------------------------------------------------------------------------


class Stores(NamedTuple):
    """Token stores with one tokenizer."""

    trained: Path
    held_out: Path  # its training split is not used


def make_stores(output: Path) -> Stores:
    """Makes the corpus as two stores; existing ones are reused."""
    stores = Stores(output / "store", output / "held_out")
    parts = {False: output / "trained.jsonl", True: output / "held_out.jsonl"}
    if not all(file.exists() for file in parts.values()):
        corpus = sample_corpus(domains=ALL_DOMAINS, cap_mb=CAP_MB)
        output.mkdir(parents=True, exist_ok=True)
        print(corpus.table())
        lines: dict[bool, list[str]] = {False: [], True: []}
        for line in corpus.path.read_text(encoding="utf-8").splitlines(keepends=True):
            lines[json.loads(line)["domain"] in HELD_OUT].append(line)
        for is_held_out, file in parts.items():
            write_atomic(file, "".join(lines[is_held_out]))
    tokenizer_dir = output / "tokenizer"
    if not tokenizer_dir.exists():
        texts = [document.text for document in read_documents([str(parts[False])])]
        step = max(1, round(sum(map(len, texts)) / (TOKENIZER_MB * 1e6)))
        train_bpe(iter(texts[::step]), get_config().model.vocab_size).save(tokenizer_dir)
    for is_held_out, target in ((False, stores.trained), (True, stores.held_out)):
        if not target.exists():
            inputs, tokenizer = [str(parts[is_held_out])], load_tokenizer(tokenizer_dir)
            prepare(inputs, target, tokenizer, fractions=FRACTIONS, quiet=False)
    return stores


# --- measuring -----------------------------------------------------------------------------------


class Split(NamedTuple):
    """The splits of a store as batches on the device."""

    domains: tuple[str, ...]
    select: list[Batch]
    test: list[Batch]
    store: TokenStore


def read_split(config: Config, path: Path) -> Split:
    """Reads at most `WINDOWS` windows of the splits `select` and `test`."""
    store = TokenStore.open(path)

    def batches(split: str) -> list[Batch]:
        windows = Windows(store, config.data.seq_len, split=split)
        found = heldout_batches(windows, batch_size=BATCH, max_windows=WINDOWS)
        return [jax.device_put(batch) for batch in found]

    return Split(tuple(store.domains), batches("select"), batches("test"), store)


class Measured:
    """Losses of one model on one store by domain: None where a domain has nothing to measure."""

    def __init__(self, config: Config, params: Params, split: Split, say: Callable[[str], None]):
        self._config, self._params, self._split, self._say = config, params, split, say
        self._model, self._domains = ModelFunctions(config), len(split.domains)
        self._step = make_eval_step(config, self._model, self._domains, router_probs=False)
        self.losses: dict[str, list[float | None]] = {}
        self.kept: dict[str, np.ndarray] = {}
        self.examples: list[int] = []  # long documents drawn from each domain

    def loss(self, name: str, keep_LMR: np.ndarray | None = None, pool_size: int = 0) -> None:
        """Measures the losses on the test split."""
        self._say(name)
        found = evaluate(
            self._step, self._params, self._split.test, keep_LMR=keep_LMR, pool_size=pool_size
        )
        self.losses[name] = numbers(found.loss_M)
        self.losses.setdefault("labels", numbers(found.labels_M))

    def choose(self, method: str, keep: int, batches: list[Batch], seed: int = 0) -> np.ndarray:
        """The experts chosen for each domain (L,M,R)."""
        self._say(f"choosing: {method}, {keep}")
        routed_L = budgets(self._config, [keep])
        return choose_experts(
            *(method, self._model, self._params, batches, routed_L),
            num_domains=self._domains,
            seed=seed,
        ).kept_LMR

    def by_methods(self, seed: int) -> None:
        """Measures keep-k for every method, with experts chosen on the select split."""
        for method in METHODS:
            for keep in KEEPS if method == METHOD else SMALL_KEEPS:
                kept_LMR = self.choose(method, keep, self._split.select, seed)
                self.kept[f"{method} {keep}"] = kept_LMR
                self.loss(f"{method} {keep}", kept_LMR)

    def by_one_example(self, seed: int) -> None:
        """Measures keep-k with experts chosen by one document from each domain with a long one."""
        documents_M = [self._long_documents(domain, seed) for domain in self._split.domains]
        self.examples = [len(documents) for documents in documents_M]
        for draw in range(max(self.examples)):
            have = [m for m, documents in enumerate(documents_M) if draw < len(documents)]
            batch = self._one_each([documents_M[m][draw] for m in have], have)
            for keep in SMALL_KEEPS:
                name = f"one example {draw} {keep}"
                self.loss(name, self.choose(METHOD, keep, [batch]))
                self.losses[name] = [
                    loss if m in have else None for m, loss in enumerate(self.losses[name])
                ]

    def _long_documents(self, domain: str, seed: int) -> list[np.ndarray]:
        """The first `EXAMPLE_TOKENS` tokens of up to `EXAMPLE_DRAWS` documents that long."""
        with contextlib.suppress(UsageError):  # a domain with only short documents
            return store_examples(
                *(self._split.store, "select"),
                domain=domain,
                max_tokens=EXAMPLE_DRAWS * EXAMPLE_TOKENS,
                max_length=EXAMPLE_TOKENS,
                min_length=EXAMPLE_TOKENS,
                seed=seed + 1,
            ).documents
        return []

    def _one_each(self, documents: list[np.ndarray], domains: list[int]) -> Batch:
        """A batch with each document in its own row."""
        (batch,) = pack(documents, self._config.data.seq_len, len(documents), pad_id=0)
        ids_B1 = np.array(domains, np.int32)[:, None]
        return batch._replace(domain_ids=np.where(batch.segment_ids >= 0, ids_B1, -1))

    def composed(self) -> None:
        """Measures each domain with the union of its module and another's."""
        own_LMR = self.kept[f"{METHOD} {COMPOSED_KEEP}"]
        for partner in PARTNERS:
            both_LMR = own_LMR | np.roll(own_LMR, -partner, axis=1)
            self.loss(f"composed with {partner} later {COMPOSED_KEEP}", both_LMR)


def numbers(values_M: np.ndarray) -> list[float | None]:
    """Values by domain as JSON: None where there is none."""
    return [None if np.isnan(value) else round(float(value), 6) for value in values_M]


def measure(
    config: Config, params: Params, stores: Stores, seed: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """All losses of a trained model, by store: see `Measured`."""
    own, config = config, within_documents(config)  # a module serves one document at a time
    moe, result = config.moe, {}
    assert moe is not None
    params = jax.device_put(params)
    for name, path in stores._asdict().items():
        split = read_split(config, path)
        measured = Measured(config, params, split, lambda text, name=name: say(f"{name}: {text}"))
        measured.loss("full")
        if own.model.attention != config.model.attention:
            across = Measured(own, params, split, say)
            across.loss("own attention")
            measured.losses["own attention"] = across.losses["own attention"]
        if moe.pool.eval_size:
            measured.loss("pool", pool_size=moe.pool.eval_size)
        if moe.num_experts > max(KEEPS):
            measured.by_methods(seed)
            measured.by_one_example(seed)
            if name == "trained":
                measured.composed()
        result[name] = {
            "domains": split.domains,
            "losses": measured.losses,
            "long_documents": measured.examples,
        }
    return result


# --- runs ----------------------------------------------------------------------------------------


def config_of(arm: str, seed: int, stores: Stores, steps: int | None = None) -> Config:
    """The config of one run; the seed also orders the data."""
    config = get_config(arm)
    if steps is not None:
        config.train.steps = steps
        config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, steps)
    config.name = f"modularity_{arm}_{seed}"
    config.seed = config.data.seed = seed
    config.data.store = str(stores.trained.resolve())
    return from_config_dict(config)


def config_digest(config: Config) -> str:
    """A digest of everything that determines a model, but not of its data paths."""
    return digest.config_digest(portable(config))


def is_there(file: Path, made_of: dict[str, Any]) -> bool:
    """Whether a run has its result already; UsageError if it is that of another experiment."""
    if not file.exists():
        return False
    theirs = json.loads(file.read_text(encoding="utf-8"))
    wrong = [f"{k} {theirs.get(k)}, not {v}" for k, v in made_of.items() if theirs.get(k) != v]
    if wrong:
        raise UsageError(
            f"{file}: of another experiment ({'; '.join(wrong)}); give other --results"
        )
    return True


def median_rate(records: list[dict[str, Any]]) -> float:
    """Tokens a second in training, from the records of metrics.jsonl."""
    return float(np.median([r["tokens_per_second"] for r in records if r.get("tokens_per_second")]))


def run(
    arm: str, seed: int, output: Path, results: Path, stores: Stores, steps: int | None
) -> None:
    """Trains and measures one model, unless its result exists."""
    file = results / f"modularity-{arm}-{seed}.json"
    config = config_of(arm, seed, stores, steps)
    made_of = {
        "tokens": config.train.steps * config.train.batch_size * config.data.seq_len,
        "config": config_digest(config),
        "measured": MEASURED,
        "store": TokenStore.open(stores.trained).fingerprint,
        "held_out_store": TokenStore.open(stores.held_out).fingerprint,
    }
    if is_there(file, made_of):
        return
    print(f"== {config.name}: {config.train.steps} steps", flush=True)
    workdir = output / f"{arm}-{seed}"
    state = Trainer(config, workdir).run()
    begin = time.monotonic()
    say = lambda text: print(f"   {time.monotonic() - begin:5.0f} s  {text}", flush=True)  # noqa: E731
    found = measure(config, state.params, stores, seed, say)
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").open(encoding="utf-8")]
    result = {
        "arm": arm,
        "seed": seed,
        **made_of,
        "tokens_per_second": median_rate(records),
        "measuring_seconds": round(time.monotonic() - begin),
        "versions": versions(),
        "while_training": [_watched(r) for r in records if "heldout_loss" in r],
        **found,
    }
    results.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(result, indent=1) + "\n")


def _watched(record: dict[str, Any]) -> dict[str, Any]:
    """The part of a metrics record that belongs to the keep-k curve during training."""
    names = ["step", "heldout_loss", *(f"heldout_rise (keep={keep})" for keep in KEEPS)]
    return {name: record[name] for name in names if name in record}


@click.command()
@click.option("--output", required=True, type=click.Path(path_type=Path), help="For workdirs.")
@click.option("--results", required=True, type=click.Path(path_type=Path), help="For the figures.")
@click.option("--arms", default=",".join(ARMS), show_default=True)
@click.option("--seeds", default=",".join(map(str, SEEDS)), show_default=True)
@click.option("--steps", type=int, default=None, help="Of each run, to try it out.")
def main(output: Path, results: Path, arms: str, seeds: str, steps: int | None) -> None:
    """Runs the missing parts of the experiment."""
    try:
        stores = make_stores(output)
        for seed in map(int, seeds.split(",")):
            for arm in arms.split(","):
                run(arm, seed, output, results, stores, steps)
        scripts = Path(__file__).parent
        for script, argv in (
            ("modularity_costs", ["--output", str(output), "--results", str(results)]),
            ("modularity_report", ["--results", str(results), "--output", str(results.parent)]),
        ):
            subprocess.run([sys.executable, scripts / f"{script}.py", *argv], check=True)
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    except EmoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
