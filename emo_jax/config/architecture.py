"""Sections of the config that define the model: transformer, mixture of experts."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

from emo_jax.config.changes import INIT, RECIPE, RESUME
from emo_jax.config.checks import require
from emo_jax.config.labels import parse_label
from emo_jax.config.names import (
    AttentionBackend,
    AttentionScope,
    AuxScope,
    BalanceScope,
    BalanceTokens,
    Dispatch,
    Dtype,
    ExpertBackend,
    Gate,
    GhostKind,
    Remat,
    ScoreBias,
)
from emo_jax.config.pools import PoolConfig, check_control


@dataclass(frozen=True, kw_only=True)
class MoeConfig:
    """Mixture-of-experts feed-forward. Counts of experts and picks include the shared ones."""

    num_experts: int
    top_k: int  # experts that a token uses
    expert_dim: int  # hidden size of one expert
    # Experts in each layer, including shared ones, if layers differ; num_experts is the largest.
    experts_per_layer: tuple[int, ...] = ()
    num_shared_experts: int = 1  # the last ones, used by every token with weight 1
    # Of the shared experts, a document uses so many, its likeliest ones, with the weights of a
    # softmax over them; top_k counts these (SPEC 6, sharedexppool). 0: all, with weight 1.
    shared_picks: int = 0
    # Of a load-balancing loss over the shared experts, for shared_picks.
    shared_balance_weight: float = field(default=0.0, metadata=RECIPE)
    # A token's weights are divided by their sum over its routed picks (Mixtral, arXiv 2401.04088).
    normalize_picks: bool = False
    # Added to the router's logits of all routed experts but the first, at most 0: the negative bias
    # of FlexOlmo (arXiv 2507.07024), whose first expert is the public one.
    expert_bias: float = 0.0
    # Scores of the logits: weights are the scores of the picks. sigmoid: DeepSeek-V3's (arXiv
    # 2412.19437), each expert's own.
    gate: Gate = "softmax"
    # Added to the scores to choose by, not to the weights, and set without gradients once a step.
    # sign: by bias_rate against each expert's excess load (arXiv 2408.15664); quantile: to what
    # would have balanced the step (Kimi K3; kexue.fm/archives/11619). Saved with the parameters.
    score_bias: ScoreBias = "none"
    bias_rate: float = field(default=0.0, metadata=RECIPE)  # for `sign`; 0: the bias stays
    # Training only (Switch, arXiv 2101.03961). An expert takes that many times its share of a
    # window's picks, and further ones are dropped; 0: none are.
    capacity_factor: float = 0.0
    # Training only: the router's inputs are multiplied by numbers within 1 ± this.
    input_jitter: float = 0.0
    # Of each document, only that many routed experts, its likeliest, are trained by what they
    # compute, and no shared ones; 0: all are (SPEC 10). detach: nor by their router's weights.
    extension_experts: int = field(default=0, metadata=RECIPE)
    extension_detach_router: bool = field(default=False, metadata=RECIPE)
    # Training only: each document has one more expert, whose router row and weights are a mean of
    # its pool's: by use, even, or over ghost_sample drawn ones (the reference's branch emo_extend).
    ghosts: GhostKind = field(default="none", metadata=RECIPE)
    ghost_sample: int = field(default=0, metadata=RECIPE)  # for `random`
    # For `usage`: the coefficients have no gradient.
    ghost_detach: bool = field(default=False, metadata=RECIPE)
    pool: PoolConfig = field(default_factory=PoolConfig)
    # Divided by the number of layers in the loss.
    load_balance_weight: float = field(default=0.1, metadata=RECIPE)
    router_z_weight: float = field(default=0.001, metadata=RECIPE)  # likewise
    # Counts used by the load-balancing loss: those of a micro-batch (as in the reference), or of
    # the whole step, which takes one more forward pass if train.micro_batches is above 1. document:
    # of each document, over the experts in its pool; the loss is the mean of documents (SPEC 6).
    balance_scope: BalanceScope = field(default="micro", metadata=RECIPE)
    # Experts whose probabilities and logits the two losses see: those in the pool, or all (SPEC 6,
    # nomaskaux); picks are of the pool.
    aux_scope: AuxScope = field(default="pool", metadata=RECIPE)
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
        of_shared = self.shared_picks
        require(0 <= of_shared <= s, "moe.shared_picks", of_shared, f"0..{s} (shared experts)")
        used = self.num_shared_picks
        most = used + self.num_routed_experts
        counted = "shared experts count; at most num_experts"
        if of_shared:
            counted = "moe.shared_picks count; others are routed experts"
        require(used < k <= most, "moe.top_k", k, f"{used + 1}..{most} ({counted})")
        require(
            self.shared_balance_weight == 0 if of_shared == 0 else self.shared_balance_weight >= 0,
            "moe.shared_balance_weight",
            self.shared_balance_weight,
            "at least 0" if of_shared else "0 where moe.shared_picks = 0",
        )
        require(
            of_shared == 0 or not self.extension_experts,
            "moe.shared_picks",
            of_shared,
            "0 where moe.extension_experts is not",
        )
        require(self.expert_dim >= 1, "moe.expert_dim", self.expert_dim, "at least 1")
        require(self.expert_bias <= 0, "moe.expert_bias", self.expert_bias, "at most 0")
        if self.experts_per_layer:
            least = self.fewest_experts
            fits = all(least <= count <= n for count in self.experts_per_layer)
            require(
                fits and max(self.experts_per_layer) == n,
                "moe.experts_per_layer",
                self.experts_per_layer,
                f"counts in {least}..{n} (enough for moe.top_k, at most moe.num_experts), the"
                f" largest {n}",
            )
        for name in ("load_balance_weight", "router_z_weight"):
            require(getattr(self, name) >= 0, f"moe.{name}", getattr(self, name), "at least 0")
        picks, routed = self.num_routed_picks, self.num_routed_experts
        allowed = f"{picks}..{n} (moe.top_k picks {picks} routed experts; moe.num_experts is {n})"
        read = {"fixed": {"size"}, "uniform": {"min_size", "max_size"}}
        read["top_p"] = read["uniform"] | {"top_p"}
        read["label_table"] = {"size", "labels"}
        read["label_learned"] = read["label_table"] | {"label_rate"}
        read["label_bias"] = read["label_table"] | {"label_bias"}
        for name in ("size", "min_size", "max_size", "top_p", "labels", "label_bias", "label_rate"):
            value = getattr(pool, name)
            if name not in read.get(pool.kind, ()):
                unread = f"{'empty' if name == 'labels' else 0}: pools of kind {pool.kind!r}"
                require(not value, f"moe.pool.{name}", value, f"{unread} do not read it")
        self._check_labels(allowed)
        self._check_ghosts()
        self._check_router()
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
        check_control(pool, n)
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

    def _check_labels(self, allowed_sizes: str) -> None:
        pool, picks, routed = self.pool, self.num_routed_picks, self.num_routed_experts
        if not pool.labelled:
            return
        require(
            pool.forced_experts == 0 and not self.experts_per_layer,
            "moe.pool.kind",
            pool.kind,
            "without moe.pool.forced_experts and moe.experts_per_layer",
        )
        names, ranges = (
            zip(*map(parse_label, pool.labels), strict=True) if pool.labels else ((), ())
        )
        require(len(set(names)) == len(names), "moe.pool.labels", pool.labels, "different domains")
        given = [r for r in ranges if r is not None]
        learned = pool.kind == "label_learned"
        require(
            len(given) == (0 if learned else len(given) and len(names)),
            "moe.pool.labels",
            pool.labels,
            "names, as the table is learned" if learned else "all with ranges of experts, or none",
        )
        for r in given:
            fits = r.start >= 0 and len(r) >= picks and r.stop <= routed
            require(
                fits,
                "moe.pool.labels",
                f"{r.start}-{r.stop - 1}",
                f"at least {picks} experts in 0-{routed - 1} (moe.top_k picks {picks} routed ones)",
            )
        if given:
            require(pool.size == 0, "moe.pool.size", pool.size, "0: moe.pool.labels gives experts")
        else:
            require(
                picks <= pool.size <= self.num_experts, "moe.pool.size", pool.size, allowed_sizes
            )
        if learned:
            share = "above 0, at most 1"
            require(0 < pool.label_rate <= 1, "moe.pool.label_rate", pool.label_rate, share)
        if pool.kind == "label_bias":
            require(pool.label_bias > 0, "moe.pool.label_bias", pool.label_bias, "above 0")

    def _check_router(self) -> None:
        rate, jitter = self.bias_rate, self.input_jitter
        if self.score_bias == "sign":
            require(rate >= 0, "moe.bias_rate", rate, "at least 0")
        else:
            unread = f"0: moe.score_bias = {self.score_bias!r} does not read it"
            require(rate == 0, "moe.bias_rate", rate, unread)
        if self.score_bias == "quantile":
            require(
                self.gate == "sigmoid" and self.pool.kind == "none",
                "moe.score_bias",
                self.score_bias,
                "with moe.gate = 'sigmoid' and moe.pool.kind = 'none': it takes each expert's"
                " scores to be its own, and every expert to be open to every token",
            )
            picks, fewest = self.num_routed_picks, self.num_routed_experts
            if self.experts_per_layer:
                fewest = min(self.experts_per_layer) - self.num_shared_experts
            most = f"below the {fewest} routed experts where moe.score_bias = 'quantile'"
            require(picks < fewest, "moe.top_k", self.top_k, f"such that its picks are {most}")
        require(
            self.aux_scope == "pool" or self.balance_scope != "document",
            "moe.aux_scope",
            self.aux_scope,
            "'pool' where moe.balance_scope = 'document', whose experts are those of the pool",
        )
        require(
            self.capacity_factor >= 0, "moe.capacity_factor", self.capacity_factor, "at least 0"
        )
        require(0 <= jitter < 1, "moe.input_jitter", jitter, "0, or below 1")
        few, routed = self.extension_experts, self.num_routed_experts
        require(0 <= few <= routed, "moe.extension_experts", few, f"0..{routed} (routed experts)")
        require(
            few > 0 or not self.extension_detach_router,
            "moe.extension_detach_router",
            True,
            "False where moe.extension_experts = 0",
        )

    def _check_ghosts(self) -> None:
        pool, sample = self.pool, self.ghost_sample
        if self.ghosts == "random":
            most = self.num_routed_experts
            allowed = f"1..{most} (routed experts)"
            require(1 <= sample <= most, "moe.ghost_sample", sample, allowed)
        else:
            require(sample == 0, "moe.ghost_sample", sample, "0 where moe.ghosts is not 'random'")
        require(
            self.ghosts == "usage" or not self.ghost_detach,
            "moe.ghost_detach",
            True,
            "False where moe.ghosts is not 'usage'",
        )
        plain = pool.kind in ("fixed", "uniform", "top_p") and pool.renormalize and not pool.penalty
        softmax = self.gate == "softmax" and self.score_bias == "none" and not self.normalize_picks
        require(
            self.ghosts == "none" or (plain and softmax and not self.extension_experts),
            "moe.ghosts",
            self.ghosts,
            "'none' except with pools of kind fixed, uniform or top_p, which are renormalised and"
            " have no penalty, a softmax's own weights, and no extension_experts",
        )

    def without_pools(self, **changes: Any) -> "MoeConfig":
        """The same router without pools and what goes with them, for other data or fewer experts.

        That is ghosts, extension experts, and rules by which training sets a score bias, which
        stays as it is.

        Args:
          changes: further fields, by name.
        """
        return replace(
            self,
            **{
                "pool": PoolConfig(),
                "ghosts": "none",
                "ghost_sample": 0,
                "ghost_detach": False,
                "extension_experts": 0,
                "extension_detach_router": False,
                "score_bias": "none" if self.score_bias == "none" else "sign",
                "bias_rate": 0.0,
                **changes,
            },
        )

    @property
    def num_routed_experts(self) -> int:
        """Experts the router chooses from."""
        return self.num_experts - self.num_shared_experts

    @property
    def num_shared_picks(self) -> int:
        """Shared experts a token uses."""
        return self.shared_picks or self.num_shared_experts

    @property
    def num_routed_picks(self) -> int:
        """Routed experts a token uses."""
        return self.top_k - self.num_shared_picks

    @property
    def fewest_experts(self) -> int:
        """The least number of experts, shared ones included, that a layer needs for `top_k`."""
        return self.num_routed_picks + self.num_shared_experts

    @property
    def dispatched_experts(self) -> int:
        """Experts that tokens are sent to; the others compute all tokens."""
        return self.num_experts if self.shared_picks else self.num_routed_experts

    @property
    def dispatched_picks(self) -> int:
        """Experts that a token is sent to."""
        return self.top_k if self.shared_picks else self.num_routed_picks

    def experts_in(self, layer: int) -> int:
        """Number of experts in a layer, including shared ones.

        Arrays have `num_experts` entries in every layer: first the layer's routed experts, then
        zeros, then the shared ones.
        """
        return self.experts_per_layer[layer] if self.experts_per_layer else self.num_experts


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Decoder-only transformer (SPEC 1): pre-norm, no biases, untied embeddings, RoPE."""

    vocab_size: int  # number of ids the tokenizer can produce
    num_layers: int
    embed_dim: int  # width
    num_heads: int  # attention heads
    head_dim: int
    # Heads of keys and values, each read by as many consecutive heads of queries; 0: num_heads.
    num_kv_heads: int = 0
    # Hidden size of a dense model, or of dense_layers; otherwise 0 in a mixture of experts.
    mlp_dim: int = 0
    # First layers of a mixture of experts that have none, but one MLP (SPEC 6, densefirst).
    dense_layers: int = 0
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
        require(
            0 <= self.num_kv_heads <= self.num_heads and self.num_heads % self.kv_heads == 0,
            "model.num_kv_heads",
            self.num_kv_heads,
            f"0, or a divisor of model.num_heads = {self.num_heads}",
        )
        require(self.mlp_dim >= 0, "model.mlp_dim", self.mlp_dim, "at least 0")
        require(
            0 <= self.dense_layers < self.num_layers,
            "model.dense_layers",
            self.dense_layers,
            f"0..{self.num_layers - 1} (below model.num_layers)",
        )
        require(self.rope_theta >= 1, "model.rope_theta", self.rope_theta, "at least 1")
        require(0 < self.norm_eps < 1, "model.norm_eps", self.norm_eps, "above 0 and below 1")
        require(self.init_std > 0, "model.init_std", self.init_std, "above 0")

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    @property
    def stacked_layers(self) -> int:
        """Layers after `dense_layers`: those with experts, or all layers of a dense model."""
        return self.num_layers - self.dense_layers

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table and columns of the output head."""
        return math.ceil(self.vocab_size / self.vocab_multiple) * self.vocab_multiple
