"""How the models of baselines.py are trained: all with the FLOPs of an EMO run on so many tokens.

Most arms are one run. A split model begins with a dense one; BTX and FlexOlmo with a dense seed and
a branch for each domain: these stages are workdirs of their own, and each is made once, so that an
interrupted arm goes on with the stage that it was in.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import branch_stages
import btx_tiny
import flexolmo_tiny
import modularity
import split_tiny
from ml_collections import ConfigDict

from emo_jax import branch, mix, train
from emo_jax.config import Config, baselines, control, from_config_dict, presets
from emo_jax.data.store import TokenStore
from emo_jax.modules.upcycle import upcycle
from emo_jax.training.flops import flops_per_token

PUBLIC = ("encyclopedia", "politics")  # what FlexOlmo's public model has seen; others have owners
SPLIT = "split-importance"  # of a dense model's neurons
SPANS = "span-64"  # of config/control.py: who shares a pool
EVAL_EVERY = 300  # steps


class Run(NamedTuple):
    """A model to train: an arm, millions of tokens, and a seed."""

    arm: str
    millions: float
    seed: int

    @property
    def name(self) -> str:
        """Of its workdir and its result."""
        return f"{self.arm}-{self.millions:g}m-{self.seed}"


class Stage(NamedTuple):
    """A run of an arm: the last one is the model, the others are what it begins from."""

    name: str
    config: Config


def _whole(make: Callable[[], ConfigDict]) -> Callable[[float], ConfigDict]:
    """An arm of one run with the FLOPs of EMO's."""

    def config_of(millions: float) -> ConfigDict:
        stage = branch_stages.Stage("whole", round(millions * 1e6), branch_stages.DOMAINS)
        return branch_stages.with_steps(make(), stage, 1.0)

    return config_of


def _with_tokens(make: Callable[[], ConfigDict]) -> Callable[[float], ConfigDict]:
    """EMO itself, and arms that cost the same."""

    def config_of(millions: float) -> ConfigDict:
        config = make()
        tokens = round(millions * 1e6)
        config.train.steps = presets.steps_of(tokens, config.train.batch_size, config.data.seq_len)
        return config

    return config_of


WHOLE = {
    "emo": _with_tokens(lambda: presets.modularity_tiny("emo")),
    "standard": _with_tokens(lambda: presets.modularity_tiny("standard")),
    "labels": _whole(lambda: baselines.labels_tiny("table")),
    "mixtral": _whole(baselines.mixtral_tiny),
    "switch": _whole(baselines.switch_tiny),
    "spans": _with_tokens(lambda: control.control_tiny(SPANS)),
}
STAGED = ("split", "btx", "flexolmo")
ARMS = (*WHOLE, *STAGED)


def config_of_arm(arm: str, millions: float) -> ConfigDict:
    """The config of the run of an arm that makes the model: its only or its last."""
    return _stages(arm, millions)[-1][1] if arm in STAGED else _watched(WHOLE[arm](millions))


def _watched(config: ConfigDict) -> ConfigDict:
    config.train.eval_every = EVAL_EVERY
    return config


def _stages(
    arm: str, millions: float, domains: tuple[str, ...] = ()
) -> list[tuple[str, ConfigDict]]:
    """Names and configs of the stages of an arm; `domains` are those of the store."""
    size = f"{millions:g}m"
    if arm == "split":
        made = [(stage, split_tiny.get_config(f"{stage}:{size}")) for stage in ("dense", "emo")]
    else:
        script = {"btx": btx_tiny, "flexolmo": flexolmo_tiny}[arm]
        public = PUBLIC if arm == "flexolmo" else ()
        owners = [domain for domain in domains if domain not in public]
        args = f"{size}:{len(owners) or branch_stages.DOMAINS}"
        made = [("seed", script.get_config(f"seed:{args}"))]
        made += [(domain, script.get_config(f"branch:{args}")) for domain in owners]
        made += [("mixed", script.get_config(f"mixed:{args}"))]
        for name, config in made:
            config.data.domains = (name,) if name in owners else public
    return [(name, _watched(config)) for name, config in made]


def stages_of(run: Run, stores: modularity.Stores) -> list[Stage]:
    """The runs that make a model, in order; the seed also orders the data."""
    if run.arm in STAGED:
        domains = tuple(TokenStore.open(stores.trained).domains)
        named = _stages(run.arm, run.millions, domains)
    else:
        named = [("whole", config_of_arm(run.arm, run.millions))]
    stages = []
    for name, config in named:
        config.name = f"{run.name}-{name}" if len(stages) + 1 < len(named) else run.name
        config.seed = config.data.seed = run.seed
        config.data.store = str(stores.trained.resolve())
        stages.append(Stage(name, from_config_dict(config)))
    return stages


def digest(stages: list[Stage]) -> str:
    """A digest of everything that determines a model, but not of its data paths."""
    found = [modularity.config_digest(stage.config) for stage in stages]
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


def flops(stages: list[Stage]) -> int:
    """Training FLOPs of all stages, as in SPEC 1.5."""
    return sum(tokens_of(config) * flops_per_token(config) for _, config in stages)


def tokens_of(config: Config) -> int:
    """Tokens that a run trains on."""
    return config.train.steps * config.train.batch_size * config.data.seq_len


def train_stages(run: Run, stages: list[Stage], stores: modularity.Stores, output: Path) -> Path:
    """Trains what is missing of a model, and returns its workdir."""
    workdir, parts = output / "runs" / run.name, output / "stages" / run.name
    *before, (_, config) = stages
    start = None
    if before and not (parts / "start").exists():
        parts.mkdir(parents=True, exist_ok=True)
        (_, first), *branches = before
        train(first, parts / "first", quiet=False)
        _make_start(run, branches, stores, parts)
    if before:
        start = f"{parts / 'start'}@0"
    train(config, workdir, init_from=start, init="weights", quiet=False)
    return workdir


def _make_start(run: Run, branches: list[Stage], stores: modularity.Stores, parts: Path) -> None:
    """The model that the last stage begins from, of what was trained before."""
    first, start = parts / "first", parts / "start"
    if run.arm == "split":
        upcycle(
            *(first, start),
            method=SPLIT,
            experts=16,
            top_k=4,
            data=str(stores.trained),
            seed=run.seed,
            quiet=False,
        )
        return
    folder = parts / "branches"
    owners = [name for name, _ in branches]
    if missing := [name for name in owners if not (folder / name).exists()]:
        branch(first, stores.trained, missing, folder, method=run.arm, quiet=False)
    for name, config in branches:
        train(config, folder / name, quiet=False)
    with_seed = first if run.arm == "btx" else None
    mix([folder / name for name in owners], start, with_seed=with_seed, seed=run.seed, quiet=False)


def described(run: Run, stages: list[Stage], stores: modularity.Stores) -> dict[str, Any]:
    """What a result is of: `modularity.is_there` compares it."""
    moe = stages[-1].config.moe
    assert moe is not None
    return {
        "arm": run.arm,
        "seed": run.seed,
        "millions": run.millions,
        "tokens": {name: tokens_of(config) for name, config in stages},
        "flops": flops(stages),
        "experts": moe.num_experts,
        "config": digest(stages),
        "store": TokenStore.open(stores.trained).fingerprint,
    }
