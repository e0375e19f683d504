"""The section of the config that says which experts a document may use."""

from dataclasses import dataclass

from emo_jax.config.checks import require
from emo_jax.config.names import PoolKind, PoolScope


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """Which routed experts the tokens of one document may use, per layer.

    Sizes count routed experts only. `none` is a standard MoE. `fixed` uses `size`; `uniform`
    draws from min_size..max_size, inclusive, for every document, layer and step; `top_p` is the
    smallest set with `top_p` of the document's router probability, clamped to min_size..max_size.
    In training only, a document's `domain` is its label: `label_table` gives each domain its own
    experts, `label_learned` the `size` that the router has favoured in that domain so far, and
    `label_bias` adds to the logits of a domain's experts. A size of at least the number of routed
    experts restricts nothing.
    """

    kind: PoolKind = "none"
    size: int = 0  # for `fixed`, and for labels without ranges
    min_size: int = 0  # for `uniform` and `top_p`
    max_size: int = 0  # likewise
    top_p: float = 0.0  # for `top_p`: share of the probability
    eval_size: int = 0  # pool size for `pool=N` held-out losses; 0: not reported
    forced_experts: int = 0  # number of last routed experts that are in every pool
    # Probabilities in the pool sum to 1. False: they are those over all experts, and the z-loss is
    # over all logits (SPEC 6, fullzloss).
    renormalize: bool = True
    # Domains in the order of the data, which fills them in; `NAME=FIRST-LAST` gives experts too.
    labels: tuple[str, ...] = ()
    label_bias: float = 0.0  # for `label_bias`: what is added to the logits
    label_rate: float = 0.0  # for `label_learned`: share of a step in the moving average
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

    @property
    def labelled(self) -> bool:
        """Whether pools follow the documents' labels."""
        return self.kind.startswith("label_")


def check_control(pool: PoolConfig, num_experts: int) -> None:
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
    require(
        pool.renormalize or not (pool.kind == "none" or pool.labelled or pool.penalty),
        "moe.pool.renormalize",
        pool.renormalize,
        "True without pools, with pools by label and with moe.pool.penalty",
    )
    if pool.kind == "none":
        for name, unset in (("decay_steps", 0), ("scope", "document"), ("penalty", 0.0)):
            value = getattr(pool, name)
            require(value == unset, f"moe.pool.{name}", value, f"{unset!r}: there are no pools")
