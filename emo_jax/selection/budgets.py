"""How many experts to keep, and the choice of those with the best scores.

Legend: L layers, M domains, R routed experts.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, cast

import numpy as np

from emo_jax.config import Config, MoeConfig, moe_of, routed_by_layer
from emo_jax.config.names import KEEP_SCHEDULES, KeepSchedule
from emo_jax.errors import UsageError
from emo_jax.selection.schedules import NEED_MASS, spread

_MOST_DIGITS = 18  # of a number of experts


@dataclasses.dataclass(frozen=True)
class Budget:
    """How many experts the layers keep, shared ones included.

    Attributes:
      counts: one for all layers, or one for each.
      schedule: how what one count gives in all is spread over the layers, see `schedules`.
    """

    counts: tuple[int, ...]
    schedule: KeepSchedule = "uniform"

    def __str__(self) -> str:
        return ",".join(map(str, self.counts))

    @property
    def needs_mass(self) -> bool:
        """Whether the numbers depend on the routed mass of the domain's tokens."""
        return self.schedule in NEED_MASS


def budget_of(keep: int | Budget) -> Budget:
    """A number of experts in every layer as a budget."""
    return keep if isinstance(keep, Budget) else Budget((keep,))


def parse_keep(
    text: str, moe: MoeConfig, *, allow_fewer: bool = False, option: str = "--keep"
) -> int:
    """The number of experts given by `16` or `25%`, including shared ones (SPEC 7.1).

    Args:
      text: a count, or a share of `moe.num_experts`, rounded down.
      moe: config of the mixture of experts.
      allow_fewer: allow fewer than top-k: then a token uses all that are left, as in the reference.
      option: for errors, where the number is from.

    Raises:
      UsageError: not a number, more than there are, or too few.
    """
    most = moe.num_experts
    try:
        share = text.strip().removesuffix("%")
        keep = int(Fraction(share) * most / 100) if "%" in text else int(share)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"{option} {text}: must be a count like 16 or a share like 25%") from None
    check_keep(keep, moe, text, allow_fewer=allow_fewer, option=option)
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
    least = moe.num_shared_experts + 1 if allow_fewer else moe.fewest_experts
    text = text or str(keep)
    what = f"{option} {text}" if text == str(keep) else f"{option} {text} ({keep} experts)"
    if least <= keep <= moe.num_experts:
        return
    fewer = (
        f"; below top-k {moe.top_k} give --allow-fewer"
        if not allow_fewer and moe.num_shared_experts < keep < least
        else ""
    )
    raise UsageError(
        f"{what}: must be {least}..{moe.num_experts} experts, shared ones included{fewer}"
    )


def parse_budgets(
    keep: Any, per_layer: Any, config: Config, *, allow_fewer: bool = False
) -> tuple[Budget, ...]:
    """Budgets of `--keep` and `--keep-per-layer`.

    Args:
      keep: counts and shares as `keep_items` takes them.
      per_layer: a count for each layer, or the name of a schedule; empty: neither.
      config: config of the model.
      allow_fewer: see `parse_keep`.

    Raises:
      UsageError: a count or share that `parse_keep` refuses, a list of another length or with
        another sum than `keep` gives, an unknown schedule, or one without `keep`.
    """
    moe, L = moe_of(config), config.model.stacked_layers
    counts = [parse_keep(text, moe, allow_fewer=allow_fewer) for text in keep_items(keep)]
    spread_by = per_layer_of(per_layer)
    if isinstance(spread_by, str):
        if not counts:
            raise UsageError(
                f"--keep-per-layer {spread_by}: spreads what --keep gives in all; give --keep too"
            )
        return tuple(Budget((count,), spread_by) for count in counts)
    if not spread_by:
        return tuple(Budget((count,)) for count in counts)
    budget = Budget(spread_by)
    budgets(config, budget.counts, allow_fewer=allow_fewer, option="--keep-per-layer")
    if len(counts) > 1:
        raise UsageError(f"--keep-per-layer {budget}: is one model; give one --keep, or none")
    if counts and sum(budget.counts) != counts[0] * L:
        raise UsageError(
            f"--keep-per-layer {budget}: {sum(budget.counts)} experts in all, and --keep"
            f" {counts[0]} is {counts[0] * L} in {L} layers; give one of the two, or equal sums"
        )
    return (budget,)


