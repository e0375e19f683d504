"""The config of a run: frozen dataclasses. All checks of values are made here, and none later.

`Config` checks what sections must agree on; `architecture` and `sections` define the sections. SPEC
and DESIGN in comments are docs/spec.md and docs/design.md.
"""

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any

from emo_jax.config import seeds
from emo_jax.config.architecture import ModelConfig, MoeConfig
from emo_jax.config.changes import INIT, KEY, RECIPE, RESUME
from emo_jax.config.checks import nearest, refuse_secret, require
from emo_jax.config.sections import (
    CheckpointConfig,
    DataConfig,
    InitConfig,
    MeshConfig,
    OptimizerConfig,
    TrackingConfig,
    TrainConfig,
)
from emo_jax.files import trees


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    name: str = field(metadata=INIT)  # for display, and the run's name in trackers
    model: ModelConfig
    train: TrainConfig = field(metadata=RECIPE)
    moe: MoeConfig | None = None  # None: a dense model
    data: DataConfig = field(default_factory=DataConfig, metadata=RECIPE)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig, metadata=RECIPE)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig, metadata=RESUME)
    mesh: MeshConfig = field(default_factory=MeshConfig, metadata=RESUME)
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata=RESUME)
    init: InitConfig = field(default_factory=InitConfig, metadata=RESUME)
    seed: int = field(default=0, metadata=RECIPE)  # initialisation and pool draws

    def __post_init__(self) -> None:
        for name, value in flatten(self).items():
            refuse_secret(name, value)
        named = self.name.isprintable() and bool(self.name.strip())
        require(named, "name", self.name, "one line of text")
        require(seeds.is_seed(self.seed), "seed", self.seed, seeds.RANGE)
        if self.moe is None:
            require(
                self.model.mlp_dim >= 1,
                "model.mlp_dim",
                self.model.mlp_dim,
                "at least 1 in a dense model (or give the section moe)",
            )
            require(
                self.model.dense_layers == 0,
                "model.dense_layers",
                self.model.dense_layers,
                "0 in a dense model, all of whose layers are dense",
            )
        else:
            first = self.model.dense_layers
            require(
                (self.model.mlp_dim > 0) == (first > 0),
                "model.mlp_dim",
                self.model.mlp_dim,
                f"at least 1, for model.dense_layers = {first}"
                if first
                else "0 in a mixture of experts without model.dense_layers (moe.expert_dim rules)",
            )
            counts, layers = self.moe.experts_per_layer, self.model.stacked_layers
            require(
                len(counts) in (0, layers),
                "moe.experts_per_layer",
                counts,
                f"empty, or one count for each of the {layers} layers with experts",
            )
            require(
                self.moe.num_experts % max(self.mesh.expert, 1) == 0,
                "moe.num_experts",
                self.moe.num_experts,
                f"divisible by mesh.expert = {self.mesh.expert}",
            )
        require(
            self.optimizer.warmup_steps <= self.train.steps,
            "optimizer.warmup_steps",
            self.optimizer.warmup_steps,
            f"at most train.steps = {self.train.steps}",
        )
        require(
            self.optimizer.warmup_steps + self.optimizer.decay_steps <= self.train.steps,
            "optimizer.decay_steps",
            self.optimizer.decay_steps,
            f"at most {self.train.steps - self.optimizer.warmup_steps}"
            " (train.steps - optimizer.warmup_steps)",
        )
        require(
            self.train.on_spike == "skip" or self.optimizer.skip_window > 0,
            "train.on_spike",
            self.train.on_spike,
            "'skip' without optimizer.skip_window, which says what a spike is",
        )
        if self.moe is not None and self.moe.capacity_factor:
            rows = capacity_rows(self.moe, self.data.seq_len)
            require(
                rows >= 1,
                "moe.capacity_factor",
                self.moe.capacity_factor,
                f"such that an expert takes a row: {self.data.seq_len} tokens of a window (data."
                f"seq_len) have {self.moe.num_routed_picks} picks each, of"
                f" {self.moe.num_routed_experts} experts",
            )
        if self.moe is not None and self.moe.ghosts != "none":
            across = "1 where moe.ghosts is not 'none': a mean of experts needs them on one device"
            require(self.mesh.expert == 1, "mesh.expert", self.mesh.expert, across)
        if self.moe is not None and self.moe.balance_tokens == "labels":
            require(
                self.moe.balance_scope == "micro",
                "moe.balance_scope",
                self.moe.balance_scope,
                "micro where moe.balance_tokens = 'labels'",
            )
        keeps = self.train.eval_keep
        require(not keeps or self.moe is not None, "train.eval_keep", keeps, "empty: no experts")
        if self.moe is not None:
            least, most = self.moe.fewest_experts, self.moe.num_experts
            fits = all(least <= keep <= most for keep in keeps)
            allowed = f"counts in {least}..{most} (enough for moe.top_k, at most moe.num_experts)"
            require(fits, "train.eval_keep", keeps, allowed)
        of_experts = {"router", "routed", "shared", "old_experts"}
        dense = {"mlp"} if self.model.dense_layers == 0 else set()
        wrong = dense if self.moe is not None else of_experts
        require(
            not wrong & set(self.optimizer.frozen),
            "optimizer.frozen",
            self.optimizer.frozen,
            f"without {', '.join(sorted(wrong))}: this model has none",
        )
        for name in self.init.expected_changes:
            fields = list(flatten(self))
            known = any(f == name or f.startswith(f"{name}.") for f in fields)
            allowed = f"fields or sections of the config{nearest(name, fields)}"
            require(known, "init.expected_changes", name, allowed)
        micro = self.train.batch_size // self.train.micro_batches
        rows = max(self.mesh.replica, 1) * max(self.mesh.fsdp, 1) * max(self.mesh.expert, 1)
        require(
            micro % rows == 0,
            "train.batch_size",
            self.train.batch_size,
            f"such that a micro-batch ({micro} windows) divides over the mesh's {rows} devices",
        )


