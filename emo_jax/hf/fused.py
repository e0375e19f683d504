"""All experts of a layer in one tensor, as transformers 5 holds them and mergekit writes them.

Legend: R routed experts, F their hidden size, D width.
"""

from collections.abc import Mapping

from emo_jax.config import Config, moe_of
from emo_jax.errors import HfFormatError
from emo_jax.hf import mixtral
from emo_jax.hf.layouts import Layout
from emo_jax.hf.weights import StoredTensor, check_dtype

GATE_UP, DOWN = "experts.gate_up_proj", "experts.down_proj"  # (R,2F,D), gates first; (R,D,F)
_PARTS = {name: f"{name}_proj" for name in ("gate", "up", "down")}


def apart(
    headers: Mapping[str, StoredTensor], config: Config, layout: Layout
) -> dict[str, StoredTensor]:
    """The tensors of a folder, with each expert under its own name, read from its place in a file.

    Raises:
      HfFormatError: a shape is wrong, or an expert appears twice.
    """
    moe, D = moe_of(config), config.model.embed_dim
    R, F = moe.num_routed_experts, moe.expert_dim
    block, parts_of = "mlp", _PARTS
    if layout.name == "mixtral":
        block, parts_of = mixtral.BLOCK, mixtral.PARTS
        headers = _renamed(headers, f".{block}.gate.")
    out = dict(headers)
    for i in range(config.model.num_layers):
        for fused, shape, names in (
            (GATE_UP, (R, 2 * F, D), ("gate", "up")),
            (DOWN, (R, D, F), ("down",)),
        ):
            whole = f"model.layers.{i}.mlp.{fused}"
            if whole not in out:
                continue
            stored = out.pop(whole)
            check_dtype(whole, stored)
            if stored.shape != shape:
                raise HfFormatError(
                    f"{stored.file}: {whole} has shape {stored.shape}, but the config says {shape};"
                    " copy the folder again, or mend its config.json"
                )
            parts = stored.parts(R * len(names), (shape[1] // len(names), shape[2]))
            for n, part in enumerate(parts):
                expert, name = divmod(n, len(names))
                own = f"model.layers.{i}.{block}.experts.{expert}.{parts_of[names[name]]}.weight"
                if own in out:
                    raise HfFormatError(
                        f"{stored.file}: {own} is in {whole} too; remove one and copy again"
                    )
                out[own] = part
    return out


def _renamed(headers: Mapping[str, StoredTensor], gate: str) -> dict[str, StoredTensor]:
    """With the router of a layer under its name in files."""
    out: dict[str, StoredTensor] = {}
    for name, stored in headers.items():
        own = name.replace(".mlp.gate.", gate)
        if own in headers and own != name:
            raise HfFormatError(f"{stored.file}: {own} is there as {name} too; remove one")
        out[own] = stored
    return out
