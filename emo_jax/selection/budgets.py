"""How many experts to keep, and the choice of those with the best scores.

Legend: L layers, M domains, R routed experts.
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from emo_jax.config import Config, MoeConfig
from emo_jax.errors import UsageError


def parse_keep(text: str, moe: MoeConfig, *, allow_fewer: bool = False) -> int:
    """The number of experts given by `16` or `25%`, including shared ones (SPEC 7.1).

    Args:
      text: a count, or a share of `moe.num_experts`, rounded down.
      moe: config of the mixture of experts.
      allow_fewer: allow fewer than top-k: then a token uses all that are left, as in the reference.

    Raises:
      UsageError: not a number, more than there are, or too few.
    """
    most = moe.num_experts
    try:
        share = text.strip().removesuffix("%")
        keep = int(Fraction(share) * most / 100) if "%" in text else int(share)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"--keep {text}: must be a count like 16 or a share like 25%") from None
    check_keep(keep, moe, text, allow_fewer=allow_fewer)
    return keep


def keep_items(keep: Any) -> tuple[str, ...]:
    """Counts and shares as `parse_keep` takes them, of one (16, "25%") or of several."""
    several = isinstance(keep, Iterable) and not isinstance(keep, str)
    return tuple(map(str, keep if several else (keep,)))


def check_keep(
    keep: int,
    moe: MoeConfig,
    text: str = "",
    *,
    allow_fewer: bool = False,
    option: str = "--keep",
) -> None:
    """Raises UsageError for a number of experts to which a model cannot be cut."""
    least = moe.num_shared_experts + 1 if allow_fewer else moe.top_k
    text = text or str(keep)
    what = f"{option} {text}" if text == str(keep) else f"{option} {text} ({keep} experts)"
    if least <= keep <= moe.num_experts:
        return
    fewer = (
        f"; below top-k {moe.top_k} give --allow-fewer"
        if not allow_fewer and moe.num_shared_experts < keep < moe.top_k
        else ""
    )
    raise UsageError(
        f"{what}: must be {least}..{moe.num_experts} experts, shared ones included{fewer}"
    )


def experts_there(config: Config) -> np.ndarray:
    """(L,R) bool: the routed experts that each layer has."""
    moe = config.moe
    assert moe is not None
    routed_L = [moe.experts_in(n) - moe.num_shared_experts for n in range(config.model.num_layers)]
    return np.arange(moe.num_routed_experts) < np.array(routed_L)[:, None]


def budgets(config: Config, keep_L: Sequence[int], *, allow_fewer: bool = False) -> list[int]:
    """Routed experts to keep in each layer, from counts that include the shared ones.

    Args:
      config: config of the model.
      keep_L: one count for all layers, or one per layer.
      allow_fewer: see `parse_keep`.

    Raises:
      UsageError: the wrong number of counts, or a count to which a layer cannot be cut.
    """
    moe, L = config.moe, config.model.num_layers
    assert moe is not None
    counts = list(keep_L) * L if len(keep_L) == 1 else list(keep_L)
    if len(counts) != L:
        raise UsageError(f"--keep-per-layer: {len(counts)} counts, and the model has {L} layers")
    option = "--keep" if len(keep_L) == 1 else "--keep-per-layer"
    for count in counts:
        check_keep(count, moe, allow_fewer=allow_fewer, option=option)
    # A layer that already has fewer is left unchanged.
    return [min(n, moe.experts_in(i)) - moe.num_shared_experts for i, n in enumerate(counts)]


def keep_experts(
    scores_LMR: np.ndarray, config: Config, keep: int, *, allow_fewer: bool = False
) -> np.ndarray:
    """`choose_best` for `keep` experts in every layer, including shared ones (SPEC 7.1)."""
    routed_L = budgets(config, [keep], allow_fewer=allow_fewer)
    return choose_best(scores_LMR, experts_there(config), routed_L)


def choose_best(
    scores_LMR: np.ndarray, there_LR: np.ndarray, routed_L: Sequence[int]
) -> np.ndarray:
    """(L,M,R) bool: the routed experts of each layer with the largest scores.

    Ties go to the lower index.

    Args:
      scores_LMR: larger is better.
      there_LR: bool, the experts that a layer has.
      routed_L: how many routed experts to keep in each layer.
    """
    scores_LMR = np.where(there_LR[:, None], scores_LMR, -np.inf)
    order_LMR = np.argsort(-scores_LMR, axis=-1, kind="stable")
    kept = np.zeros(order_LMR.shape, bool)
    for layer, routed in enumerate(routed_L):
        np.put_along_axis(kept[layer], order_LMR[layer, :, :routed], True, axis=-1)
    return kept & there_LR[:, None]
