"""Modules chosen by few examples: one document, a domain never trained on, documents that mix two.

    python experiments/few_examples.py runs/emo --data store --held-out held_out --json few.json

Experts are chosen on the split select and judged on test. All rises are over the module chosen by
all of a domain's select windows (`layerwise`), nats per token, for 25 and 12.5 % of the experts.
Examples are documents cut to 512 tokens; those of a single one have as many. The prior is that of
`emo select --prior`, of the trained store's select documents without those that are examples.
A few minutes on two idle cores.
"""

import json
from pathlib import Path
from typing import NamedTuple

import click
import jax
import numpy as np

from emo_jax.config import MeshConfig
from emo_jax.data.loader import heldout_batches
from emo_jax.data.store import TokenStore
from emo_jax.data.windows import Windows
from emo_jax.evals.heldout import evaluate, make_eval_step
from emo_jax.model.functions import ModelFunctions
from emo_jax.parallel.mesh import make_mesh
from emo_jax.saved.load import load_model
from emo_jax.selection.budgets import budgets, choose_best, experts_there
from emo_jax.selection.examples import shuffled_documents
from emo_jax.selection.prior import (
    MIN_TOKENS,
    MOST_DOCUMENTS,
    document_shares,
    posterior_scores,
    prior_of,
)
from emo_jax.selection.scores import choose_experts
from emo_jax.selection.variants import within_documents

LENGTH, DRAWS, NUMBERS = 512, 3, (1, 4, 16)
BATCH = 16  # windows


class Documents(NamedTuple):
    """Documents of a store's select split, in the order of a seed, and their routing."""

    lengths_N: np.ndarray
    domains_N: np.ndarray
    shares_NLR: np.ndarray
    tokens: list[np.ndarray]


class Judge:
    """Losses of one store's domains with experts chosen for each."""

    def __init__(self, model, params, path: str, windows: int, split: str, seed: int):
        self.model, self.params, self.store = model, params, TokenStore.open(path)
        self.config, self.there_LR = model.config, experts_there(model.config)
        self.domains = tuple(self.store.domains)
        self._step = make_eval_step(self.config, model, len(self.domains))
        self._test = self._batches(split, windows)
        self.select = self._batches("select", windows)
        found = [
            (one.tokens[:LENGTH], one.domain_id)
            for one in shuffled_documents(self.store, "select", seed)
            if len(one.tokens) >= MIN_TOKENS
        ]
        tokens = [ids for ids, _ in found]
        self.documents = Documents(
            np.array([len(ids) for ids in tokens]),
            np.array([domain for _, domain in found]),
            document_shares(model, params, tokens, 0),
            tokens,
        )

    def _batches(self, split: str, windows: int):
        found = Windows(self.store, self.config.data.seq_len, split=split)
        options = {"batch_size": BATCH, "max_windows": windows}
        return [jax.device_put(batch) for batch in heldout_batches(found, **options)]

    def loss_M(self, keep_LMR=None) -> np.ndarray:
        """The loss of each domain."""
        return evaluate(self._step, self.params, self._test, keep_LMR=keep_LMR).loss_M

    def by_all(self, keep: int) -> np.ndarray:
        """The module of each domain, (L,M,R)."""
        routed_L, M = budgets(self.config, [keep]), len(self.domains)
        arguments = ("layerwise", self.model, self.params, self.select, routed_L)
        return choose_experts(*arguments, num_domains=M).kept_LMR

    def chosen(self, shares_MLR: np.ndarray, keep: int) -> np.ndarray:
        """The experts with the largest shares, (L,M,R)."""
        return choose_best(
            np.moveaxis(shares_MLR, 1, 0), self.there_LR, budgets(self.config, [keep])
        )

    def draw(self, number: int, draw: int) -> list[np.ndarray | None]:
        """Places of `number` documents of each domain; None: it lacks them."""
        least = LENGTH if number == 1 else MIN_TOKENS
        there = [
            np.flatnonzero((self.documents.domains_N == m) & (self.documents.lengths_N >= least))
            for m in range(len(self.domains))
        ]
        first = draw * number
        return [
            place[first : first + number] if len(place) >= first + number else None
            for place in there
        ]


