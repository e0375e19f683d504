"""Unites modules of one parent, and merges them back into it.

Legend: L layers, R routed experts of the parent.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emo_jax.checkpoint.slices import Block
from emo_jax.config import Config, moe_of
from emo_jax.errors import UsageError
from emo_jax.hf.importing import open_folder
from emo_jax.hf.sources import FolderSource
from emo_jax.hf.tensors import LeafSource
from emo_jax.model.params import EXPERTS, ROUTER, SCORE_BIAS, is_stacked
from emo_jax.modules.assemble import Assembled, Part, Place, same_shape, smaller_config
from emo_jax.saved.selection_file import (
    Selection,
    check_selection,
    fingerprint,
    read_selection,
    slabs,
)


class Module(NamedTuple):
    """A selected model on disk."""

    path: Path
    source: FolderSource
    config: Config
    selection: Selection


class Composed(NamedTuple):
    """A model to be written, and its selection."""

    source: Assembled
    config: Config
    selection: Selection


def open_module(path: str | os.PathLike[str]) -> Module:
    """Opens a folder made by `emo select`, `emo compose` or the export of a finetuned module.

    Raises:
      UsageError, HfFormatError: it is not such a folder, or is damaged.
    """
    selection = read_selection(path)
    source, config, _ = open_folder(path)
    check_selection(path, selection, config, source)
    return Module(Path(path), source, config, selection)


def union(
    modules: Sequence[Module],
    *,
    average: bool = False,
    fill_from: tuple[LeafSource, Config] | None = None,
) -> Composed:
    """The union of the modules' experts, layer by layer, in the parent's order.

    An expert that several modules have, and everything outside the routed experts, must be the same
    in all of them.

    Args:
      modules: the modules.
      average: where they differ, as after finetuning, take the mean instead of failing.
      fill_from: the parent, whose next best experts fill smaller layers up to the largest, since
        some layouts have one number of experts for all layers; None: do not fill.

    Raises:
      UsageError: the modules differ in parent, shape, tokenizer or weights.
    """
    first = modules[0]
    for other in modules[1:]:
        _check_related(first, other)
    if not average:
        _check_equal(modules)
    s = moe_of(first.config).num_shared_experts
    # A module with fewer experts than top-k uses all of them; the union uses as many as the parent.
    top_k = max(m.selection.top_k or moe_of(m.config).top_k for m in modules)
    places: list[list[Place]] = []
    kept: list[tuple[int, ...]] = []
    sources: list[LeafSource] = [m.source for m in modules]
    scores = next_best(modules)
    if fill_from is not None:
        _check_parent(first, *fill_from)
        if not scores:
            raise UsageError(
                f"{', '.join(str(m.path) for m in modules)}: chosen by nothing that says which"
                " experts are next best; leave out --fill-from and give --layout emo"
            )
        sources.append(fill_from[0])
    unions = [
        sorted(set().union(*(m.selection.kept[layer] for m in modules)))
        for layer in range(first.config.model.stacked_layers)
    ]
    for layer, union in enumerate(unions):
        extra = []
        if fill_from is not None:
            most = max(map(len, unions))
            best = np.argsort(-np.asarray(scores[layer]), kind="stable").tolist()
            extra = [e for e in best if e not in union][: most - len(union)]
        numbers = [list(m.selection.kept[layer]) for m in modules]
        kept.append(tuple(sorted([*union, *extra])))
        row: list[Place] = []
        for expert in kept[-1]:
            if expert in extra:
                row.append([Part(len(modules), expert)])
                continue
            holders = [m for m, held in enumerate(numbers) if expert in held]
            share = 1.0 / len(holders) if average else 1.0
            holders = holders if average else holders[:1]
            row.append([Part(m, numbers[m].index(expert), share) for m in holders])
        places.append(row)
    rest = [1.0 / len(modules)] * len(modules) if average else [1.0]
    shared: list[Place] = []
    for n in range(s):
        ends = [moe_of(m.config).num_experts - s + n for m in modules[: len(rest)]]
        shared.append([Part(m, end, rest[m]) for m, end in enumerate(ends)])
    config = smaller_config(first.config, [len(k) for k in kept], top_k=top_k)
    about = {
        "method": "compose",
        "of": [{"path": str(m.path), **dict(m.selection.about)} for m in modules],
        "averaged": average,
        "filled_up": fill_from is not None,
    }
    selection = Selection(
        parent=first.selection.parent,
        parent_fingerprint=first.selection.parent_fingerprint,
        num_routed=first.selection.num_routed,
        top_k=top_k,
        tokenizer=next((m.selection.tokenizer for m in modules if m.selection.tokenizer), ""),
        kept=tuple(kept),
        about=about,
        scores=scores,
    )
    return Composed(Assembled(sources, config, places, shared=shared, rest=rest), config, selection)


def merge_into(
    full: LeafSource,
    config: Config,
    module: Module,
    *,
    share: float = 1.0,
    router: bool = False,
    rest: bool = False,
) -> Assembled:
    """A whole model with a module's routed experts back in their places.

    Args:
      full: parameters of the parent.
      config: config of the parent.
      module: the module.
      share: weight of the module's parameters, 0..1; the rest is the parent's.
      router: also merge the module's columns of the router.
      rest: also merge everything else: attention, norms, embeddings, shared experts.

    Raises:
      UsageError: the module has another parent, or `share` is out of range.
    """
    if not 0 <= share <= 1:  # NaN too
        raise UsageError(f"--average {share}: must be 0..1")
    moe, selection = moe_of(config), module.selection
    _check_parent(module, full, config)
    places: list[list[Place]] = []
    untouched: list[list[Place]] = []
    for kept in selection.kept:
        row: list[Place] = [[Part(0, e)] for e in range(moe.num_routed_experts)]
        untouched.append(list(row))
        for place, expert in enumerate(kept):
            row[expert] = _blend(Part(0, expert), Part(1, place), share)
        places.append(row)
    s, E, held = moe.num_shared_experts, moe.num_experts, moe_of(module.config).num_experts
    shared: list[Place] = [
        _blend(Part(0, E - s + n), Part(1, held - s + n), share if rest else 0.0) for n in range(s)
    ]
    shares = (1.0 - share, share) if rest else (1.0, 0.0)
    return Assembled(
        [full, module.source],
        config,
        places,
        router=places if router else untouched,
        shared=shared,
        rest=shares,
    )


def next_best(modules: Sequence[Module]) -> tuple[tuple[float, ...], ...]:
    """The modules' scores of the parent's routed experts, normalised and averaged; () if unknown.

    Scores of the method `random` come from the seed and mean nothing.
    """
    known = [
        np.asarray(m.selection.scores)
        for m in modules
        if m.selection.scores and m.selection.about.get("method") != "random"
    ]
    if not known:
        return ()
    shares = [LR / np.maximum(LR.sum(axis=1, keepdims=True), 1e-30) for LR in known]
    return tuple(map(tuple, np.mean(shares, axis=0).tolist()))


def _check_parent(module: Module, parent: LeafSource, config: Config) -> None:
    if wrong := same_shape(config, module.config):
        raise UsageError(f"{module.path}: not a module of this model: {'; '.join(wrong)}")
    selection, there = module.selection, moe_of(config).num_routed_experts
    if selection.num_routed != there:
        raise UsageError(
            f"{module.path}: its parent has {selection.num_routed} routed experts, this model"
            f" {there}; give the parent"
        )
    found = fingerprint(parent, config)
    if found != selection.parent_fingerprint:
        raise UsageError(
            f"{module.path}: was selected from {selection.parent.get('path', 'another model')}"
            f" ({selection.parent_fingerprint[:12]}), not from this model ({found[:12]})"
        )


def _blend(ours: Part, theirs: Part, share: float) -> Place:
    parts = [ours._replace(share=1.0 - share), theirs._replace(share=share)]
    return [part for part in parts if part.share]


def _check_related(first: Module, other: Module) -> None:
    both = f"{first.path} and {other.path}"
    wrong = same_shape(first.config, other.config)
    if wrong:
        raise UsageError(f"{both}: not of one parent: {'; '.join(wrong)}")
    a, b = first.selection, other.selection
    if (a.parent_fingerprint, a.num_routed) != (b.parent_fingerprint, b.num_routed):
        raise UsageError(
            f"{both}: of different parents, {a.parent.get('path')} ({a.parent_fingerprint[:12]})"
            f" and {b.parent.get('path')} ({b.parent_fingerprint[:12]})"
        )
    if a.tokenizer and b.tokenizer and a.tokenizer != b.tokenizer:
        raise UsageError(
            f"{both}: different tokenizers ({a.tokenizer[:12]} and {b.tokenizer[:12]})"
        )


def _check_equal(modules: Sequence[Module]) -> None:
    """Raises UsageError if weights that several modules have differ."""
    first = modules[0]
    by_expert = [p for p in (ROUTER, SCORE_BIAS, *EXPERTS) if p in first.source.shapes]
    for other in modules[1:]:
        for path in sorted(p for p in first.source.shapes if p not in by_expert):
            for block in slabs(path, first.source.shapes[path]):
                _same(first, other, path, block, block)
    s = moe_of(first.config).num_shared_experts
    for path in by_expert:
        axis = 2 if path == ROUTER else 1

        def at(module: Module, layer: int, expert: int, path=path, axis=axis) -> Block:
            return _one(module.source.shapes[path], axis, layer, expert)

        for layer in range(first.config.model.stacked_layers):
            # Each expert is compared with that of the first module that has it.
            holders: dict[int, tuple[Module, int]] = {}
            for module in modules:
                numbered = list(enumerate(module.selection.kept[layer]))
                if path in EXPERTS:  # the router's columns of shared experts are unused
                    end = module.source.shapes[path][axis] - s
                    numbered += [(end + n, -1 - n) for n in range(s)]
                for mine, expert in numbered:
                    holder, place = holders.setdefault(expert, (module, mine))
                    if holder is not module:
                        _same(
                            holder, module, path, at(holder, layer, place), at(module, layer, mine)
                        )


def _one(shape: tuple[int, ...], axis: int, layer: int, expert: int) -> Block:
    block = [slice(0, size) for size in shape]
    block[0], block[axis] = slice(layer, layer + 1), slice(expert, expert + 1)
    return tuple(block)


def _same(first: Module, other: Module, path: str, mine: Block, theirs: Block) -> None:
    a, b = first.source.read(path, mine), other.source.read(path, theirs)
    if not np.array_equal(a, b):
        layer = f", layer {mine[0].start}" if is_stacked(path) else ""
        raise UsageError(
            f"{first.path} and {other.path}: differ in {path}{layer}, as after finetuning; give"
            " --average to take the mean"
        )
