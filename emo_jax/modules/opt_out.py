"""`emo select --without`: a mixture of branches without some of them.

In a mixture of FlexOlmo's branches (arXiv 2507.07024, 3.1), what a branch learnt is in its expert
and column of the router alone: without these, the model is the mixture of the others, bit for bit.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emo_jax.config import Config, moe_of
from emo_jax.errors import UsageError
from emo_jax.files.atomic import refuse_existing
from emo_jax.files.progress import Progress
from emo_jax.modules.folder import open_with_experts, selection_from, write_selected
from emo_jax.saved.expert_names import read_expert_names


def opt_out(
    model: str | os.PathLike[str],
    without: Sequence[str],
    output: str | os.PathLike[str],
    *,
    layout: str | None = None,
    quiet: bool = True,
) -> tuple[Path, Config]:
    """Writes a model of `emo mix` without some of its experts, as a Hugging Face folder.

    Args:
      model: the workdir, or that of a run that began from it.
      without: names of the experts to leave out, as the branches' workdirs were called.
      output: folder to create, with a `selection.json`.
      layout: "qwen2_moe", "mixtral", "glm4_moe" or "emo"; None: one that stock transformers loads.
      quiet: show no progress.

    Returns:
      The folder, and the config of the model in it.

    Raises:
      UsageError: the model's experts have no names, or not one of these; none would be left; or
        `output` already exists.
    """
    refuse_existing(output)
    with Progress("select", enabled=not quiet) as shown:
        opened = open_with_experts(model)
        config, moe = opened.config, moe_of(opened.config)
        places = read_expert_names(opened.folder, moe.num_routed_experts).places(
            without, str(model)
        )
        kept_R = np.ones(moe.num_routed_experts, bool)
        kept_R[places] = False
        if not kept_R.any():
            raise UsageError(f"--without {','.join(without)}: leaves no expert; name fewer")
        kept_LR = np.tile(kept_R, (config.model.stacked_layers, 1))
        about = {"method": "without", "without": list(without)}
        selection = selection_from(opened, kept_LR, about)
        shown.show(f"writing {output}")
        options = {"layout": layout, **opened.for_export}
        return write_selected(opened.source, config, kept_LR, output, selection, **options)
