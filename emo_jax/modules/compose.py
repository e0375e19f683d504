"""`emo compose`, `emo merge`, `emo extend`: folders of models in, a folder of a model out."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emo_jax.config import Config
from emo_jax.data.tokenizers import load_tokenizer
from emo_jax.errors import UsageError
from emo_jax.files.atomic import refuse_existing
from emo_jax.files.progress import Progress
from emo_jax.hf.card import Card
from emo_jax.hf.export import export_leaves
from emo_jax.hf.hf_config import special_ids
from emo_jax.hf.layouts import layout_for
from emo_jax.modules.extend import extended
from emo_jax.modules.folder import write_module
from emo_jax.modules.union import Module, compose, merge_into, open_module
from emo_jax.saved.load import OpenedModel, open_model
from emo_jax.saved.selection_file import FILE, Selection, selection_beside, selection_files

_LOG = logging.getLogger(__name__)


def compose_folders(
    paths: Sequence[str],
    output: str | Path,
    *,
    layout: str | None = None,
    average: bool = False,
    fill_from: str | None = None,
    quiet: bool = True,
) -> tuple[Path, Config]:
    """Writes the union of some modules.

    Raises:
      UsageError: one module, modules that do not belong together, or not in this layout.
    """
    if len(paths) < 2:
        raise UsageError("give two or more folders of emo select")
    refuse_existing(output)
    with Progress("compose", enabled=not quiet) as shown:
        shown.show("comparing the modules")
        modules = [open_module(path) for path in paths]
        tokenizer = _tokenizer_of_all(modules)
        filling = None
        if fill_from is not None:
            parent = _with_experts(fill_from)
            filling = parent.source, parent.config
        made = compose(modules, average=average, fill_from=filling)
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
    return folder, made.config


def merge_folder(
    module: str,
    into: str,
    output: str | Path,
    *,
    share: float = 1.0,
    router: bool = False,
    rest: bool = False,
    layout: str | None = None,
    quiet: bool = True,
) -> Path:
    """Writes a whole model with a module's experts back in their places.

    Where the model is a module itself, so is what becomes of it.

    Raises:
      UsageError: the module is not of this model, or the model's `selection.json` is not of it.
    """
    refuse_existing(output)
    with Progress("merge", enabled=not quiet) as shown:
        opened, full = open_module(module), _with_experts(into)
        merged = merge_into(full.source, full.config, opened, share=share, router=router, rest=rest)
        shown.show(f"writing {output}")
        files = selection_files(_selection_of(full), merged, full.config)
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


def _with_experts(path: str) -> OpenedModel:
    opened = open_model(path)
    if opened.config.moe is None:
        raise UsageError(f"{path}: {opened.config.name} is dense, it has no experts")
    return opened


def _selection_of(model: OpenedModel) -> Selection | None:
    """What a model that is a module says of its parent. That of a run has no digest."""
    of_folder = model.source if model.step is None else None
    return selection_beside(model.folder, model.config, of_folder)


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


def extend_folder(
    model: str,
    output: str | Path,
    *,
    add: int,
    init: str,
    seed: int = 0,
    layout: str | None = None,
    quiet: bool = True,
) -> tuple[Path, Config]:
    """Writes a model with more routed experts.

    Of a module it makes a model of its own: the new experts are none of the parent's.

    Raises:
      UsageError: a dense model, nothing to add, or a `selection.json` that is not of the model.
    """
    refuse_existing(output)
    with Progress("extend", enabled=not quiet) as shown:
        opened = _with_experts(model)
        if _selection_of(opened) is not None:
            _LOG.warning(
                "%s: is a module, and with experts that its parent does not have it is none any"
                " more: %s gets no %s",
                *(model, output, FILE),
            )
        source, larger = extended(opened.source, opened.config, add, init=init, seed=seed)
        shown.show(f"writing {output}")
        folder = export_leaves(
            source,
            larger,
            output,
            layout=layout,
            **opened.for_export,
            card=Card(facts={"extended from": opened.name, "new experts": add, "made by": init}),
        )
    return folder, larger
