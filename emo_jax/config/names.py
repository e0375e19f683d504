"""Names that a field of the config, or an option of a command, may have."""

from typing import Literal

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
# Of choosing the experts of a module, see `emo_jax.selection.scores`.
Method = Literal["layerwise", "global", "easy_ep", "random"]
