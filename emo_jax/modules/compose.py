"""`emo compose`: modules of one parent in, their union out."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emo_jax.config import Config
from emo_jax.data.tokenizers import load_tokenizer
from emo_jax.errors import UsageError
from emo_jax.files.atomic import refuse_existing
from emo_jax.files.progress import Progress
from emo_jax.hf.hf_config import special_ids
from emo_jax.hf.layouts import layout_for
from emo_jax.modules.folder import open_with_experts, write_module
from emo_jax.modules.union import Module, open_module, union


class Composed(NamedTuple):
    """A Hugging Face folder of a union, and the config of the model in it."""

    folder: Path
    config: Config


def compose(
    modules: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    layout: str | None = None,
    average: bool = False,
    fill_from: str | os.PathLike[str] | None = None,
    quiet: bool = True,
) -> Composed:
    """Writes the union of some modules of one parent as a Hugging Face folder.

    In each layer it has all experts that any of them has.

    Args:
      modules: folders of `select` or `compose`, two or more.
      output: folder to make.
      layout: "qwen2_moe" or "emo"; None: what stock transformers loads.
      average: take the mean of weights that differ, as after finetuning, instead of refusing.
      fill_from: the parent, whose next best experts fill smaller layers up to the largest, which
        layout "qwen2_moe" needs.
      quiet: show no progress.

    Raises:
      UsageError: one module, modules that do not belong together, or not in this layout.
    """
    if len(modules) < 2:
        raise UsageError("give two or more folders of emo select")
    refuse_existing(output)
    with Progress("compose", enabled=not quiet) as shown:
        shown.show("comparing the modules")
        opened = [open_module(path) for path in modules]
        tokenizer = _tokenizer_of_all(opened)
        filling = None
        if fill_from is not None:
            parent = open_with_experts(fill_from)
            filling = parent.source, parent.config
        made = union(opened, average=average, fill_from=filling)
        try:
            layout_for(made.config, layout)
        except UsageError as error:
            raise UsageError(f"{error}, or fill layers up with --fill-from PARENT") from error
        shown.show(f"writing {output}")
        folder = write_module(
            made.source,
            made.config,
            output,
            made.selection,
            layout=layout,
            **tokenizer,
        )
    return Composed(folder, made.config)


def _tokenizer_of_all(modules: Sequence[Module]) -> dict[str, Any]:
    """Options of `export_leaves`: the tokenizer that the modules have, or its ids.

    Raises:
      UsageError: they have different ones.
    """
    having = [m for m in modules if (m.path / "tokenizer.json").is_file()]
    if not having:
        return dict(special_ids(modules[0].path))
    first, *others = having
    ours = load_tokenizer(first.path).fingerprint
    for module in others:
        theirs = load_tokenizer(module.path).fingerprint
        if ours != theirs:
            raise UsageError(
                f"{first.path} and {module.path}: different tokenizers ({ours[:12]} and"
                f" {theirs[:12]})"
            )
    return {"tokenizer_dir": first.path}
