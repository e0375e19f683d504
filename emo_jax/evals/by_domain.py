"""`emo eval`: the losses of a model on a split of a store, by domain and overall.

Legend: M domains, C ways of running the model.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from emo_jax.batch import BATCH_TOKENS, Batch
from emo_jax.config import Config, MeshConfig
from emo_jax.config.labels import parse_label
from emo_jax.data.domain_groups import MOST_DOMAINS
from emo_jax.data.loader import heldout_batches
from emo_jax.data.store import TokenStore
from emo_jax.data.stream import TRAIN, TokenSource
from emo_jax.data.windows import Windows, open_source
from emo_jax.errors import ConfigError, DataError, UsageError
from emo_jax.evals.heldout import HeldOut, evaluate, make_eval_step
from emo_jax.evals.keep import DEFAULT_METHOD, choose, losses_kept
from emo_jax.evals.text_bytes import TextBytes
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import Params
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.selection.budgets import Budget, budget_of, check_keep
from emo_jax.selection.variants import within_documents
from emo_jax.tokenizer.load import Tokenizer

SELECT = "select"  # the split that experts are chosen on
FULL = "full"
WITHIN = "within documents"
AS_TRAINED = "as trained"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """What to measure besides the loss of the whole model.

    Attributes:
      split: "test", "select" or "train".
      windows: maximum number of windows of a split, spread evenly over it.
      pools: pool sizes, in routed experts.
      keeps: experts to keep for each domain: a number in every layer, shared ones included, or a
        budget.
      method: how they are chosen, one of `emo_jax.config.names.Method`.
      allow_fewer: allow keeping fewer than top-k.
      as_trained: also with the capacity and the label pools of training, see `training_options`.
    """

    split: str = "test"
    windows: int = 1024
    pools: tuple[int, ...] = ()
    keeps: tuple[int | Budget, ...] = ()
    method: str = DEFAULT_METHOD
    allow_fewer: bool = False
    as_trained: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DomainLosses:
    """Sums over the windows of a split, and the losses computed from them.

    Attributes:
      ce_sum_CM: sums of the loss in nats, by way of running the model: FULL, "pool=16",
        AS_TRAINED, WITHIN, "keep=32". Not finite where the model breaks.
      bytes_M: None if the tokenizer is not known.
      windows, windows_there: number of windows measured, and in the split.
      select_windows: number of windows that experts were chosen on; 0: none were chosen.
      unseen_M: bool, domains without select tokens to choose experts by: their "keep=…" losses are
        not measured, and NaN. All False if no experts were chosen.
      kept: the experts of each domain's tokens, (L,M,R) bool, by what was asked for.
    """

    domains: tuple[str, ...]
    labels_M: np.ndarray
    bytes_M: np.ndarray | None
    ce_sum_CM: dict[str, np.ndarray]
    windows: int
    windows_there: int
    select_windows: int
    unseen_M: np.ndarray
    kept: Mapping[int | Budget, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def complete_M(self) -> np.ndarray:
        """Domains for which every loss was measured; sums and means cover only these.

        A loss that is not finite counts as measured, so that it shows in them.
        """
        return (self.labels_M > 0) & ~self.unseen_M

    @property
    def broken_M(self) -> np.ndarray:
        """Domains with a measured loss that is not finite."""
        ways = [way for way in self.ce_sum_CM if not way.startswith("keep=")]
        finite_M = np.isfinite(np.stack([self.ce_sum_CM[way] for way in ways])).all(axis=0)
        every_M = np.isfinite(np.stack(list(self.ce_sum_CM.values()))).all(axis=0)
        return (self.labels_M > 0) & ~np.where(self.unseen_M, finite_M, every_M)

    def loss_M(self, way: str) -> np.ndarray:
        """Nats per token of each domain; NaN if it was not measured or has no labels."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.ce_sum_CM[way] / self.labels_M

    def bits_M(self, way: str) -> np.ndarray:
        """Bits per byte of each domain; NaN where there are none."""
        if self.bytes_M is None:
            return np.full(len(self.domains), np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.ce_sum_CM[way] / self.bytes_M / math.log(2)

    def overall(self, way: str) -> tuple[float, float]:
        """Nats per token and bits per byte over all tokens of the complete domains."""
        labels, ce_sum = (
            float(a_M[self.complete_M].sum()) for a_M in (self.labels_M, self.ce_sum_CM[way])
        )
        size = 0.0 if self.bytes_M is None else float(self.bytes_M[self.complete_M].sum())
        bits = ce_sum / size / math.log(2) if size else math.nan
        return (ce_sum / labels if labels else math.nan), bits

    def mean(self, way: str) -> tuple[float, float]:
        """The same two numbers as means over the complete domains, equally weighted."""
        if not self.complete_M.any():
            return math.nan, math.nan
        loss, bits = (a_M[self.complete_M].mean() for a_M in (self.loss_M(way), self.bits_M(way)))
        return float(loss), float(bits)


def check_ways(config: Config, settings: EvalSettings) -> None:
    """Rejects pools and numbers of experts that the model does not allow.

    Raises:
      UsageError: the model is dense, or a size is out of range.
    """
    moe = config.moe
    if settings.as_trained:
        training_options(config, ())
    for name, sizes in (("--pool", settings.pools), ("--keep", settings.keeps)):
        for size in sizes:
            if moe is None:
                raise UsageError(f"{name} {size}: {config.name} is dense, it has no experts")
            # Pools contain routed experts only, but their size may be up to all experts, as in the
            # config.
            if isinstance(size, Budget) or name == "--keep":
                for count in budget_of(size).counts:
                    check_keep(count, moe, allow_fewer=settings.allow_fewer)
                continue
            least = moe.num_routed_picks
            if not least <= size <= moe.num_experts:
                raise UsageError(
                    f"{name} {size}: must be {least}..{moe.num_experts} for {config.name}"
                    " (routed experts)"
                )


def training_options(config: Config, domains: Sequence[str]) -> dict[str, Any]:
    """What acts in training only, as arguments of the model: capacity and label pools, no jitter.

    Args:
      domains: of the data, whose documents get the pools of the labels with their names.

    Raises:
      UsageError: the model is trained with neither, or a domain has no label.
    """
    moe = config.moe
    if moe is None or not (moe.capacity_factor or moe.pool.labelled):
        raise UsageError(
            f"--as-trained: {config.name} is trained without a capacity (moe.capacity_factor) and"
            " without label pools (moe.pool.labels); leave it out"
        )
    if not moe.pool.labelled:
        return {"training": True}
    rows = {parse_label(label)[0]: row for row, label in enumerate(moe.pool.labels)}
    for name in domains:
        if name not in rows:
            raise UsageError(
                f"--as-trained: domain {name!r} of the data is no label of {config.name}"
                f" ({', '.join(list(rows)[:8])}), so that its documents have no pool"
            )
    return {"training": True, "label_rows_M": np.array([rows[n] for n in domains], np.int32)}


class Split(NamedTuple):
    """A split to measure on."""

    windows: Windows  # without the repetition filter
    tokenizer: Tokenizer | None  # that made the ids, if known
    fingerprint: str  # of the store
    note: str = ""  # about domains that were merged


def open_split(
    location: str,
    config: Config,
    split: str,
    tokenizer: Tokenizer | None,
    *,
    max_domains: int = MOST_DOMAINS,
    trust: bool = False,
) -> Split:
    """Opens a split of a store for a model.

    Args:
      location: a token store, or token files, see `open_source`.
      config: config of the model.
      split: name of the split.
      tokenizer: the model's tokenizer; None if it has none.
      max_domains: number of domains of a store, the largest, that keep their names; all others are
        merged into one.
      trust: allow the store's tokenizer, which is needed to count bytes, to be code that a file
        names.

    Raises:
      UsageError: no such store or split, it does not fit the model, or its tokenizer is code that
        is not trusted.
    """
    source = open_source(location, config.data, trust=trust)
    if not source.streams(split):
        there = source.splits if isinstance(source, TokenStore) else (TRAIN,)
        raise UsageError(f"{location}: no split {split!r}; it has {', '.join(there)}")
    check_source(location, source, config, tokenizer)
    note = ""
    if isinstance(source, TokenStore):
        tokenizer = source.tokenizer()
        source = source.grouped(max_domains)
        note = "" if source.groups is None else source.groups.note
    if tokenizer is not None:
        tokenizer.ready()
    windows = Windows(
        source,
        config.data.seq_len,
        split=split,
        eos_starts_next_pool=config.data.eos_starts_next_pool,
    )
    return Split(windows, tokenizer, source.fingerprint, note)


def check_source(
    location: str, source: TokenSource, config: Config, tokenizer: Tokenizer | None
) -> None:
    """Raises UsageError for tokens of another tokenizer, or if the model lacks some of its ids."""
    if isinstance(source, TokenStore) and tokenizer is not None:
        try:
            source.check_tokenizer(tokenizer.fingerprint)
        except DataError as error:
            raise UsageError(str(error)) from error
    if source.vocab_size > config.model.vocab_size:
        raise UsageError(
            f"{location}: its tokenizer has {source.vocab_size} ids, the model"
            f" {config.model.vocab_size}; give a store made with the model's tokenizer"
        )


def eval_mesh(config: Config) -> Mesh:
    """A mesh of all devices, with the sizes from `mesh_that_fits`."""
    return mesh_lib.make_mesh(mesh_that_fits(config))


def mesh_that_fits(config: Config) -> MeshConfig:
    """The config's mesh if it fits these devices; else parameters are sharded, or replicated."""
    for sizes in (config.mesh, MeshConfig(), MeshConfig(replica=-1, fsdp=1)):
        try:
            mesh = mesh_lib.make_mesh(sizes)
            ModelFunctions(config, mesh).param_shardings()
            mesh_lib.check_batch(mesh, mesh.size, config.data.seq_len)
        except ConfigError:
            continue
        return sizes
    raise AssertionError("whole parameters fit any mesh")


def domain_losses(
    config: Config,
    params: Params,
    chosen: Split,
    settings: EvalSettings,
    *,
    mesh: Mesh,
    progress: Callable[[str], None] = lambda _: None,
) -> DomainLosses:
    """Measures the losses of a model on a split.

    There is no pool except for `pool=N`. Attention is that of the config. Where experts are left
    out, it is within documents, since a pruned model serves one document at a time; a model with
    other attention is then also measured within documents with all its experts.

    Args:
      config: config of the model.
      params: its parameters.
      chosen: the split, from `open_split`.
      settings: what to measure.
      mesh: where to run.
      progress: called for every batch with a line about what is being measured.
    """
    check_ways(config, settings)
    data = Pass(chosen.windows, settings.windows, mesh)
    params = jax.device_put(params, ModelFunctions(config, mesh).param_shardings())
    domains = data.domains
    counter = None if chosen.tokenizer is None else TextBytes(chosen.tokenizer)
    bytes_M = None if counter is None else np.zeros(len(domains), np.int64)

    def step_of(config: Config, *, router_probs: bool = False) -> Callable[..., dict[str, Any]]:
        model = ModelFunctions(config, mesh)
        return make_eval_step(config, model, len(domains), router_probs=router_probs)

    def count(batch: Batch) -> None:
        if counter is not None and bytes_M is not None:
            np.add(bytes_M, counter.by_domain(batch, len(domains)), out=bytes_M)

    own_step = step_of(config)
    full = evaluate(own_step, params, data.batches(progress, f"{data.split} loss", count))
    sums = {FULL: full.ce_sum_M}
    for size in dict.fromkeys(settings.pools):
        batches = data.batches(progress, f"{data.split} loss, pools of {size}")
        sums[f"pool={size}"] = evaluate(own_step, params, batches, pool_size=size).ce_sum_M
    if settings.as_trained:
        step = make_eval_step(
            *(config, ModelFunctions(config, mesh), len(domains)),
            router_probs=False,
            training=training_options(config, domains),
        )
        batches = data.batches(progress, f"{data.split} loss as in training")
        sums[AS_TRAINED] = evaluate(step, params, batches).ce_sum_M
    select_windows, unseen_M = 0, np.zeros(len(domains), bool)
    chosen_experts: dict[int | Budget, np.ndarray] = {}
    if settings.keeps:
        within, keep_step = within_documents(config), own_step
        if within is not config:
            keep_step = step_of(within)
            batches = data.batches(progress, f"{data.split} loss, attention within documents")
            sums[WITHIN] = evaluate(keep_step, params, batches).ce_sum_M
        select = Pass(data.like(SELECT), settings.windows, mesh)
        select_windows, what = select.count, "choosing experts on select"
        choice = choose(
            ModelFunctions(within, mesh),
            params,
            select.batches(progress, what),
            len(domains),
            method=settings.method,
            allow_fewer=settings.allow_fewer,
            progress=lambda line: progress(f"{what}: {line}"),
        )
        left, unseen_M = iter(dict.fromkeys(settings.keeps)), choice.unseen_M

        def judge(keep_LMR: np.ndarray) -> HeldOut:
            keep = next(left)
            chosen_experts[keep] = keep_LMR
            batches = data.batches(progress, f"{data.split} loss, {keep} experts kept")
            return evaluate(keep_step, params, batches, keep_LMR=keep_LMR)

        for keep, kept in losses_kept(choice, settings.keeps, judge).items():
            sums[f"keep={keep}"] = kept.ce_sum_M
    return DomainLosses(
        domains=domains,
        labels_M=full.labels_M,
        bytes_M=bytes_M,
        ce_sum_CM=sums,
        windows=data.count,
        windows_there=len(chosen.windows),
        select_windows=select_windows,
        unseen_M=unseen_M,
        kept=chosen_experts,
    )


class Pass:
    """Some windows of a split, read again for every pass, so that they need not fit in memory."""

    def __init__(self, windows: Windows, most: int, mesh: Mesh):
        self._windows, self._mesh = windows, mesh
        self.split, self.count = windows.split, min(most, len(windows))
        # Without named domains, all tokens are one domain.
        self._named = bool(windows.domains)
        self.domains: tuple[str, ...] = tuple(windows.domains) if self._named else ("all",)
        rows = max(1, BATCH_TOKENS // windows.seq_len)
        self._rows = min(rows, math.ceil(self.count / mesh.size)) * mesh.size
        self._sharding = mesh_lib.windows_sharding(mesh)

    def like(self, split: str) -> Windows:
        """Windows of another split of the same source."""
        source = self._windows.source
        if not source.streams(split):
            raise UsageError(
                f"--keep: the store has no split {split!r} to choose experts on; prepare more"
                " documents"
            )
        return Windows(source, self._windows.seq_len, split=split)

    def batches(
        self,
        progress: Callable[[str], None],
        what: str,
        look: Callable[[Batch], None] = lambda _: None,
    ) -> Iterator[Batch]:
        """Yields batches on the devices; `look` is called with each one first, on the host."""
        done = 0
        for batch in heldout_batches(self._windows, batch_size=self._rows, max_windows=self.count):
            progress(f"{what}: {done:,} of {self.count:,} windows")
            if not self._named:
                batch = batch._replace(domain_ids=np.where(batch.segment_ids >= 0, 0, -1))
            look(batch)
            yield Batch(*(jax.device_put(a, self._sharding) for a in batch))
            done = min(done + self._rows, self.count)
