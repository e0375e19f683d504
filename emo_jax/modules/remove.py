"""`emo remove`: a model without the experts that one domain uses and others do not.

Legend: L layers, M domains, R routed experts.
"""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import jax
import numpy as np

from emo_jax.checkpoint.manifest import versions
from emo_jax.config import moe_of
from emo_jax.config.names import REMOVAL_METHODS, RemovalMethod
from emo_jax.data.domain_groups import MOST_DOMAINS
from emo_jax.errors import UsageError
from emo_jax.evals.by_domain import SELECT, Pass, eval_mesh, open_split
from emo_jax.evals.heldout import HeldOut, evaluate, make_eval_step
from emo_jax.files.atomic import refuse_existing
from emo_jax.files.progress import Progress
from emo_jax.hf.layouts import layout_for
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import count_parameters
from emo_jax.modules.assemble import smaller_config
from emo_jax.modules.folder import open_with_experts, selection_from, write_selected
from emo_jax.saved.load import load_model
from emo_jax.selection.budgets import choose_best, experts_there
from emo_jax.selection.examples import split_location
from emo_jax.selection.removal import removal_scores
from emo_jax.selection.variants import within_documents

if TYPE_CHECKING:
    from rich.table import Table


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Removed:
    """A model that `remove` wrote.

    Attributes:
      folder: its Hugging Face folder.
      domain: what was removed.
      dropped: number of routed experts taken out of each layer.
      parameters: number of parameters left.
      domains: names of the domains whose losses were measured; empty: none were.
      before_M, after_M: their losses, nats per token; NaN where there is nothing to measure.
    """

    folder: Path
    domain: str
    dropped: int
    parameters: int
    domains: tuple[str, ...] = ()
    before_M: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    after_M: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))

    @property
    def rises(self) -> tuple[float, float]:
        """The rise of the domain's loss, and the mean rise of the others'."""
        rise_M = self.after_M - self.before_M
        own_M = np.array([name == self.domain for name in self.domains])
        return float(np.nanmean(rise_M[own_M])), float(np.nanmean(rise_M[~own_M]))

    def to_json(self) -> dict[str, Any]:
        """All figures; None for what was not measured and for a loss that is not finite."""

        def numbers(values_M: np.ndarray) -> dict[str, float | None]:
            named = zip(self.domains, values_M.tolist(), strict=True)
            return {name: value if np.isfinite(value) else None for name, value in named}

        return {
            "removed": self.domain,
            "dropped": self.dropped,
            "parameters": self.parameters,
            "before": numbers(self.before_M),
            "after": numbers(self.after_M),
        }

    def table(self) -> "Table":
        """The losses as a table."""
        from rich import box
        from rich.markup import escape
        from rich.table import Table

        made = Table(box=box.SIMPLE_HEAD, title=f"loss (nats a token) without {self.domain}")
        made.add_column("domain")
        for name in ("before", "after", "rise"):
            made.add_column(name, justify="right")
        for name, before, after in zip(self.domains, self.before_M, self.after_M, strict=True):
            made.add_row(escape(name), f"{before:.3f}", f"{after:.3f}", f"{after - before:+.4f}")
        return made


