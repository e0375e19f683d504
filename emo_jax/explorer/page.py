"""The page itself: one HTML file that contains everything and fetches nothing.

Legend: N tokens, D documents, L layers, K routed picks.
"""

import base64
import gzip
import html
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emo_jax.analysis.texts import TokenTexts
from emo_jax.errors import UsageError
from emo_jax.explorer.view import View
from emo_jax.files.atomic import write_bytes_atomic
from emo_jax.files.json_files import plain

FORMAT, VERSION = "emo_jax explorer", 1
ASSETS = importlib.resources.files("emo_jax.explorer") / "assets"
MAX_PAGE_BYTES = 15_000_000


class Sections:
    """Arrays of the page, gzipped and base64-encoded, little-endian."""

    def __init__(self) -> None:
        self.header: dict[str, dict[str, Any]] = {}
        self.encoded: dict[str, str] = {}

    def add(self, name: str, array: np.ndarray) -> None:
        """Adds an array of unsigned integers."""
        packed = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        self.header[name] = {"dtype": f"u{array.dtype.itemsize}", "shape": list(array.shape)}
        content = gzip.compress(packed.tobytes(), compresslevel=6, mtime=0)
        self.encoded[name] = base64.b64encode(content).decode("ascii")

    @property
    def nbytes(self) -> int:
        """Size in the page, in bytes."""
        return sum(map(len, self.encoded.values()))


def write_page(
    output: str | Path,
    header: Mapping[str, Any],
    texts: TokenTexts,
    views: Sequence[View],
    models: Sequence[dict[str, Any]],
    *,
    max_bytes: int = MAX_PAGE_BYTES,
) -> int:
    """Writes the file; returns its size.

    If the picks of all layers would make it larger than `max_bytes`, the reader shows only some
    layers, evenly spaced; a note on the page says so.

    Raises:
      UsageError: it is too large even with one layer; nothing is written.
    """
    first, sections = views[0].found, Sections()
    index = np.uint16 if len(texts.texts) <= 0x10000 else np.uint32
    sections.add("tokens", texts.index_N.astype(index))
    sections.add("doc_ends", first.doc_ends_D.astype(np.uint32))
    sections.add("doc_domain", first.doc_domains_D.astype(np.uint16))
    for n, view in enumerate(views):
        small = np.uint8 if view.tokens.clusters.number <= 256 else np.uint16
        sections.add(f"tcluster-{n}", view.tokens.clusters.ids_N.astype(small))
        sections.add(f"dcluster-{n}", view.documents.clusters.ids_N.astype(np.uint16))
    about = {
        "format": FORMAT,
        "version": VERSION,
        **header,
        "texts": texts.texts,
        "domains": first.domains,
    }
    notes = list(header.get("notes", ()))
    page = _template()
    fixed = len((page + _json([about, models])).encode("utf-8")) + sections.nbytes + 10_000
    models = [dict(model) for model in models]
    least = [_packed(view, 1).nbytes for view in views]
    spare = max(0, max_bytes - fixed - sum(least)) // len(views)
    for n, view in enumerate(views):
        layers, note = _layers_that_fit(view, least[n] + spare)
        models[n]["layers_here"] = layers
        if note:
            notes.append(f"{models[n]['name']}: {note}")
        sections.add(f"picks-{n}", view.picks_NLK[:, layers])
        sections.add(f"probs-{n}", view.probs_NLK[:, layers])
    about |= {"models": models, "notes": notes, "sections": sections.header}
    scripts = "\n".join(
        f'<script type="application/octet-stream" id="bin-{name}">{content}</script>'
        for name, content in sections.encoded.items()
    )
    data = f'<script type="application/json" id="data">{_json(about)}</script>\n{scripts}'
    # Split first: the data may contain a placeholder's name.
    before, after = page.split("{{data}}")
    title = html.escape(str(header["title"]))
    text = (before.replace("{{title}}", title) + data + after).encode("utf-8")
    if len(text) > max_bytes:
        raise UsageError(
            f"{output}: the page is {len(text) / 1e6:.1f} MB with one layer's picks; give fewer"
            f" --tokens, or a larger --max-mb than {max_bytes / 1e6:g}"
        )
    write_bytes_atomic(Path(output), text)
    return len(text)


def _json(value: Any) -> str:
    """Returns JSON that no HTML parser mistakes for markup."""
    text = json.dumps(plain(value), ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    # Lone surrogates cannot be written as UTF-8.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _template() -> str:
    """Returns the page without its data."""
    order = (ASSETS / "order.txt").read_text(encoding="utf-8").split()
    script = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in order)
    page = (ASSETS / "page.html").read_text(encoding="utf-8")
    style = (ASSETS / "page.css").read_text(encoding="utf-8")
    return page.replace("{{css}}", style).replace("{{js}}", script)


def _evenly(view: View, count: int) -> list[int]:
    """Returns `count` evenly spaced layers, including the last one."""
    return np.unique(np.linspace(view.found.num_layers - 1, 0, count).round().astype(int)).tolist()


def _packed(view: View, count: int) -> Sections:
    layers, packed = _evenly(view, count), Sections()
    packed.add("picks", view.picks_NLK[:, layers])
    packed.add("probs", view.probs_NLK[:, layers])
    return packed


def _layers_that_fit(view: View, budget: int) -> tuple[list[int], str]:
    """Returns as many layers as fit into `budget` bytes, at least one; with a note if not all."""
    L = view.found.num_layers

    def size(count: int) -> int:
        return _packed(view, count).nbytes

    whole, fits, too_many = size(L), 1, L
    if whole <= budget:
        fits = L
    while fits + 1 < too_many and fits < L:
        count = (fits + too_many) // 2
        fits, too_many = (count, too_many) if size(count) <= budget else (fits, count)
    layers = _evenly(view, fits)
    if len(layers) == L:
        return layers, ""
    named = ", ".join(map(str, layers))
    return layers, (
        f"the documents show layers {named} of {L}: with all of them the page would be"
        f" {(whole - size(fits)) / 1e6:.1f} MB larger"
    )
