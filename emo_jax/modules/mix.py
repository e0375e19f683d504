"""`emo mix`: branches of one model as the experts of one mixture.

    dense       Branch-Train-MiX (arXiv 2403.07816, 3.2): every branch's feed-forward is an expert,
                all else is averaged, the router is new
    extensions  the experts that each branch added (its last `forced_experts`) and their columns of
                the router, beside what all have in common, bit for bit: FlexOlmo (2507.07024, 3.3),
                and runs of `emo extend`

The result is a workdir with parameters alone, as `emo import` makes one. Legend: E experts, s
shared ones.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from emo_jax.config import Config, MeshConfig, MoeConfig, differences, may_change, moe_of, portable
from emo_jax.errors import UsageError
from emo_jax.files.atomic import refuse_existing, write_atomic
from emo_jax.files.progress import Progress
from emo_jax.hf.tensors import LeafSource
from emo_jax.model.params import EXPERTS, ROUTER, is_stacked
from emo_jax.modules.assemble import Assembled, Part, Place, refuse_router_state
from emo_jax.modules.branch import params_digest
from emo_jax.modules.dense_experts import DenseExperts, random_router
from emo_jax.modules.grow import grown_config
from emo_jax.run.workdir import TOKENIZER_FOLDER
from emo_jax.saved.expert_names import EXPERTS_FILE, ExpertNames
from emo_jax.saved.load import OpenedModel, open_model
from emo_jax.saved.selection_file import slabs
from emo_jax.saved.transfer import import_leaves, tokenizer_of
from emo_jax.tokenizer.load import load_tokenizer
from emo_jax.training.init_from import read_record

TOP_K = 2  # of BTX
FLEXOLMO_TOP_K = 4
BALANCE = 0.01  # in each layer (BTX, 4.1.1); ours is divided by the number of layers


class Mixed(NamedTuple):
    """A workdir that `mix` made.

    Attributes:
      experts: names of the routed experts, by their place.
    """

    workdir: Path
    config: Config
    experts: tuple[str, ...]


def mix(
    branches: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    with_seed: str | os.PathLike[str] | None = None,
    top_k: int = 0,
    seed: int = 0,
    quiet: bool = True,
) -> Mixed:
    """Makes one mixture of experts of the branches of a model; see the module.

    Args:
      branches: runs of one seed model, `WORKDIR` or `WORKDIR@STEP`; of `emo branch`, or begun with
        `--init-from`.
      output: workdir to create, with the parameters as step 0.
      with_seed: for dense branches: the seed model, to be one more expert and averaged too.
      top_k: experts that a token uses; 0: 2 of dense branches, 4 of FlexOlmo's, else as before.
      seed: for the new router of dense branches.
      quiet: show no progress.

    Raises:
      UsageError: fewer than two branches; they have different parents, shapes or tokenizers, or
        differ in what they must have in common; or `output` already exists.
    """
    if len(branches) < 2:
        raise UsageError("give two or more branches: runs of emo branch")
    refuse_existing(output)
    with Progress("mix", enabled=not quiet) as shown:
        shown.show("comparing the branches")
        opened = [_open(os.fspath(path)) for path in branches]
        names = [one.folder.name for one in opened]
        _check_alike(opened)
        _check_names([*names, *(["seed"] if with_seed is not None else [])])
        if opened[0].config.moe is None:
            made = _dense(opened, names, with_seed, top_k or TOP_K, seed)
        elif with_seed is not None:
            raise UsageError(f"--with-seed {with_seed}: is of dense branches, these have experts")
        else:
            made = _extensions(opened, names, top_k)
        source, config, experts = made
        config = dataclasses.replace(portable(config), mesh=MeshConfig())
        text = ExpertNames(experts=experts, about=[_about(one) for one in opened]).text()
        tokenizer = tokenizer_of(opened[0].folder)

        def fill(unfinished: Path) -> None:
            write_atomic(epath.Path(unfinished / EXPERTS_FILE), text)
            if tokenizer is not None:
                found = load_tokenizer(tokenizer, within=opened[0].folder)
                found.save(unfinished / TOKENIZER_FOLDER)

        shown.show(f"writing {output}")
        import_leaves(source, config, output, fill, fills=(EXPERTS_FILE,))
    return Mixed(Path(output), config, experts)


Made = tuple[LeafSource, Config, tuple[str, ...]]


def _open(path: str) -> OpenedModel:
    opened = open_model(path)
    if opened.step is None:
        raise UsageError(f"{path}: a Hugging Face folder, not a branch; give the run's workdir")
    return opened


def _check_names(names: Sequence[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(
            f"{', '.join(twice)}: more than one expert would be called so; rename a branch's folder"
        )


def _about(opened: OpenedModel) -> dict[str, Any]:
    return {"path": opened.path, "name": opened.name, "step": opened.step}


def _check_alike(opened: Sequence[OpenedModel]) -> None:
    """Raises UsageError unless all have one shape, apart from added experts, and one tokenizer."""
    first, *others = opened
    for other in others:
        both = f"{first.path} and {other.path}"
        dense = [one.path for one in (first, other) if one.config.moe is None]
        if len(dense) == 1:
            raise UsageError(f"{both}: only {dense[0]} is dense; give branches of one kind")
        lines = [
            line
            for line in differences(other.config, first.config)
            if may_change(name := line.partition(":")[0]) is None
            and name.startswith(("model.", "moe"))
            and name != "moe.num_experts"
            and not name.startswith("moe.pool.")
        ]
        if lines:
            raise UsageError(f"{both}: of different shapes: {'; '.join(lines[:5])}")
        prints = [one.tokenizer.fingerprint for one in (first, other) if one.tokenizer is not None]
        if len(set(prints)) > 1:
            raise UsageError(f"{both}: different tokenizers ({prints[0][:12]}, {prints[1][:12]})")


# --- dense branches ------------------------------------------------------------------------------


def _dense(
    opened: Sequence[OpenedModel],
    names: Sequence[str],
    with_seed: str | os.PathLike[str] | None,
    top_k: int,
    seed: int,
) -> Made:
    records = [_parent_of(one) for one in opened]
    for one, record in zip(opened[1:], records[1:], strict=True):
        if not _same_parent(records[0], record):
            raise UsageError(
                f"{opened[0].path} and {one.path}: of different parents, {_shown(records[0])} and"
                f" {_shown(record)}"
            )
    sources, experts = [one.source for one in opened], tuple(names)
    if with_seed is not None:
        parent = _open(os.fspath(with_seed))
        _check_alike([opened[0], parent])
        if not _is_parent(parent, records[0]):
            raise UsageError(
                f"--with-seed {with_seed}: is not what the branches began from,"
                f" {_shown(records[0])}"
            )
        sources.append(parent.source)
        experts += ("seed",)
    config, E = opened[0].config, len(sources)
    if not 1 <= top_k <= E:
        raise UsageError(f"--top-k {top_k}: must be 1..{E}, the number of experts")
    moe = MoeConfig(
        num_experts=E,
        top_k=top_k,
        num_shared_experts=0,
        normalize_picks=True,
        expert_dim=config.model.mlp_dim,
        load_balance_weight=BALANCE * config.model.stacked_layers,
        router_z_weight=0.0,
    )
    mixed = dataclasses.replace(
        config,
        name=f"{records[0]['name']}_mixed",
        model=dataclasses.replace(config.model, mlp_dim=0),
        moe=moe,
        optimizer=dataclasses.replace(config.optimizer, frozen=()),
    )
    return DenseExperts(sources, mixed, random_router(mixed, seed)), mixed, experts


def _parent_of(opened: OpenedModel) -> dict[str, Any]:
    record = read_record(opened.folder)
    if record is None:
        raise UsageError(
            f"{opened.path}: did not begin from another run, so it is no branch; begin one with emo"
            " branch, or with emo train --init-from SEED --init weights"
        )
    return record


def _same_parent(a: dict[str, Any], b: dict[str, Any]) -> bool:
    if "params" in a and "params" in b:
        return a["params"] == b["params"]
    return all(a.get(name) == b.get(name) for name in ("name", "step", "config_sha256"))


def _is_parent(opened: OpenedModel, record: dict[str, Any]) -> bool:
    if "params" in record:
        return params_digest(opened.source) == record["params"]
    return (opened.name, opened.step) == (record["name"], record["step"])


def _shown(record: dict[str, Any]) -> str:
    return f"{record['workdir']}@{record['step']}"


# --- extensions of one model ---------------------------------------------------------------------


def _extensions(opened: Sequence[OpenedModel], names: Sequence[str], top_k: int) -> Made:
    added = [moe_of(one.config).pool.forced_experts for one in opened]
    for one, count in zip(opened, added, strict=True):
        refuse_router_state(one.source, one.path)
        if not count:
            raise UsageError(
                f"{one.path}: has no experts of its own (moe.pool.forced_experts is 0); give runs"
                " of emo branch --method flexolmo, or of what emo extend made"
            )
    first = opened[0]
    before = _without_added(first.config)
    old, s = moe_of(before).num_routed_experts, moe_of(before).num_shared_experts
    for one in opened[1:]:
        _check_common(first, one, old, s)
    places: list[Place] = [[Part(0, e)] for e in range(old)]
    experts = [f"{e}" for e in range(old)]
    for m, (name, count) in enumerate(zip(names, added, strict=True)):
        places += [[Part(m, old + n)] for n in range(count)]
        experts += [name] if count == 1 else [f"{name} {n}" for n in range(count)]
    flexolmo = (old, s) == (1, 0)
    if flexolmo:
        experts[0] = "public"
    E = len(places) + s
    usual = min(FLEXOLMO_TOP_K, E) if flexolmo else moe_of(before).top_k
    if not s < (top_k or usual) <= E:
        raise UsageError(f"--top-k {top_k}: must be {s + 1}..{E}, the number of experts")
    larger = grown_config(before, E, top_k or usual)
    record = read_record(first.folder)
    config = dataclasses.replace(
        first.config,
        name=f"{first.name if record is None else record['name']}_mixed",
        moe=larger.moe,
        optimizer=dataclasses.replace(first.config.optimizer, frozen=()),
    )
    layers = [places] * config.model.stacked_layers
    return Assembled([one.source for one in opened], config, layers), config, tuple(experts)


def _without_added(config: Config) -> Config:
    """The config of the model before its last routed experts were added."""
    moe = moe_of(config)
    count, pool = moe.pool.forced_experts, moe.pool
    sizes = {
        name: size - count
        for name in ("size", "min_size", "max_size", "eval_size")
        if (size := getattr(pool, name))
    }
    smaller = moe.num_experts - count
    moe = dataclasses.replace(
        moe,
        num_experts=smaller,
        top_k=min(moe.top_k, smaller),
        pool=dataclasses.replace(pool, forced_experts=0, **sizes),
    )
    return dataclasses.replace(config, moe=moe)


def _check_common(first: OpenedModel, other: OpenedModel, old: int, s: int) -> None:
    """Raises UsageError unless both have the same bits in all but the experts that were added."""
    counts = [
        moe_of(one.config).num_routed_experts - moe_of(one.config).pool.forced_experts
        for one in (first, other)
    ]
    both = f"{first.path} and {other.path}"
    if counts[0] != counts[1]:
        raise UsageError(
            f"{both}: of different parents, with {counts[0]} and {counts[1]} routed experts"
        )
    for path, shape in first.source.shapes.items():
        axis = {ROUTER: 2, **dict.fromkeys(EXPERTS, 1)}.get(path)
        for block in slabs(path, shape):
            pairs = [(block, block)]
            if axis is not None:
                pairs = [(_cut(block, axis, 0, old), _cut(block, axis, 0, old))]
            if axis == 1 and s:  # the router's columns of shared experts are unused
                ends = [moe_of(one.config).num_experts for one in (first, other)]
                pairs.append(tuple(_cut(block, axis, end - s, end) for end in ends))  # type: ignore[arg-type]
            for mine, theirs in pairs:
                a, b = first.source.read(path, mine), other.source.read(path, theirs)
                if not np.array_equal(a, b):
                    layer = f", layer {mine[0].start}" if is_stacked(path) else ""
                    raise UsageError(
                        f"{both}: differ in {path}{layer}: they have different parents, or more"
                        " than the experts that were added was trained"
                    )


def _cut(block: tuple[slice, ...], axis: int, start: int, stop: int) -> tuple[slice, ...]:
    return (*block[:axis], slice(start, stop), *block[axis + 1 :])
