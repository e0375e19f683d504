"""`emo explore`: turns one or two models and a store into a page."""

import contextlib
import dataclasses
import datetime
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emo_jax import __version__
from emo_jax.analysis.activations import record_into
from emo_jax.analysis.cluster import check_count
from emo_jax.analysis.record import Opened, check_model, grouped, recording
from emo_jax.analysis.sample import ALL_DOCUMENTS, Sample, SampleSettings, sample_of
from emo_jax.analysis.texts import TokenTexts, token_texts
from emo_jax.data.store import TokenStore
from emo_jax.errors import UsageError, listed
from emo_jax.evals.by_domain import SELECT
from emo_jax.explorer import measure
from emo_jax.explorer.figures import figures
from emo_jax.explorer.page import MAX_PAGE_BYTES, write_page
from emo_jax.explorer.view import View, look, to_json
from emo_jax.files.atomic import refuse_unmakeable
from emo_jax.files.partial import partial_folder, remove_left_over
from emo_jax.files.progress import Progress
from emo_jax.report import charts
from emo_jax.saved.load import open_model

TEST = "test"  # the split that chosen experts are judged on


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExploreSettings:
    """What the page contains.

    Attributes:
      token_clusters, document_clusters: how many; 0 document clusters: one per domain, at least 8.
      ablate: experts of each domain and layer to measure losses without.
      eval_windows: windows of each of the splits that experts are chosen and judged on; 0: no
        losses.
      max_bytes: limit for the page's size.
    """

    token_clusters: int = 32
    document_clusters: int = 0
    ablate: int = 4
    eval_windows: int = 128
    max_bytes: int = MAX_PAGE_BYTES


def explore(
    models: Sequence[str],
    data: str,
    output: str | Path,
    sample: SampleSettings,
    settings: ExploreSettings,
    *,
    pictures: str | Path | None = None,
    trust: bool = False,
    quiet: bool = True,
) -> int:
    """Writes the page; returns its size in bytes.

    Args:
      pictures: new folder for the same figures as SVG and PNG.
      trust: the store's tokenizer may be code that a file names.

    Raises:
      UsageError: nothing is written.
    """
    output = Path(output)
    if output.exists():
        raise UsageError(f"{output}: is there already; give another file")
    if pictures is not None:
        refuse_unmakeable("--figures", pictures)
        if output.resolve().is_relative_to(Path(pictures).resolve()):
            raise UsageError(f"--figures {pictures}: the page is to be there; give another folder")
    if not 1 <= len(models) <= 2:
        raise UsageError(f"{len(models)} models: give one, or two to see them side by side")
    store = grouped(TokenStore.open(data, trust=trust), sample.max_domains)
    tokenizer = store.tokenizer()
    tokenizer.ready()
    for path in models:  # before minutes are spent on the first model
        check_model(open_model(path), store)
    for split in (SELECT, TEST) if settings.eval_windows else ():
        if split not in store.splits or not store.count(split):
            raise UsageError(
                f"{data}: no tokens in split {split!r}, for losses; --eval-windows 0 does without"
            )
    documents = sample_of(store, sample)
    texts = token_texts(documents.documents, tokenizer)
    check_count(settings.token_clusters, len(texts.index_N))
    for note in remove_left_over(output.resolve(), ("partial",), ("0", "1")):
        print(f"emo: {note}", file=sys.stderr)
    views: list[View] = []
    parts: list[dict[str, Any]] = []
    with (
        Progress("explore", enabled=not quiet) as shown,
        partial_folder(output.resolve(), "partial") as scratch,
    ):
        for n, path in enumerate(models):
            view, part = _look(path, store, documents, texts, scratch / str(n), settings, shown)
            views.append(view)
            parts.append(part)
        header = {
            "title": f"{' and '.join(part['name'] for part in parts)} on {Path(data).name}",
            "emo_jax": __version__,
            "made": datetime.date.today().isoformat(),
            "data": {
                "store": Path(data).name,
                "split": sample.split,
                "tokens": len(texts.index_N),
                "documents": len(documents.documents),
                "seed": sample.seed,
                "max_document_tokens": sample.max_length,
            },
            "notes": _notes(store, documents, parts, settings),
        }
        with contextlib.ExitStack() as made:
            if pictures is not None:
                shown.show(f"drawing {pictures}")
                target = Path(pictures).resolve()
                folder = made.enter_context(partial_folder(target, "partial"))
                charts.write_figures(figures(documents.domains, parts), folder)
            shown.show(f"writing {output}")
            size = write_page(output, header, texts, views, parts, max_bytes=settings.max_bytes)
            if pictures is not None:
                os.rename(folder, target)
        return size


