"""Adds routed experts to a model, which are then trained alone on something new (SPEC 10).

The new experts are the last routed ones and are in every pool (`moe.pool.forced_experts`), so that
`optimizer.frozen=(…, "old_experts")` trains only them and their columns of the router.

Legend: L layers, R routed experts of the old model.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emo_jax.checkpoint.slices import Block
from emo_jax.config import Config, moe_of
from emo_jax.config.extended import extended_config
from emo_jax.config.names import NEW_EXPERTS
from emo_jax.errors import UsageError
from emo_jax.files.atomic import refuse_existing
from emo_jax.files.progress import Progress
from emo_jax.hf.card import Card
from emo_jax.hf.export import export_leaves
from emo_jax.hf.tensors import LeafSource
from emo_jax.model.params import EXPERTS, ROUTER, Shape
from emo_jax.modules.assemble import Assembled, Part, Place
from emo_jax.modules.folder import open_with_experts, selection_of
from emo_jax.saved.selection_file import FILE

MOST_ADDED = 4096  # experts per layer; the largest models have a few hundred
_LOG = logging.getLogger(__name__)
JITTER = 0.02  # standard deviation of the factor (SPEC 10)


def extended(
    source: LeafSource,
    config: Config,
    add: int,
    *,
    init: str = "jitter",
    origins: Sequence[Sequence[int]] | None = None,
    seed: int = 0,
) -> tuple["Extended", Config]:
    """A model with `add` more routed experts in each layer, and its config.

    Args:
      source: parameters of the model.
      config: its config.
      add: number of routed experts to add to each layer.
      init: `copy`: a copy of an expert and its column of the router; `jitter`: each number of the
        copy times 1 + 0.02 · normal; `random`: fresh, as the model was initialised; `mean`: of all
        routed experts, as `moe.ghosts` prepares for.
      origins: for each layer, the experts to copy; None: drawn by the seed.
      seed: seed for the experts to copy and for the random numbers.

    Raises:
      UsageError: `init` is unknown, or `add` is out of range.
    """
    if init not in NEW_EXPERTS:
        raise UsageError(f"--init {init}: must be one of {', '.join(NEW_EXPERTS)}")
    if not 1 <= add <= MOST_ADDED:
        raise UsageError(f"--add {add}: must be in 1..{MOST_ADDED}")
    larger, R = extended_config(config, add), moe_of(config).num_routed_experts
    if origins is None:
        draw = [np.random.default_rng([seed, n]) for n in range(config.model.stacked_layers)]
        origins = [rng.choice(R, add, replace=add > R).tolist() for rng in draw]
    places = [new_places(R, origins_of_layer, init) for origins_of_layer in origins]
    base = Assembled([source], larger, places)
    return Extended(base, range(R, R + add), init, config.model.init_std, seed), larger


def new_places(num_routed: int, copied: Sequence[int], init: str) -> list[Place]:
    """Places of a layer's old experts, and of new ones: copies, or for `mean` the mean of all."""
    old = [Part(0, e) for e in range(num_routed)]
    mean = [part._replace(share=1 / num_routed) for part in old]
    new: list[Place] = [mean if init == "mean" else [Part(0, e)] for e in copied]
    return [*([part] for part in old), *new]


class Extended:
    """A `LeafSource` whose new experts are changed from the copies in its base."""

    def __init__(self, base: LeafSource, new: range, init: str, init_std: float, seed: int):
        self.shapes: dict[str, Shape] = base.shapes
        self._base, self._new, self._init = base, new, init
        self._std, self._seed = init_std, seed

    def read(self, path: str, block: Block) -> np.ndarray:
        """`leaf[block]` as float32; the numbers do not depend on the division into blocks."""
        out = self._base.read(path, block)
        if self._init in ("copy", "mean") or path not in (ROUTER, *EXPERTS):
            return out
        axis = 2 if path == ROUTER else 1
        rest = [part for n, part in enumerate(block) if n not in (0, axis)]
        for row, layer in enumerate(range(block[0].start, block[0].stop)):
            for column, expert in enumerate(range(block[axis].start, block[axis].stop)):
                if expert not in self._new:
                    continue
                drawn = self._draw(path, axis, layer, expert)[tuple(rest)]
                where: list[int | slice] = [slice(None)] * len(block)
                where[0], where[axis] = row, column
                if self._init == "jitter":
                    out[tuple(where)] *= 1.0 + JITTER * drawn
                else:
                    out[tuple(where)] = self._std * np.clip(drawn, -3.0, 3.0)
        return out

    def _draw(self, path: str, axis: int, layer: int, expert: int) -> np.ndarray:
        """Standard normal numbers for one expert's whole weight, float32."""
        sizes = [size for n, size in enumerate(self.shapes[path]) if n not in (0, axis)]
        which = (ROUTER, *EXPERTS).index(path)
        rng = np.random.default_rng([self._seed, which, layer, expert])
        return rng.standard_normal(sizes, np.float32)


def extend(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    add: int,
    init: str,
    seed: int = 0,
    layout: str | None = None,
    quiet: bool = True,
) -> tuple[Path, Config]:
    """Writes a model with more routed experts; for `add`, `init` and `seed` see `extended`.

    An extended module is no longer a module, since its parent does not have the new experts.

    Raises:
      UsageError: the model is dense, `init` or `add` is invalid, `output` already exists, or the
        model's `selection.json` does not belong to it.
    """
    refuse_existing(output)
    with Progress("extend", enabled=not quiet) as shown:
        opened = open_with_experts(model)
        if selection_of(opened) is not None:
            _LOG.warning(
                "%s: is a module, and with experts that its parent does not have it is none any"
                " more: %s gets no %s",
                *(model, output, FILE),
            )
        source, larger = extended(opened.source, opened.config, add, init=init, seed=seed)
        shown.show(f"writing {output}")
        folder = export_leaves(
            source,
            larger,
            output,
            layout=layout,
            **opened.for_export,
            card=Card(facts={"extended from": opened.name, "new experts": add, "made by": init}),
        )
    return folder, larger
