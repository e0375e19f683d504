"""Sections of the config that define the model: transformer, mixture of experts, pools."""

import math
from dataclasses import dataclass, field

from emo_jax.config.changes import INIT, RECIPE, RESUME
from emo_jax.config.checks import require
from emo_jax.config.names import (
    AttentionBackend,
    AttentionScope,
    BalanceScope,
    BalanceTokens,
    Dispatch,
    Dtype,
    ExpertBackend,
    PoolKind,
    PoolScope,
    Remat,
)


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """Which routed experts the tokens of one document may use, per layer.

    Sizes count routed experts only. `none` is a standard MoE. `fixed` uses `size`; `uniform`
    draws from min_size..max_size, inclusive, for every document, layer and step; `top_p` is the
    smallest set with `top_p` of the document's router probability, clamped to min_size..max_size.
    A size of at least the number of routed experts restricts nothing.
    """

    kind: PoolKind = "none"
    size: int = 0  # for `fixed`
    min_size: int = 0  # for `uniform` and `top_p`
    max_size: int = 0  # likewise
    top_p: float = 0.0  # for `top_p`: share of the probability
    eval_size: int = 0  # pool size for `pool=N` held-out losses; 0: not reported
    forced_experts: int = 0  # number of last routed experts that are in every pool
    # Of `uniform`: a size is min_size + floor(n·u^size_power) of the n sizes, u uniform in 0..1.
    # Above 1, small pools are more frequent; below, large ones.
    size_power: float = 1.0
    # Pools begin with all routed experts, and reach their sizes linearly in so many steps.
    decay_steps: int = 0
    # Which tokens share a pool: those of a document, of `span` successive tokens of a document, of
    # successive documents of one domain, or of the window.
    scope: PoolScope = "document"
    span: int = 0  # for scope `span`
    # Nats by which logits outside the pool are lowered; 0: such experts cannot be used.
    penalty: float = 0.0