def _look(
    path: str,
    store: TokenStore,
    documents: Sample,
    texts: TokenTexts,
    scratch: Path,
    settings: ExploreSettings,
    shown: Progress,
) -> tuple[View, dict[str, Any]]:
    """Computes all that the page shows of a model, whose parameters are then freed."""
    shown.show(f"reading {path}")
    opened = Opened(path, store)
    scratch.mkdir()
    view = look(
        record_into(scratch, sample=documents, **recording(opened, shown)),
        token_clusters=settings.token_clusters,
        document_clusters=settings.document_clusters or max(8, len(documents.domains)),
        seed=documents.about["seed"],
        progress=shown.show,
    )
    keep = without = None
    if settings.eval_windows:
        keep, without = _losses(opened, view, settings, shown)
    return view, to_json(view, texts, without, keep)


def _losses(
    opened: Opened, view: View, settings: ExploreSettings, shown: Progress
) -> tuple[dict[str, Any], list]:
    """Returns the losses of the page's domains, measured with all domains of the store."""
    store, here = opened.store, view.found.domains
    names = store.named_domains or (ALL_DOCUMENTS,)
    places = [names.index(name) for name in here]
    select, test = (opened.windows(split, settings.eval_windows) for split in (SELECT, TEST))
    keep = measure.keep_curves(opened.model, opened.params, names, select, test, shown.show)
    keep["loss"] = [keep["loss"][m] for m in places]
    keep["rank"] = [[of_layer[m] for m in places] for of_layer in keep["rank"]]
    L, _, R = view.coverage.picked_LMR.shape
    picked_LMR = np.zeros((L, len(names), R))
    picked_LMR[:, places] = view.coverage.picked_LMR
    without = measure.rises_without(
        *(opened.model, opened.params, names, test, picked_LMR),
        most=settings.ablate,
        progress=shown.show,
    )
    return keep, without


def _notes(
    store: TokenStore, documents: Sample, parts: list[dict[str, Any]], settings: ExploreSettings
) -> list[str]:
    """Returns notes about what is not on the page, and why."""
    notes = []
    if not store.named_domains:
        notes.append(
            "The store names no domains: all documents are one here, and what compares domains"
            " (purity, mutual information, similarity) is missing."
        )
    if store.groups is not None:
        notes.append(f"The store has {store.groups.note}.")
    if missing := documents.about["missing"]:
        notes.append(
            f"Left out, since no document of {documents.about['min_length']} tokens was found of"
            f" them: {listed(missing, 20)}."
        )
    longest = max(map(len, documents.documents))
    notes += [
        f"{part['name']} reads {part['window']} tokens at a time: longer documents are cut, and"
        " each piece is routed without those before it."
        for part in parts
        if part["window"] < longest
    ]
    notes += [
        f"{part['name']}: the loss is not finite, the model breaks there: {', '.join(broken)}."
        for part in parts
        if (broken := (part.get("keep") or {}).get("not_finite"))
    ]
    if not settings.eval_windows:
        notes.append("No losses were measured (--eval-windows 0): no keep-k curves, no ablations.")
    return notes
