"""Parameters and config → a GGUF file, for llama.cpp and engines built on it.

llama.cpp's `gguf` package writes the head of the file; the tensors are written a few slices at a
time, as in `weights`.
"""

import importlib.util
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from emo_jax.config import Config
from emo_jax.errors import EmoError, UsageError, one_line
from emo_jax.files.partial import partial_folder, remove_left_over
from emo_jax.hf.gguf_tensors import (
    ARCHITECTURES,
    TYPES,
    GgufTensor,
    architecture_of,
    shape_keys,
    tensors,
)
from emo_jax.hf.gguf_vocabulary import Vocabulary, ids_alone, of_tokenizer
from emo_jax.hf.layouts import Layout, layout_for
from emo_jax.hf.tensors import LeafSource
from emo_jax.hf.weights import write_at
from emo_jax.model.params import check_shapes
from emo_jax.tokenizer.base import Tokenizer

_PARTIAL = "partial"
_FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0"}
_LOG = logging.getLogger(__name__)


def check_gguf(output: str | os.PathLike[str]) -> None:
    """Raises UsageError if the package is missing or the file exists; call before long work."""
    if importlib.util.find_spec("gguf") is None:
        raise UsageError("--gguf: gguf is not installed; pip install 'emo-jax[gguf]'")
    path = Path(output)
    if path.exists() or path.is_symlink():
        raise UsageError(f"--gguf {path}: is there already; give a new file")
    if path.name in ("", ".", ".."):
        raise UsageError(f"--gguf {output}: is a folder's name; give a file's")


def check_model(config: Config, tokenizer: Tokenizer | None) -> Vocabulary:
    """The vocabulary of the file.

    Raises:
      UsageError: llama.cpp has no matching architecture or tokenizer.
    """
    architecture_of(layout_for(config), config)
    return ids_alone() if tokenizer is None else of_tokenizer(tokenizer, config.model.vocab_size)


def gguf_bytes(config: Config, type_name: str) -> int:
    """Bytes of a file's tensors."""
    return sum(tensor.nbytes for tensor in tensors(layout_for(config), config, type_name))


def export_gguf(
    source: LeafSource,
    config: Config,
    output: str | os.PathLike[str],
    *,
    tokenizer: Tokenizer | None,
    type_name: str = "float32",
    on_bytes: Callable[[int], None] = lambda n: None,
) -> Path:
    """Writes `output`, which is complete or does not appear.

    Memory: a few slices of a leaf in addition to the source.

    Args:
      source: the parameters, with the shapes of `config`.
      config: config of the run.
      output: a file that does not exist yet.
      tokenizer: None: the file is for token ids only.
      type_name: type of the matrices: float32, float16, bfloat16 or q8_0. Norms, biases and the
        router are float32, and rows that q8_0 cannot store (not a multiple of 32) are float16.
      on_bytes: called with the size of every piece of the tensors that was written.

    Raises:
      UsageError: `output` exists, the `gguf` package is missing, or llama.cpp has no matching
        architecture or tokenizer.
      HfFormatError: a number cannot be represented in the type.
      EmoError: the file cannot be written.
    """
    if type_name not in TYPES:
        raise UsageError(f"type {type_name!r}: must be one of {', '.join(TYPES)}")
    check_gguf(output)
    layout, vocabulary = layout_for(config), check_model(config, tokenizer)
    check_shapes(source.shapes, config)
    target = Path(output).resolve()
    for note in remove_left_over(target, [_PARTIAL], [target.name]):
        _LOG.warning("%s", note)
    held = tensors(layout, config, type_name)
    try:
        with partial_folder(target, _PARTIAL) as unfinished:
            file = unfinished / target.name
            starts = _write_head(file, layout, config, vocabulary, held, TYPES[type_name])
            _write_tensors(file, source, held, starts, on_bytes)
            check_gguf(output)  # a file that has appeared since is not overwritten
            os.rename(file, target)
    except OSError as error:
        raise EmoError(
            f"{output}: cannot be written: {one_line(error)}; mend that and export again"
        ) from error
    return Path(output)


def _write_head(
    file: Path,
    layout: Layout,
    config: Config,
    vocabulary: Vocabulary,
    held: list[GgufTensor],
    type_name: str,
) -> list[int]:
    """Writes all but the tensors, and returns each tensor's offset in the file."""
    import gguf

    architecture = gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[ARCHITECTURES[layout.name]]]
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_type("model")
    writer.add_name(config.name)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[type_name]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in shape_keys(layout, config).items():
        _add(writer, f"{architecture}.{key}", value)
    for key, value in vocabulary.keys.items():
        _add(writer, f"tokenizer.ggml.{key}", value)
    if vocabulary.tokens:
        writer.add_token_list(vocabulary.tokens)
        writer.add_token_types(vocabulary.token_types)
    for tensor in held:
        kind = gguf.GGMLQuantizationType[tensor.type]
        # The dtype only matters if it is uint8: then the shape would be that of the bytes.
        numbers = np.dtype(np.float32)
        writer.add_tensor_info(tensor.name, tensor.shape, numbers, tensor.nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    end = writer.fout[0].tell()
    writer.close()
    starts = []
    for tensor in held:
        end += -end % writer.data_alignment
        starts.append(end)
        end += tensor.nbytes
    os.truncate(file, end + -end % writer.data_alignment)
    return starts


def _add(writer: Any, key: str, value: Any) -> None:
    """Adds a key with the type that llama.cpp expects."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _write_tensors(
    file: Path,
    source: LeafSource,
    held: list[GgufTensor],
    starts: list[int],
    on_bytes: Callable[[int], None],
) -> None:
    """Writes the tensors leaf by leaf, so that what is adjacent in a checkpoint is read once."""
    places: dict[str | None, list[tuple[GgufTensor, int]]] = {}
    for tensor, start in zip(held, starts, strict=True):
        places.setdefault(tensor.parts[0].path, []).append((tensor, start))
    with open(file, "r+b") as opened:
        for group in places.values():
            for tensor, start in group:
                for at, piece in tensor.pieces(source):
                    write_at(opened.fileno(), piece, start + at)
                    on_bytes(piece.nbytes)
        os.fsync(opened.fileno())
