"""Loads a model from a checkpoint of a run, or from a Hugging Face folder."""

import dataclasses
from pathlib import Path
from typing import Any

from emo_jax.checkpoint.reading import open_params, restore_params
from emo_jax.config import Config
from emo_jax.errors import UsageError
from emo_jax.hf import import_model, tokenizer_files
from emo_jax.hf.fields import is_hugging_face
from emo_jax.hf.hf_config import SPECIAL_IDS, ids_for_others, special_ids
from emo_jax.hf.importing import open_folder
from emo_jax.hf.tensors import LeafSource
from emo_jax.model.params import Params, abstract_params
from emo_jax.run.workdir import CONFIG_FILE, read_workdir_config, split_step
from emo_jax.saved.transfer import tokenizer_of
from emo_jax.tokenizer.load import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ModelOnDisk:
    """What is needed to use a model, apart from its parameters.

    Attributes:
      path: as given.
      tokenizer: None if the folder has none.
      step: step of the checkpoint; None for a Hugging Face folder.
      folder: `path` without the step.
      tokenizer_dir: folder of a tokenizer.json that can be copied; None: there is none.
      special_ids: those of the tokenizer, or those that a folder without one states; see
        `export_leaves`.
    """

    path: str
    config: Config
    tokenizer: Tokenizer | None
    step: int | None
    folder: Path
    tokenizer_dir: Path | None
    special_ids: dict[str, int | None]

    @property
    def for_export(self) -> dict[str, Any]:
        """Options for `export_leaves`: the tokenizer to copy, or special ids if there is none."""
        if self.tokenizer_dir is not None and self.tokenizer is not None:
            return {"tokenizer_dir": self.tokenizer_dir, "adds_bos": self.tokenizer.adds_bos}
        return self.special_ids

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.config.name

    def need_tokenizer(self) -> Tokenizer:
        """The tokenizer of the model, ready to convert text.

        Raises:
          UsageError: there is none, it has ids that the model does not have, or it is code that a
            file names and is not trusted.
        """
        if self.tokenizer is None:
            raise UsageError(
                f"{self.path}: no tokenizer.json with the model; copy that of its training data"
                " there (in a run's folder: into tokenizer/)"
            )
        found, fits = self.tokenizer.vocab_size, self.config.model.vocab_size
        if found > fits:
            raise UsageError(
                f"{self.path}: its tokenizer has {found} ids, the model {fits}; copy the tokenizer"
                " of its training data there"
            )
        self.tokenizer.ready()
        return self.tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LoadedModel(ModelOnDisk):
    """A model in memory: `params` are float32 host arrays."""

    params: Params


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OpenedModel(ModelOnDisk):
    """A model whose parameters are read block by block, so that they need not fit in memory."""

    source: LeafSource


def load_model(path: str, *, trust: bool = False) -> LoadedModel:
    """Reads `WORKDIR` (its newest good checkpoint), `WORKDIR@STEP`, or a Hugging Face folder.

    Args:
      path: path of one of these.
      trust: allow a tokenizer that is code named by a file, see `emo_jax.tokenizer.vocabularies`.

    Raises:
      UsageError: `path` does not exist, or is neither a workdir nor a Hugging Face folder.
      CheckpointError: the workdir has no good checkpoint, or none of that step.
      HfFormatError: the Hugging Face folder has an unsupported architecture or is incomplete.
      DataError: the tokenizer is damaged.
    """
    folder, step = _find(path)
    if is_hugging_face(folder):
        params, config = import_model(folder)
    else:
        config = read_workdir_config(folder)
        params, _, step = restore_params(folder, step, abstract_params(config))
    return LoadedModel(params=params, **_about(path, folder, step, config, trust))


def open_model(path: str, *, trust: bool = False) -> OpenedModel:
    """Like `load_model`, but reads no parameters yet."""
    folder, step = _find(path)
    source: LeafSource
    if is_hugging_face(folder):
        source, config, _ = open_folder(folder)
    else:
        config = read_workdir_config(folder)
        source, _, step = open_params(folder, step, abstract_params(config))
    return OpenedModel(source=source, **_about(path, folder, step, config, trust))


def _find(path: str) -> tuple[Path, int | None]:
    """The folder and the step that a path stands for."""
    folder, step = split_step(path)
    if not folder.exists():
        raise UsageError(f"{path}: no such folder; give a run's workdir or a Hugging Face folder")
    if not (folder / CONFIG_FILE).is_file():
        raise UsageError(
            f"{path}: neither a workdir nor a Hugging Face folder (no {CONFIG_FILE}); give one"
        )
    if step is not None and is_hugging_face(folder):
        raise UsageError(f"{path}: a Hugging Face folder has no steps; leave out @{step}")
    return folder, step


def _about(
    path: str, folder: Path, step: int | None, config: Config, trust: bool
) -> dict[str, Any]:
    """Fields of a `ModelOnDisk`."""
    ids: dict[str, int | None] = dict.fromkeys(SPECIAL_IDS)
    loaded: Tokenizer | None
    if is_hugging_face(folder):
        tokenizer = folder if (folder / "tokenizer.json").is_file() else None
        ids = special_ids(folder)
        loaded = None if tokenizer is None else tokenizer_files.load(tokenizer)
    else:
        tokenizer = tokenizer_of(folder)
        loaded = (
            None if tokenizer is None else load_tokenizer(tokenizer, trust=trust, within=folder)
        )
    has_json = tokenizer is not None and (tokenizer / "tokenizer.json").is_file()
    if loaded is not None:
        ids = ids_for_others(loaded)
    return {
        "special_ids": ids,
        "path": path,
        "config": config,
        "tokenizer": loaded,
        "step": step,
        "folder": folder,
        "tokenizer_dir": tokenizer if has_json else None,
    }
