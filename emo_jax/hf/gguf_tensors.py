"""The tensors of a GGUF file, as llama.cpp names and lays them out, derived from a layout's.

There is no second list of tensors: the `gguf` package names each tensor of the layout, the experts
of a layer are joined into one, and the rows of Llama's queries and keys are reordered. Legend: H
heads, Dh head_dim, D width, R routed experts, F hidden size.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emo_jax.checkpoint.slices import WRITE_BYTES
from emo_jax.config import Config
from emo_jax.errors import HfFormatError, UsageError
from emo_jax.hf.layouts import Layout
from emo_jax.hf.mixtral import BLOCK
from emo_jax.hf.tensors import HfTensor, LeafSource
from emo_jax.model.params import Shape

TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
# By layout; llama.cpp's Llama also has experts, and divides their weights by the sum.
ARCHITECTURES = {"qwen2_moe": "QWEN2MOE", "mixtral": "LLAMA", "llama": "LLAMA"}
_EXPERT = re.compile(r"\.experts\.\d+\.")
# Always float32, whatever the file's type: they are small, and routing depends on the last bits.
_ALWAYS_FLOAT32 = (
    *("norm.weight", ".mlp.gate.weight", f".{BLOCK}.gate.weight"),
    *("shared_expert_gate.weight", ".bias"),
)
_BLOCK = 32  # numbers that share a scale in q8_0; rows that are no multiple of it are float16


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: a layout's, or those of a layer's experts, one after another.

    Attributes:
      parts: tensors of one shape; more than one are stacked to (R, …).
      type: a name of `gguf.GGMLQuantizationType`.
      interleaved: 0, or the number of heads, in each of which rows i and i + Dh/2 are paired up.
    """

    name: str
    parts: tuple[HfTensor, ...]
    type: str
    interleaved: int = 0

    @property
    def shape(self) -> Shape:
        """The shape in NumPy order; a GGUF file has it reversed."""
        shape = self.parts[0].shape
        if len(self.parts) > 1:
            return (len(self.parts), *shape)
        return shape[1:] if shape[0] == 1 else shape

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) // self.shape[-1] * row_bytes(self.shape[-1], self.type)

    def pieces(self, source: LeafSource) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (offset in the tensor's bytes, the bytes), a few slices at a time.

        Raises:
          HfFormatError: a number cannot be represented in the type.
        """
        for number, part in enumerate(self.parts):
            at = number * self.nbytes // len(self.parts)
            one_row = self.nbytes // len(self.parts) // part.shape[0]
            limit = part.nbytes if self.interleaved else WRITE_BYTES
            for row, piece in part.pieces(limit):
                value = piece.read(source)
                if self.interleaved:
                    value = _interleaved(value, self.interleaved)
                yield at + row * one_row, self._encoded(value)

    def _encoded(self, value: np.ndarray) -> np.ndarray:
        import gguf

        with np.errstate(over="ignore"):
            made = gguf.quants.quantize(value, gguf.GGMLQuantizationType[self.type])
        if self.type in ("F16", "Q8_0"):
            largest = np.abs(value).max(initial=0) / (1 if self.type == "F16" else 127)
            if not largest <= np.finfo(np.float16).max:
                raise HfFormatError(
                    f"{self.name}: {np.abs(value).max()} is no number that {self.type} holds; give"
                    " --gguf-type bfloat16 or float32"
                )
        return made.reshape(-1).view(np.uint8)


def row_bytes(numbers: int, type_name: str) -> int:
    """Bytes of a tensor's row of `numbers` entries."""
    import gguf

    in_block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]
    return numbers // in_block * block_bytes


def _interleaved(value: np.ndarray, heads: int) -> np.ndarray:
    """(H·Dh,D) with rotary pairs side by side, as llama.cpp expects for Llama."""
    width = value.shape[1]
    return np.ascontiguousarray(
        value.reshape(heads, 2, -1, width).swapaxes(1, 2).reshape(-1, width)
    )


