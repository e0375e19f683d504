"""`selection.json`, next to a selected model's weights: which experts of its parent it has.

The weights do not tell which of the parent's experts they are. With the file of another module of
the same shape, experts would silently end up in the wrong places, so the file contains a digest of
the experts it was written with.
"""

import dataclasses
import hashlib
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emo_jax.checkpoint.slices import Block
from emo_jax.config import Config, moe_of, routed_by_layer
from emo_jax.errors import UsageError, one_line
from emo_jax.files import json_files
from emo_jax.files.inside import check_own_files
from emo_jax.files.json_files import Fields, NotReadableError, dumps
from emo_jax.hf.tensors import LeafSource
from emo_jax.model.params import EXPERTS, FAVOUR, ROUTER, SCORE_BIAS, is_stacked

FILE = "selection.json"
FORMAT = "emo_jax selection"
_ADVICE = "select again, or take the file away to use the model without it"
_MAX_EXPERTS = 1 << 20  # in a layer
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Which experts of a parent model a smaller one has.

    Attributes:
      parent: the parent's name, its path as given, and its step.
      parent_fingerprint: `fingerprint` of the parent.
      num_routed: number of routed experts in each layer of the parent.
      top_k: top-k of the parent, including shared experts; 0: unknown.
      tokenizer: fingerprint of the parent's tokenizer; empty: unknown.
      kept: for each layer, the parent's numbers of the routed experts in this model, ascending.
      about: method, data and other facts for the reader.
      scores: for each layer, the score of each of the parent's routed experts; empty: none.
      experts: `experts_digest` of the weights next to the file; empty: unknown.
    """

    parent: Mapping[str, Any]
    parent_fingerprint: str
    num_routed: int
    kept: tuple[tuple[int, ...], ...]
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scores: tuple[tuple[float, ...], ...] = ()
    top_k: int = 0
    tokenizer: str = ""
    experts: str = ""

    def text(self) -> str:
        """Contents of the file."""
        fields = {"format": FORMAT, **dataclasses.asdict(self)}
        return dumps(fields, indent=1) + "\n"


def read_selection(folder: str | os.PathLike[str]) -> Selection:
    """Reads and validates a model's selection file; `check_selection` compares it with the model.

    Raises:
      UsageError: the folder has no such file, or a damaged one.
    """
    file = Path(folder) / FILE
    check_own_files(folder, [FILE], error=UsageError)
    try:
        found = _parse(json_files.read_object(file, error=UsageError, advice=_ADVICE))
    except FileNotFoundError:
        raise UsageError(
            f"{folder}: no {FILE}; give a folder that emo select or emo compose wrote"
        ) from None
    except NotReadableError as error:
        raise UsageError(f"{file}: damaged ({one_line(error)}); {_ADVICE}") from error
    return found


def _parse(values: dict[str, Any]) -> Selection:
    fields = Fields(values)
    if fields.text("format") != FORMAT:
        raise NotReadableError("another format")
    if unknown := [name for name in fields if name not in _NAMES]:
        raise NotReadableError(f"no such field {unknown[0]!r:.40}")
    parent, about = fields.inner("parent"), fields.inner("about", {})
    for name in ("name", "path"):
        parent.line(name, "")
    if parent.value("step", None) is not None:
        parent.integer("step", high=2**63 - 1)
    about.line("method", "")
    routed = fields.integer("num_routed", low=1, high=_MAX_EXPERTS)
    kept = tuple(map(tuple, fields.rows("kept", json_files.is_integer, "whole numbers")))
    for layer, row in enumerate(kept):
        if not row or list(row) != sorted(set(row)) or row[0] < 0 or row[-1] >= routed:
            raise NotReadableError(
                f"kept of layer {layer} must be different numbers of 0..{routed - 1}, ascending"
            )
    scores = tuple(map(tuple, fields.rows("scores", json_files.is_number, "finite numbers", [])))
    if scores and ([len(row) for row in scores] != [routed] * len(kept)):
        raise NotReadableError(
            f"scores must be {len(kept)} lists of {routed} numbers, one for each layer of kept"
        )
    return Selection(
        parent=values["parent"],
        parent_fingerprint=fields.line("parent_fingerprint"),
        num_routed=routed,
        kept=kept,
        about=values.get("about", {}),
        scores=scores,
        top_k=fields.integer("top_k", 0, high=_MAX_EXPERTS),
        tokenizer=fields.line("tokenizer", ""),
        experts=fields.line("experts", ""),
    )


_NAMES = {"format", *(field.name for field in dataclasses.fields(Selection))}


def check_selection(
    folder: str | os.PathLike[str],
    selection: Selection,
    config: Config,
    source: LeafSource | None = None,
) -> None:
    """Raises UsageError if a selection does not belong to the model next to it.

    Args:
      folder: the folder of both, for error messages.
      selection: content of the file.
      config: config of the model.
      source: parameters of the model, to also compare the experts with the digest; None: do not.
    """
    file = Path(folder) / FILE
    if config.moe is None:
        raise UsageError(f"{file}: is not of this model, which is dense; {_ADVICE}")
    there = routed_by_layer(config)
    kept = [len(row) for row in selection.kept]
    if kept != there:
        raise UsageError(
            f"{file}: is not of this model, which has {_counts(there)} routed experts in its"
            f" layers, not {_counts(kept)}; {_ADVICE}"
        )
    if selection.top_k > selection.num_routed + config.moe.num_shared_experts:
        raise UsageError(
            f"{file}: top_k {selection.top_k} is more than the parent's experts; {_ADVICE}"
        )
    if source is None:
        return
    if not selection.experts:
        _LOG.warning(
            "%s: has no digest of the experts, as files of before; which of the parent's experts"
            " they are is taken on its word",
            file,
        )
    elif (found := experts_digest(source, config)) != selection.experts:
        raise UsageError(
            f"{file}: is of other experts than lie beside it ({selection.experts[:12]} is not"
            f" {found[:12]}); copy the module again, or, where its experts were trained further"
            " elsewhere, take the field experts out of the file"
        )


def selection_beside(
    folder: str | os.PathLike[str], config: Config, source: LeafSource | None = None
) -> Selection | None:
    """Reads the selection in a model's folder, if any, and checks that it belongs to the model.

    Args:
      folder: the folder.
      config: config of the model.
      source: see `check_selection`.

    Raises:
      UsageError: the file is damaged, or does not belong to the model.
    """
    if not os.path.lexists(Path(folder) / FILE):
        return None
    selection = read_selection(folder)
    check_selection(folder, selection, config, source)
    return selection


def selection_files(
    selection: Selection | None, source: LeafSource, config: Config
) -> dict[str, str]:
    """The file as {name: text}, with the digest of the model's experts; {} without a selection."""
    if selection is None:
        return {}
    experts = experts_digest(source, config)
    return {FILE: dataclasses.replace(selection, experts=experts).text()}


