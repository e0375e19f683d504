"""`emo select`: chooses experts by examples, and writes folders of smaller models.

Legend: L layers, R routed experts.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from emo_jax.checkpoint.manifest import versions
from emo_jax.config import Config, moe_of
from emo_jax.config.names import METHODS_WITHOUT_DATA
from emo_jax.data.store import TokenStore
from emo_jax.errors import DataError, UsageError
from emo_jax.evals.by_domain import SELECT, check_source, eval_mesh
from emo_jax.files.atomic import refuse_existing
from emo_jax.files.progress import Progress
from emo_jax.hf.layouts import layout_for
from emo_jax.hf.tensors import F32_BYTES
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import Params, count_parameters
from emo_jax.modules.assemble import smaller_config
from emo_jax.modules.folder import selection_from, write_selected
from emo_jax.modules.read_examples import read_examples
from emo_jax.saved.load import OpenedModel, load_model, open_model
from emo_jax.saved.selection_file import fingerprint, overlap
from emo_jax.selection.budgets import (
    Budget,
    choose_best,
    experts_there,
    parse_budgets,
    per_layer_of,
    routed_budgets,
)
from emo_jax.selection.examples import Examples
from emo_jax.selection.prior import RoutingPrior, posterior_scores, store_prior
from emo_jax.selection.scores import Choice, choose_by_examples
from emo_jax.selection.variants import within_documents


@dataclasses.dataclass(frozen=True, kw_only=True)
class _SelectSettings:
    """Arguments of `select`; `examples` ascend, and the last one is used for the models."""

    method: str
    examples: tuple[int | None, ...]
    max_tokens: int
    min_tokens: int
    seed: int
    allow_fewer: bool
    layout: str | None
    prior: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selected:
    """A model that `select` wrote.

    Attributes:
      folder: its Hugging Face folder.
      keep_L: number of experts in each layer, shared ones included.
      parameters, active: number of parameters in total, and used per token.
      examples, tokens: number of documents, and of their tokens, that the experts were chosen by.
      overlaps: for each smaller number of examples, how much its choice overlaps with the one made
        here (Jaccard index of the routed experts, mean over the layers).
      notes: what a user should know.
    """

    folder: Path
    keep_L: tuple[int, ...]
    parameters: int
    active: int
    examples: int
    tokens: int
    overlaps: dict[int, float]
    notes: tuple[str, ...] = ()


def select(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    keep: int | str | Sequence[int | str] = (),
    keep_per_layer: str | Sequence[int | str] = (),
    method: str = "layerwise",
    examples: int | Sequence[int | None] | None = None,
    max_tokens: int = 1_000_000,
    min_tokens: int = 1,
    seed: int = 0,
    allow_fewer: bool = False,
    layout: str | None = None,
    prior: str | os.PathLike[str] | None = None,
    trust: bool = False,
    quiet: bool = True,
) -> list[Selected]:
    """Keeps the experts that a domain uses, and writes the smaller models as Hugging Face folders.

    One model is written to `output`, several to `output/keep-N`. Each has a `selection.json` that
    records which experts were kept, and by which scores.

    Args:
      model: `WORKDIR`, `WORKDIR@STEP`, or a Hugging Face folder.
      data: the examples to choose by: the split "select" of a token store, of one domain
        (`STORE:DOMAIN`) or all; or a file of documents.
      output: folder to create.
      keep: number of experts to keep in each layer, shared ones included: a count (16) or a share
        ("25%"). Several numbers make one model each.
      keep_per_layer: instead of `keep`, one count for each layer, shared ones included; or, with
        `keep`, how what it gives in all is spread over the layers: "increasing", "decreasing",
        "mass" or "greedy", see `emo_jax.selection.schedules`.
      method: "layerwise" (by router probability, in a model whose earlier layers are already
        pruned), "global" (by router probability, in the whole model), "easy_ep" or "reap" (by what
        experts add to the output), "aimer" (by their weights alone), or "random" (by the seed); see
        `emo_jax.selection.scores`.
      examples: number of documents to choose by; None: all. With several numbers, the largest is
        used for the models, and `Selected.overlaps` tells how similar the choice of fewer is.
      max_tokens: maximum number of tokens in all examples.
      min_tokens: number of tokens below which a document is skipped.
      seed: seed for the order in which a store's documents are taken (0: the store's order), and
        for "random".
      allow_fewer: allow keeping fewer experts than a token uses.
      layout: "qwen2_moe", "mixtral", "glm4_moe" or "emo"; None: one that stock transformers loads,
        or "emo" if layers have different numbers of experts.
      prior: a token store of several domains, for "global" with few examples, see
        `emo_jax.selection.prior`.
      trust: allow a tokenizer whose file names code to import, see `emo_jax.load`; only a file of
        documents needs the tokenizer.
      quiet: show no progress.

    Returns:
      One `Selected` for each model written: its folder, experts, parameters and examples.

    Raises:
      UsageError: no such model, store, domain or file; a setting is invalid; there are too few
        examples; the model is dense; the store was made with another tokenizer; or `output`
        already exists.
      CheckpointError, HfFormatError: the model cannot be read, see `emo_jax.load`.
      DataError: `data` is damaged, or the scores of the examples are not finite.
    """
    model, data = os.fspath(model), os.fspath(data)
    numbers = examples if isinstance(examples, Sequence) else (examples,)
    ordered = sorted({n for n in numbers if n is not None})
    settings = _SelectSettings(
        method=method,
        examples=(*ordered, *([None] if None in numbers else [])),
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        seed=seed,
        allow_fewer=allow_fewer,
        layout=layout,
        prior=None if prior is None else os.fspath(prior),
    )
    if prior is not None and method != "global":
        raise UsageError(f"--prior {prior}: is for --method global, not {method}; give that")
    if (ordered and ordered[0] < 1) or not numbers:
        raise UsageError("--examples: must be numbers above 0, or all")
    per_layer_of(keep_per_layer)  # refuses what no model has
    opened = open_model(model, trust=trust)
    config = opened.config
    if config.moe is None:
        raise UsageError(f"{model}: {config.name} is dense, it has no experts to select")
    wanted = list(
        dict.fromkeys(parse_budgets(keep, keep_per_layer, config, allow_fewer=allow_fewer))
    )
    if not wanted:
        raise UsageError("give --keep, or --keep-per-layer with a count for each layer")
    folders = {
        budget: Path(output) if len(wanted) == 1 else Path(output) / f"keep-{budget}"
        for budget in wanted
    }
    refuse_existing(output)
    for budget in wanted:  # refuse what the layout cannot hold before the work
        if not budget.needs_mass:
            shape = _shape(config, budget, settings)
            layout_for(smaller_config(config, shape.routed_L), shape.layout)
    with Progress("select", enabled=not quiet) as shown:
        shown.show(f"reading examples of {data}")
        read = read_examples(
            opened,
            data,
            number=None if None in settings.examples else ordered[-1],
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            seed=seed,
        )
        there = len(read.documents)
        if more := [n for n in settings.examples if n is not None and n > there]:
            raise UsageError(
                f"--examples {max(more)}: {read.source} has {there} within --max-tokens"
                f" {settings.max_tokens}; ask for fewer, or raise it"
            )
        parent_print = fingerprint(opened.source, config)
        needs_mass = any(budget.needs_mass for budget in wanted)
        chooser = _Chooser(opened, settings, shown.show, needs_mass=needs_mass)
        given = read.first(settings.examples[-1])
        made = []
        for budget in wanted:
            choice, shape = chooser.choose(given, budget)
            kept_LR = choice.kept_LMR[:, 0]
            overlaps = {
                number: overlap(
                    chooser.choose(read.first(number), budget)[0].kept_LMR[:, 0], kept_LR
                )
                for number in settings.examples[:-1]
                if number is not None
            }
            selection = selection_from(
                opened,
                kept_LR,
                _about(settings, given, overlaps, budget),
                scores_LR=choice.scores_LMR[:, 0],
                parent_fingerprint=parent_print,
            )
            shown.show(f"writing {folders[budget]}")
            folder, smaller = write_selected(
                opened.source,
                config,
                kept_LR,
                folders[budget],
                selection,
                layout=shape.layout,
                **opened.for_export,
            )
            total, active = count_parameters(smaller)
            moe = moe_of(smaller)
            made.append(
                Selected(
                    folder=folder,
                    keep_L=tuple(moe.experts_in(n) for n in range(config.model.stacked_layers)),
                    parameters=total,
                    active=active,
                    examples=selection.about["examples"],
                    tokens=selection.about["tokens"],
                    overlaps=overlaps,
                    notes=shape.notes,
                )
            )
    return made


def stored_bytes(parameters: int) -> int:
    """Size in bytes of a folder's weights."""
    return parameters * F32_BYTES


