"""Allowed names for config fields and command options."""

from typing import Literal, get_args

WindowOrder = Literal["shuffled", "grain", "olmo"]
Packing = Literal["cut", "best_fit", "document"]
PACKINGS: tuple[str, ...] = get_args(Packing)
RawDtype = Literal["auto", "uint16", "uint32"]
PoolKind = Literal[
    "none", "fixed", "uniform", "top_p", "label_table", "label_learned", "label_bias"
]
PoolScope = Literal["document", "span", "domain", "window"]
# Scores that the router makes of its logits, and how a bias on them follows the load.
Gate = Literal["softmax", "sigmoid"]
ScoreBias = Literal["none", "sign", "quantile"]
# How a document's ghost expert is made of its pool's experts, see `emo_jax.moe.ghosts`.
GhostKind = Literal["none", "usage", "uniform", "random"]
AttentionScope = Literal["document", "window"]
AttentionBackend = Literal["auto", "blocked", "xla", "splash", "cudnn", "tokamax"]
Remat = Literal["none", "save_matmuls", "save_attention", "full"]
Dtype = Literal["float32", "bfloat16"]
ExpertBackend = Literal["auto", "blocked", "ragged_dot", "tokamax", "megablox"]
Dispatch = Literal["auto", "ragged_all_to_all", "all_to_all"]
BalanceScope = Literal["micro", "step", "document"]
AuxScope = Literal["pool", "all"]
BalanceTokens = Literal["all", "labels"]
Schedule = Literal["cosine", "wsd"]
OptimizerName = Literal["adamw", "muon"]
# What a run does about a loss or gradient that is not finite, and about a spike of either.
OnNan = Literal["stop", "skip", "rollback"]
OnSpike = Literal["skip", "rollback"]
WandbMode = Literal["online", "offline", "disabled"]
# Parts of a model that `optimizer.frozen` may name.
FrozenPart = Literal[
    "embeddings", "attention", "norms", "router", "routed", "shared", "old_experts", "mlp"
]
FROZEN_PARTS: tuple[str, ...] = get_args(FrozenPart)
# How a module's experts are chosen, see `emo_jax.selection.scores`.
Method = Literal["layerwise", "global", "easy_ep", "reap", "aimer", "random"]
METHODS: tuple[str, ...] = get_args(Method)
# Those that the examples do not change.
METHODS_WITHOUT_DATA: tuple[Method, ...] = ("aimer", "random")
# How the experts of a domain are told from those of others, see `emo_jax.selection.removal`.
RemovalMethod = Literal["contrast", "ratio", "information", "mass"]
REMOVAL_METHODS: tuple[str, ...] = get_args(RemovalMethod)
# How the experts kept in all are spread over the layers, see `emo_jax.selection.schedules`.
KeepSchedule = Literal["uniform", "increasing", "decreasing", "mass", "greedy"]
KEEP_SCHEDULES: tuple[str, ...] = get_args(KeepSchedule)
# What `emo finetune` keeps frozen.
Freeze = Literal["none", "routed", "routed+shared", "all-but-router"]
FREEZES: tuple[str, ...] = get_args(Freeze)
# How new experts are initialised, see `emo_jax.modules.extend`.
NewExperts = Literal["copy", "jitter", "random", "mean"]
NEW_EXPERTS: tuple[str, ...] = get_args(NewExperts)
# Adam's moments of experts that were added to a run, see `emo_jax.modules.grow`.
Moments = Literal["copy", "zero"]
MOMENTS: tuple[str, ...] = get_args(Moments)
# How a dense model becomes experts of domains, see `emo_jax.modules.branch`.
BranchMethod = Literal["btx", "flexolmo"]
BRANCH_METHODS: tuple[str, ...] = get_args(BranchMethod)
# What a run takes from another run's checkpoint, see `emo_jax.training.init_from`.
InitMode = Literal["weights", "weights+optimizer", "all"]
INIT_MODES: tuple[str, ...] = get_args(InitMode)
# Layouts of a Hugging Face folder, see `emo_jax.hf.layouts`.
UPCYCLE_METHODS = (
    "split-random",
    "split-kmeans",
    "split-coactivation",
    "split-importance",
    "copy",
)
UPCYCLE_METHODS_WITH_DATA = ("split-coactivation", "split-importance")
LayoutName = Literal["qwen2_moe", "mixtral", "glm4_moe", "llama", "emo"]
LAYOUT_NAMES: tuple[str, ...] = get_args(LayoutName)
MOE_LAYOUT_NAMES = ("qwen2_moe", "mixtral", "glm4_moe", "emo")
# Types of the matrices of a GGUF file, see `emo_jax.hf.gguf_tensors`.
GgufType = Literal["float32", "float16", "bfloat16", "q8_0"]
GGUF_TYPES: tuple[str, ...] = get_args(GgufType)
# Splits of a token store, the one for reported losses first.
Split = Literal["test", "select", "train"]
SPLIT_NAMES: tuple[str, ...] = get_args(Split)