def _counts(counts: list[int]) -> str:
    """One count per layer, in short form."""
    if counts and len(set(counts)) == 1:
        return f"{len(counts)} x {counts[0]}"
    return ", ".join(map(str, counts[:8])) + (", …" if len(counts) > 8 else "")


def experts_digest(source: LeafSource, config: Config) -> str:
    """SHA-256 of the float32 weights of all routed experts, in order of layer and place."""
    digest = hashlib.sha256()
    for layer, count in enumerate(routed_by_layer(config)):
        for place in range(count):
            for path in EXPERTS:
                block = [slice(0, size) for size in source.shapes[path]]
                block[0], block[1] = slice(layer, layer + 1), slice(place, place + 1)
                digest.update(np.ascontiguousarray(source.read(path, tuple(block)), "<f4").data)
    return digest.hexdigest()


def fingerprint(source: LeafSource, config: Config) -> str:
    """SHA-256 of all meaningful float32 weights outside the experts.

    Vocabulary rows of ids that no tokenizer makes, and the router's columns of shared experts, are
    left out: not every layout stores them.
    """
    moe, V = moe_of(config), config.model.vocab_size
    live = {
        "embed/embedding": (0, V),
        "lm_head/kernel": (1, V),
        ROUTER: (2, moe.num_routed_experts),
        SCORE_BIAS: (1, moe.num_routed_experts),
    }
    digest = hashlib.sha256()
    for path in sorted(source.shapes):
        if path in (*EXPERTS, FAVOUR):  # which acts in training only, and no layout stores
            continue
        shape = list(source.shapes[path])
        if path in live:
            axis, size = live[path]
            shape[axis] = size
        digest.update(f"{path} {shape}\n".encode())
        for block in slabs(path, tuple(shape)):
            digest.update(np.ascontiguousarray(source.read(path, block), "<f4").tobytes())
    return digest.hexdigest()


def slabs(path: str, shape: tuple[int, ...]) -> list[Block]:
    """Splits a leaf into blocks that are contiguous in its file: by layers, or by ids."""
    axis = 1 if path == "lm_head/kernel" else 0
    others = max(1, math.prod(shape) // shape[axis])
    step = 1 if is_stacked(path) else max(1, (1 << 22) // others)
    blocks = []
    for n in range(0, shape[axis], step):
        block = [slice(0, size) for size in shape]
        block[axis] = slice(n, min(n + step, shape[axis]))
        blocks.append(tuple(block))
    return blocks


def overlap(kept_LR: np.ndarray, other_LR: np.ndarray) -> float:
    """Jaccard index: routed experts in both over those in either, as a mean over the layers."""
    both, either = (kept_LR & other_LR).sum(-1), (kept_LR | other_LR).sum(-1)
    return float(np.mean(both / np.maximum(either, 1)))
