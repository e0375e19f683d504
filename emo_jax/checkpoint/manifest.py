"""The manifest of a checkpoint: its leaves and its files, protected by checksums.

The manifest is written last, so a folder without one is an unfinished save. It lists the shape and
dtype of every array, the size and sha256 of every file and the run's `extra`, and ends with a
checksum of itself.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from emo_jax import __version__
from emo_jax.checkpoint.peers import TOGETHER, Peers
from emo_jax.checkpoint.slices import SlicedLeaf
from emo_jax.errors import CheckpointError, one_line
from emo_jax.files.atomic import sync_folder, write_atomic
from emo_jax.files.inside import check_tree
from emo_jax.files.json_files import (
    Fields,
    NotReadableError,
    dumps,
    is_integer,
    parse,
    read_regular,
)
from emo_jax.files.names import plain_name
from emo_jax.files.waiting import AwayError, Patience, SpoiltError
from emo_jax.parallel import processes
from emo_jax.run.workdir import MANIFEST

FORMAT = 1
_LOG = logging.getLogger(__name__)
_HASH_THREADS, _HASH_BLOCK = 4, 2**20

LeafPath = tuple[str, ...]  # path of a leaf in the state: ("params", "layers", "router")


class DamagedError(Exception):
    """Why a checkpoint cannot be used."""


# --- trees as {path: leaf} -----------------------------------------------------------------------


def leaves_of(tree: Any) -> dict[LeafPath, Any]:
    """Every leaf of a pytree by path."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        tuple(jax.tree_util.keystr((key,), simple=True) for key in path) or ("value",): leaf
        for path, leaf in flat
    }


def like(tree: Any, values: Mapping[LeafPath, Any]) -> Any:
    """Values by path in the structure of `tree`."""
    return jax.tree.unflatten(jax.tree.structure(tree), [values[path] for path in leaves_of(tree)])


def item_of(path: LeafPath) -> str:
    """The folder of a leaf: parameters are separate, so they can be read and verified alone."""
    return "params" if path[0] == "params" else "rest"


def param_specs(manifest: dict[str, Any]) -> dict[LeafPath, jax.ShapeDtypeStruct]:
    """Specs of the host arrays for the parameters in a manifest."""
    return {
        tuple(leaf["path"]): jax.ShapeDtypeStruct(leaf["shape"], jnp.dtype(leaf["dtype"]))
        for leaf in manifest["leaves"]
        if leaf["path"][0] == "params"
    }


def dtype_name(leaf: Any) -> str:
    """The dtype's name: `float32`, `bfloat16`, …"""
    return jnp.dtype(leaf.dtype).name


def savable(path: LeafPath, leaf: Any) -> Any:
    """A leaf as an array that can be written; raises CheckpointError if it cannot be."""
    name = "/".join(path)
    if isinstance(leaf, SlicedLeaf):
        return leaf
    if isinstance(leaf, jax.Array):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise CheckpointError(f"state {name}: a random key; save jax.random.key_data of it")
        return leaf
    try:
        if isinstance(leaf, bool | int | float):
            return np.asarray(leaf, jnp.result_type(leaf))
        if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind != "O":
            return np.asarray(leaf)  # orbax takes a copy before save returns
    except OverflowError as e:
        raise CheckpointError(f"state {name} = {leaf}: does not fit a 32-bit integer") from e
    raise CheckpointError(f"state {name}: a {type(leaf).__name__} cannot be saved; use an array")


def compare(
    folder: epath.Path, manifest: dict[str, Any], wanted: dict[LeafPath, Any], below: LeafPath
) -> None:
    """Raises CheckpointError if the leaves `below` a path are not the wanted ones."""
    saved = {tuple(leaf["path"]): leaf for leaf in manifest["leaves"]}
    saved = {path: leaf for path, leaf in saved.items() if path[: len(below)] == below}
    found = []
    for path in [*wanted, *(path for path in saved if path not in wanted)]:
        name = "/".join(path)
        if path not in saved:
            found.append(f"{name} is not in the checkpoint")
        elif path not in wanted:
            found.append(f"{name} is only in the checkpoint")
        else:
            ours = (tuple(wanted[path].shape), dtype_name(wanted[path]))
            theirs = (tuple(saved[path]["shape"]), saved[path]["dtype"])
            if ours != theirs:
                found.append(f"{name} is {theirs[1]}{theirs[0]} there, {ours[1]}{ours[0]} here")
    if found:
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        raise CheckpointError(
            f"{folder} is of another model or optimizer: {'; '.join(found[:3])}{more}; use the"
            " config the checkpoint was made with"
        )


# --- files ---------------------------------------------------------------------------------------