class _Shape(NamedTuple):
    """Routed experts to keep in each layer, the layout that holds them, and notes for the user."""

    routed_L: list[int]
    layout: str | None
    notes: tuple[str, ...] = ()


def _shape(
    config: Config,
    budget: Budget,
    settings: _SelectSettings,
    mass_LMR: np.ndarray | None = None,
) -> _Shape:
    """What a budget comes to; `mass_LMR` is that of `routed_budgets`."""
    layout = settings.layout
    routed_LM = routed_budgets(config, budget, mass_LMR, allow_fewer=settings.allow_fewer)
    routed_L = routed_LM[:, 0].tolist()
    one_count = len(budget.counts) == 1 and budget.schedule == "uniform"
    if one_count or len(set(routed_L)) == 1 or layout == "emo":
        return _Shape(routed_L, layout)
    if layout is None:
        note = "layout emo: that of stock transformers has one number of experts for all layers"
        return _Shape(routed_L, "emo", (note,))
    most = max(routed_L)
    note = (
        f"layout {layout} has one number of experts for all layers: layers below"
        f" {most + moe_of(config).num_shared_experts} are filled up with their next best; --layout"
        " emo keeps the counts as given"
    )
    return _Shape([most] * len(routed_L), layout, (note,))


class _Chooser:
    """Chooses experts by examples; scores that do not depend on the budget are reused."""

    def __init__(
        self,
        opened: OpenedModel,
        settings: _SelectSettings,
        say: Callable[[str], None],
        *,
        needs_mass: bool,
    ):
        self._settings, self._say = settings, say
        self._config = within_documents(opened.config)
        self._model = ModelFunctions(self._config, eval_mesh(self._config))
        self._pad_id = opened.special_ids["pad_token_id"] or 0
        self._scores: dict[str, np.ndarray] = {}
        self._params: Params = {}
        if settings.method != "random" or needs_mass:  # random does not use the model
            say(f"reading {opened.path}")
            step = "" if opened.step is None else f"@{opened.step}"
            loaded = load_model(f"{opened.folder}{step}")
            self._params = jax.device_put(loaded.params, self._model.param_shardings())
        self._prior: RoutingPrior | None = None
        if settings.prior is not None:
            store = TokenStore.open(settings.prior)
            check_source(settings.prior, store, self._config, opened.tokenizer)
            self._prior = store_prior(self._model, self._params, store, SELECT, self._pad_id, say)

    def choose(self, examples: Examples, budget: Budget) -> tuple[Choice, _Shape]:
        """Chooses the experts for these examples."""
        method = self._settings.method
        mass_LMR = self._scored(examples, "global", budget, ()) if budget.needs_mass else None
        shape = _shape(self._config, budget, self._settings, mass_LMR)
        scores_LMR = self._scored(examples, method, budget, shape.routed_L)
        if self._prior is not None:
            number, shares_LMR = len(examples.documents), scores_LMR / scores_LMR.sum(-1)[..., None]
            scores_LMR = posterior_scores(self._prior, shares_LMR[:, 0], number)[:, None]
        kept_LMR = choose_best(scores_LMR, experts_there(self._config), shape.routed_L)
        return Choice(kept_LMR, scores_LMR), shape

    def _scored(
        self, examples: Examples, method: str, budget: Budget, routed_L: Sequence[int]
    ) -> np.ndarray:
        """Scores by one method, (L,1,R); only those of layerwise depend on the budget."""
        key = f"{method} {examples.fingerprint}"
        if method == "layerwise":
            key = f"{key} {routed_L}"
        if key not in self._scores:
            what = f"{len(examples.documents)} examples, {examples.tokens:,} tokens"
            self._scores[key] = choose_by_examples(
                self._model,
                self._params,
                examples,
                routed_L or [0] * self._config.model.stacked_layers,
                method=method,
                pad_id=self._pad_id,
                seed=self._settings.seed,
                progress=lambda line: self._say(f"keep {budget}: {what}, {line}"),
            ).scores_LMR
        scores_LMR = self._scores[key]
        if not np.isfinite(scores_LMR).all():
            raise DataError(
                f"{examples.source}: the scores of its examples are not finite, so no experts can"
                " be chosen: the model breaks on them"
            )
        return scores_LMR


def _about(
    settings: _SelectSettings, examples: Examples, overlaps: dict[int, float], budget: Budget
) -> dict[str, Any]:
    several = len(budget.counts) > 1
    by_data = budget.needs_mass or settings.method not in METHODS_WITHOUT_DATA
    return {
        "method": settings.method,
        **({"prior": settings.prior} if settings.prior else {}),
        "keep": "per-layer" if several else str(budget),
        **(
            {"keep_per_layer": list(budget.counts)}
            if several
            else {"keep_schedule": budget.schedule}
        ),
        "data": examples.source,
        "data_fingerprint": examples.fingerprint,
        "examples": len(examples.documents) if by_data else 0,
        "tokens": examples.tokens if by_data else 0,
        "seed": settings.seed,
        "overlap_of_fewer_examples": {str(n): value for n, value in overlaps.items()},
        "versions": versions(),
    }
