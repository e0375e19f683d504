"""`emo upcycle`: a dense model made into a mixture of experts, to be trained on.

Its feed-forwards are split into experts (LLaMA-MoE, arXiv 2406.16554), or copied (sparse upcycling,
arXiv 2212.05055). Everything else stays as it is, and the router is drawn by the seed.

Legend: L layers, D width, F neurons of the dense feed-forward, E experts (shared ones last), n
neurons of an expert.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from emo_jax.checkpoint.slices import Block, extent
from emo_jax.config import (
    Config,
    MeshConfig,
    MoeConfig,
    from_config_dict,
    moe_of,
    portable,
    to_dict,
)
from emo_jax.config.names import UPCYCLE_METHODS, UPCYCLE_METHODS_WITH_DATA
from emo_jax.errors import UsageError
from emo_jax.files.atomic import refuse_existing, write_atomic
from emo_jax.files.json_files import dumps
from emo_jax.files.progress import Progress
from emo_jax.hf.tensors import LeafSource
from emo_jax.model.params import EXPERTS, ROUTER, Shape, leaf_shapes
from emo_jax.modules import neurons
from emo_jax.modules.neuron_data import NeuronData
from emo_jax.modules.read_examples import read_examples
from emo_jax.run.workdir import TOKENIZER_FOLDER
from emo_jax.saved.load import OpenedModel, load_model, open_model
from emo_jax.saved.transfer import import_leaves

UPCYCLE_FILE = "upcycle.json"  # in a workdir: how its step 0 was made
MOST_EXPERTS = 4096
_CUT = 3.0  # truncation of the router's normal, in standard deviations


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Options:
    """Arguments of `upcycle`, checked; `scale` multiplies the outputs of routed experts."""

    method: str
    experts: int
    top_k: int
    shared: int
    scale: float
    seed: int

    @property
    def routed(self) -> int:
        return self.experts - self.shared


def upcycle(
    model: str | os.PathLike[str],
    workdir: str | os.PathLike[str],
    *,
    method: str,
    experts: int,
    top_k: int,
    shared: int = 0,
    scale: float | None = None,
    data: str | None = None,
    max_tokens: int = 16_384,
    seed: int = 0,
    trust: bool = False,
    quiet: bool = True,
) -> Config:
    """Makes a dense model into a mixture of experts, as step 0 of a new workdir.

    A token's weights are divided by their sum over its picks (`moe.normalize_picks`).

    Args:
      model: `WORKDIR`, `WORKDIR@STEP` or a Hugging Face folder of a dense model.
      workdir: folder to create; `emo train --init-from` goes on from it.
      method: `split-random`, `split-kmeans` (by the neurons' own weights), `split-coactivation`
        (active for the same tokens) or `split-importance` (needed by the same texts), see
        `emo_jax.modules.neurons`; or `copy`: every expert is the whole feed-forward.
      experts: number of experts of each layer, shared ones included.
      top_k: experts that a token uses, shared ones included.
      shared: experts that every token uses, with weight 1; for splits other than split-kmeans.
      scale: factor of the routed experts' outputs in a split; None: the number of routed picks, so
        that on average each chosen neuron counts as it did.
      data: for split-coactivation and split-importance: `STORE`, `STORE:DOMAIN` (of split
        `select`) or a file of documents.
      max_tokens: maximum number of tokens of `data` to use.
      seed: seed of the router, and of what a method draws.
      trust: allow a tokenizer whose file names code to import, see `emo_jax.load`.
      quiet: show no progress.

    Returns:
      The config of the new model.

    Raises:
      UsageError: the model has experts already, `experts` does not divide its hidden size, an
        option is out of range or does not belong to the method, `data` has too few texts, or
        `workdir` exists.
      CheckpointError, HfFormatError: the model cannot be read.
    """
    path, folder = os.fspath(model), Path(workdir).absolute()
    options = _checked(method, experts, top_k, shared, scale, data, seed)
    refuse_existing(folder)
    with Progress("upcycle", enabled=not quiet) as shown:
        opened = open_model(path, trust=trust)
        config = _config(opened, options)
        made_of: dict[str, Any] = {
            "model": {"name": opened.name, "path": path, "step": opened.step},
            **dataclasses.asdict(options),
        }
        groups_LEn = None
        if method != "copy":
            groups_LEn, read = _groups(opened, options, data, max_tokens, shown.show)
            made_of |= read
        source = Upcycled(opened.source, config, groups_LEn, scale=options.scale, seed=seed)

        def fill(unfinished: Path) -> None:
            if opened.tokenizer is not None:
                opened.tokenizer.save(unfinished / TOKENIZER_FOLDER)
            write_atomic(unfinished / UPCYCLE_FILE, dumps(made_of, indent=1) + "\n")

        import_leaves(source, config, folder, fill, fills=(UPCYCLE_FILE,), quiet=quiet)
    return config


class Upcycled:
    """A `LeafSource`: the mixture of experts made of a dense model, read block by block.

    Args:
      dense: parameters of the dense model.
      config: config of the new model.
      groups_LEn: neurons of each expert in each layer; None: every expert has all of them.
      scale: factor of the routed experts' down-projections.
      seed: seed of the router.
    """

    def __init__(
        self,
        dense: LeafSource,
        config: Config,
        groups_LEn: Sequence[np.ndarray] | None,
        *,
        scale: float = 1.0,
        seed: int = 0,
    ):
        moe = moe_of(config)
        self.shapes: dict[str, Shape] = leaf_shapes(config)
        self._dense, self._groups_LEn, self._scale, self._seed = dense, groups_LEn, scale, seed
        self._routed = moe.num_routed_experts
        # With all experts chosen there is nothing to choose: equal weights, the dense function.
        self._std = 0.0 if moe.top_k == moe.num_experts else config.model.init_std
        # Experts are read one after the other, and each is a part of the same rows.
        self._layer = lru_cache(maxsize=1)(self._read_layer)

    def read(self, path: str, block: Block) -> np.ndarray:
        """`leaf[block]` as float32; the numbers do not depend on the division into blocks."""
        if path == ROUTER:
            return self._router(block)
        if path not in EXPERTS:
            return np.asarray(self._dense.read(path, block), np.float32)
        out = np.empty(extent(block), np.float32)
        into, name = block[2], path.rpartition("/")[2]
        for row, layer in enumerate(range(block[0].start, block[0].stop)):
            for column, expert in enumerate(range(block[1].start, block[1].stop)):
                out[row, column] = self._expert(name, layer, expert, into, block[3])
        return out

    def _expert(
        self, name: str, layer: int, expert: int, rows: slice, columns: slice
    ) -> np.ndarray:
        """A part of an expert's matrix: rows of D and columns of n, the reverse in `down`."""
        inside, outside = (rows, columns) if name == "down" else (columns, rows)
        neurons_n = np.arange(inside.start, inside.stop)
        if self._groups_LEn is not None:
            neurons_n = self._groups_LEn[layer][expert][inside]
        whole = self._layer(name, layer, outside.start, outside.stop)
        if name != "down":
            return whole[:, neurons_n]
        part = whole[neurons_n]
        return part * np.float32(self._scale) if expert < self._routed else part

    def _read_layer(self, name: str, layer: int, start: int, stop: int) -> np.ndarray:
        """All neurons of the dense model's matrix, some of its width."""
        path = f"layers/mlp/{name}"
        sizes = self._dense.shapes[path]
        block = [slice(layer, layer + 1), slice(0, sizes[1]), slice(0, sizes[2])]
        block[2 if name == "down" else 1] = slice(start, stop)
        return np.asarray(self._dense.read(path, tuple(block)), np.float32)[0]

    def _router(self, block: Block) -> np.ndarray:
        _, D, E = self.shapes[ROUTER]
        drawn = []
        for layer in range(block[0].start, block[0].stop):
            rng = np.random.default_rng([self._seed, layer])
            kernel_DE = self._std * np.clip(rng.standard_normal((D, E), np.float32), -_CUT, _CUT)
            drawn.append(kernel_DE[block[1], block[2]])
        return np.stack(drawn).astype(np.float32)


def _checked(
    method: str,
    experts: int,
    top_k: int,
    shared: int,
    scale: float | None,
    data: str | None,
    seed: int,
) -> _Options:
    """Options that do not depend on the model.

    Raises:
      UsageError: one is out of range, or does not belong to the method.
    """
    if method not in UPCYCLE_METHODS:
        raise UsageError(f"--method {method}: must be one of {', '.join(UPCYCLE_METHODS)}")
    if not 2 <= experts <= MOST_EXPERTS:
        raise UsageError(f"--experts {experts}: must be in 2..{MOST_EXPERTS}")
    if not 0 <= shared <= experts - 2:
        raise UsageError(
            f"--shared {shared}: must be in 0..{experts - 2} (two of --experts are routed at least)"
        )
    if not shared < top_k <= experts:
        raise UsageError(
            f"--top-k {top_k}: must be in {shared + 1}..{experts} (shared experts count; at most"
            " --experts)"
        )
    if shared and method in ("copy", "split-kmeans"):
        why = "copies are alike" if method == "copy" else "weights do not say what all need"
        raise UsageError(
            f"--shared {shared}: not with --method {method}, since {why}; leave it out"
        )
    if method == "copy" and scale is not None:
        raise UsageError(f"--scale {scale}: copies are not scaled; leave it out")
    if scale is not None and not 0 < scale < math.inf:
        raise UsageError(f"--scale {scale}: must be a number above 0")
    if (data is not None) != (method in UPCYCLE_METHODS_WITH_DATA):
        if data is None:
            raise UsageError(f"--method {method}: needs texts; give --data STORE or FILE")
        raise UsageError(f"--data {data}: --method {method} does not read it; leave it out")
    default = 1.0 if method == "copy" else float(top_k - shared)
    return _Options(
        method=method,
        experts=experts,
        top_k=top_k,
        shared=shared,
        scale=default if scale is None else float(scale),
        seed=seed,
    )


def _config(opened: OpenedModel, options: _Options) -> Config:
    """The config of the new model: the dense one's, with experts.

    Raises:
      UsageError: the model has experts, or their number does not divide its hidden size.
    """
    config = opened.config
    if config.moe is not None:
        raise UsageError(f"{opened.path}: {config.name} has experts already; give a dense model")
    F = config.model.mlp_dim
    if options.method != "copy" and F % options.experts:
        fitting = [n for n in range(2, min(F, MOST_EXPERTS) + 1) if F % n == 0]
        below = max((n for n in fitting if n < options.experts), default=None)
        above = min((n for n in fitting if n > options.experts), default=None)
        near = " or ".join(str(n) for n in (below, above) if n is not None)
        raise UsageError(
            f"--experts {options.experts}: does not divide the hidden size {F} of {config.name};"
            f" {near} does"
        )
    moe = MoeConfig(
        num_experts=options.experts,
        top_k=options.top_k,
        expert_dim=F if options.method == "copy" else F // options.experts,
        num_shared_experts=options.shared,
        normalize_picks=True,
    )
    made = dataclasses.replace(
        portable(config),
        model=dataclasses.replace(config.model, mlp_dim=0),
        moe=moe,
        mesh=MeshConfig(),
    )
    return from_config_dict(to_dict(made))  # refused before a workdir is made with it


def _groups(
    opened: OpenedModel, options: _Options, data: str | None, max_tokens: int, say: Any
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """(E,n) neurons of each expert for each layer, and what is recorded of the texts."""
    L, F = opened.config.model.num_layers, opened.config.model.mlp_dim
    E, R, s, seed = options.experts, options.routed, options.shared, options.seed
    seeds_L = [int(n) for n in np.random.SeedSequence(seed).generate_state(L)]
    if options.method == "split-random":
        return [neurons.random_groups(F, E, seed_) for seed_ in seeds_L], {}
    if options.method == "split-kmeans":
        found = []
        for layer, seed_ in enumerate(seeds_L):
            say(f"layer {layer + 1} of {L}: clusters of neurons")
            found.append(neurons.clustered(_weights_of(opened.source, layer), E, seed_))
        return found, {}
    assert data is not None
    say(f"reading examples of {data}")
    examples = read_examples(opened, data, max_tokens=max_tokens, seed=seed)
    read = {
        "data": examples.source,
        "data_fingerprint": examples.fingerprint,
        "tokens": examples.tokens,
    }
    say(f"reading {opened.path}")
    step = "" if opened.step is None else f"@{opened.step}"
    params = load_model(f"{opened.folder}{step}").params
    pad_id = opened.special_ids["pad_token_id"] or 0
    measured = NeuronData(opened.config, params, examples, pad_id=pad_id, progress=say)
    if options.method == "split-coactivation":
        active_LFT = measured.active_LFT()
        groups = []
        for layer, (active_FT, seed_) in enumerate(zip(active_LFT, seeds_L, strict=True)):
            say(f"layer {layer + 1} of {L}: clusters of neurons")
            groups.append(neurons.coactive(active_FT, R, s, seed_))
        return groups, read
    importance_LRF = measured.importance_LCF(R, seed)
    return [neurons.important(importance_RF, s) for importance_RF in importance_LRF], read


def _weights_of(dense: LeafSource, layer: int) -> np.ndarray:
    """What goes into each neuron, (F,2D): its weights in gate and up, each of length 1."""
    rows = []
    for name in ("gate", "up"):
        path = f"layers/mlp/{name}"
        _, D, F = dense.shapes[path]
        block = (slice(layer, layer + 1), slice(0, D), slice(0, F))
        weights_FD = np.asarray(dense.read(path, block), np.float32)[0].T
        norms_F1 = np.linalg.norm(weights_FD, axis=1, keepdims=True)
        rows.append(weights_FD / np.maximum(norms_F1, 1e-12))
    return np.concatenate(rows, axis=1)
