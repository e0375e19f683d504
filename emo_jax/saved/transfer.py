"""Converts workdirs to Hugging Face folders and back: checkpoint, config and tokenizer."""

import contextlib
import dataclasses
import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from emo_jax.checkpoint.checkpointer import Checkpointer
from emo_jax.checkpoint.reading import open_params
from emo_jax.checkpoint.slices import Block, SlicedLeaf
from emo_jax.config import Config, to_dict
from emo_jax.errors import CheckpointError, DataError, UsageError, one_line
from emo_jax.files.atomic import refuse_existing, write_atomic, write_bytes_atomic
from emo_jax.files.json_files import dumps, read_object, read_regular
from emo_jax.files.partial import partial_folder, remove_left_over
from emo_jax.files.progress import Progress
from emo_jax.files.trees import unflatten
from emo_jax.hf import tokenizer_files
from emo_jax.hf.card import Card
from emo_jax.hf.export import export_leaves
from emo_jax.hf.hf_config import ids_for_others
from emo_jax.hf.importing import open_folder
from emo_jax.hf.layouts import layout_for
from emo_jax.hf.named_code import code_in, without_code
from emo_jax.hf.tensors import F32_BYTES, LeafSource
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import abstract_params, count_parameters, leaf_shapes, unit_axes
from emo_jax.run.metrics_file import METRICS_FILE, number_in, read_metrics
from emo_jax.run.workdir import (
    CHECKPOINTS,
    CONFIG_FILE,
    TOKENIZER_FOLDER,
    claim_workdir,
    read_workdir_config,
    split_step,
)
from emo_jax.saved.selection_file import FILE as SELECTION_FILE
from emo_jax.saved.selection_file import selection_beside, selection_files
from emo_jax.tokenizer.load import Tokenizer, has_tokenizer, load_tokenizer

_PARTIAL = "partial"
_IMPORTED = (CONFIG_FILE, CHECKPOINTS, TOKENIZER_FOLDER, SELECTION_FILE)
_LOG = logging.getLogger(__name__)


def tokenizer_of(workdir: Path) -> Path | None:
    """The folder of a run's tokenizer, which training writes; None if there is none.

    `data.store` in the run's config is not consulted: the workdir may come from someone else, and
    the path could then lead anywhere on this machine.
    """
    folder = workdir / TOKENIZER_FOLDER
    return folder if has_tokenizer(folder) else None


def check_tokenizer(given: Path, trained: Tokenizer | None, of_run: object) -> None:
    """Raises UsageError if a tokenizer is known not to be the one the model was trained with."""
    fingerprint = load_tokenizer(given).fingerprint
    if trained is not None and fingerprint != trained.fingerprint:
        raise UsageError(
            f"--tokenizer {given}: not the tokenizer of the run ({fingerprint[:12]} is not"
            f" {trained.fingerprint[:12]}, of {of_run}); leave out --tokenizer to export that one"
        )


class Exported(NamedTuple):
    """A Hugging Face folder, and the name of its layout."""

    folder: Path
    layout: str


def export(
    workdir: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    layout: str | None = None,
    step: int | None = None,
    tokenizer_dir: str | os.PathLike[str] | None = None,
    quiet: bool = True,
) -> Exported:
    """Writes a checkpoint of a run as a Hugging Face folder.

    Memory: a few slices of the checkpoint, see `emo_jax.checkpoint.slices`.

    Args:
      workdir: folder of the run, or `WORKDIR@STEP`.
      output: folder to create.
      layout: "qwen2_moe", "mixtral", "glm4_moe" (with experts; the last for sigmoid gates) or
        "llama" (dense), which stock transformers loads, or "emo", which uses the names of the
        released checkpoints; None: one of the former that fits the model, "mixtral" first.
      step: step of the checkpoint, overriding that of `WORKDIR@STEP`; None: the newest good one.
      tokenizer_dir: folder of the tokenizer; None: the run's own.
      quiet: show no progress.

    Returns:
      The folder and the name of its layout.

    Raises:
      UsageError: `workdir` is not a workdir, `output` already exists, the layout is for other
        models, or `tokenizer_dir` contains another tokenizer than the run's.
      CheckpointError: the run has no good checkpoint, or none of that step.
      DataError: the tokenizer is damaged.
      EmoError: `output` cannot be written.
    """
    place, at = split_step(workdir)
    folder, step = place.absolute(), at if step is None else step
    config = read_workdir_config(folder)
    chosen = layout_for(config, layout)
    tokenizer = of_run = tokenizer_of(folder)
    trained = None if of_run is None else load_tokenizer(of_run, within=folder)
    ids: dict[str, Any] = {}
    if tokenizer_dir:
        tokenizer = Path(tokenizer_dir)
        check_tokenizer(tokenizer, trained, of_run)
    elif trained and tokenizer and not (tokenizer / "tokenizer.json").exists():
        # A vocabulary that is kept as is: it has ids, but no file that transformers reads.
        tokenizer, ids = None, ids_for_others(trained)
    with Progress("export", enabled=not quiet) as progress:
        progress.show(f"verifying the checkpoint in {folder}")
        params, extra, found = open_params(folder, step, abstract_params(config))
        selection = selection_beside(folder, config)  # that of a run has no digest
        total = count_parameters(config)[0] * F32_BYTES
        made = export_leaves(
            params,
            config,
            Path(output),
            layout=chosen.name,
            tokenizer_dir=tokenizer,
            adds_bos=None if trained is None else trained.adds_bos,
            **ids,
            card=_card(folder, config, extra, found),
            files=selection_files(selection, params, config),
            on_bytes=counter(progress, total),
        )
    return Exported(made, chosen.name)


