"""Compares a Hugging Face folder with the run it came from: weights, config, ids."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emo_jax.checkpoint.slices import WRITE_BYTES
from emo_jax.config import Config, differences, from_config_dict, portable
from emo_jax.errors import EmoError, HfFormatError, UsageError, one_line
from emo_jax.files.json_files import read_object
from emo_jax.hf import tokenizer_files
from emo_jax.hf.fused import apart
from emo_jax.hf.hf_config import OUR_SECTION, ids_for_others, to_hf, vocab_rows
from emo_jax.hf.importing import has_biases, read_folder
from emo_jax.hf.layouts import layout_for
from emo_jax.hf.tensors import HfTensor, LeafSource
from emo_jax.hf.weights import READABLE_DTYPES, StoredTensor
from emo_jax.saved.load import OpenedModel, open_model
from emo_jax.tokenizer.base import Tokenizer
from emo_jax.tokenizer.json_tokenizer import JsonTokenizer

NAMED = 20  # differences of one kind that are listed; any more are only counted
_TEXTS = (
    "The court finds for the plaintiff.",
    "  two spaces,\ttabs\r\nand\n\n\nlines  ",
    "In 1984, 31337 tokens cost $0.25; 3.14159 × 10⁻⁴⁰?!",
    "def f(x):\n    return {'a': x[0] != -1}  # naïve façade",
    "Schrödingers Katze, el niño, Ελλάδα, Москва, 東京都, 서울, عربى, हिन्दी, 👩‍🔬",
    "e\u0301 \u00e9 \ufeff \u200b \x00 \x7f \ufffd",
)


@dataclass(frozen=True)
class Comparison:
    """What differs, and how much was compared.

    Attributes:
      differences: one line each; if one kind has more than `NAMED`, its last line says how many
        more.
      count: number of all differences.
      step: step of the run's checkpoint; None for a Hugging Face folder.
    """

    differences: list[str]
    count: int
    tensors: int
    step: int | None


def compare_folder(
    hf_dir: str | os.PathLike[str],
    against: str,
    *,
    on_bytes: Callable[[int], None] = lambda n: None,
) -> Comparison:
    """Compares a folder's tensors, config.json fields and tokenizer with those of a run.

    A folder that another program saved again is compared by meaning: names of fields and tensors as
    transformers writes them, and, in half precision, the run's numbers rounded alike.

    Args:
      hf_dir: a folder in any layout.
      against: WORKDIR (its newest good checkpoint), WORKDIR@STEP, or another Hugging Face folder.
      on_bytes: called with the size of every piece of the weights that was compared.

    Raises:
      HfFormatError: the folder cannot be read, or has another architecture.
      UsageError: `against` is not a model, or not one that fits the folder's layout.
    """
    folder, run = Path(hf_dir), open_model(against)
    layout, hf, headers = read_folder(folder)
    config = portable(run.config)
    try:
        layout_for(config, layout.name)
    except UsageError as error:  # for example, a dense model and one with experts
        return Comparison([f"config.json: {error}"], 1, 0, run.step)
    if layout.fused_experts:
        headers = apart(headers, config, layout)
    tensors = layout.tensors(config, biases=has_biases(layout, hf))
    kinds = {
        "fields": _differing_fields(hf, to_hf(layout, config, special_ids={}), config),
        "of the tokenizer": _differing_tokenizers(folder, hf, run),
        "names of tensors": _differing_names(headers, tensors),
        "tensors": _differing_weights(headers, tensors, run.source, on_bytes),
    }
    shown, count = [], 0
    for kind, lines in kinds.items():
        more = 0
        for n, line in enumerate(lines):
            count += 1
            if n < NAMED:
                shown.append(line)
            else:
                more += 1
        if more:
            shown.append(f"… and {more} more {kind}")
    return Comparison(shown, count, len(tensors), run.step)


# --- weights --------------------------------------------------------------------------------------


def _differing_names(
    headers: Mapping[str, StoredTensor], tensors: Iterable[HfTensor]
) -> Iterator[str]:
    names = {tensor.name for tensor in tensors}
    for name in sorted(names - headers.keys()):
        yield f"{name}: missing"
    for name in sorted(headers.keys() - names):
        yield f"{name}: the run has no such tensor"


def _differing_weights(
    headers: Mapping[str, StoredTensor],
    tensors: Iterable[HfTensor],
    source: LeafSource,
    on_bytes: Callable[[int], None],
) -> Iterator[str]:
    for tensor in tensors:
        if stored := headers.get(tensor.name):
            if line := _differing(tensor, stored, source):
                yield f"{tensor.name}: {line}"
            on_bytes(tensor.nbytes)


def _differing(tensor: HfTensor, stored: StoredTensor, source: LeafSource) -> str | None:
    """Returns what differs in one tensor, as one line."""
    rows = vocab_rows(tensor.shape[0]) if tensor.is_vocab else tensor.shape[:1]
    if stored.shape not in [(n, *tensor.shape[1:]) for n in rows]:
        return f"has shape {stored.shape}, the run's has {tensor.shape}"
    if stored.dtype not in READABLE_DTYPES:
        return f"is {stored.dtype}, the run's is F32"
    other, furthest = 0, 0.0
    for row, piece in tensor.pieces(WRITE_BYTES):
        theirs = stored.read_rows(row, row + piece.shape[0])
        if piece.path is None and piece.is_constant(theirs):
            continue
        ours = piece.read(source).astype(theirs.dtype)
        unequal = _bits(ours) != _bits(theirs)
        if unequal.any():
            gaps = np.abs(ours[unequal].astype(np.float64) - theirs[unequal])
            other, furthest = other + gaps.size, float(np.fmax(furthest, np.fmax.reduce(gaps)))
    if not other:
        return None
    return f"{other} of {math.prod(tensor.shape)} numbers differ, by up to {furthest:.3g}"


def _bits(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value).view(f"u{value.dtype.itemsize}")


# --- config.json ----------------------------------------------------------------------------------

# Fields that other programs write differently: compared by meaning, or irrelevant to the model's
# function.
_OTHERWISE = {
    *("architectures", "model_type", "torch_dtype", "transformers_version", "use_cache"),
    *("rope_parameters", "qkv_bias", "hidden_act", "mlp_only_layers", OUR_SECTION),
}


def _differing_fields(
    hf: Mapping[str, Any], expected: Mapping[str, Any], config: Config
) -> Iterator[str]:
    """Yields differing fields; `hf` is from `read_fields`, which has checked the fixed fields."""
    for name in sorted((expected.keys() & hf.keys()) - _OTHERWISE):
        if hf[name] != expected[name]:
            yield f"config.json: {name} = {hf[name]!r}, the run's is {expected[name]!r}"
    if OUR_SECTION in hf:
        try:
            theirs = from_config_dict(hf[OUR_SECTION])
        except (EmoError, TypeError, AttributeError) as error:
            yield f"config.json: its section {OUR_SECTION} is no config: {one_line(error)}"
        else:
            for line in differences(theirs, config):
                yield f"config.json: {OUR_SECTION}: {line}"


# --- the tokenizer --------------------------------------------------------------------------------


def _differing_tokenizers(folder: Path, hf: Mapping[str, Any], run: OpenedModel) -> Iterator[str]:
    """Yields differences in the tokenizer, if the run has one."""
    ours = run.tokenizer
    if ours is None:
        return
    written = ours.for_others() if isinstance(ours, JsonTokenizer) else ours
    for file, said in (("config.json", hf), ("generation_config.json", _generation(folder))):
        for name, i in ids_for_others(written).items():
            # transformers omits null fields; generation may end at several ids.
            if said is not None and said.get(name) not in (i, [i]):
                yield f"{file}: {name} = {said.get(name)!r}, the run's is {i!r}"
    if run.tokenizer_dir is None:  # kept as is, so an export has no file of it
        return
    if not (folder / "tokenizer.json").exists():
        yield "tokenizer.json: missing"
        return
    try:
        yield from _differing_ids(ours, tokenizer_files.load(folder))
    except EmoError as error:
        yield f"tokenizer.json: {one_line(error)}"


def _generation(folder: Path) -> dict[str, Any] | None:
    path = folder / "generation_config.json"
    try:
        return read_object(path, error=HfFormatError, advice="copy it again")
    except FileNotFoundError:
        return None


def _differing_ids(ours: Tokenizer, theirs: Tokenizer) -> Iterator[str]:
    if theirs.first_id != ours.first_id:
        yield (
            f"tokenizer.json: documents begin with id {theirs.first_id}, those of the run with"
            f" {ours.first_id}"
        )
    if ours.fingerprint == theirs.fingerprint:
        return
    yield (
        f"tokenizer.json: another tokenizer than the run's ({theirs.fingerprint[:12]} is not"
        f" {ours.fingerprint[:12]})"
    )
    pairs = zip(_TEXTS, ours.encode_batch(_TEXTS), theirs.encode_batch(_TEXTS), strict=True)
    for text, own, other in pairs:
        if not np.array_equal(own, other):
            yield f"tokenizer.json: {text!r} has the ids {other.tolist()}, not {own.tolist()}"
            return
