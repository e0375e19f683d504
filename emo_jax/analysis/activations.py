"""The router's output for every token of a sample, on disk, to be analysed piece by piece.

    FOLDER/activations.json   the model, the sample, the names of its domains
    FOLDER/probs       (N,L,R) float16: router probabilities, without a pool
    FOLDER/picks       (N,L,K) uint16: the experts that the router picks, the likeliest first
    FOLDER/tokens      (N,) int32
    FOLDER/doc_ends    (D,) int64: where each document ends
    FOLDER/doc_domains (D,) int32

Picks are the router's own: in float16, probabilities may be equal that differed in float32. The
arrays are zarr, written and read through tensorstore.

Legend: N tokens, D documents, M domains, B windows, S tokens of a window, L layers, R routed
experts, K routed picks.
"""

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from emo_jax.analysis.sample import Sample
from emo_jax.batch import BATCH_TOKENS, Batch
from emo_jax.config import Config
from emo_jax.errors import DataError, UsageError, one_line
from emo_jax.files.arrays import StoredArray
from emo_jax.files.atomic import refuse_existing
from emo_jax.files.inside import check_tree
from emo_jax.files.json_files import (
    Fields,
    NotReadableError,
    dumps,
    is_integer,
    parse,
    read_regular,
)
from emo_jax.files.partial import partial_folder, remove_left_over
from emo_jax.files.steady import SteadyFiles
from emo_jax.files.waiting import Patience
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import Params
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.selection.budgets import experts_there
from emo_jax.selection.examples import pack

MANIFEST, FORMAT = "activations.json", "emo_jax activations"
_CHUNK_TOKENS = 4096
_WINDOW_STEP = 128  # windows shorter than the model's are a multiple of it
_PIECE_BYTES = 64 << 20  # float32 probabilities in memory at a time
_ARRAYS = ("probs", "picks", "tokens", "doc_ends", "doc_domains")