def numbered(folder: epath.Path) -> list[int]:
    """Steps with a folder, complete or not, oldest first."""
    if not folder.exists():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())


def complete(folder: epath.Path) -> list[int]:
    """Steps with a complete checkpoint, oldest first; the files are not verified here."""
    return [s for s in numbered(folder) if (folder / str(s) / MANIFEST).exists()]


def remove(folder: epath.Path) -> None:
    """Deletes a folder or file; a checkpoint's manifest goes first, so it is never half there."""
    if folder.is_dir():
        (folder / MANIFEST).unlink(missing_ok=True)
        folder.rmtree()
    else:
        folder.unlink(missing_ok=True)


def _files(folder: epath.Path, prefix: str = "") -> Iterator[str]:
    for child in sorted(folder.iterdir()):
        if child.is_dir():
            yield from _files(child, f"{prefix}{child.name}/")
        else:
            yield prefix + child.name


def _digest(path: epath.Path) -> tuple[int, str]:
    """Bytes and sha256 of a file, in bounded memory."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as f:
        while block := f.read(_HASH_BLOCK):
            processes.pulse.beat()
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def publish(folder: epath.Path, head: dict[str, Any]) -> None:
    """Writes the manifest, which makes the folder a checkpoint."""
    data = folder / head["data"]
    names = list(_files(data))
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        found = pool.map(lambda name: _digest(data / name), names)
        files = {n: {"size": s, "sha256": h} for n, (s, h) in zip(names, found, strict=True)}
    # Round-tripped through JSON, so that the checksum covers what a reader will see.
    content = json.loads(dumps({**head, "files": files}))
    sync_folder(folder)
    write_atomic(folder / MANIFEST, dumps({**content, "sha256": _checksum(content)}))
    sync_folder(folder.parent)


def read_manifest(folder: epath.Path) -> dict[str, Any]:
    """The manifest of a checkpoint; raises DamagedError if it cannot be trusted."""
    path = folder / MANIFEST
    try:
        if not path.exists():
            raise DamagedError(f"no {MANIFEST} (the save was interrupted, or it was deleted)")
        manifest = parse(read_regular(path))
        fields = Fields(manifest)
        if (number := fields.integer("format")) != FORMAT:
            raise DamagedError(f"format {number}, of another version of emo_jax")
        written = fields.text("sha256")
        del manifest["sha256"]
        if written != _checksum(manifest):
            raise DamagedError(f"{MANIFEST} was changed after it was written")
        _check(fields)
    except (OSError, NotReadableError, RecursionError) as e:
        raise DamagedError(f"{MANIFEST} cannot be read: {one_line(e)}") from e
    return manifest


def _check(fields: Fields) -> None:
    """Raises NotReadableError if a field of a manifest is missing or has the wrong type."""
    fields.integer("step")
    fields.inner("extra")
    plain_name(fields.text("data"))
    paths = set()
    for i, leaf in enumerate(fields.items("leaves")):
        one = Fields(leaf, f"leaves[{i}].")
        path = tuple(map(plain_name, one.items("path")))
        if not path or any("/" in key for key in path) or path in paths:
            raise NotReadableError(f"leaves[{i}].path is not the names of one leaf")
        paths.add(path)
        if not all(is_integer(size) and size >= 0 for size in one.items("shape")):
            raise NotReadableError(f"leaves[{i}].shape must be sizes")
        if not _is_number_type(one.text("dtype")):
            raise NotReadableError(f"leaves[{i}].dtype is {one.text('dtype')!r:.40}")
    if any(path[:n] in paths for path in paths for n in range(1, len(path))):
        raise NotReadableError("leaves has one inside of another")
    files = fields.inner("files")
    for name in files:
        plain_name(name)
        files.inner(name).integer("size", high=2**63 - 1)
        files.inner(name).text("sha256")


def _is_number_type(name: str) -> bool:
    """Whether a name, as written by `dtype_name`, is a dtype that a state can have."""
    try:
        found = jnp.dtype(name)
    except (TypeError, ValueError):
        return False
    return found.name == name and (found.kind == "b" or jnp.issubdtype(found, jnp.number))


def verify(folder: epath.Path, items: set[str], peers: Peers = TOGETHER) -> dict[str, Any]:
    """Verifies the files of `items` in a checkpoint and returns its manifest.

    Each process reads its share of the files.
    """
    manifest = read_manifest(folder)

    def check(name: str) -> str | None:
        path, record = folder / manifest["data"] / name, manifest["files"][name]
        try:
            if not path.exists():
                return f"{name} is missing"
            if path.stat().length != record["size"]:
                return f"{name} has {path.stat().length} bytes of {record['size']}"
            with processes.pulse.reading(str(path)):
                if _digest(path)[1] != record["sha256"]:
                    return f"{name} has other bytes than were written"
        except OSError as e:
            return f"{name} cannot be read: {one_line(e)}"
        return None

    names = [n for n in sorted(manifest["files"]) if "/" not in n or n.partition("/")[0] in items]
    _check_tree(folder / manifest["data"], names)
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        mine = names[peers.index :: peers.count]
        found = [reason for reason in pool.map(check, mine) if reason]
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise DamagedError(found[0] + more)
    return manifest


def _check_tree(data: epath.Path, known: Sequence[str]) -> None:
    """Raises DamagedError if a local folder has anything but regular files of its own.

    This applies to everything in it, listed or not, because orbax may open it. Only files in
    `known`, whose content is verified by digest, may be links out of the folder.
    """
    if "://" in str(data):
        return
    try:
        check_tree(data, set(known))
    except NotReadableError as e:
        raise DamagedError(str(e)) from e
    except OSError as e:
        raise DamagedError(f"{data.name} cannot be read: {one_line(e)}") from e


def newest_good(
    folder: epath.Path,
    step: int | None,
    items: set[str],
    load: Callable[[epath.Path, dict[str, Any]], Any],
    skipped: list[tuple[int, str]],
    refuses: Callable[[dict[str, Any]], str | None] = lambda extra: None,
) -> tuple[Any, dict[str, Any], int]:
    """The result of `load` for the newest good checkpoint, or for that of `step`.

    `refuses` takes the `extra` of one, and says why it is not used, if it is not.
    """
    there = numbered(folder)
    newest = processes.gather(max(there, default=-1))
    if len(set(newest)) > 1:
        raise CheckpointError(
            f"{folder}: the newest checkpoint is step {max(newest)}, and process"
            f" {newest.index(min(newest))} does not see it yet: its file system is behind; run the"
            " same command again"
        )
    if step is not None and step not in there:
        raise CheckpointError(
            f"no checkpoint of step {step} in {folder} (steps there: {there or 'none'})"
        )
    bad = []
    for s in [step] if step is not None else reversed(there):
        reason, manifest, result = None, {}, None
        try:
            manifest = verify(folder / str(s), items)
            reason = refuses(manifest["extra"])
        except DamagedError as e:
            reason = str(e)
        if (reason := _agreed(reason)) is None:
            try:
                result = _load(folder / str(s), manifest, items, load)
            except DamagedError as e:
                reason = str(e)
            if (reason := _agreed(reason)) is None:
                return result, manifest["extra"], s
        if step is not None:
            raise CheckpointError(
                f"checkpoint of step {s} in {folder} is damaged: {reason}; ask for another step,"
                " or for none, to get the newest good one"
            )
        bad.append((s, reason))
        skipped.append((s, reason))
        _LOG.warning("checkpoint of step %d in %s is not used: %s", s, folder, reason)
    if not bad:
        raise CheckpointError(f"no checkpoint in {folder}: nothing was saved there yet")
    whys = "; ".join(f"step {s}: {why}" for s, why in bad[:3])
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    raise CheckpointError(
        f"no good checkpoint in {folder}: {whys}{more}; bring one back from a copy, or move"
        f" {folder.name}/ away to begin from the start"
    )


def _load(
    folder: epath.Path,
    manifest: dict[str, Any],
    items: set[str],
    load: Callable[[epath.Path, dict[str, Any]], Any],
) -> Any:
    """The result of `load` for a checkpoint that was just verified; retries if it goes away."""
    given: dict[str, Any] | None = manifest

    def attempt() -> Any:
        nonlocal given
        try:
            known, given = given, None
            return load(folder, known or verify(folder, items))
        except DamagedError as e:
            reason = str(e)
        try:
            verify(folder, items)
        except DamagedError as e:
            # A run in training removes its older checkpoints; those do not come back.
            retired = folder.parent.exists() and not folder.exists()
            raise (SpoiltError if retired else AwayError)(str(e)) from e
        raise SpoiltError(reason)

    patience = Patience(DamagedError, away="it was whole when it was opened", spoilt="")
    return patience.read(attempt)


def _agreed(reason: str | None) -> str | None:
    """The reason of any process that found damage, so that all skip the same checkpoints."""
    found = processes.gather(reason is not None)
    if reason is None and any(found):
        return f"found damaged by process {found.index(True)}"
    return reason


def versions() -> dict[str, str]:
    """Versions of the libraries that determine the format of a checkpoint."""
    found = {"python": platform.python_version(), "emo_jax": __version__}
    for name in ("jax", "flax", "optax", "orbax-checkpoint"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