def measure(judge: Judge, prior_documents: Documents, same: bool) -> dict:
    """Rises by name: a list over draws, of a number or None for each domain."""
    out: dict[str, list] = {}
    empty = np.zeros(judge.documents.shares_NLR.shape[1:])

    def prior_without(places):
        use = _few_of_each(prior_documents.domains_N)
        if same:
            use = use & ~np.isin(np.arange(len(use)), np.concatenate(places))
        return prior_of(prior_documents.shares_NLR[use], prior_documents.domains_N[use])

    for keep in (16, 8):
        own_LMR = judge.by_all(keep)
        all_M = judge.loss_M(own_LMR)
        out[f"all {keep}"] = [_numbers(all_M - judge.loss_M())]
        for number in NUMBERS:
            for draw in range(DRAWS if number == 1 else 1):
                places = judge.draw(number, draw)
                have = [p for p in places if p is not None]
                if not have:
                    continue
                missing_M = np.array([p is None for p in places])
                raw = [
                    empty if p is None else judge.documents.shares_NLR[p].mean(axis=0)
                    for p in places
                ]
                prior = prior_without(have)
                drawn = [posterior_scores(prior, shares, number) for shares in raw]
                for name, shares in (("", raw), (" with prior", drawn)):
                    loss_M = judge.loss_M(judge.chosen(np.stack(shares), keep))
                    rise_M = np.where(missing_M, np.nan, loss_M - all_M)
                    out.setdefault(f"{number} examples{name} {keep}", []).append(_numbers(rise_M))
        out |= _mixed(judge, keep, all_M, prior_without)
        for name, values in out.items():
            if name.endswith(f" {keep}"):
                print(f"  {name}: {_mean(values):+.4f}", flush=True)
    return out


def _mixed(judge: Judge, keep: int, all_M, prior_without) -> dict:
    """One document of each domain with half of its tokens from the next domain's."""
    places, M = judge.draw(2, 0), len(judge.domains)
    usable = [m for m in range(M) if places[m] is not None and places[(m + 1) % M] is not None]
    if M < 2 or not usable:
        return {}
    halves = []
    for m in usable:
        pair = [judge.documents.tokens[places[k][0]] for k in (m, (m + 1) % M)]
        halves.append(np.concatenate([ids[: LENGTH // 2] for ids in pair]))
    shares = document_shares(judge.model, judge.params, halves, 0)
    prior = prior_without([places[m][:1] for m in usable])
    out = {}
    drawn = np.stack([posterior_scores(prior, one, 1) for one in shares])
    for name, found in (("", shares), (" with prior", drawn)):
        kept = np.moveaxis(judge.chosen(found, keep), 1, 0)  # of the pairs
        rises = []
        for second in (0, 1):  # judged on the first domain of each pair, then on the second
            keep_LMR = np.repeat(judge.there_LR[:, None], M, axis=1)
            for one, m in zip(kept, usable, strict=True):
                keep_LMR[:, (m + second) % M] = one
            rise_M = judge.loss_M(keep_LMR) - all_M
            there = np.isin(np.arange(M), [(m + second) % M for m in usable])
            rises.append(_numbers(np.where(there, rise_M, np.nan)))
        out[f"mixed{name} {keep}"] = rises
    return out


def _few_of_each(domains_N: np.ndarray) -> np.ndarray:
    """The first `MOST_DOCUMENTS` of each domain, as `store_prior` takes them."""
    use = np.zeros(len(domains_N), bool)
    for domain in np.unique(domains_N):
        use[np.flatnonzero(domains_N == domain)[:MOST_DOCUMENTS]] = True
    return use


def _numbers(values_M: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 5) for value in values_M]


def _mean(values: list) -> float:
    return float(np.nanmean(np.array(values, float)))


@click.command()
@click.argument("model")
@click.option("--data", required=True, help="Store that the model was trained on.")
@click.option("--held-out", default=None, help="Store of domains that it was not trained on.")
@click.option("--windows", default=96, show_default=True, help="Of a split.")
@click.option("--split", default="test", show_default=True, help="To judge on.")
@click.option("--seed", default=1, show_default=True, help="Of the examples.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), default=None)
def main(model, data, held_out, windows, split, seed, json_file) -> None:
    """See the module."""
    loaded = load_model(model)
    functions = ModelFunctions(within_documents(loaded.config), make_mesh(MeshConfig()))
    params = jax.device_put(loaded.params, functions.param_shardings())
    result = {"model": loaded.name, "windows": windows, "split": split}
    trained = None
    for name, path in (("trained", data), ("held out", held_out)):
        if path is None:
            continue
        print(f"{name}: {path}", flush=True)
        judge = Judge(functions, params, path, windows, split, seed)
        trained = trained or judge
        rises = measure(judge, trained.documents, judge is trained)
        result[name] = {"domains": judge.domains, "rises": rises}
        if json_file:
            json_file.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