def selection_for_run(
    folder: Path, config: Config, source: LeafSource | None = None
) -> dict[str, str]:
    """The `selection.json` in a model's folder, if any, as a file for a run that starts from it.

    Args:
      folder: folder of the model.
      config: config of the model.
      source: parameters of the model, to compare with the digest; None for a run, whose file has
        none.

    Raises:
      UsageError: the file is damaged, or does not belong to the model.
    """
    selection = selection_beside(folder, config, source)
    if selection is None:
        return {}
    # A run changes the experts; its export computes the digest again.
    return {SELECTION_FILE: dataclasses.replace(selection, experts="").text()}


def counter(progress: Progress, total: int) -> Callable[[int], None]:
    """Returns a callback that takes the size of each piece written, and shows the sum so far."""
    done = 0

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress.show(f"{done / 1e9:.2f} of {total / 1e9:.2f} GB")

    return count


def _card(workdir: Path, config: Config, extra: Mapping[str, Any], step: int) -> Card:
    windows = int(extra.get("windows", 0))
    facts: dict[str, Any] = {"step": step, "tokens seen": f"{windows * config.data.seq_len:,}"}
    if "store" in extra:
        facts["data fingerprint"] = extra["store"]
    return Card(
        facts=facts | _last_losses(workdir, step),
        versions=extra.get("versions", {}),
    )


def _last_losses(workdir: Path, step: int) -> dict[str, float]:
    """Training and held-out losses at a step, if they were logged."""
    if not (workdir / METRICS_FILE).exists():
        return {}
    losses: dict[str, float] = {}
    for record in read_metrics(workdir):
        if record["step"] == step:
            losses |= {
                name: value
                for name in record
                if (name == "ce_loss" or name.startswith("heldout_loss"))
                and (value := number_in(record, name)) is not None
            }
    return losses


def import_(
    hf_dir: str | os.PathLike[str], workdir: str | os.PathLike[str], *, quiet: bool = True
) -> Config:
    """Creates a workdir with the model of a Hugging Face folder as step 0, parameters only.

    The workdir appears only when it is complete: without its checkpoint, a run in it would start
    from random parameters. Memory: a few slices of the model, see `emo_jax.checkpoint.slices`.

    Args:
      hf_dir: a Hugging Face folder in any of our layouts.
      workdir: folder to create.
      quiet: show no progress.

    Returns:
      The config of the model.

    Raises:
      HfFormatError: `hf_dir` has an unsupported architecture or is incomplete.
      UsageError: `workdir` already exists or cannot be created, or the folder's `selection.json`
        does not belong to its model.
    """
    refuse_existing(Path(workdir).resolve())
    source, config, _ = open_folder(Path(hf_dir))
    ModelFunctions(config)  # rejects impossible models
    files = selection_for_run(Path(hf_dir), config, source)
    for name, fields in code_in(Path(hf_dir), readable=False).items():
        _LOG.warning("%s: names code, which is left out: %s", Path(hf_dir, name), ", ".join(fields))

    def fill(unfinished: Path) -> None:
        _keep_tokenizer(Path(hf_dir), unfinished / TOKENIZER_FOLDER)
        for name, text in files.items():
            write_atomic(unfinished / name, text)

    import_leaves(source, config, workdir, fill, quiet=quiet)
    return config