def remove(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    drop: int | str = "12.5%",
    method: RemovalMethod = "contrast",
    windows: int = 1024,
    eval_data: str | os.PathLike[str] | None = None,
    layout: str | None = None,
    trust: bool = False,
    quiet: bool = True,
) -> Removed:
    """Takes out the experts that a domain uses and the others of its store do not.

    The folder has a `selection.json`, as one of `emo select`.

    Args:
      model: `WORKDIR`, `WORKDIR@STEP`, or a Hugging Face folder.
      data: `STORE:DOMAIN`; its split "select" tells which experts the domain and the others use.
      output: folder to create.
      drop: number of routed experts to take out of each layer: a count, or a share of all experts.
      method: "contrast", "ratio", "information" or "mass", see `emo_jax.selection.removal`.
      windows: maximum number of windows of a split to use, spread evenly over it.
      eval_data: a store, on whose split "test" the losses before and after are measured; None: they
        are not.
      layout: "qwen2_moe", "mixtral", "glm4_moe" or "emo"; None: one that stock transformers loads.
      trust: see `emo_jax.load`.
      quiet: show no progress.

    Raises:
      UsageError: no such model, store or domain; the store has no other domain; the domain has no
        tokens; too many experts are to be dropped; or `output` already exists.
      CheckpointError, HfFormatError: the model cannot be read, see `emo_jax.load`.
    """
    path = os.fspath(model)
    if method not in REMOVAL_METHODS:
        raise UsageError(f"--method {method}: must be one of {', '.join(get_args(RemovalMethod))}")
    opened = open_with_experts(path)
    config, moe = within_documents(opened.config), moe_of(opened.config)
    there_LR = experts_there(config)
    most = int(there_LR.sum(axis=1).min()) - moe.num_routed_picks
    dropped = _number(drop, moe.num_experts, most)
    location, domain = split_location(os.fspath(data), lambda text: Path(text).exists())
    if domain is None:
        raise UsageError(f"--data {data}: must be STORE:DOMAIN, as in store:medicine")
    refuse_existing(output)
    routed_L = (there_LR.sum(axis=1) - dropped).tolist()
    layout_for(smaller_config(opened.config, routed_L), layout)  # refuses before the work
    options: dict[str, Any] = {"max_domains": MOST_DOMAINS, "trust": trust}
    chosen = open_split(location, config, SELECT, opened.tokenizer, **options)
    names = tuple(chosen.windows.domains)
    if domain not in names:
        raise UsageError(
            f"{location}: no domain {domain!r}; it has {', '.join(sorted(names)[:20])}"
        )
    judged = None
    if eval_data is not None:
        judged = open_split(os.fspath(eval_data), config, "test", opened.tokenizer, **options)
    mesh = eval_mesh(config)
    functions = ModelFunctions(config, mesh)
    with Progress("remove", enabled=not quiet) as shown:
        shown.show(f"reading {opened.path}")
        loaded = load_model(path, trust=trust)
        params = jax.device_put(loaded.params, functions.param_shardings())

        def measure(
            data: Pass, what: str, keep_LMR: np.ndarray | None = None, probs: bool = False
        ) -> HeldOut:
            step = make_eval_step(config, functions, len(data.domains), router_probs=probs)
            return evaluate(step, params, data.batches(shown.show, what), keep_LMR=keep_LMR)

        seen = Pass(chosen.windows, windows, mesh)
        mass_LMR = measure(seen, "routing on select", probs=True).router_probs_LMR
        assert mass_LMR is not None
        there_M = mass_LMR.sum(axis=(0, 2)) > 0
        _check_tokens(location, names, domain, there_M)
        scores_LR = removal_scores(mass_LMR, names.index(domain), method)
        out_LR = choose_best(scores_LR[:, None], there_LR, [dropped] * len(there_LR))[:, 0]
        kept_LR = there_LR & ~out_LR
        losses: dict[str, Any] = {}
        if judged is not None:
            data_ = Pass(judged.windows, windows, mesh)
            keep_LMR = np.repeat(kept_LR[:, None], len(data_.domains), axis=1)
            losses = {
                "domains": data_.domains,
                "before_M": measure(data_, "test loss before").loss_M,
                "after_M": measure(data_, "test loss after", keep_LMR).loss_M,
            }
        selection = selection_from(
            *(opened, kept_LR),
            about={
                "method": f"removal by {method}",
                "removed": domain,
                "drop": dropped,
                "data": f"{location}, split {SELECT}",
                "data_fingerprint": chosen.fingerprint,
                "windows": seen.count,
                "versions": versions(),
            },
            # Of keeping: what select and compose fill up with comes first.
            scores_LR=-scores_LR,
        )
        shown.show(f"writing {output}")
        folder, smaller = write_selected(
            *(opened.source, opened.config, kept_LR, output, selection),
            layout=layout,
            **opened.for_export,
        )
    return Removed(
        folder=folder,
        domain=domain,
        dropped=dropped,
        parameters=count_parameters(smaller)[0],
        **losses,
    )


def _number(drop: int | str, num_experts: int, most: int) -> int:
    """Routed experts to drop, of a count or a share."""
    text = str(drop)
    share = text.strip().removesuffix("%")
    try:
        number = int(float(share) * num_experts / 100) if "%" in text else int(share)
    except (ValueError, OverflowError):
        raise UsageError(f"--drop {text}: must be a count like 8 or a share like 12.5%") from None
    if not 1 <= number <= most:
        raise UsageError(
            f"--drop {text}: is {number} experts a layer, must be 1..{most}: a token needs as many"
            " routed experts as it picks"
        )
    return number


def _check_tokens(location: str, names: tuple[str, ...], domain: str, there_M: np.ndarray) -> None:
    """Refuses a domain, or others, without tokens to tell them apart by."""
    own = names.index(domain)
    if not there_M[own]:
        raise UsageError(
            f"{location}: domain {domain} has no tokens in the split {SELECT}; prepare more of it"
        )
    if there_M.sum() < 2:
        raise UsageError(
            f"{location}: has no other domain than {domain} in the split {SELECT}, and what the"
            " others do not use cannot be told; give a store with other domains"
        )
