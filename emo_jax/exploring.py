"""`emo explore`: one or two models and a store in, a page out."""

import dataclasses
import datetime
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emo_jax import __version__, charts
from emo_jax.analysing import Opened, SampleSettings, check_model, record_on, sample_of
from emo_jax.data.progress import Progress
from emo_jax.data.store import TokenStore
from emo_jax.errors import UsageError
from emo_jax.evals.by_domain import SELECT
from emo_jax.explorer import measure
from emo_jax.explorer.figures import figures
from emo_jax.explorer.page import MAX_PAGE_BYTES, write_page
from emo_jax.explorer.view import View, look, to_json
from emo_jax.loading import open_model
from emo_jax.modularity.texts import token_texts
from emo_jax.workdir import refuse_existing


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExploreSettings:
    """What is on the page.

    Attributes:
      token_clusters, document_clusters: how many; 0 documents: one for each domain, 8 at least.
      ablate: experts of each domain and layer that losses are measured without.
      eval_windows: of the splits that experts are chosen and judged on; 0: no losses at all.
      max_bytes: of the page.
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
    quiet: bool = True,
) -> int:
    """Writes the page; returns its size in bytes.

    Args:
      pictures: new folder for the same figures as SVG and PNG.

    Raises:
      UsageError: nothing is written.
    """
    output = Path(output)
    if pictures is not None:
        refuse_existing(pictures)
    if output.exists():
        raise UsageError(f"{output}: is there already; give another file")
    if not 1 <= len(models) <= 2:
        raise UsageError(f"{len(models)} models: give one, or two to see them side by side")
    store = TokenStore.open(data)
    for path in models:  # before minutes are spent on the first
        check_model(open_model(path), store)
    documents = sample_of(store, sample)
    views: list[View] = []
    parts: list[dict[str, Any]] = []
    texts = token_texts(documents.documents, store.tokenizer())
    scratch = Path(tempfile.mkdtemp(prefix="emo-explore-"))
    try:
        with Progress("explore", enabled=not quiet) as shown:
            for n, path in enumerate(models):
                shown.show(f"reading {path}")
                opened = Opened(path, store)
                found = record_on(opened, documents, scratch / str(n), shown)
                view = look(
                    found,
                    token_clusters=settings.token_clusters,
                    document_clusters=settings.document_clusters or max(8, len(store.domains)),
                    seed=sample.seed,
                    progress=shown.show,
                )
                keep = without = None
                if settings.eval_windows:
                    keep, without = _losses(opened, view, settings, shown)
                views.append(view)
                parts.append(to_json(view, texts, without, keep))
            shown.show(f"writing {output}")
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
                "notes": _notes(store, settings),
            }
            if pictures is not None:
                shown.show(f"drawing {pictures}")
                Path(pictures).mkdir(parents=True, exist_ok=True)
                charts.write_figures(figures(store.domains, parts), Path(pictures))
            return write_page(output, header, texts, views, parts, max_bytes=settings.max_bytes)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _losses(
    opened: Opened, view: View, settings: ExploreSettings, shown: Progress
) -> tuple[dict[str, Any], list]:
    domains, most = opened.store.domains, settings.eval_windows
    select, test = (opened.windows(split, most) for split in (SELECT, "test"))
    keep = measure.keep_curves(opened.model, opened.params, domains, select, test, shown.show)
    without = measure.rises_without(
        *(opened.model, opened.params, domains, test, view.coverage.picked_LMR),
        most=settings.ablate,
        progress=shown.show,
    )
    return keep, without


def _notes(store: TokenStore, settings: ExploreSettings) -> list[str]:
    notes = []
    if not store.domains:
        notes.append(
            "The store names no domains: what needs them (purity, mutual information, curves by"
            " domain) is not here."
        )
    if not settings.eval_windows:
        notes.append("No losses were measured (--eval-windows 0): no keep-k curves, no ablations.")
    return notes