@dataclass(frozen=True, kw_only=True)
class MoeConfig:
    """Mixture-of-experts feed-forward. Counts of experts and picks include the shared ones."""

    num_experts: int
    top_k: int  # experts that a token uses
    expert_dim: int  # hidden size of one expert
    # Experts in each layer, including shared ones, if layers differ; num_experts is the largest.
    experts_per_layer: tuple[int, ...] = ()
    num_shared_experts: int = 1  # the last ones, used by every token with weight 1
    pool: PoolConfig = field(default_factory=PoolConfig)
    # Divided by the number of layers in the loss.
    load_balance_weight: float = field(default=0.1, metadata=RECIPE)
    router_z_weight: float = field(default=0.001, metadata=RECIPE)  # likewise
    # Counts used by the load-balancing loss: those of a micro-batch (as in the reference), or of
    # the whole step, which takes one more forward pass if train.micro_batches is above 1.
    balance_scope: BalanceScope = field(default="micro", metadata=RECIPE)
    # Tokens whose picks it counts: all, or only those that are labels (finetuning, SPEC 7.4).
    balance_tokens: BalanceTokens = "all"
    # Kernel for the expert matmuls; `auto`: what suits the device.
    backend: ExpertBackend = field(default="auto", metadata=RESUME)
    # How tokens reach experts on other devices (mesh.expert above 1); auto: all_to_all.
    dispatch: Dispatch = field(default="auto", metadata=RESUME)
    # Rows that travel in one round, as a multiple of those of balanced routing; rounds go on until
    # all have. Larger: fewer rounds, and more memory. 0: 1.25.
    receive_factor: float = field(default=0.0, metadata=RESUME)

    def __post_init__(self) -> None:
        n, k, s, pool = self.num_experts, self.top_k, self.num_shared_experts, self.pool
        require(self.receive_factor >= 0, "moe.receive_factor", self.receive_factor, "at least 0")
        require(n >= 1, "moe.num_experts", n, "at least 1")
        require(0 <= s < n, "moe.num_shared_experts", s, f"0..{n - 1} (below moe.num_experts)")
        require(
            s < k <= n, "moe.top_k", k, f"{s + 1}..{n} (shared experts count; at most num_experts)"
        )
        require(self.expert_dim >= 1, "moe.expert_dim", self.expert_dim, "at least 1")
        if self.experts_per_layer:
            fits = all(k <= count <= n for count in self.experts_per_layer)
            require(
                fits and max(self.experts_per_layer) == n,
                "moe.experts_per_layer",
                self.experts_per_layer,
                f"counts in {k}..{n} (moe.top_k..moe.num_experts), the largest {n}",
            )
        for name in ("load_balance_weight", "router_z_weight"):
            require(getattr(self, name) >= 0, f"moe.{name}", getattr(self, name), "at least 0")
        picks, routed = self.num_routed_picks, self.num_routed_experts
        allowed = f"{picks}..{n} (moe.top_k picks {picks} routed experts; moe.num_experts is {n})"
        read = {"fixed": {"size"}, "uniform": {"min_size", "max_size"}}
        read["top_p"] = read["uniform"] | {"top_p"}
        for name in ("size", "min_size", "max_size", "top_p"):
            value = getattr(pool, name)
            if name not in read.get(pool.kind, ()):
                unread = f"0: pools of kind {pool.kind!r} do not read it"
                require(value == 0, f"moe.pool.{name}", value, unread)
        if pool.kind == "fixed":
            require(picks <= pool.size <= n, "moe.pool.size", pool.size, allowed)
        if pool.kind in ("uniform", "top_p"):
            require(picks <= pool.min_size <= n, "moe.pool.min_size", pool.min_size, allowed)
            require(
                pool.min_size <= pool.max_size <= n,
                "moe.pool.max_size",
                pool.max_size,
                f"{pool.min_size}..{n} (moe.pool.min_size..moe.num_experts)",
            )
        if pool.kind == "top_p":
            require(0 < pool.top_p <= 1, "moe.pool.top_p", pool.top_p, "above 0, at most 1")
        _check_control(pool, n)
        if pool.eval_size:
            require(
                picks <= pool.eval_size <= n,
                "moe.pool.eval_size",
                pool.eval_size,
                f"0 or {allowed}",
            )
        require(
            0 <= pool.forced_experts <= routed,
            "moe.pool.forced_experts",
            pool.forced_experts,
            f"0..{routed} (routed experts)",
        )
        require(
            pool.forced_experts == 0 or not self.experts_per_layer,
            "moe.pool.forced_experts",
            pool.forced_experts,
            "0 with moe.experts_per_layer: the last experts are not in every layer",
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
        """Number of experts in a layer, including shared ones.

        Arrays have `num_experts` entries in every layer: first the layer's routed experts, then
        zeros, then the shared ones.
        """
        return self.experts_per_layer[layer] if self.experts_per_layer else self.num_experts


def _check_control(pool: PoolConfig, num_experts: int) -> None:
    """Checks what changes how strictly tokens share a pool (docs/control.md)."""
    require(
        pool.size_power > 0 if pool.kind == "uniform" else pool.size_power == 1,
        "moe.pool.size_power",
        pool.size_power,
        "above 0 with pools of kind 'uniform', and 1 with others",
    )
    most = (2**31 - 1) // num_experts - 1  # of their product, an int32
    require(0 <= pool.decay_steps <= most, "moe.pool.decay_steps", pool.decay_steps, f"0..{most}")
    in_spans = pool.scope == "span"
    require(
        pool.span >= 1 if in_spans else pool.span == 0,
        "moe.pool.span",
        pool.span,
        "at least 1 with moe.pool.scope 'span', and 0 with others",
    )
    require(pool.penalty >= 0, "moe.pool.penalty", pool.penalty, "at least 0")
    if pool.kind == "none":
        for name, unset in (("decay_steps", 0), ("scope", "document"), ("penalty", 0.0)):
            value = getattr(pool, name)
            require(value == unset, f"moe.pool.{name}", value, f"{unset!r}: there are no pools")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Decoder-only transformer (SPEC 1): pre-norm, no biases, untied embeddings, RoPE."""

    vocab_size: int  # number of ids the tokenizer can produce
    num_layers: int
    embed_dim: int  # width
    num_heads: int  # attention heads
    head_dim: int
    mlp_dim: int = 0  # hidden size of a dense model; 0 for a mixture of experts
    vocab_multiple: int = 128  # table rows are vocab_size rounded up to it; extra rows are masked
    attention: AttentionScope = "document"  # what a token attends to; window: other documents too
    rope_theta: float = 500_000.0
    norm_eps: float = 1e-6
    init_std: float = field(default=0.02, metadata=INIT)  # of a normal truncated at three of these
    # Parameters, router and losses are float32.
    compute_dtype: Dtype = field(default="bfloat16", metadata=RECIPE)
    # `auto`: what suits the device.
    attention_backend: AttentionBackend = field(default="auto", metadata=RESUME)
    # What the backward pass recomputes to save memory. none: nothing; save_matmuls: all but
    # matmuls; save_attention: all but attention; full: whole layers.
    remat: Remat = field(default="none", metadata=RESUME)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "num_layers", "embed_dim", "num_heads"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")
        multiple = self.vocab_multiple  # a large one only adds that many unused rows
        require(1 <= multiple <= 65_536, "model.vocab_multiple", multiple, "in 1..65536")
        require(
            self.head_dim >= 2 and self.head_dim % 2 == 0,
            "model.head_dim",
            self.head_dim,
            "even and at least 2 (rotary embedding turns pairs)",
        )
        require(self.mlp_dim >= 0, "model.mlp_dim", self.mlp_dim, "at least 0")
        require(self.rope_theta >= 1, "model.rope_theta", self.rope_theta, "at least 1")
        require(0 < self.norm_eps < 1, "model.norm_eps", self.norm_eps, "above 0 and below 1")
        require(self.init_std > 0, "model.init_std", self.init_std, "above 0")

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table and columns of the output head."""
        return math.ceil(self.vocab_size / self.vocab_multiple) * self.vocab_multiple