def to_dict(config: Config) -> dict[str, Any]:
    """A plain nested dict of all fields, including defaults; `from_config_dict` reads it back."""
    return dataclasses.asdict(config)


def portable(config: Config) -> Config:
    """The config without what is specific to a machine or user: its data and trackers.

    Configs that come with data are used this way, so that a run's metrics never go to a place named
    in someone else's file.
    """
    data = dataclasses.replace(config.data, store="", sources=(), domains=())
    return dataclasses.replace(config, data=data, tracking=TrackingConfig())


def flatten(config: Config) -> dict[str, Any]:
    """All leaves by dotted name: `{"model.num_layers": 16, …}`."""
    return trees.flatten(to_dict(config), ".")


def differences(ours: Config, theirs: Config) -> list[str]:
    """A line `field: theirs -> ours` for every leaf in which two configs differ."""
    a, b = flatten(ours), flatten(theirs)
    return [f"{k}: {b.get(k)!r} -> {a.get(k)!r}" for k in sorted(a | b) if a.get(k) != b.get(k)]


def section_of(kind: Any) -> type | None:
    """The dataclass of a field annotated `Section` or `Section | None`."""
    for option in typing.get_args(kind) or (kind,):
        if isinstance(option, type) and dataclasses.is_dataclass(option):
            return option
    return None


def may_change(name: str) -> str | None:
    """When the field with this dotted name may differ (`emo_jax.config.changes`); None: never."""
    found: str | None = None
    section: type = Config
    for part in name.split("."):
        fields = {f.name: f for f in dataclasses.fields(section)}
        if part not in fields:
            break
        found = fields[part].metadata.get(KEY, found)
        section = section_of(typing.get_type_hints(section)[part]) or section
    return found


def capacity_rows(moe: MoeConfig, seq_len: int) -> int:
    """Rows of a window that a routed expert takes in training, with `moe.capacity_factor`."""
    balanced = seq_len * moe.num_routed_picks / moe.num_routed_experts
    return int(moe.capacity_factor * balanced)


def moe_of(config: Config) -> MoeConfig:
    """The section `moe`, for callers whose layout guarantees that there is one."""
    assert config.moe is not None
    return config.moe


def routed_by_layer(config: Config) -> list[int]:
    """Routed experts of each layer that has experts."""
    moe = moe_of(config)
    return [moe.experts_in(n) - moe.num_shared_experts for n in range(config.model.stacked_layers)]
