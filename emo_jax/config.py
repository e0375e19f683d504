"""Frozen configs. Every check of a value lives here, and nowhere later.

An experiment file returns an `ml_collections.ConfigDict`; `from_config_dict` turns it at once into
the frozen dataclasses below. A wrong field is refused with its name, its value, what is allowed
and the nearest known name. SPEC and DESIGN in comments are docs/spec.md and docs/design.md.
"""

import dataclasses
import difflib
import math
import numbers
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from emo_jax import seeds
from emo_jax.errors import ConfigError, clipped
from emo_jax.files.json_files import is_text

RawDtype = Literal["auto", "uint16", "uint32"]
PoolKind = Literal["none", "fixed", "uniform", "top_p"]
AttentionScope = Literal["document", "window"]
AttentionBackend = Literal["auto", "blocked", "xla", "splash", "cudnn", "tokamax"]
Remat = Literal["none", "save_matmuls", "save_attention", "full"]
Dtype = Literal["float32", "bfloat16"]
ExpertBackend = Literal["auto", "blocked", "ragged_dot", "tokamax", "megablox"]
Dispatch = Literal["auto", "ragged_all_to_all", "all_gather"]
BalanceScope = Literal["micro", "step"]
BalanceTokens = Literal["all", "labels"]
Schedule = Literal["cosine", "wsd"]
FROZEN_PARTS = (
    "embeddings",
    "attention",
    "norms",
    "router",
    "routed",
    "shared",
    "old_experts",
    "mlp",
)
WandbMode = Literal["online", "offline", "disabled"]
# allenai/dolma2-tokenizer
DOLMA2_EOS_ID = 100_257
DOLMA2_PAD_ID = 100_277


def _require(ok: bool, name: str, value: Any, allowed: str) -> None:
    if not ok:
        raise ConfigError(f"config.{name} = {value!r}: must be {allowed}")


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """Which routed experts the tokens of one document may use, per layer.

    Sizes count routed experts only. `none` is a standard MoE. `fixed` uses `size`; `uniform`
    draws from min_size..max_size, both included, for every document, layer and step; `top_p` is
    the smallest set that holds `top_p` of the document's router probability, clamped to
    min_size..max_size. A size of at least the number of routed experts restricts nothing.
    """

    kind: PoolKind = "none"
    size: int = 0  # of fixed
    min_size: int = 0  # of uniform and top_p
    max_size: int = 0  # likewise
    top_p: float = 0.0  # of top_p: share of the probability
    eval_size: int = 0  # pool of `pool=N` held-out losses; 0: none is reported
    forced_experts: int = 0  # the last routed experts, that are in every pool


