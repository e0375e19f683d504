"""The quickstart's task: which of four sentences follows a text, with all and with some experts.

Items are made as those of the group `emo_topic` of `emo data tasks`, of the quickstart's own
documents. No harness is needed.

Legend: L layers, M domains, R routed experts.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from emo_jax.config import Config
from emo_jax.documents.read import read_documents
from emo_jax.evals.by_domain import eval_mesh
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import Params
from emo_jax.quickstart.task_items import NUM_WRONG, Item, held_out_units, next_items
from emo_jax.selection.variants import within_documents
from emo_jax.tasks.encoding import Encoder
from emo_jax.tasks.likelihoods import Likelihoods, place
from emo_jax.tasks.rows import Request, cut_left
from emo_jax.tokenizer.base import Tokenizer

ITEMS = 20  # of each domain, at most


@dataclasses.dataclass(frozen=True)
class ClozeScores:
    """Shares of items answered correctly.

    Attributes:
      items: number of items.
      all_experts: with all experts.
      kept: by the number of experts kept for the item's domain, shared ones included.
    """

    items: int
    all_experts: float
    kept: dict[int, float]

    def line(self, name: str, num_experts: int) -> str:
        """One line for people."""
        kept = ", ".join(f"{share:.1%} ({keep})" for keep, share in self.kept.items())
        return (
            f"{name}: which of four sentences follows, of four domains ({self.items} held-out"
            f" items, chance {1 / (1 + NUM_WRONG):.0%}): {self.all_experts:.1%} with all"
            f" {num_experts} experts; {kept} with a part of them"
        )


def cloze_items(corpus: Path, domains: Sequence[str]) -> list[Item]:
    """Items of documents that a store of the corpus holds out for testing, of all domains alike.

    Raises:
      DataError: a domain has none.
    """
    units = held_out_units(read_documents([str(corpus)]))
    return [
        item for domain in domains for item in next_items(units, domain, "test", ITEMS, others=True)
    ]


def cloze_scores(
    config: Config,
    params: Params,
    tokenizer: Tokenizer,
    items: Sequence[Item],
    domains: Sequence[str],
    kept: Mapping[int, np.ndarray],
) -> ClozeScores:
    """Answers the items with a model: the likeliest choice, not normalised by its length.

    Args:
      config, params, tokenizer: of the model.
      items: from `cloze_items`.
      domains: those of the store, in its order.
      kept: the experts of each domain, (L,M,R) bool, by their number.
    """
    within = within_documents(config)
    mesh = eval_mesh(within)
    model = ModelFunctions(within, mesh)
    tokenizer.ready()
    encoder, window = Encoder(tokenizer), config.data.seq_len
    requests = [
        cut_left(Request(prompt, ids[:window], domains.index(item.domain)), window)
        for item in items
        for prompt, ids in encoder.pairs([(item.query, choice) for choice in item.choices])
    ]
    placed = place(params, model.param_shardings())
    likelihoods = Likelihoods(model, tokenizer.pad_id)
    gold = np.array([item.gold for item in items])

    def right(keep_LMR: np.ndarray) -> float:
        found = likelihoods.of(placed, requests, keep_LMR=keep_LMR)
        nats = np.array([one.nats for one in found]).reshape(len(items), -1)
        return float((nats.argmax(axis=1) == gold).mean())

    # With all experts too, the same program.
    whole_LMR = np.ones_like(next(iter(kept.values())))
    return ClozeScores(
        len(items), right(whole_LMR), {keep: right(keep_LMR) for keep, keep_LMR in kept.items()}
    )
