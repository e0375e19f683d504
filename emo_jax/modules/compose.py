"""`emo compose`: writes the union of modules of one parent."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emo_jax.config import Config
from emo_jax.errors import UsageError
from emo_jax.files.atomic import refuse_existing
from emo_jax.files.progress import Progress
from emo_jax.hf.hf_config import special_ids
from emo_jax.hf.layouts import layout_for
from emo_jax.modules.folder import open_with_experts, write_module
from emo_jax.modules.union import Module, next_best, open_module, union
from emo_jax.tokenizer.load import load_tokenizer


class Composed(NamedTuple):
    """The Hugging Face folder of a union, and the config of the model in it."""

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
    """Writes the union of modules of one parent as a Hugging Face folder.

    In each layer, the union has every expert that any of the modules has.

    Args:
      modules: two or more folders made by `select` or `compose`.
      output: folder to create.
      layout: "qwen2_moe", "mixtral", "glm4_moe" or "emo"; None: one that stock transformers loads.
      average: take the mean of weights that differ, as after finetuning, instead of failing.
      fill_from: the parent, whose next best experts fill smaller layers up to the largest, as
        layout "qwen2_moe" requires; None: do not fill.
      quiet: show no progress.

    Returns:
      The folder, and the config of the model in it.

    Raises:
      UsageError: there are fewer than two modules; `output` already exists; the modules have
        different parents, tokenizers or (without `average`) weights; `fill_from` is not their
        parent; or the layout cannot hold their union.
      HfFormatError: the folder of a module is damaged.
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
            filled = ", or fill layers up with --fill-from PARENT" if next_best(opened) else ""
            raise UsageError(f"{error}{filled}") from error
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
    """Options for `export_leaves`: the modules' tokenizer, or the special ids if they have none.

    Raises:
      UsageError: the modules have different tokenizers.
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
