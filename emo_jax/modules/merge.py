"""`emo merge`: puts a (finetuned) module back into the whole model."""

import os
from pathlib import Path

from emo_jax.files.atomic import refuse_existing
from emo_jax.files.progress import Progress
from emo_jax.hf.card import Card
from emo_jax.hf.export import export_leaves
from emo_jax.modules.folder import open_with_experts, selection_of
from emo_jax.modules.union import merge_into, open_module
from emo_jax.saved.selection_file import selection_files


def merge(
    module: str | os.PathLike[str],
    into: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    share: float = 1.0,
    router: bool = False,
    rest: bool = False,
    layout: str | None = None,
    quiet: bool = True,
) -> Path:
    """Writes a whole model with a module's experts back in their places, see `merge_into`.

    If `into` is itself a module, so is the result.

    Raises:
      UsageError: `module` was not selected from `into`, `share` is out of range, `output` already
        exists, or the `selection.json` of `into` does not belong to it.
    """
    refuse_existing(output)
    with Progress("merge", enabled=not quiet) as shown:
        opened, full = open_module(module), open_with_experts(into)
        merged = merge_into(full.source, full.config, opened, share=share, router=router, rest=rest)
        shown.show(f"writing {output}")
        files = selection_files(selection_of(full), merged, full.config)
        facts = {"experts put back from": Path(module).name, "their share": share}
        return export_leaves(
            merged,
            full.config,
            output,
            layout=layout,
            **full.for_export,
            card=Card(facts=facts),
            files=files,
        )
