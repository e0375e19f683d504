"""A window as a person reads it: its documents, pools, segments and loss, and its text."""

import itertools
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from emo_jax.batch import Batch
from emo_jax.data.provenance import Part, documents_of
from emo_jax.data.sources import MixedSource
from emo_jax.data.store import TokenStore
from emo_jax.data.stream import TokenSource
from emo_jax.data.windows import Windows
from emo_jax.errors import BREAKS
from emo_jax.tokenizer.base import Tokenizer

_COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red")
_EXCERPT = 48  # characters
_COLUMNS = (
    *("columns", "segment", "pool", "domain", "document", "id", "its tokens", "no loss at"),
    "text",
)


@dataclass(frozen=True)
class WindowView:
    """A window and what is known of it.

    Attributes:
      title: which window of what it is.
      parts: its documents, in order.
      batch: the window, a Batch of (S,) arrays.
      texts: the text of each part, its end-of-document token too; ids where there is no tokenizer.
    """

    title: str
    parts: tuple[Part, ...]
    batch: Batch
    texts: tuple[str, ...]

    @property
    def padding(self) -> int:
        """Tokens of padding."""
        return int((self.batch.segment_ids < 0).sum())

    def table(self) -> Table:
        """Returns a row for each document: pools, tokens, and which of them have a loss."""
        rows = [self._row(n) for n in range(len(self.parts))]
        used = [name for name in _COLUMNS if any(row[name] for row in rows)]
        table = Table(box=box.SIMPLE_HEAD)
        for name in used:
            side: Any = "left" if name in ("domain", "id", "text") else "right"
            table.add_column(name, justify=side, no_wrap=name == "text")
        for n, row in enumerate(rows):
            table.add_row(*(Text(BREAKS.sub("·", row[name])) for name in used), style=_colour(n))
        if self.padding:
            size = len(self.batch.tokens)
            row = {"columns": _range(size - self.padding, size), "text": "padding"}
            row |= {"segment": "-1", "pool": "-1"}
            table.add_row(*(row.get(name, "") for name in used), style="dim")
        return table

    def _row(self, n: int) -> dict[str, str]:
        part, text = self.parts[n], " ".join(self.texts[n].split())
        here = slice(*part.columns)
        whole = "" if part.length is None else f" of {part.length:,}"
        silent = np.flatnonzero(self.batch.loss_mask[here] == 0) + part.columns[0]
        return {
            "columns": _range(*part.columns),
            "segment": str(part.segment),
            "pool": _values(self.batch.pool_ids[here]),
            "domain": part.domain,
            "document": "" if part.document is None else f"{part.document:,}",
            "id": part.id,
            "its tokens": f"{_range(*part.tokens)}{whole}",
            "no loss at": _ranges(silent),
            "text": text[:_EXCERPT] + ("…" if len(text) > _EXCERPT else ""),
        }

    def text(self) -> Group:
        """Returns the whole text, a paragraph for each document with a line that names it."""
        shown = []
        for n, (part, text) in enumerate(zip(self.parts, self.texts, strict=True)):
            pools = _values(self.batch.pool_ids[slice(*part.columns)])
            about = [f"segment {part.segment}", f"pool {pools}"]
            about += [f"columns {_range(*part.columns)}"]
            about += [f"document {part.document:,}"] if part.document is not None else []
            about += [name for name in (part.id, part.domain) if name]
            if part.tokens[0] and part.length is not None:
                about.append(f"begins {part.tokens[0]:,} tokens earlier")
            if part.length is not None and part.tokens[1] < part.length:
                about.append(f"goes on for {part.length - part.tokens[1]:,} more")
            shown.append(Text(f"--- {BREAKS.sub('·', ', '.join(about))}", style="bold"))
            shown.append(Text(_readable(text), style=_colour(n)))
        if self.padding:
            shown.append(Text(f"--- padding, {self.padding:,} tokens", style="bold"))
        return Group(*shown)


def view_window(windows: Windows, number: int, title: str) -> WindowView:
    """Reads a window and what it consists of.

    Raises:
      IndexError: there is no such window.
    """
    if not 0 <= number < len(windows):
        raise IndexError(number)
    batch = windows.read(np.array([number], np.int64))
    parts = tuple(documents_of(windows, np.array([number], np.int64), batch))
    one = Batch(*(field[0] for field in batch))
    tokenizer = tokenizer_of(windows.source)
    texts = tuple(_decode(one.tokens[slice(*part.columns)], tokenizer) for part in parts)
    return WindowView(title, parts, one, texts)


def tokenizer_of(source: TokenSource) -> Tokenizer | None:
    """Returns the tokenizer of a source; None where it keeps none, as token files of others."""
    inner = getattr(source, "source", source)  # of a mixture's part
    store = inner.tokenizer_store() if isinstance(inner, MixedSource) else inner
    return store.tokenizer() if isinstance(store, TokenStore) else None


def _decode(tokens: np.ndarray, tokenizer: Tokenizer | None) -> str:
    if tokenizer is None:
        return " ".join(map(str, tokens.tolist()))
    return tokenizer.decode(tokens.tolist(), skip_special=False)


def _readable(text: str) -> str:
    """Text with its line breaks, and without other control characters."""
    return re.sub(BREAKS, lambda found: found[0] if found[0] in "\n\t" else "·", text)


def _colour(n: int) -> str:
    return _COLOURS[n % len(_COLOURS)]


def _range(first: int, stop: int) -> str:
    """[first, stop) as its first and last."""
    return f"{first:,}" if stop == first + 1 else f"{first:,}..{stop - 1:,}"


def _ranges(numbers: np.ndarray) -> str:
    """Rising numbers, those in a row as one range."""
    breaks = np.flatnonzero(np.diff(numbers) > 1) + 1
    groups = [group for group in np.split(numbers, breaks) if group.size]
    shown = [_range(int(group[0]), int(group[-1]) + 1) for group in groups[:3]]
    return ", ".join(shown + ["…"] * (len(groups) > 3))


def _values(numbers: np.ndarray) -> str:
    return ", ".join(str(value) for value, _ in itertools.groupby(numbers.tolist()))
