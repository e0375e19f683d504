"""A module chosen by prompts, of whose parent only what is used is read.

`emo select --method layerwise` prunes a layer before the tokens go through its experts, so a layer
needs no expert that it does not keep. Layer by layer: read attention, norms, router and shared
experts; run the prompts up to the router; choose; read the experts chosen, and run them. What was
read is the module.

Legend: B windows, S tokens, L layers, D width, E experts of a module's layer (shared ones last),
R routed experts.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from emo_jax.api.models import Model
from emo_jax.batch import BATCH_TOKENS, Batch
from emo_jax.config import Config, moe_of
from emo_jax.errors import DataError, UsageError
from emo_jax.files.progress import Progress
from emo_jax.files.trees import unflatten
from emo_jax.generation.cache import inference_dtype
from emo_jax.generation.decode import padded_length
from emo_jax.generation.texts import encode_prompts
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import EXPERTS, LAYERS, ROUTER, leaf_shapes
from emo_jax.modules.assemble import smaller_config
from emo_jax.saved.load import OpenedModel, open_model
from emo_jax.saved.selection_file import slabs
from emo_jax.selection.budgets import budgets, choose_best, experts_there, parse_keep
from emo_jax.selection.examples import pack
from emo_jax.selection.scores import sweep_of
from emo_jax.selection.variants import within_documents

_ALIGNED = 64  # bytes: an array so aligned is used by JAX on a CPU where it lies
_METHOD = "layerwise"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PromptModule:
    """The part of a model that some prompts chose.

    Attributes:
      model: the part, ready to generate: its parameters are host arrays of the dtype they are used
        in. Its path is the whole model's.
      kept_LR: bool, the whole model's routed experts that it has.
      tokens: number of tokens that chose them.
      read, whole: numbers of parameters of the part and of the whole model.
    """

    model: Model
    kept_LR: np.ndarray
    tokens: int
    read: int
    whole: int


def module_for_prompts(
    path: str | os.PathLike[str],
    prompts: Sequence[str],
    keep: int | str,
    *,
    trust: bool = False,
    quiet: bool = True,
) -> PromptModule:
    """Chooses experts by prompts, and reads no others.

    It is the module of `emo select --method layerwise` with the prompts as its documents, which end
    as documents do. Resident at once: the module in its compute dtype, and a few slices.

    Args:
      path: `WORKDIR`, `WORKDIR@STEP`, or a Hugging Face folder.
      prompts: one or several, which choose one module together.
      keep: number of experts in each layer, shared ones included: a count (16) or a share ("25%").
      trust: see `emo_jax.load`.
      quiet: show no progress.

    Raises:
      UsageError: no such model, it is dense, `keep` is not a number of experts to which it can be
        cut, a prompt fills the window, or there is no tokenizer.
      CheckpointError, HfFormatError: the model cannot be read, see `emo_jax.load`.
      DataError: the router's probabilities of the prompts are not finite.
    """
    opened = open_model(os.fspath(path), trust=trust)
    config = opened.config
    option = f"--experts-from-prompt {keep}"
    if config.moe is None:
        raise UsageError(f"{option}: {config.name} is dense, it has no experts to choose from")
    tokenizer = opened.need_tokenizer()
    encode_prompts(tokenizer, config.data.seq_len, prompts)  # refuses before anything is read
    kept = parse_keep(str(keep), config.moe, option="--experts-from-prompt")
    documents = tokenizer.documents(prompts)
    with Progress("module", enabled=not quiet) as shown:
        reading = _Reading(opened, budgets(config, [kept]))
        kept_LR = reading.choose(documents, shown.show)
    params = reading.params
    about = {f.name: getattr(opened, f.name) for f in dataclasses.fields(opened)}
    del about["source"]
    return PromptModule(
        model=Model(**(about | {"config": reading.smaller, "params": unflatten(params)})),
        kept_LR=kept_LR,
        tokens=sum(map(len, documents)),
        read=sum(math.prod(leaf.shape) for leaf in params.values()),
        whole=sum(math.prod(shape) for shape in opened.source.shapes.values()),
    )


class _Reading:
    """The parameters of a module, read as its experts are chosen.

    Leaves of layers are allocated whole and filled layer by layer, so that they are never copied.
    """

    def __init__(self, opened: OpenedModel, routed_L: Sequence[int]):
        self._source, self._config = opened.source, opened.config
        self._pad_id = opened.special_ids["pad_token_id"] or 0
        self._routed_L = routed_L
        self.smaller = smaller_config(opened.config, routed_L)
        self._leaves: dict[str, np.ndarray] = {}
        for leaf, shape in leaf_shapes(self.smaller).items():
            self._leaves[leaf] = _empty(shape, inference_dtype(self.smaller, leaf))
            if not _is_layered(leaf):
                self._fill(leaf, self._leaves[leaf])

    @property
    def params(self) -> dict[str, np.ndarray]:
        """All leaves by path, once experts are chosen."""
        return self._leaves

    def choose(self, documents: Sequence[np.ndarray], say: Callable[[str], None]) -> np.ndarray:
        """Reads all layers; returns the experts chosen (L,R)."""
        there_LR = experts_there(self._config)
        whole, smaller = (
            sweep_of(ModelFunctions(within_documents(config)), 1, _METHOD)
            for config in (self._config, self.smaller)
        )
        outer = jax.device_put({p: a for p, a in self._leaves.items() if not _is_layered(p)})
        batches = _batches(documents, self._config, self._pad_id)
        embedding = unflatten(outer | self._layer(0, scoring=True))
        states = [whole.embed(embedding, batch) for batch in batches]
        kept = []
        for layer, routed in enumerate(self._routed_L):
            say(f"layer {layer + 1} of {len(there_LR)}, {routed} routed experts")
            number = jnp.int32(layer)
            self._read_layer(layer)
            params = unflatten(outer | self._layer(layer, scoring=True))
            sums = []
            for i, batch in enumerate(batches):
                states[i], sums_PMR = whole.scores(params, number, states[i], batch)
                sums.append(sums_PMR)
            scores_MR: np.ndarray = np.stack(jax.device_get(sums)).sum(axis=0, dtype=np.float64)[0]
            if not np.isfinite(scores_MR).all():
                raise DataError(
                    f"layer {layer}: the router's probabilities of the prompts are not finite, so"
                    " no experts can be chosen: the model breaks on them"
                )
            kept_R = choose_best(scores_MR[None], there_LR[layer : layer + 1], [routed])[0, 0]
            kept.append(kept_R)
            self._read_experts(layer, kept_R)
            params = unflatten(outer | self._layer(layer, scoring=False))
            everything_MR = jnp.ones((1, moe_of(self.smaller).num_routed_experts), bool)
            for i, batch in enumerate(batches):
                states[i] = smaller.experts(params, number, states[i], batch, everything_MR)
        return np.stack(kept)

    def _layer(self, layer: int, *, scoring: bool) -> dict[str, jax.Array]:
        """Leaves of one layer, with a leading axis of 1.

        For its scores, the router is the whole model's, and experts are not there.
        """
        out = {p: a[layer : layer + 1] for p, a in self._leaves.items() if _is_layered(p)}
        if scoring:
            E, nothing = self._source.shapes[ROUTER][2], np.zeros((1, 0, 0, 0), np.float32)
            block = (slice(layer, layer + 1), slice(0, out[ROUTER].shape[1]), slice(0, E))
            out |= {ROUTER: self._source.read(ROUTER, block), **dict.fromkeys(EXPERTS, nothing)}
        return jax.device_put(out)

    def _read_layer(self, layer: int) -> None:
        """Reads attention and norms."""
        for path, leaf in self._leaves.items():
            if _is_layered(path) and path not in (ROUTER, *EXPERTS):
                self._fill(path, leaf, layer)

    def _read_experts(self, layer: int, kept_R: np.ndarray) -> None:
        """Reads the experts kept and the shared ones, with their columns of the router."""
        moe = moe_of(self._config)
        s, E = moe.num_shared_experts, moe.num_experts
        places = [*np.flatnonzero(kept_R).tolist()]
        for path in (ROUTER, *EXPERTS):
            leaf, axis = self._leaves[path], 2 if path == ROUTER else 1
            leaf[layer] = 0  # a layer may have fewer than others
            last = range(leaf.shape[axis] - s, leaf.shape[axis])
            for to, of in zip(
                [*range(len(places)), *last], [*places, *range(E - s, E)], strict=True
            ):
                block = [slice(0, n) for n in self._source.shapes[path]]
                block[0], block[axis] = slice(layer, layer + 1), slice(of, of + 1)
                where = [slice(None)] * leaf.ndim
                where[0], where[axis] = block[0], slice(to, to + 1)
                leaf[tuple(where)] = self._source.read(path, tuple(block))

    def _fill(self, path: str, leaf: np.ndarray, layer: int | None = None) -> None:
        """Reads a leaf that has the whole model's shape, or one layer of it, by slices."""
        for block in slabs(path, leaf.shape):
            if layer is None or block[0].start == layer:
                leaf[block] = self._source.read(path, block)


def _is_layered(path: str) -> bool:
    """Whether a leaf is read layer by layer; those of `model.dense_layers` have no experts."""
    return path.startswith(f"{LAYERS}/")


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that JAX on a CPU can use without a copy."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(nbytes + _ALIGNED, np.uint8)
    first = -memory.ctypes.data % _ALIGNED
    return memory[first : first + nbytes].view(dtype).reshape(shape)


def _batches(documents: Sequence[np.ndarray], config: Config, pad_id: int) -> list[Batch]:
    """The documents in windows no longer than they need."""
    S = padded_length(max(map(len, documents)), config.data.seq_len)
    rows = max(1, min(BATCH_TOKENS, sum(map(len, documents))) // S)
    rows = 2 ** (rows.bit_length() - 1)
    return [jax.tree.map(jnp.asarray, batch) for batch in pack(documents, S, rows, pad_id)]
