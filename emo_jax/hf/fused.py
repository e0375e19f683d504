"""All experts of a layer in one tensor, as transformers 5 holds them and mergekit writes them.

Legend: R routed experts, F their hidden size, D width.
"""

from collections.abc import Mapping

from emo_jax.config import Config, moe_of
from emo_jax.errors import HfFormatError
from emo_jax.hf.weights import StoredTensor, check_dtype

GATE_UP, DOWN = "experts.gate_up_proj", "experts.down_proj"  # (R,2F,D), gates first; (R,D,F)


def apart(headers: Mapping[str, StoredTensor], config: Config) -> dict[str, StoredTensor]:
    """The tensors of a folder, with each expert under its own name, read from its place in a file.

    Raises:
      HfFormatError: a shape is wrong, or an expert appears twice.
    """
    moe, D = moe_of(config), config.model.embed_dim
    R, F = moe.num_routed_experts, moe.expert_dim
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
                own = f"model.layers.{i}.mlp.experts.{expert}.{names[name]}_proj.weight"
                if own in out:
                    raise HfFormatError(
                        f"{stored.file}: {own} is in {whole} too; remove one and copy again"
                    )
                out[own] = part
    return out
