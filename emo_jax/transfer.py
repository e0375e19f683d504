"""Workdirs to Hugging Face folders and back: checkpoint, config and tokenizer brought together."""

import dataclasses
import os
import secrets
import shutil
from pathlib import Path

import numpy as np

from emo_jax import config as config_lib
from emo_jax.checkpoint import Checkpointer, restore_params
from emo_jax.config import Config
from emo_jax.data.tokenizers import load_tokenizer
from emo_jax.errors import UsageError
from emo_jax.hf.export import export_model
from emo_jax.hf.importing import import_model
from emo_jax.model.transformer import ModelFunctions
from emo_jax.train.metrics import METRICS_FILE, read_metrics
from emo_jax.train.optimizer import make_optimizer
from emo_jax.train.state import TrainState
from emo_jax.workdir import (
    TOKENIZER_FOLDER,
    claim_workdir,
    one_line,
    read_workdir_config,
    refuse_existing,
)


def tokenizer_of(workdir: Path, config: Config) -> Path | None:
    """The folder of the run's tokenizer: its own, or its store's; None where neither is there."""
    folders = [workdir / TOKENIZER_FOLDER]
    if config.data.store:
        folders.append(Path(config.data.store) / TOKENIZER_FOLDER)
    return next((folder for folder in folders if (folder / "tokenizer.json").exists()), None)


def _check_tokenizer(given: Path, of_run: Path | None) -> None:
    """Raises UsageError where a tokenizer is known not to be the one the model was trained with."""
    fingerprint = load_tokenizer(given).fingerprint
    expected = fingerprint if of_run is None else load_tokenizer(of_run).fingerprint
    if fingerprint != expected:
        raise UsageError(
            f"--tokenizer {given}: not the tokenizer of the run ({fingerprint[:12]} is not"
            f" {expected[:12]}, of {of_run}); leave out --tokenizer to export that one"
        )


def export_workdir(
    workdir: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    layout: str = "qwen2_moe",
    step: int | None = None,
    tokenizer_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Writes the newest good checkpoint of a run, or that of `step`, as a Hugging Face folder.

    Raises:
      UsageError: not a workdir, the output is there already, or `tokenizer_dir` holds another
        tokenizer than the run's.
      CheckpointError: no good checkpoint.
    """
    folder = Path(workdir).absolute()
    config = read_workdir_config(folder)
    tokenizer = of_run = tokenizer_of(folder, config)
    if tokenizer_dir:
        tokenizer = Path(tokenizer_dir)
        _check_tokenizer(tokenizer, of_run)
    params, _, found = restore_params(folder, step)
    card = {"step": found, **_last_losses(folder, found)}
    # Where the store lies on this machine is nobody else's business.
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, store=""))
    return export_model(
        params, config, Path(output), layout=layout, tokenizer_dir=tokenizer, card=card
    )


def _last_losses(workdir: Path, step: int) -> dict[str, float]:
    """Training and held-out loss at a step, as far as the log has them."""
    if not (workdir / METRICS_FILE).exists():
        return {}
    losses: dict[str, float] = {}
    for record in read_metrics(workdir):
        if record["step"] == step:
            wanted = (name for name in ("ce_loss", "heldout_loss") if name in record)
            losses |= {name: record[name] for name in wanted}
    return losses


def import_folder(hf_dir: str | os.PathLike[str], workdir: str | os.PathLike[str]) -> Config:
    """Makes a workdir that holds a Hugging Face folder's model as step 0, optimizer fresh.

    It appears when it is whole: one without its checkpoint would train from random parameters.

    Raises:
      HfFormatError: the folder is of another architecture or incomplete.
      UsageError: the workdir is in use or cannot be made.
    """
    folder = Path(workdir).resolve()
    refuse_existing(folder)
    params, config = import_model(Path(hf_dir))
    ModelFunctions(config)  # refuses what the model cannot be
    opt_state = make_optimizer(config).init(params)
    unfinished = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.partial"
    try:
        unfinished.mkdir(parents=True)
        claim_workdir(unfinished, config)
        copy_tokenizer(Path(hf_dir), unfinished / TOKENIZER_FOLDER)
        with Checkpointer(unfinished, config.checkpoint) as checkpointer:
            state = TrainState(np.zeros((), np.int32), params, opt_state)
            checkpointer.save(0, state, {"config": config_lib.to_dict(config), "windows": 0})
        os.rename(unfinished, folder)
    except OSError as e:
        raise UsageError(f"{folder}: cannot be made a workdir: {one_line(e)}") from e
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return config


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies the tokenizer files of a Hugging Face folder, where it has them."""
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    if not (source / names[0]).exists():
        return
    target.mkdir()
    for name in names:
        if (source / name).exists():
            (target / name).write_bytes((source / name).read_bytes())
