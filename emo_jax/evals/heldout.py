"""Held-out loss of every domain.

A label counts if it is in the same document as its input token: how a document begins cannot be
predicted from the one before it. There is no pool unless requested, since a pool depends on the
whole document, including later tokens (DESIGN 6).

Legend: B windows, S tokens, L layers, M domains, R routed experts, G documents.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emo_jax.batch import Batch
from emo_jax.config import Config
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import Params
from emo_jax.moe.pools import pools_of_size


@dataclass(frozen=True)
class HeldOut:
    """Sums over held-out windows."""

    ce_sum_M: np.ndarray  # nats
    labels_M: np.ndarray
    router_probs_LMR: np.ndarray | None  # sums over tokens; None if not requested

    @property
    def loss_M(self) -> np.ndarray:
        """Mean loss of each domain, nats per token; NaN for a domain without labels."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.ce_sum_M / self.labels_M

    @property
    def loss(self) -> float:
        """Mean loss over all labels, nats per token; NaN if there are none."""
        labels = self.labels_M.sum()
        return float(self.ce_sum_M.sum() / labels) if labels else math.nan

    def of_domains(self, which: slice) -> "HeldOut":
        """The same for some of the domains."""
        probs_LMR = self.router_probs_LMR
        part_LMR = None if probs_LMR is None else probs_LMR[:, which]
        return HeldOut(self.ce_sum_M[which], self.labels_M[which], part_LMR)

    @property
    def broken_M(self) -> np.ndarray:
        """Domains whose loss is not finite."""
        return (self.labels_M > 0) & ~np.isfinite(self.ce_sum_M)


def make_eval_step(
    config: Config,
    model: ModelFunctions,
    num_domains: int,
    *,
    router_probs: bool = True,
    training: dict[str, Any] | None = None,
) -> Callable[..., dict[str, Any]]:
    """Returns a jitted (params, batch, keep_LMR | None, pool_size) -> sums by domain.

    `pool_size` is static.

    Args:
      config: config of the model.
      model: the model.
      num_domains: M.
      router_probs: also sum the router's probabilities.
      training: arguments of `Transformer.__call__` for what acts in training only; None: nothing.
    """

    def eval_step(
        params: Params, batch: Batch, keep_LMR: jax.Array | None, pool_size: int
    ) -> dict[str, Any]:
        B, S = batch.tokens.shape
        pools = None
        if pool_size:
            assert config.moe is not None
            pools = pools_of_size(config.moe.pool, pool_size, (config.model.stacked_layers, B, S))
        hidden_BSD, stats = model.hidden(
            params,
            batch,
            pools=pools,
            keep_LMR=keep_LMR,
            num_domains=num_domains if router_probs else 0,
            **(training or {}),
        )
        next_ids_BS = jnp.pad(batch.segment_ids[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
        mask_BS = batch.loss_mask * (next_ids_BS == batch.segment_ids)
        ce_BS = model.label_losses(params, hidden_BSD, batch.labels, mask_BS)
        ids_BS = jnp.where(batch.domain_ids >= 0, batch.domain_ids, num_domains)
        by_domain = lambda a_BS: jnp.zeros(num_domains + 1, jnp.float32).at[ids_BS].add(a_BS)[:-1]  # noqa: E731
        sums = {"ce_sum_M": by_domain(ce_BS), "labels_M": by_domain(mask_BS)}
        if stats is not None and router_probs:
            sums["router_probs_LMR"] = stats.domain_probs_MR
        return sums

    return jax.jit(eval_step, static_argnames="pool_size")


def evaluate(
    eval_step: Callable[..., dict[str, Any]],
    params: Params,
    batches: Iterable[Batch],
    *,
    keep_LMR: np.ndarray | None = None,
    pool_size: int = 0,
) -> HeldOut:
    """Sums the results of `eval_step` over batches.

    Args:
      eval_step: from `make_eval_step`.
      params: on the devices.
      batches: on the host or on the devices.
      keep_LMR: bool, the routed experts that each domain's tokens may use; None: all.
      pool_size: number of routed experts in each document's pool; 0: no pool.
    """
    total: dict[str, Any] | None = None
    running: dict[str, Any] | None = None

    def add(sums: dict[str, Any] | None) -> None:
        """Adds in float64, since float32 is too coarse for a sum over many batches."""
        nonlocal total
        if sums is not None:
            host = jax.tree.map(lambda a: np.asarray(a, np.float64), jax.device_get(sums))
            total = host if total is None else jax.tree.map(np.add, total, host)

    for batch in batches:
        # The sums of the previous batch are fetched while this one runs.
        sums = eval_step(params, batch, keep_LMR, pool_size=pool_size)
        add(running)
        running = sums
    add(running)
    assert total is not None, "no held-out windows"
    return HeldOut(total["ce_sum_M"], total["labels_M"], total.get("router_probs_LMR"))