def per_layer_of(given: Any) -> KeepSchedule | tuple[int, ...]:
    """What `--keep-per-layer` says, whatever the model: a schedule, counts, or () for neither.

    Raises:
      UsageError: an unknown schedule, or a count that is no whole number.
    """
    names = keep_items(given)
    if len(names) == 1 and not names[0].strip().isdecimal():
        if names[0] not in KEEP_SCHEDULES:
            near = difflib.get_close_matches(names[0], KEEP_SCHEDULES, n=1, cutoff=0.5)
            raise UsageError(
                f"--keep-per-layer {names[0]}: must be a count for each layer, or one of"
                f" {', '.join(KEEP_SCHEDULES)}" + (f" (did you mean {near[0]!r}?)" if near else "")
            )
        return cast(KeepSchedule, names[0])
    for name in names:
        if not name.strip().isdecimal() or len(name) > _MOST_DIGITS:
            raise UsageError(
                f"--keep-per-layer {name}: must be whole numbers with commas between, or one of"
                f" {', '.join(KEEP_SCHEDULES)}"
            )
    return tuple(map(int, names))


def experts_there(config: Config) -> np.ndarray:
    """(L,R) bool: the routed experts that each layer has."""
    routed_L = np.array(routed_by_layer(config))
    return np.arange(moe_of(config).num_routed_experts) < routed_L[:, None]


def budgets(
    config: Config, keep_L: Sequence[int], *, allow_fewer: bool = False, option: str = "--keep"
) -> list[int]:
    """Routed experts to keep in each layer, from counts that include the shared ones.

    Args:
      config: config of the model.
      keep_L: one count for all layers, or one per layer.
      allow_fewer: see `parse_keep`.
      option: for errors, where the counts are from.

    Raises:
      UsageError: the wrong number of counts, or a count to which a layer cannot be cut.
    """
    moe, L = moe_of(config), config.model.stacked_layers
    per_layer = len(keep_L) > 1 or option == "--keep-per-layer"
    counts = list(keep_L) if per_layer else list(keep_L) * L
    if len(counts) != L:
        first = config.model.dense_layers
        which = f" with experts, after {first} without" if first else ""
        raise UsageError(
            f"--keep-per-layer: {len(counts)} counts, and the model has {L} layers{which}"
        )
    for count in counts:
        where = "--keep-per-layer" if per_layer else option
        check_keep(count, moe, allow_fewer=allow_fewer, option=where)
    # A layer that already has fewer is left unchanged.
    return [min(n, moe.experts_in(i)) - moe.num_shared_experts for i, n in enumerate(counts)]


def routed_budgets(
    config: Config,
    budget: Budget,
    mass_LMR: np.ndarray | None = None,
    *,
    allow_fewer: bool = False,
) -> np.ndarray:
    """Routed experts to keep in each layer for each domain, (L,M) int; M is 1 if all keep the same.

    With any schedule, the layers together keep as many as with "uniform".

    Args:
      config: config of the model.
      budget: how many.
      mass_LMR: routed mass by domain, see `schedules`; only if the budget needs it.
      allow_fewer: see `parse_keep`.

    Raises:
      UsageError: see `budgets`.
    """
    moe, L = moe_of(config), config.model.stacked_layers
    routed_L = budgets(config, budget.counts, allow_fewer=allow_fewer)
    if budget.schedule == "uniform":
        return np.array(routed_L)[:, None]
    most_L = experts_there(config).sum(axis=1).tolist()
    least = 1 if allow_fewer else moe.num_routed_picks
    least_L = [min(least, n) for n in routed_L]
    masses = [None]
    if budget.needs_mass:
        assert mass_LMR is not None
        masses = list(np.where(experts_there(config)[:, None], mass_LMR, 0).swapaxes(0, 1))
    kept_ML = [spread(budget.schedule, sum(routed_L), least_L, most_L, mass) for mass in masses]
    return np.array(kept_ML).reshape(-1, L).T


def keep_experts(
    scores_LMR: np.ndarray,
    config: Config,
    keep: int | Budget,
    *,
    mass_LMR: np.ndarray | None = None,
    allow_fewer: bool = False,
) -> np.ndarray:
    """`choose_best` for a number of experts in every layer, shared ones included, or a budget.

    `mass_LMR` and `allow_fewer` are those of `routed_budgets`.
    """
    routed_LM = routed_budgets(config, budget_of(keep), mass_LMR, allow_fewer=allow_fewer)
    return choose_best(scores_LMR, experts_there(config), routed_LM)


def choose_best(
    scores_LMR: np.ndarray, there_LR: np.ndarray, routed_LM: np.ndarray | Sequence[int]
) -> np.ndarray:
    """(L,M,R) bool: the routed experts of each layer with the largest scores.

    Ties go to the lower index.

    Args:
      scores_LMR: larger is better.
      there_LR: bool, the experts that a layer has.
      routed_LM: how many routed experts to keep, (L,) or (L,M).
    """
    scores_LMR = np.where(there_LR[:, None], scores_LMR, -np.inf)
    order_LMR = np.argsort(-scores_LMR, axis=-1, kind="stable")
    rank_LMR = np.argsort(order_LMR, axis=-1)
    kept_LM1 = np.asarray(routed_LM).reshape(len(there_LR), -1, 1)
    return (rank_LMR < kept_LM1) & there_LR[:, None]
