"""What a selected model says of itself: `selection.json` beside its weights."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emo_jax.config import Config
from emo_jax.errors import UsageError
from emo_jax.hf.tensors import LeafSource
from emo_jax.hf.tree import moe_of
from emo_jax.modularity.assemble import EXPERTS, ROUTER
from emo_jax.slices import Block

FILE = "selection.json"
FORMAT = "emo_jax selection"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """The experts of a parent model that a smaller one has.

    Attributes:
      parent: what the parent is called, its path as given, its step.
      parent_fingerprint: of the parent's weights outside the routed experts.
      num_routed: routed experts of the parent, in each layer.
      top_k: of the parent, shared experts included; 0: not known.
      tokenizer: fingerprint of the parent's; empty: not known.
      kept: of each layer the parent's numbers of the routed experts that are there, ascending.
      about: method, data and whatever else a reader wants to know.
      scores: of each layer the score of each of the parent's routed experts; empty: none.
    """

    parent: Mapping[str, Any]
    parent_fingerprint: str
    num_routed: int
    kept: tuple[tuple[int, ...], ...]
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scores: tuple[tuple[float, ...], ...] = ()
    top_k: int = 0
    tokenizer: str = ""

    def text(self) -> str:
        """Contents of the file."""
        fields = {"format": FORMAT, **dataclasses.asdict(self)}
        return json.dumps(fields, indent=1) + "\n"


def read_selection(folder: str | Path) -> Selection:
    """The file of a selected model.

    Raises:
      UsageError: the folder has none, or one that is damaged.
    """
    file = Path(folder) / FILE
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        if fields.pop("format") != FORMAT:
            raise ValueError("another format")
        for name in ("kept", "scores"):
            fields[name] = tuple(map(tuple, fields[name]))
        return Selection(**fields)
    except FileNotFoundError:
        raise UsageError(
            f"{folder}: no {FILE}; give a folder that emo select or emo compose wrote"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{file}: damaged ({error}); select again") from error


def fingerprint(source: LeafSource, config: Config) -> str:
    """SHA-256 of all float32 weights outside the experts that mean something.

    Rows of ids that no tokenizer makes, and the router's columns of shared experts, are left out:
    not every layout holds them.
    """
    moe, V = moe_of(config), config.model.vocab_size
    live = {
        "embed/embedding": (0, V),
        "lm_head/kernel": (1, V),
        ROUTER: (2, moe.num_routed_experts),
    }
    digest = hashlib.sha256()
    for path in sorted(source.shapes):
        if path in EXPERTS:
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
    """A leaf in pieces along an axis that its file holds together: layers, or ids."""
    axis = 1 if path == "lm_head/kernel" else 0
    others = max(1, math.prod(shape) // shape[axis])
    step = 1 if path.startswith("layers/") else max(1, (1 << 22) // others)
    blocks = []
    for n in range(0, shape[axis], step):
        block = [slice(0, size) for size in shape]
        block[axis] = slice(n, min(n + step, shape[axis]))
        blocks.append(tuple(block))
    return blocks


def overlap(kept_LR: np.ndarray, other_LR: np.ndarray) -> float:
    """Jaccard: routed experts in both over those in either, mean over the layers."""
    both, either = (kept_LR & other_LR).sum(-1), (kept_LR | other_LR).sum(-1)
    return float(np.mean(both / np.maximum(either, 1)))