@dataclasses.dataclass(frozen=True)
class Activations:
    """What `record` wrote; large arrays are read on request.

    Attributes:
      about: the model: name, path, step, pool, shared experts, tokens of its window.
      sample: see `Sample`.
      experts_L: routed experts of each layer, at most R.
    """

    folder: Path
    about: dict[str, Any]
    sample: dict[str, Any]
    domains: tuple[str, ...]
    tokens_N: np.ndarray
    doc_ends_D: np.ndarray
    doc_domains_D: np.ndarray
    num_layers: int
    num_routed: int
    num_picks: int
    experts_L: tuple[int, ...]
    files: SteadyFiles

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "Activations":
        """Opens a folder.

        Raises:
          UsageError: there are no activations in it.
          DataError: it is damaged.
        """
        path = Path(folder)
        try:
            found = parse(read_regular(path / MANIFEST))
            fields = Fields(found)
            if fields.text("format") != FORMAT:
                raise NotReadableError("another format")
            del found["format"]
            for name in ("path", "name"):
                fields.inner("about").text(name, "")
            fields.inner("sample")
            for name in ("num_layers", "num_routed", "num_picks"):
                fields.integer(name, low=1)
            if not all(isinstance(name, str) for name in fields.items("domains")):
                raise NotReadableError("domains must be names")
            if not all(map(is_integer, fields.items("experts_L"))):
                raise NotReadableError("experts_L must be whole numbers")
            check_tree(path)
            files = SteadyFiles(path, {MANIFEST: None})
            arrays: dict[str, Any] = {
                f"{name}_{axis}": _open(path, name, files, wait=False).read(slice(None))
                for name, axis in (("tokens", "N"), ("doc_ends", "D"), ("doc_domains", "D"))
            }
            for name in ("domains", "experts_L"):
                found[name] = tuple(found[name])
            opened = cls(path, **found, **arrays, files=files)
            N, L = opened.num_tokens, opened.num_layers
            opened.check()
            for name, last in (("probs", opened.num_routed), ("picks", opened.num_picks)):
                if _open(path, name, files, wait=False).shape != (N, L, last):
                    raise ValueError(f"{name} has another shape")
            return opened
        except FileNotFoundError:
            raise UsageError(f"{path}: no {MANIFEST}; make it with emo activations") from None
        except NotReadableError as error:
            raise DataError(
                f"{path / MANIFEST}: damaged ({one_line(error)}); make it again"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: damaged ({one_line(error)}); make it again") from error

    def check(self) -> None:
        """Raises NotReadableError if indices or counts do not match what they refer to."""
        ends_D, domains_D = self.doc_ends_D, self.doc_domains_D
        if not len(ends_D) or len(ends_D) != len(domains_D) or ends_D[-1] != self.num_tokens:
            raise NotReadableError("documents that are not those of the tokens")
        if (np.diff(ends_D, prepend=0) <= 0).any():
            raise NotReadableError("documents that end before they begin")
        if domains_D.min() < 0 or domains_D.max() >= len(self.domains):
            raise NotReadableError("documents of a domain that it does not have")
        if len(self.experts_L) != self.num_layers or max(self.experts_L) > self.num_routed:
            raise NotReadableError("numbers of experts that are not those of the layers")

    @property
    def num_tokens(self) -> int:
        """Number of tokens, N."""
        return len(self.tokens_N)

    @property
    def documents_N(self) -> np.ndarray:
        """The document of each token, int32."""
        sizes = np.diff(self.doc_ends_D, prepend=0)
        return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)

    @property
    def domains_N(self) -> np.ndarray:
        """The domain of each token, int32."""
        return self.doc_domains_D[self.documents_N]

    def probs(self, where: slice) -> np.ndarray:
        """Returns router probabilities (n,L,R) of some tokens, float32.

        Raises:
          DataError: they are not valid probabilities.
        """
        found = self._read("probs", where).astype(np.float32)
        if not ((found >= 0) & (found <= 1)).all():  # both are false for NaN
            raise self._damaged("probs", where, "numbers that are no probabilities")
        return found

    def picks(self, where: slice) -> np.ndarray:
        """Returns the routed experts (n,L,K) that some tokens pick, the likeliest first; int32.

        Raises:
          DataError: they are not valid experts.
        """
        found = self._read("picks", where).astype(np.int32)
        if not ((found >= 0) & (found < self.num_routed)).all():
            raise self._damaged("picks", where, f"experts outside of 0..{self.num_routed - 1}")
        return found

    def pieces(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yields the probabilities of all tokens with their slice, some megabytes at a time."""
        size = max(1, _PIECE_BYTES // (4 * self.num_layers * self.num_routed))
        for start in range(0, self.num_tokens, size):
            where = slice(start, min(start + size, self.num_tokens))
            yield where, self.probs(where)

    def _damaged(self, name: str, where: slice, what: str) -> DataError:
        return DataError(
            f"{self.folder}/{name}: {what}, in tokens {where.start}..{where.stop}; make it again"
        )

    def _read(self, name: str, where: slice) -> np.ndarray:
        return _open(self.folder, name, self.files).read(where)


def record(
    model: ModelFunctions,
    params: Params,
    sample: Sample,
    output: str | os.PathLike[str],
    about: dict[str, Any],
    *,
    pad_id: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Activations:
    """Runs the model over a sample and writes its router's output, a batch at a time.

    Args:
      model: a model on a mesh, with a `within_documents` config.
      params: on the devices.

    Raises:
      UsageError: the output exists, or the model is dense.
      DataError: the model's output for a token is not finite.
    """
    folder = Path(output)
    refuse_existing(folder)
    target = folder.resolve()
    for note in remove_left_over(target, ("partial",), (MANIFEST, *_ARRAYS)):
        print(f"emo: {note}", file=sys.stderr)
    with partial_folder(target, "partial") as unfinished:
        record_into(unfinished, model, params, sample, about, pad_id=pad_id, progress=progress)
        os.rename(unfinished, target)
    return Activations.open(folder)


def record_into(
    folder: Path,
    model: ModelFunctions,
    params: Params,
    sample: Sample,
    about: dict[str, Any],
    *,
    pad_id: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Activations:
    """Does what `record` does, in an empty folder of the caller, who knows when it is complete."""
    config, mesh = model.config, model.mesh
    assert mesh is not None
    if config.moe is None:
        raise UsageError(f"{config.name} is dense, it has no router to look at")
    L, R, K = (
        config.model.stacked_layers,
        config.moe.num_routed_experts,
        config.moe.num_routed_picks,
    )
    S = window_of(config, sample)
    N = sum(map(len, sample.documents))
    rows = max(1, min(BATCH_TOKENS, N // mesh.size) // S) * mesh.size
    step, where = _step(model), mesh_lib.windows_sharding(mesh)
    probs = _create(folder, "probs", (N, L, R), np.float16)
    picks = _create(folder, "picks", (N, L, K), np.uint16)
    done: int = 0
    writing: list[Any] = []
    for batch in pack(sample.documents, S, rows, pad_id):
        placed = jax.tree.map(lambda a: jax.device_put(a, where), batch)
        # Rows contain the documents in order, and so their tokens.
        valid_BS = batch.segment_ids >= 0
        found = [np.asarray(a)[valid_BS] for a in step(params, placed)]
        _check_finite(found[0], sample, done, about)
        for write in writing:
            write.result()
        here = slice(done, done + len(found[0]))
        writing = [a[here].write(new) for a, new in zip((probs, picks), found, strict=True)]
        done = here.stop
        progress(f"{done:,} of {N:,} tokens")
    assert done == N
    for write in writing:
        write.result()
    ends_D = np.cumsum([len(ids) for ids in sample.documents])
    for name, array in (
        ("tokens", np.concatenate(sample.documents)),
        ("doc_ends", ends_D.astype(np.int64)),
        ("doc_domains", sample.domain_ids.astype(np.int32)),
    ):
        _create(folder, name, array.shape, array.dtype).write(array).result()
    manifest = {
        "format": FORMAT,
        "about": about,
        "sample": sample.about,
        "domains": sample.domains,
        "num_layers": L,
        "num_routed": R,
        "num_picks": K,
        "experts_L": experts_there(config).sum(axis=1).tolist(),
    }
    (folder / MANIFEST).write_text(dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return Activations.open(folder)


def _check_finite(probs: np.ndarray, sample: Sample, first: int, about: dict[str, Any]) -> None:
    """Raises DataError if tokens [first, …) of a sample have probabilities that are not finite."""
    bad = np.flatnonzero(~np.isfinite(probs).all(axis=(1, 2)))
    if len(bad):
        ends_D = np.cumsum([len(ids) for ids in sample.documents])
        document = int(np.searchsorted(ends_D, first + bad[0], side="right"))
        raise DataError(
            f"{about.get('name', 'the model')}: router probabilities that are not finite, for a"
            f" token of domain {sample.domains[sample.domain_ids[document]]!r}: the model breaks"
        )


def window_of(config: Config, sample: Sample) -> int:
    """Returns the tokens read at a time: the model's window, or fewer for short documents."""
    longest = max(map(len, sample.documents))
    return min(config.data.seq_len, -(-longest // _WINDOW_STEP) * _WINDOW_STEP)


def _step(model: ModelFunctions) -> Callable[[Params, Batch], tuple[jax.Array, jax.Array]]:
    """Returns a function of a batch: probabilities (B,S,L,R) float16 and picks (B,S,L,K) uint16."""
    moe = model.config.moe
    assert moe is not None
    K = moe.num_routed_picks

    def look(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        _, stats = model.hidden(params, batch, token_probs=True)
        probs_BSLR = jnp.moveaxis(stats.probs_BSR, 0, 2)
        # Like the router on the same float32 numbers, without a pool.
        picks_BSLK = jax.lax.top_k(probs_BSLR, K)[1]
        return probs_BSLR.astype(jnp.float16), picks_BSLK.astype(jnp.uint16)

    return jax.jit(look)


def _create(folder: Path, name: str, shape: Sequence[int], dtype: Any) -> ts.TensorStore:
    chunk = [min(shape[0], _CHUNK_TOKENS), *shape[1:]]
    spec = _spec(folder, name) | {"store_data_equal_to_fill_value": True}
    return ts.open(
        spec,
        create=True,
        dtype=ts.dtype(np.dtype(dtype).name),
        shape=list(shape),
        chunk_layout=ts.ChunkLayout(chunk_shape=[max(1, n) for n in chunk]),
    ).result()


def _open(folder: Path, name: str, files: SteadyFiles, *, wait: bool = True) -> StoredArray:
    """Raises DataError if it cannot be opened, and on reading if a chunk is missing."""
    patience = Patience(
        DataError,
        away="bring the folder back, or make it again",
        spoilt="make the folder again",
        seconds=None if wait else 0.0,
    )
    return StoredArray(
        _spec(folder, name),
        name=f"{folder / name}",
        patience=patience,
        context=ts.Context,
        files=files,
        watched=(MANIFEST,),
    )


def _spec(folder: Path, name: str) -> dict[str, Any]:
    path = str((folder / name).absolute())
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}


def same_documents(first: Activations, other: Activations) -> bool:
    """Whether two models were given the same tokens."""
    return (
        first.domains == other.domains
        and np.array_equal(first.doc_ends_D, other.doc_ends_D)
        and np.array_equal(first.tokens_N, other.tokens_N)
    )


def model_facts(config: Config, name: str, path: str, step: int | None) -> dict[str, Any]:
    """Returns what `record` writes about a model."""
    moe = config.moe
    assert moe is not None
    pool = moe.pool
    sizes = {
        "none": "",
        "fixed": f" {pool.size}",
        "uniform": f" {pool.min_size}..{pool.max_size}",
        "top_p": f" {pool.top_p:g}, {pool.min_size}..{pool.max_size}",
        "label_bias": f" {pool.label_bias:g}",
    }
    return {
        "name": name,
        "path": path,
        "step": step,
        "pool": pool.kind + sizes.get(pool.kind, f" {pool.size}" if pool.size else ""),
        "shared": moe.num_shared_experts,
        "window": config.data.seq_len,
    }
