"""`emo export --gguf`: converts a run or a Hugging Face folder to a file for llama.cpp."""

import os
from pathlib import Path

from emo_jax.errors import UsageError
from emo_jax.files.progress import Progress
from emo_jax.hf import tokenizer_files
from emo_jax.hf.gguf_export import check_gguf, check_model, export_gguf, gguf_bytes
from emo_jax.saved.load import OpenedModel, open_model
from emo_jax.saved.transfer import check_tokenizer, counter
from emo_jax.tokenizer.load import Tokenizer


def convert_to_gguf(
    model: str,
    output: str | os.PathLike[str],
    *,
    type_name: str = "float32",
    ids_alone: bool = False,
    tokenizer_dir: str | os.PathLike[str] | None = None,
    quiet: bool = True,
) -> Path:
    """Writes a model as a GGUF file. Memory: a few slices, see `emo_jax.checkpoint.slices`.

    Args:
      model: `WORKDIR`, `WORKDIR@STEP`, or a Hugging Face folder, such as a module.
      output: path of the new file.
      type_name: see `emo_jax.hf.gguf_export.export_gguf`.
      ids_alone: leave out the tokenizer; the file then takes and returns token ids.
      tokenizer_dir: folder of the tokenizer; None: the model's own.
      quiet: show no progress.

    Raises:
      UsageError: `output` already exists, or llama.cpp has no matching architecture or tokenizer.
      CheckpointError: there is no good checkpoint.
    """
    check_gguf(output)
    opened = open_model(model)
    tokenizer = None if ids_alone else _tokenizer_of(opened, tokenizer_dir)
    with Progress("gguf", enabled=not quiet) as progress:
        progress.show(f"reading {opened.path}")
        return export_gguf(
            opened.source,
            opened.config,
            output,
            tokenizer=tokenizer,
            type_name=type_name,
            on_bytes=counter(progress, gguf_bytes(opened.config, type_name)),
        )


def check_convertible(
    model: str,
    *,
    ids_alone: bool = False,
    tokenizer_dir: str | os.PathLike[str] | None = None,
) -> None:
    """Raises what `convert_to_gguf` would raise for a model and its tokenizer; writes nothing."""
    opened = open_model(model)
    tokenizer = None if ids_alone else _tokenizer_of(opened, tokenizer_dir)
    check_model(opened.config, tokenizer)


def _tokenizer_of(opened: OpenedModel, tokenizer_dir: str | os.PathLike[str] | None) -> Tokenizer:
    if tokenizer_dir is None:
        if opened.tokenizer is None:
            raise UsageError(
                f"--gguf: no tokenizer.json with {opened.path}; give --tokenizer FOLDER, or"
                " --gguf-ids for a file that takes token ids"
            )
        return opened.need_tokenizer()
    given = Path(tokenizer_dir)
    check_tokenizer(given, opened.tokenizer, opened.path)
    found = tokenizer_files.load(given)
    if opened.tokenizer is not None:
        found.adds_bos = opened.tokenizer.adds_bos
    tokenizer_files.check(found, given, opened.config.model.vocab_size)
    return found
