"""The tables and the chart of what data hold show the figures, and no more than a page of them."""

import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from emo_jax.data.lengths import Lengths
from emo_jax.data.run_windows import SourcePlan
from emo_jax.data.stats import Count, DataStats
from emo_jax.report.data_stats import chart, tables


def stats(name: str = "store", documents: int = 1000, **fields) -> DataStats:
    lengths = Lengths()
    lengths.add(np.random.default_rng(documents).integers(1, 5000, documents))
    return DataStats(
        **{
            "name": name,
            "kind": "token store",
            "vocab_size": 259,
            "eos_id": 1,
            "pad_id": 0,
            "tokenizer": "a" * 64,
            "fingerprint": "b" * 64,
            "num_bytes": 10**6,
            "splits": {"train": Count(documents, int(lengths.tokens.sum()))},
            "domains": {},
            "parts": {},
            "lengths": lengths,
            "dropped": {},
            **fields,
        }
    )


def shown(found: list[DataStats]) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    for one in tables(found):
        console.print(one)
    return console.export_text()


def test_the_bars_of_the_histogram_are_the_shares():
    one = stats()
    left, right = chart([one]).axes
    heights = np.array([bar.get_height() for bar in left.patches])
    used = list(one.lengths.used)
    np.testing.assert_allclose(heights[: len(used)], one.lengths.documents[used] / 1000)
    assert heights[len(used) :].sum() == pytest.approx(1)
    assert [t.get_text() for t in left.get_xticklabels()][-1] == "4k"
    assert [bar.get_width() for bar in right.patches] == [one.total.tokens]
    without = chart([dataclasses.replace(one, lengths=None)]).axes[0]
    assert not without.patches and without.texts[0].get_text() == "lengths are not known"


def test_only_the_largest_domains_are_drawn():
    domains = {f"d{n}": {"train": Count(1, n + 1)} for n in range(40)}
    right = chart([stats(domains=domains)]).axes[1]
    names = [text.get_text() for text in right.get_yticklabels()]
    assert names[:2] == ["d39", "d38"] and names[-1] == "24 others" and len(names) == 17
    assert sum(bar.get_width() for bar in right.patches) == sum(range(1, 41))


def test_a_few_sources_have_tables_and_a_thousand_have_one():
    few = [
        stats(f"s{n}", 100 + n, planned=SourcePlan(0.432, 10, 1.25, 7 if n else None))
        for n in range(2)
    ]
    text = shown(few)
    assert text.count("documents by length") == 3 and text.count("vocabulary 259") == 2
    assert text.count(" 43.2% ") == 2 and "1.25" in text and "used up at step" in text
    many = [stats(f"s{n}", 100 + n) for n in range(1000)]
    text = shown(many)
    assert len(text.splitlines()) < 130 and "900 smaller ones are not listed" in text
    assert " s999 " in text and " s5 " not in text
    assert text.count("documents by length") == 1


def test_markup_and_controls_in_names_are_text():
    domains = {"[red]x[/red]": {"train": Count(1, 5)}, "a\x1b[31mb": {"train": Count(1, 5)}}
    text = shown([stats("[bold]s", domains=domains, dropped={"[i]too long": 3})])
    assert "[red]x[/red]" in text and "\x1b" not in text
    assert "[bold]s" in text and "3 [i]too long" in text
