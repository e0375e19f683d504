"""Sections of the config that define a run: data, optimizer, loop, checkpoints, mesh, trackers."""

import dataclasses
from dataclasses import dataclass, field

from emo_jax.config.changes import RESUME
from emo_jax.config.checks import nearest, require
from emo_jax.config.names import (
    FROZEN_PARTS,
    Dtype,
    OnNan,
    OnSpike,
    OptimizerName,
    Packing,
    RawDtype,
    Schedule,
    WandbMode,
    WindowOrder,
)
from emo_jax.errors import ConfigError, has_secret

# allenai/dolma2-tokenizer
DOLMA2_EOS_ID = 100_257
DOLMA2_PAD_ID = 100_277
_MOST_WEIGHT = 1e100  # of a source; sums of more may be infinite


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source of a mixture.

    A store may occur several times with different `from_step`: its weight changes at these steps,
    and it is read on from where it was.
    """

    store: str  # as data.store
    weight: float  # share of the tokens, relative to the weights of the other sources
    domain: str = ""  # domain of all its documents; empty: as the store says
    epochs: float = 0.0  # passes after which it is no longer read; 0: no limit
    from_step: int = 0  # the first step (from 0) with this weight

    def __post_init__(self) -> None:
        require(bool(self.store), "data.sources.store", self.store, "a token store or token files")
        require(self.weight >= 0, "data.sources.weight", self.weight, "at least 0")
        finite = self.weight <= _MOST_WEIGHT
        require(finite, "data.sources.weight", self.weight, f"at most {_MOST_WEIGHT:g}")
        require(self.epochs >= 0, "data.sources.epochs", self.epochs, "at least 0")
        require(self.from_step >= 0, "data.sources.from_step", self.from_step, "at least 0")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Windows of token stores, or of other trainers' token files read in place."""

    # Folder written by emo prepare, or other trainers' token files (docs/data.md).
    store: str = field(default="", metadata=RESUME)
    # A mixture, instead of data.store. The past of a run cannot be changed, its future can.
    sources: tuple[SourceConfig, ...] = field(default=(), metadata=RESUME)
    # Domains of data.store whose documents are read, as if it had no others; empty: all.
    domains: tuple[str, ...] = ()
    order: WindowOrder = "shuffled"  # grain: as runs of emo_jax 0.1; olmo: the reference's
    # What a window holds: a cut of the documents end to end; whole documents that fit; one.
    packing: Packing = "cut"
    seq_len: int = 4096  # tokens per window
    seed: int = 0  # for the order of the windows
    eos_starts_next_pool: bool = False  # the reference's off-by-one (SPEC 2.1)
    repetition_filter: bool = True  # mask windows that repeat a short pattern (SPEC 5.5)
    prefetch: int = field(default=2, metadata=RESUME)  # batches prepared ahead
    raw_vocab_size: int = 100_278  # of token files, which do not record it; Dolma 2's (SPEC 5.1)
    raw_eos_id: int = DOLMA2_EOS_ID  # likewise: ends a document
    raw_pad_id: int = DOLMA2_PAD_ID  # likewise: fills a window; raw_eos_id if only that is set
    raw_dtype: RawDtype = "auto"  # of a token; auto: uint16 if the vocabulary fits, else uint32
    # Folder or URL of the paths in a mix file; "": the folder of the mix file.
    raw_base: str = field(default="", metadata=RESUME)
    raw_tokenizer: str = field(default="", metadata=RESUME)  # stands for {TOKENIZER} in a mix file
    raw_column: str = "auto"  # of an MDS or tf.train.Example; auto: tokens, input_ids or the like

    def __post_init__(self) -> None:
        self._check_sources()
        if self.order == "olmo":
            require(
                self.packing == "cut", "data.packing", self.packing, "'cut' in the order 'olmo'"
            )
            require(self.seed >= 0, "data.seed", self.seed, "at least 0 in the order 'olmo'")
        require(self.seq_len >= 2, "data.seq_len", self.seq_len, "at least 2")
        require(self.prefetch >= 1, "data.prefetch", self.prefetch, "at least 1")
        require(self.raw_vocab_size >= 1, "data.raw_vocab_size", self.raw_vocab_size, "at least 1")
        below = f"0..{self.raw_vocab_size - 1} (below data.raw_vocab_size)"
        for name, value in (("raw_eos_id", self.raw_eos_id), ("raw_pad_id", self.raw_padding_id)):
            usual = value in (DOLMA2_EOS_ID, DOLMA2_PAD_ID)
            hint = f"; {value} is Dolma 2's, give that of your vocabulary" if usual else ""
            require(0 <= value < self.raw_vocab_size, f"data.{name}", value, below + hint)

    def _check_sources(self) -> None:
        once = len(set(self.domains)) == len(self.domains)
        require(once, "data.domains", self.domains, "different names")
        if not self.sources:
            return
        require(not self.domains, "data.domains", self.domains, "empty where data.sources is given")
        require(not self.store, "data.store", self.store, "empty where data.sources is given")
        require(self.order != "olmo", "data.order", self.order, "'shuffled' in a mixture")
        seen: dict[str, list[SourceConfig]] = {}
        for one in self.sources:
            seen.setdefault(one.store, []).append(one)
        for store, entries in seen.items():
            steps = [one.from_step for one in entries]
            twice = f"different for each entry of {store!r}"
            require(len(set(steps)) == len(steps), "data.sources.from_step", steps, twice)
            for name in ("domain", "epochs"):
                values = {getattr(one, name) for one in entries} - {"", 0.0}
                one_only = f"the same in all entries of {store!r}"
                require(len(values) <= 1, f"data.sources.{name}", sorted(values), one_only)
        start = sum(one.weight for one in self.sources if one.from_step == 0)
        require(start > 0, "data.sources.weight", start, "above 0 for a source from step 0 on")

    @property
    def stores(self) -> tuple[str, ...]:
        """The stores of the run: `store`, or those of `sources` in order of first mention."""
        named = dict.fromkeys(one.store for one in self.sources)
        return tuple(named) or ((self.store,) if self.store else ())

    @property
    def raw_padding_id(self) -> int:
        """`raw_pad_id`, or `raw_eos_id` if only the latter differs from Dolma 2's."""
        own_end = self.raw_eos_id != DOLMA2_EOS_ID and self.raw_pad_id == DOLMA2_PAD_ID
        return self.raw_eos_id if own_end else self.raw_pad_id


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (SPEC 4) or Muon. After a warm-up the learning rate falls to a fraction of its peak.

    `muon` takes the matrices of the layers, each expert's own, and leaves embeddings and norms to
    AdamW; its updates are scaled so that AdamW's learning rate and weight decay can stay.

    `cosine` falls from the peak until `train.steps`; `wsd` is constant and falls linearly over the
    last `decay_steps`. A step whose loss or gradient norm exceeds the mean of the last
    `skip_window` steps by `skip_sigma` of their standard deviations is skipped.
    """

    name: OptimizerName = "adamw"
    peak_lr: float = 4e-3  # learning rate at the end of the warm-up
    schedule: Schedule = "cosine"
    warmup_steps: int = 2000  # linear
    decay_steps: int = 0  # for `wsd`: the last of the train.steps
    final_lr_fraction: float = 0.1  # of peak_lr, at train.steps
    skip_window: int = 0  # steps; 0: no step is skipped
    skip_sigma: float = 6.0  # standard deviations above the mean
    b1: float = 0.9  # for Adam's first moment
    b2: float = 0.95  # for its second moment
    eps: float = 1e-8
    muon_momentum: float = 0.95  # Nesterov's
    first_moment_dtype: Dtype = "float32"  # bfloat16 saves 2 bytes per parameter
    # Keep Adam's moments in host memory.
    offload: bool = field(default=False, metadata=RESUME)
    weight_decay: float = 0.1  # decoupled; on everything but the input embedding
    clip_norm: float = 1.0  # maximum global norm of the gradients
    # Parts kept unchanged, to the last bit: embeddings (input and output), attention, norms,
    # router, routed, shared (experts), old_experts (all routed ones but the last
    # moe.pool.forced_experts, with their router columns), mlp (of a dense model).
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = [name for name in self.frozen if name not in FROZEN_PARTS]
        near = nearest(unknown[0], list(FROZEN_PARTS)) if unknown else ""
        allowed = f"some of {', '.join(FROZEN_PARTS)}{near}"
        require(not unknown, "optimizer.frozen", self.frozen, allowed)
        require(self.peak_lr > 0, "optimizer.peak_lr", self.peak_lr, "above 0")
        require(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "at least 0")
        require(
            0 <= self.final_lr_fraction <= 1,
            "optimizer.final_lr_fraction",
            self.final_lr_fraction,
            "0..1",
        )
        for name in ("b1", "b2", "muon_momentum"):
            require(
                0 <= getattr(self, name) < 1,
                f"optimizer.{name}",
                getattr(self, name),
                "at least 0 and below 1",
            )
        if self.name == "muon":
            require(not self.offload, "optimizer.offload", self.offload, "False with muon")
        decay, window = self.decay_steps, self.skip_window
        if self.schedule == "wsd":
            require(decay >= 1, "optimizer.decay_steps", decay, "at least 1 in a wsd schedule")
        else:
            unread = f"0: a {self.schedule} schedule does not read it"
            require(decay == 0, "optimizer.decay_steps", decay, unread)
        # Half a window needs two steps before the newest, or there is no standard deviation.
        require(window == 0 or window >= 6, "optimizer.skip_window", window, "0 or at least 6")
        require(self.skip_sigma > 0, "optimizer.skip_sigma", self.skip_sigma, "above 0")
        require(self.eps > 0, "optimizer.eps", self.eps, "above 0")
        require(self.clip_norm > 0, "optimizer.clip_norm", self.clip_norm, "above 0")
        require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "at least 0")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training loop. A batch is `batch_size` windows in `micro_batches` equal parts."""

    steps: int  # the run ends here
    batch_size: int  # windows per step, over all devices
    micro_batches: int = 1  # processed one after another, to save memory
    z_loss_weight: float = 1e-5  # weight of logsumexp² of the vocabulary logits
    # Tokens per window whose logits exist at once.
    loss_chunk: int = field(default=1024, metadata=RESUME)
    log_every: int = field(default=10, metadata=RESUME)  # steps
    eval_every: int = field(default=0, metadata=RESUME)  # steps; 0: only at the end
    # Held-out windows per evaluation; 0: none.
    eval_windows: int = field(default=64, metadata=RESUME)
    # Numbers of experts per layer, including shared ones, for which to also report the held-out
    # loss; the experts are chosen per domain on half of the windows and judged on the other half.
    eval_keep: tuple[int, ...] = field(default=(), metadata=RESUME)
    # Tasks of lm-evaluation-harness, by name or YAML file: accuracy, and bits a byte of the gold
    # answers, with all experts and with each number of `eval_keep`.
    eval_tasks: tuple[str, ...] = field(default=(), metadata=RESUME)
    tasks_every: int = field(default=0, metadata=RESUME)  # steps; 0: only at the end
    task_items: int = field(default=100, metadata=RESUME)  # of each task, the first ones
    # A loss or gradient that is not finite. stop: the run ends; skip: its batch is passed over;
    # rollback: so are all batches since the newest checkpoint, to which the state returns.
    on_nan: OnNan = field(default="stop", metadata=RESUME)
    # A spike, as optimizer.skip_window defines it. skip: the step changes nothing; rollback: as
    # for on_nan.
    on_spike: OnSpike = field(default="skip", metadata=RESUME)
    # Seconds without a step after which the run writes all stacks and exits with 75; several times
    # as long for what takes longer (docs/training.md); 0: never.
    stall_timeout: float = field(default=600.0, metadata=RESUME)

    def __post_init__(self) -> None:
        for name in (
            *("steps", "batch_size", "micro_batches", "loss_chunk", "log_every", "task_items"),
        ):
            require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "at least 1")
        for name in (
            *("eval_every", "eval_windows", "tasks_every", "z_loss_weight", "stall_timeout"),
        ):
            require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "at least 0")
        require(
            self.batch_size % self.micro_batches == 0,
            "train.micro_batches",
            self.micro_batches,
            f"a divisor of train.batch_size = {self.batch_size}",
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save, and what to keep: the newest `keep_last`, plus every `keep_every`-th step."""

    save_every: int = 100  # steps
    keep_last: int = 2  # checkpoints
    keep_every: int = 0  # steps; 0: none beyond keep_last
    max_failed_saves: int = 2  # in a row, that a run outlives; it ends with one more
    local: str = ""  # folder on a disk of each host, for its parts of the states; "": none
    local_every: int = 0  # steps from one such state to the next; 0: none

    def __post_init__(self) -> None:
        require(
            self.local_every >= 0 and (self.local_every > 0) == bool(self.local),
            "checkpoint.local_every",
            self.local_every,
            "above 0 with checkpoint.local, else 0",
        )
        require(self.save_every >= 1, "checkpoint.save_every", self.save_every, "at least 1")
        require(self.keep_last >= 1, "checkpoint.keep_last", self.keep_last, "at least 1")
        require(
            self.keep_every >= 0 and self.keep_every % self.save_every == 0,
            "checkpoint.keep_every",
            self.keep_every,
            f"0 or a multiple of checkpoint.save_every = {self.save_every}",
        )
        require(
            self.max_failed_saves >= 0,
            "checkpoint.max_failed_saves",
            self.max_failed_saves,
            "at least 0",
        )


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1, meaning all remaining devices."""

    replica: int = 1  # copies of the parameters; a multiple of the number of TPU slices
    fsdp: int = -1  # devices that share one copy
    expert: int = 1  # devices that share the experts, and one copy of everything else
    context: int = 1  # devices that share the tokens of a window
    tensor: int = 1  # devices that share attention heads and the hidden size of experts

    def __post_init__(self) -> None:
        sizes = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name, size in sizes.items():
            require(size >= 1 or size == -1, f"mesh.{name}", size, "at least 1, or -1 for the rest")
        free = [name for name, size in sizes.items() if size == -1]
        require(
            len(free) <= 1, f"mesh.{free[-1] if free else ''}", -1, f"set: {free} cannot all be -1"
        )


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """A run that starts from another run's checkpoint (`emo train --init-from`).

    Unexpected differences between the two configs are rejected.
    """

    expected_changes: tuple[str, ...] = ()  # fields and sections: ("moe.pool", "train.steps")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where a run's metrics go besides WORKDIR/metrics.jsonl. Each needs its emo-jax extra.

    None of this changes what a run computes, so a resumed run may change all of it.
    """

    tensorboard: bool = False  # event files in WORKDIR/tensorboard
    wandb_project: str = ""  # Weights & Biases project; empty: not used
    wandb_entity: str = ""  # team or user; empty: the account's default
    wandb_mode: WandbMode = "online"  # offline: files in WORKDIR/wandb, no network
    mlflow_uri: str = ""  # https://HOST, sqlite:///FILE or databricks; empty: not used
    mlflow_experiment: str = "emo_jax"  # created if it does not exist

    def __post_init__(self) -> None:
        project, uri = self.wandb_project, self.mlflow_uri
        named = not set(project) & set("/\\#?%:") and len(project) <= 128
        require(
            named, "tracking.wandb_project", project, "at most 128 characters, none of / \\ # ? % :"
        )
        for name, unset in (("wandb_entity", ""), ("wandb_mode", "online")):
            value = getattr(self, name)
            needs = f"{unset!r} without tracking.wandb_project"
            require(bool(project) or value == unset, f"tracking.{name}", value, needs)
        # The value is not shown: it is a secret, and the config goes to the workdir and trackers.
        if has_secret(uri):
            raise ConfigError(
                "config.tracking.mlflow_uri: must not hold a user or password; set"
                " MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
            )
        known = uri == "databricks" or uri.startswith(
            ("http://", "https://", "sqlite:///", "databricks://")
        )
        require(
            not uri or known,
            "tracking.mlflow_uri",
            uri,
            "http://HOST, https://HOST, sqlite:///FILE or databricks (MLflow has closed folders)",
        )
        unread = "'emo_jax' without tracking.mlflow_uri" if not uri else "a name"
        ok = self.mlflow_experiment == "emo_jax" if not uri else bool(self.mlflow_experiment)
        require(ok, "tracking.mlflow_experiment", self.mlflow_experiment, unread)