def tensors(layout: Layout, config: Config, type_name: str) -> list[GgufTensor]:
    """Every tensor of the file, in the order of the layout.

    Args:
      type_name: one of `TYPES`.

    Raises:
      UsageError: llama.cpp has no architecture for this model.
    """
    import gguf

    architecture = gguf.MODEL_ARCH[architecture_of(layout, config)]
    named = gguf.get_tensor_name_map(architecture, config.model.num_layers)
    turned = {}  # projections with rotary pairs, and their heads
    if ARCHITECTURES[layout.name] == "LLAMA":
        turned = {"q_proj.weight": config.model.num_heads, "k_proj.weight": config.model.kv_heads}
    groups: dict[str, list[HfTensor]] = {}
    for tensor in layout.tensors(config):
        groups.setdefault(_EXPERT.sub(".experts.", tensor.name), []).append(tensor)
    made = []
    for name, parts in groups.items():
        found = named.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        heads = next((n for end, n in turned.items() if name.endswith(end)), 0)
        made.append(GgufTensor(found, tuple(parts), _type_of(name, parts, type_name), heads))
    return made


def _type_of(name: str, parts: Sequence[HfTensor], wanted: str) -> str:
    if name.endswith(_ALWAYS_FLOAT32):
        return "F32"
    if wanted == "q8_0" and parts[0].shape[-1] % _BLOCK:
        return "F16"
    return TYPES[wanted]


def architecture_of(layout: Layout, config: Config) -> str:
    """The name of the architecture, as in `gguf.MODEL_ARCH`.

    Raises:
      UsageError: there is none for this model.
    """
    model = config.model
    if model.dense_layers:
        raise UsageError(
            f"--gguf: llama.cpp's architectures like ours have experts in every layer, and"
            f" {config.name} has model.dense_layers = {model.dense_layers}; export it with --output"
            " for transformers"
        )
    if layout.name not in ARCHITECTURES:
        raise UsageError(f"--gguf: llama.cpp has no layout {layout.name}; leave out --layout")
    if layout.name == "qwen2_moe" and model.num_heads * model.head_dim != model.embed_dim:
        raise UsageError(
            f"--gguf: llama.cpp has Qwen2-MoE only with heads × head_dim equal to the width, and"
            f" {config.name} has {model.num_heads} × {model.head_dim} and {model.embed_dim};"
            " export it with --output for transformers"
        )
    if layout.name == "qwen2_moe" and config.moe is not None and config.moe.normalize_picks:
        raise UsageError(
            f"--gguf: llama.cpp's Qwen2-MoE does not divide weights by their sum, and {config.name}"
            " has moe.normalize_picks; export it with --output for transformers"
        )
    return ARCHITECTURES[layout.name]


def shape_keys(layout: Layout, config: Config) -> dict[str, Any]:
    """Keys below the architecture's name, from the fields of the layout's config.json."""
    fields, model = layout.shape_fields(config), config.model
    keys: dict[str, Any] = {
        "block_count": model.num_layers,
        "context_length": config.data.seq_len,
        "embedding_length": model.embed_dim,
        "feed_forward_length": fields.get("intermediate_size", fields.get("moe_intermediate_size")),
        "attention.head_count": model.num_heads,
        "attention.head_count_kv": model.kv_heads,
        "attention.key_length": model.head_dim,
        "attention.value_length": model.head_dim,
        "attention.layer_norm_rms_epsilon": float(model.norm_eps),
        "rope.dimension_count": model.head_dim,
        "rope.freq_base": float(model.rope_theta),
        "vocab_size": model.vocab_size,
    }
    if not layout.dense:
        keys["expert_used_count"] = fields["num_experts_per_tok"]
    if layout.name == "mixtral":
        keys["expert_count"] = fields["num_local_experts"]
    elif not layout.dense:
        keys |= {
            "expert_count": fields["num_experts"],
            "expert_feed_forward_length": fields["moe_intermediate_size"],
            "expert_shared_feed_forward_length": fields["shared_expert_intermediate_size"],
        }
    return keys