def import_leaves(
    source: LeafSource,
    config: Config,
    workdir: str | os.PathLike[str],
    fill: Callable[[Path], None],
    *,
    fills: Sequence[str] = (),
    quiet: bool = True,
) -> None:
    """Creates a workdir with some parameters as step 0; it appears only when it is complete.

    Args:
      source: the parameters.
      config: config of the run.
      workdir: folder to create.
      fill: called with the unfinished folder, to write the other files into it.
      fills: names of the files that only `fill` writes, to recognise what a killed call left.
      quiet: show no progress.

    Raises:
      UsageError: `workdir` already exists or cannot be created.
    """
    total = sum(math.prod(shape) for shape in source.shapes.values()) * F32_BYTES

    def save(unfinished: Path) -> None:
        with Progress("import", enabled=not quiet) as progress:
            on_bytes = counter(progress, total)
            stopped = threading.Event()
            state = {"params": _sliced(source, config, on_bytes, stopped)}
            save_sliced(unfinished, config, state, 0, {"windows": 0}, stopped)

    make_workdir(workdir, config, fill, save, fills=fills)


def make_workdir(
    workdir: str | os.PathLike[str],
    config: Config,
    fill: Callable[[Path], None],
    save: Callable[[Path], None],
    *,
    fills: Sequence[str] = (),
) -> None:
    """Creates a workdir that appears only when it is complete.

    Args:
      workdir, config, fill, fills: see `import_leaves`.
      save: called with the unfinished folder, to write a checkpoint into it.

    Raises:
      UsageError: `workdir` already exists or cannot be created.
    """
    folder = Path(workdir).resolve()
    refuse_existing(folder)
    for note in remove_left_over(folder, [_PARTIAL], (*_IMPORTED, *fills)):
        _LOG.warning("%s", note)
    try:
        with partial_folder(folder, _PARTIAL) as unfinished:
            claim_workdir(unfinished, config)
            fill(unfinished)
            save(unfinished)
            os.rename(unfinished, folder)
    except OSError as e:
        raise UsageError(f"{folder}: cannot be made a workdir: {one_line(e)}") from e


def save_sliced(
    workdir: Path,
    config: Config,
    state: Mapping[str, Any],
    step: int,
    extra: Mapping[str, Any],
    stopped: threading.Event,
) -> None:
    """Writes sliced leaves as the checkpoint of a step, a few slices at a time.

    Args:
      state: nested dicts of `SlicedLeaf`; their `read` raises CheckpointError once `stopped`.
      extra: of the checkpoint, to which the config is added.
      stopped: set by the first Ctrl-C.
    """
    with Checkpointer(workdir, config.checkpoint) as checkpointer, _ctrl_c_sets(stopped):
        try:
            checkpointer.save(step, state, {**extra, "config": to_dict(config)})
            checkpointer.wait()
        except CheckpointError:
            if not stopped.is_set():
                raise
        except BaseException:
            stopped.set()  # the writer ends at its next slice; then its files can be removed
            raise
    if stopped.is_set():
        raise KeyboardInterrupt


@contextlib.contextmanager
def _ctrl_c_sets(stopped: threading.Event) -> Iterator[None]:
    """Makes the first Ctrl-C set `stopped`; a second one is handled as before.

    An exception raised by the signal could come anywhere, for example while a thread starts, or in
    a callback of the garbage collector, which drops it.
    """
    old = signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or old is signal.SIG_IGN:  # signals stay as they are, as under nohup
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, old)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)


def _sliced(
    source: LeafSource, config: Config, on_bytes: Callable[[int], None], stopped: threading.Event
) -> dict[str, Any]:
    """The parameters as leaves that are read while the checkpoint is written, until stopped.

    A run without label pools leaves out the table that its source learned.
    """
    wanted = leaf_shapes(config)

    def reader(path: str) -> Callable[[Block], np.ndarray]:
        def read(block: Block) -> np.ndarray:
            if stopped.is_set():
                raise CheckpointError("stopped")
            value = source.read(path, block)
            on_bytes(value.nbytes)
            return value

        return read

    return unflatten(
        {
            path: SlicedLeaf(shape, np.dtype(np.float32), reader(path), unit_axes(path))
            for path, shape in source.shapes.items()
            if path in wanted
        }
    )


def _keep_tokenizer(source: Path, target: Path) -> None:
    """Writes the tokenizer of a Hugging Face folder, if any, as the folder defines it."""
    if not (source / "tokenizer.json").exists():
        return
    try:
        tokenizer_files.write(tokenizer_files.load(source), source, target)
    except DataError as reason:  # to be repaired later; the parameters can be used
        _LOG.warning("%s; the tokenizer is kept as it is, to be mended", reason)
        target.mkdir()
        content, *settings = tokenizer_files.WRITTEN
        write_bytes_atomic(epath.Path(target / content), read_regular(source / content))
        for name in settings:
            with contextlib.suppress(FileNotFoundError, DataError):  # unreadable: may name code
                values = without_code(read_object(source / name, advice=""))
                write_atomic(epath.Path(target / name), dumps(values, indent=2) + "\n")