@dataclass(frozen=True, kw_only=True)
class MoeConfig:
    """Mixture-of-experts feed-forward. Counts of experts and picks include the shared ones."""

    num_experts: int
    top_k: int  # experts that a token uses
    expert_dim: int  # hidden size of one
    # Experts of each layer, shared ones included, where they differ; num_experts is the most.
    experts_per_layer: tuple[int, ...] = ()
    num_shared_experts: int = 1  # the last ones, used by every token with weight 1
    pool: PoolConfig = field(default_factory=PoolConfig)
    load_balance_weight: float = 0.1  # divided by the number of layers in the loss
    router_z_weight: float = 0.001  # likewise
    # Whose counts the load balance is of: a micro-batch's (the reference's), or the whole step's,
    # which takes one more forward pass where train.micro_batches is above 1.
    balance_scope: BalanceScope = "micro"
    # Whose picks it counts: all tokens', or (finetuning, SPEC 7.4) those of tokens that are labels.
    balance_tokens: BalanceTokens = "all"
    backend: ExpertBackend = "auto"  # of the expert matrix products; auto: what suits the device
    # How tokens reach experts on other devices (mesh.expert above 1); auto: ragged_all_to_all
    # where the devices have it.
    dispatch: Dispatch = "auto"
    # Bound on the rows a device's experts take, in multiples of what balanced routing gives it;
    # what is over it is dropped and counted in `dropped`. 0: the worst case, nothing is dropped.
    receive_factor: float = 0.0
    # Parts of a device's tokens that go to other devices' experts one after the other. 0: as many
    # as share the experts, which keeps room for the worst case as large as for one device.
    token_parts: int = 0

    def __post_init__(self) -> None:
        n, k, s, pool = self.num_experts, self.top_k, self.num_shared_experts, self.pool
        factor = self.receive_factor
        _require(factor == 0 or factor >= 1, "moe.receive_factor", factor, "0 or at least 1")
        _require(self.token_parts >= 0, "moe.token_parts", self.token_parts, "at least 0")
        _require(n >= 1, "moe.num_experts", n, "at least 1")
        _require(0 <= s < n, "moe.num_shared_experts", s, f"0..{n - 1} (below moe.num_experts)")
        _require(
            s < k <= n, "moe.top_k", k, f"{s + 1}..{n} (shared experts count; at most num_experts)"
        )
        _require(self.expert_dim >= 1, "moe.expert_dim", self.expert_dim, "at least 1")
        if self.experts_per_layer:
            fits = all(k <= count <= n for count in self.experts_per_layer)
            _require(
                fits and max(self.experts_per_layer) == n,
                "moe.experts_per_layer",
                self.experts_per_layer,
                f"counts in {k}..{n} (moe.top_k..moe.num_experts), the largest {n}",
            )
        for name in ("load_balance_weight", "router_z_weight"):
            _require(getattr(self, name) >= 0, f"moe.{name}", getattr(self, name), "at least 0")
        picks, routed = self.num_routed_picks, self.num_routed_experts
        allowed = f"{picks}..{n} (moe.top_k picks {picks} routed experts; moe.num_experts is {n})"
        read = {"fixed": {"size"}, "uniform": {"min_size", "max_size"}}
        read["top_p"] = read["uniform"] | {"top_p"}
        for name in ("size", "min_size", "max_size", "top_p"):
            value = getattr(pool, name)
            if name not in read.get(pool.kind, ()):
                unread = f"0: pools of kind {pool.kind!r} do not read it"
                _require(value == 0, f"moe.pool.{name}", value, unread)
        if pool.kind == "fixed":
            _require(picks <= pool.size <= n, "moe.pool.size", pool.size, allowed)
        if pool.kind in ("uniform", "top_p"):
            _require(picks <= pool.min_size <= n, "moe.pool.min_size", pool.min_size, allowed)
            _require(
                pool.min_size <= pool.max_size <= n,
                "moe.pool.max_size",
                pool.max_size,
                f"{pool.min_size}..{n} (moe.pool.min_size..moe.num_experts)",
            )
        if pool.kind == "top_p":
            _require(0 < pool.top_p <= 1, "moe.pool.top_p", pool.top_p, "above 0, at most 1")
        if pool.eval_size:
            _require(
                picks <= pool.eval_size <= n,
                "moe.pool.eval_size",
                pool.eval_size,
                f"0 or {allowed}",
            )
        _require(
            0 <= pool.forced_experts <= routed,
            "moe.pool.forced_experts",
            pool.forced_experts,
            f"0..{routed} (routed experts)",
        )

    @property
    def num_routed_experts(self) -> int:
        """Experts the router chooses from."""
        return self.num_experts - self.num_shared_experts

    @property
    def num_routed_picks(self) -> int:
        """Routed experts a token uses."""
        return self.top_k - self.num_shared_experts

    def experts_in(self, layer: int) -> int:
        """Experts of a layer, shared ones included.

        Arrays hold `num_experts` of them in every layer: first the routed ones that are there,
        then zeros, then the shared ones.
        """
        return self.experts_per_layer[layer] if self.experts_per_layer else self.num_experts


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Decoder-only transformer (SPEC 1): pre-norm, no biases, untied embeddings, RoPE."""

    vocab_size: int  # ids the tokenizer can produce
    num_layers: int
    embed_dim: int  # width
    num_heads: int  # of attention
    head_dim: int
    mlp_dim: int = 0  # hidden size of a dense model; 0 for a mixture of experts
    vocab_multiple: int = 128  # table rows are vocab_size rounded up; rows above are masked out
    attention: AttentionScope = "document"  # what a token sees; window: across documents too
    rope_theta: float = 500_000.0
    norm_eps: float = 1e-6
    init_std: float = 0.02  # truncated normal, cut at three of these
    compute_dtype: Dtype = "bfloat16"  # parameters, router and losses are float32
    attention_backend: AttentionBackend = "auto"  # auto: what suits the device
    # What the backward pass computes again, to save memory. none: nothing; save_matmuls: all but
    # matrix products; save_attention: all but attention; full: whole layers.
    remat: Remat = "none"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "num_layers", "embed_dim", "num_heads"):
            _require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")
        multiple = self.vocab_multiple  # a large one is that many rows of nothing
        _require(1 <= multiple <= 65_536, "model.vocab_multiple", multiple, "in 1..65536")
        _require(
            self.head_dim >= 2 and self.head_dim % 2 == 0,
            "model.head_dim",
            self.head_dim,
            "even and at least 2 (rotary embedding turns pairs)",
        )
        _require(self.mlp_dim >= 0, "model.mlp_dim", self.mlp_dim, "at least 0")
        _require(self.rope_theta >= 1, "model.rope_theta", self.rope_theta, "at least 1")
        _require(0 < self.norm_eps < 1, "model.norm_eps", self.norm_eps, "above 0 and below 1")
        _require(self.init_std > 0, "model.init_std", self.init_std, "above 0")

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table and columns of the output head."""
        return math.ceil(self.vocab_size / self.vocab_multiple) * self.vocab_multiple


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Windows of a token store, or of headerless `.npy` token files read in place."""

    store: str = ""  # folder of emo prepare, or patterns of .npy files with commas between
    seq_len: int = 4096  # tokens of a window
    seed: int = 0  # order of the windows
    eos_starts_next_pool: bool = False  # the reference's off-by-one (SPEC 2.1)
    repetition_filter: bool = True  # mask windows with a short pattern repeated (SPEC 5.5)
    prefetch: int = 2  # batches made ahead
    raw_vocab_size: int = 100_278  # of .npy files, which do not say it; Dolma 2's (SPEC 5.1)
    raw_eos_id: int = DOLMA2_EOS_ID  # likewise: ends a document
    raw_pad_id: int = DOLMA2_PAD_ID  # likewise: fills a window; raw_eos_id if only that is given
    raw_dtype: RawDtype = "auto"  # of a token; auto: uint16 where the vocabulary fits, else uint32

    def __post_init__(self) -> None:
        _require(self.seq_len >= 2, "data.seq_len", self.seq_len, "at least 2")
        _require(self.prefetch >= 1, "data.prefetch", self.prefetch, "at least 1")
        _require(self.raw_vocab_size >= 1, "data.raw_vocab_size", self.raw_vocab_size, "at least 1")
        below = f"0..{self.raw_vocab_size - 1} (below data.raw_vocab_size)"
        for name, value in (("raw_eos_id", self.raw_eos_id), ("raw_pad_id", self.raw_padding_id)):
            usual = value in (DOLMA2_EOS_ID, DOLMA2_PAD_ID)
            hint = f"; {value} is Dolma 2's, give that of your vocabulary" if usual else ""
            _require(0 <= value < self.raw_vocab_size, f"data.{name}", value, below + hint)

    @property
    def raw_padding_id(self) -> int:
        """`raw_pad_id`, or `raw_eos_id` where only that is another than Dolma 2's."""
        own_end = self.raw_eos_id != DOLMA2_EOS_ID and self.raw_pad_id == DOLMA2_PAD_ID
        return self.raw_eos_id if own_end else self.raw_pad_id


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (SPEC 4). After a linear warm-up the learning rate falls to a fraction of its peak.

    `cosine` falls from there to `train.steps`; `wsd` is constant and falls linearly over the last
    `decay_steps`. A step whose loss or gradient norm is above the mean of the last `skip_window`
    steps by `skip_sigma` of their standard deviations is skipped.
    """

    peak_lr: float = 4e-3  # learning rate at the end of the warm-up
    schedule: Schedule = "cosine"
    warmup_steps: int = 2000  # linear
    decay_steps: int = 0  # of wsd, the last steps of train.steps
    final_lr_fraction: float = 0.1  # of peak_lr, at train.steps
    skip_window: int = 0  # steps; 0: none is skipped
    skip_sigma: float = 6.0  # standard deviations above the mean
    b1: float = 0.9  # of Adam's first moment
    b2: float = 0.95  # of its second
    eps: float = 1e-8
    first_moment_dtype: Dtype = "float32"  # bfloat16 saves 2 bytes a parameter
    offload: bool = False  # keeps Adam's moments in the memory of the host
    weight_decay: float = 0.1  # decoupled; on everything but the input embedding
    clip_norm: float = 1.0  # of all gradients together
    # Parts that stay as they are, to the last bit: embeddings (input and output), attention, norms,
    # router, routed, shared (experts), old_experts (routed ones but the last
    # moe.pool.forced_experts, with their columns of the router), mlp (of a dense model).
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = [name for name in self.frozen if name not in FROZEN_PARTS]
        near = nearest(unknown[0], list(FROZEN_PARTS)) if unknown else ""
        allowed = f"some of {', '.join(FROZEN_PARTS)}{near}"
        _require(not unknown, "optimizer.frozen", self.frozen, allowed)
        _require(self.peak_lr > 0, "optimizer.peak_lr", self.peak_lr, "above 0")
        _require(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "at least 0")
        _require(
            0 <= self.final_lr_fraction <= 1,
            "optimizer.final_lr_fraction",
            self.final_lr_fraction,
            "0..1",
        )
        for name in ("b1", "b2"):
            _require(
                0 <= getattr(self, name) < 1,
                f"optimizer.{name}",
                getattr(self, name),
                "at least 0 and below 1",
            )
        decay, window = self.decay_steps, self.skip_window
        if self.schedule == "wsd":
            _require(decay >= 1, "optimizer.decay_steps", decay, "at least 1 in a wsd schedule")
        else:
            unread = f"0: a {self.schedule} schedule does not read it"
            _require(decay == 0, "optimizer.decay_steps", decay, unread)
        # Half a window must hold two steps before the newest, or they have no deviation.
        _require(window == 0 or window >= 6, "optimizer.skip_window", window, "0 or at least 6")
        _require(self.skip_sigma > 0, "optimizer.skip_sigma", self.skip_sigma, "above 0")
        _require(self.eps > 0, "optimizer.eps", self.eps, "above 0")
        _require(self.clip_norm > 0, "optimizer.clip_norm", self.clip_norm, "above 0")
        _require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "at least 0")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop. A batch is `batch_size` windows, cut into `micro_batches` equal parts."""

    steps: int  # the run ends here
    batch_size: int  # windows of a step, over all devices
    micro_batches: int = 1  # one after the other, to save memory
    z_loss_weight: float = 1e-5  # on logsumexp² of the vocabulary logits
    loss_chunk: int = 1024  # tokens whose logits exist at once, per window row
    log_every: int = 10  # steps
    eval_every: int = 0  # steps; 0: only at the end
    eval_windows: int = 64  # held-out windows per evaluation; 0: none
    # Experts to keep of each layer, shared ones included: also the held-out loss with so many,
    # chosen for each domain on half of the windows and judged on the other half.
    eval_keep: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "micro_batches", "loss_chunk", "log_every"):
            _require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "at least 1")
        for name in ("eval_every", "eval_windows", "z_loss_weight"):
            _require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "at least 0")
        _require(
            self.batch_size % self.micro_batches == 0,
            "train.micro_batches",
            self.micro_batches,
            f"a divisor of train.batch_size = {self.batch_size}",
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save, and what to keep: the newest `keep_last`, and every `keep_every`-th step."""

    save_every: int = 100  # steps
    keep_last: int = 2  # checkpoints
    keep_every: int = 0  # steps; 0: none beyond keep_last

    def __post_init__(self) -> None:
        _require(self.save_every >= 1, "checkpoint.save_every", self.save_every, "at least 1")
        _require(self.keep_last >= 1, "checkpoint.keep_last", self.keep_last, "at least 1")
        _require(
            self.keep_every >= 0 and self.keep_every % self.save_every == 0,
            "checkpoint.keep_every",
            self.keep_every,
            f"0 or a multiple of checkpoint.save_every = {self.save_every}",
        )


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1, the devices that are left."""

    replica: int = 1  # copies of the parameters; a multiple of the slices of a pod
    fsdp: int = -1  # devices that share one copy
    expert: int = 1  # devices that share the experts, and one copy of all else
    context: int = 1  # devices that share the tokens of a window
    tensor: int = 1  # devices that share attention heads and the hidden size of experts

    def __post_init__(self) -> None:
        sizes = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name, size in sizes.items():
            _require(
                size >= 1 or size == -1, f"mesh.{name}", size, "at least 1, or -1 for the rest"
            )
        free = [name for name, size in sizes.items() if size == -1]
        _require(
            len(free) <= 1, f"mesh.{free[-1] if free else ''}", -1, f"set: {free} cannot all be -1"
        )


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """A run that starts from the checkpoint of another (`emo train --init-from`).

    A difference between the two configs that is not expected is refused.
    """

    expected_changes: tuple[str, ...] = ()  # fields and sections: ("moe.pool", "train.steps")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where a run's metrics go besides WORKDIR/metrics.jsonl. Each needs its extra of emo-jax.

    None of it changes what a run computes, so a resumed run may change all of it.
    """

    tensorboard: bool = False  # event files in WORKDIR/tensorboard
    wandb_project: str = ""  # of Weights & Biases; empty: not used
    wandb_entity: str = ""  # team or user; empty: the account's default
    wandb_mode: WandbMode = "online"  # offline: files in WORKDIR/wandb, no network
    mlflow_uri: str = ""  # https://HOST, sqlite:///FILE or databricks; empty: not used
    mlflow_experiment: str = "emo_jax"  # made where it is not there

    def __post_init__(self) -> None:
        project, uri = self.wandb_project, self.mlflow_uri
        named = not set(project) & set("/\\#?%:") and len(project) <= 128
        _require(
            named, "tracking.wandb_project", project, "at most 128 characters, none of / \\ # ? % :"
        )
        for name, unset in (("wandb_entity", ""), ("wandb_mode", "online")):
            value = getattr(self, name)
            needs = f"{unset!r} without tracking.wandb_project"
            _require(bool(project) or value == unset, f"tracking.{name}", value, needs)
        # Not shown: it is a secret, and the config is written into the workdir and the trackers.
        if "@" in uri.partition("://")[2].partition("/")[0]:
            raise ConfigError(
                "config.tracking.mlflow_uri: must not hold a user or password; set"
                " MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
            )
        known = uri == "databricks" or uri.startswith(
            ("http://", "https://", "sqlite:///", "databricks://")
        )
        _require(
            not uri or known,
            "tracking.mlflow_uri",
            uri,
            "http://HOST, https://HOST, sqlite:///FILE or databricks (MLflow has closed folders)",
        )
        unread = "'emo_jax' without tracking.mlflow_uri" if not uri else "a name"
        ok = self.mlflow_experiment == "emo_jax" if not uri else bool(self.mlflow_experiment)
        _require(ok, "tracking.mlflow_experiment", self.mlflow_experiment, unread)


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    name: str  # shown, and that of the run in trackers
    model: ModelConfig
    train: TrainConfig
    moe: MoeConfig | None = None  # None: a dense model
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    init: InitConfig = field(default_factory=InitConfig)
    seed: int = 0  # initialisation and pool draws

    def __post_init__(self) -> None:
        named = self.name.isprintable() and bool(self.name.strip())
        _require(named, "name", self.name, "one line of text")
        _require(seeds.is_seed(self.seed), "seed", self.seed, seeds.RANGE)
        if self.moe is None:
            _require(
                self.model.mlp_dim >= 1,
                "model.mlp_dim",
                self.model.mlp_dim,
                "at least 1 in a dense model (or give the section moe)",
            )
        else:
            _require(
                self.model.mlp_dim == 0,
                "model.mlp_dim",
                self.model.mlp_dim,
                "0 in a mixture of experts (moe.expert_dim rules)",
            )
            counts, layers = self.moe.experts_per_layer, self.model.num_layers
            _require(
                len(counts) in (0, layers),
                "moe.experts_per_layer",
                counts,
                f"empty, or one count for each of model.num_layers = {layers}",
            )
            _require(
                self.moe.num_experts % max(self.mesh.expert, 1) == 0,
                "moe.num_experts",
                self.moe.num_experts,
                f"divisible by mesh.expert = {self.mesh.expert}",
            )
        _require(
            self.optimizer.warmup_steps <= self.train.steps,
            "optimizer.warmup_steps",
            self.optimizer.warmup_steps,
            f"at most train.steps = {self.train.steps}",
        )
        _require(
            self.optimizer.warmup_steps + self.optimizer.decay_steps <= self.train.steps,
            "optimizer.decay_steps",
            self.optimizer.decay_steps,
            f"at most {self.train.steps - self.optimizer.warmup_steps}"
            " (train.steps - optimizer.warmup_steps)",
        )
        if self.moe is not None and self.moe.balance_tokens == "labels":
            _require(
                self.moe.balance_scope == "micro",
                "moe.balance_scope",
                self.moe.balance_scope,
                "micro where moe.balance_tokens = 'labels'",
            )
        keeps = self.train.eval_keep
        _require(not keeps or self.moe is not None, "train.eval_keep", keeps, "empty: no experts")
        if self.moe is not None:
            least, most = self.moe.top_k, self.moe.num_experts
            fits = all(least <= keep <= most for keep in keeps)
            allowed = f"counts in {least}..{most} (moe.top_k..moe.num_experts)"
            _require(fits, "train.eval_keep", keeps, allowed)
        of_experts = {"router", "routed", "shared", "old_experts"}
        wrong = {"mlp"} if self.moe is not None else of_experts
        _require(
            not wrong & set(self.optimizer.frozen),
            "optimizer.frozen",
            self.optimizer.frozen,
            f"without {', '.join(sorted(wrong))}: this model has none",
        )
        for name in self.init.expected_changes:
            fields = list(flatten(self))
            known = any(f == name or f.startswith(f"{name}.") for f in fields)
            allowed = f"fields or sections of the config{nearest(name, fields)}"
            _require(known, "init.expected_changes", name, allowed)
        micro = self.train.batch_size // self.train.micro_batches
        rows = max(self.mesh.replica, 1) * max(self.mesh.fsdp, 1) * max(self.mesh.expert, 1)
        _require(
            micro % rows == 0,
            "train.batch_size",
            self.train.batch_size,
            f"such that a micro-batch ({micro} windows) divides over the mesh's {rows} devices",
        )


# --- ConfigDict -> dataclasses -------------------------------------------------------------------


def nearest(name: str, known: list[str]) -> str:
    """`; did you mean X?` for the closest known name, or nothing."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _section(kind: Any) -> type | None:
    """The dataclass of a field annotated `Section` or `Section | None`."""
    for option in typing.get_args(kind) or (kind,):
        if isinstance(option, type) and dataclasses.is_dataclass(option):
            return option
    return None


def _shown(value: Any) -> str:
    """`repr` of a value on one line, the start of a long one."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:79] + "…"


def _is_text(value: Any) -> bool:
    """A string that can be written and named: of whole characters, without NULs."""
    return isinstance(value, str) and "\0" not in value and is_text(value)


def _whole(value: Any) -> Any:
    """A whole number as an int, numpy's too; anything else as it is."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return int(value) if is_whole else value


def _leaf(value: Any, kind: Any, path: str) -> Any:
    def wrong(what: str) -> ConfigError:
        return ConfigError(f"config.{path} = {_shown(value)}: must be {what}")

    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if not isinstance(value, str) or value not in choices:
            raise wrong(f"one of {list(choices)}{nearest(str(value), list(choices))}")
        return value
    if kind == tuple[str, ...]:
        # A list in JSON; `a,b` on the command line comes as ("a,b",).
        if not isinstance(value, list | tuple) or not all(_is_text(x) for x in value):
            raise wrong("names, like ('a', 'b')")
        return tuple(name for name in ",".join(value).replace(" ", "").split(",") if name)
    if kind == tuple[int, ...]:
        found = value
        # `16,8` or `(16,8)` on the command line comes as one text.
        if isinstance(value, list | tuple) and value and all(isinstance(x, str) for x in value):
            text = ",".join(value).strip()
            brackets = len(text) > 1 and text[0] + text[-1] in ("()", "[]")
            text = text[1:-1] if brackets else text
            texts = [x.strip() for x in text.split(",") if x.strip()]
            found = [int(x) if x.isdecimal() and len(x) < 10 else x for x in texts]
        if isinstance(found, list | tuple):
            found = tuple(_whole(x) for x in found)
        if not isinstance(found, tuple) or any(type(x) is not int for x in found):
            raise wrong("whole numbers, like (16, 8)")
        return found
    value = _whole(value)
    if kind is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            raise wrong("finite") from None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise wrong(f"{kind.__name__}, not {type(value).__name__}")
    if kind is int and not path.endswith("seed") and abs(value) >= 2**31:
        raise wrong("below 2**31")
    if kind is str and not _is_text(value):
        raise wrong("text without NULs and halves of surrogate pairs")
    if kind is float and not math.isfinite(value):
        raise wrong("finite")
    return value


def _build(cls: type, values: Mapping[str, Any], path: str) -> Any:
    hints = typing.get_type_hints(cls)
    dot = f"{path}." if path else ""
    for name in values:
        if name not in hints:
            raise ConfigError(
                f"config.{dot}{clipped(str(name))} = {_shown(values[name])}: no such field"
                f"{nearest(str(name), list(hints))}"
                f" (allowed: {', '.join(hints)})"
            )
    made = {}
    for f in dataclasses.fields(cls):
        if f.name not in values:
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                raise ConfigError(f"config.{dot}{f.name}: missing, and it has no default")
            continue
        value, kind = values[f.name], hints[f.name]
        section = _section(kind)
        if section is None:
            made[f.name] = _leaf(value, kind, dot + f.name)
        elif value is None and type(None) in typing.get_args(kind):
            made[f.name] = None
        elif isinstance(value, Mapping):
            made[f.name] = _build(section, value, dot + f.name)
        else:
            raise ConfigError(
                f"config.{dot}{f.name} = {_shown(value)}: must be a section of fields"
            )
    return cls(**made)


def from_config_dict(config: Mapping[str, Any]) -> Config:
    """A `ConfigDict` (or the mapping `to_dict` gives) as a checked `Config`.

    Raises:
      ConfigError: naming the field, its value, what is allowed and the nearest known name.
    """
    values = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(values, Mapping):
        raise ConfigError(f"config = {_shown(values)}: must be a section of fields")
    return _build(Config, values, "")


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested dict of every field, defaults included; `from_config_dict` reads it back."""
    return dataclasses.asdict(config)


def portable(config: Config) -> Config:
    """The same run without what is of one machine or user: where its data lie, and its trackers.

    A config that comes with data is taken so: the metrics of a run go nowhere that somebody else's
    file names.
    """
    data = dataclasses.replace(config.data, store="")
    return dataclasses.replace(config, data=data, tracking=TrackingConfig())


def flatten(config: Config) -> dict[str, Any]:
    """`{"model.num_layers": 16, …}`: every leaf by its dotted name."""

    def walk(node: Any, path: str) -> dict[str, Any]:
        if not isinstance(node, dict):
            return {path: node}
        out = {}
        for key, value in node.items():
            out.update(walk(value, f"{path}.{key}" if path else key))
        return out

    return walk(to_dict(config), "")


def differences(ours: Config, theirs: Config) -> list[str]:
    """One `field: theirs -> ours` line for every leaf in which two configs differ."""
    a, b = flatten(ours), flatten(theirs)
    return [f"{k}: {b.get(k)!r} -> {a.get(k)!r}" for k in sorted(a | b) if a.get(k) != b.get(k)]
