"""What is told of data, against its documents counted one by one."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_config

from emo_jax.config import DataConfig, SourceConfig, TrainConfig
from emo_jax.data.lengths import Lengths, measure_lengths
from emo_jax.data.loader import Loader
from emo_jax.data.run_windows import open_run_windows
from emo_jax.data.sources import open_data
from emo_jax.data.stats import describe_data
from emo_jax.data.store import TokenStore
from emo_jax.data.store_manifest import checksum
from emo_jax.data.store_writer import SplitContent, write_store
from emo_jax.errors import DataError
from emo_jax.tokenizer.load import byte_tokenizer

ALL = slice(0, 10**6)


def lengths_of(store: TokenStore) -> list[int]:
    return [
        len(document.tokens)
        for split in store.splits
        for document in store.documents(split, 0, 10**6)
    ]


def with_lengths(store_path: Path, folder: Path, lengths: object) -> str:
    """The store with another kept histogram, or none; returns its path."""
    manifest = json.loads((store_path / "store.json").read_text())
    manifest.pop("lengths", None)
    manifest |= {} if lengths is None else {"lengths": lengths}
    manifest["checksum"] = checksum(manifest)
    folder.mkdir(exist_ok=True)
    for entry in store_path.iterdir():
        if entry.name != "store.json" and not (folder / entry.name).exists():
            (folder / entry.name).symlink_to(entry)
    (folder / "store.json").write_text(json.dumps(manifest))
    return str(folder)


def test_a_store_counted_one_by_one(store, store_path, tmp_path):
    (kept,) = describe_data(DataConfig(store=str(store_path)))
    (found,) = describe_data(DataConfig(store=with_lengths(store_path, tmp_path / "s", None)))
    np.testing.assert_array_equal(kept.lengths.documents, found.lengths.documents)
    assert kept.total == found.total and kept.domains == found.domains
    lengths = sorted(lengths_of(store))
    assert found.total == (len(lengths), sum(lengths))
    assert list(found.domains) == ["cooking", "law", "music"]
    for name, by_split in found.domains.items():
        for split, count in by_split.items():
            documents = store.documents(split, 0, 10**6)
            mine = [d for d in documents if store.domains[d.domain_id] == name]
            assert count == (len(mine), sum(len(d.tokens) for d in mine))
    assert found.lengths is not None and found.lengths.exact
    assert found.lengths.median == lengths[(len(lengths) - 1) // 2]
    assert found.lengths.longest == lengths[-1]
    for i in range(8):
        inside = [n for n in lengths if 2**i <= n < 2 ** (i + 1)]
        assert found.lengths.documents[i] == len(inside)
        assert found.lengths.tokens[i] == sum(inside)
    assert (found.eos_id, found.vocab_size) == (1, 259)
    assert json.loads(json.dumps(found.to_json()))["lengths"]["longest"] == lengths[-1]


def test_without_a_pass_lengths_are_not_known(store_path, tmp_path):
    path = with_lengths(store_path, tmp_path / "s", None)
    (found,) = describe_data(DataConfig(store=path), measure=False)
    assert found.lengths is None and found.total.documents == 600


def test_many_domains_are_grouped(tmp_path):
    names = [f"site-{n:03}" for n in range(150)]
    lengths = np.array([2 + n for n in range(150)])
    blocks = [np.array([5] * (n - 1) + [1]) for n in lengths]
    content = SplitContent(lengths, np.arange(150), blocks)
    write_store(
        tmp_path / "s", tokenizer=byte_tokenizer(), domains=names, splits={"train": content}
    )
    (found,) = describe_data(DataConfig(store=str(tmp_path / "s")))
    assert len(found.domains) == 101
    assert sum(one["train"].tokens for one in found.domains.values()) == found.total.tokens
    assert found.domains["other (50 domains)"]["train"] == (50, int(lengths[:50].sum()))


@pytest.mark.parametrize("longest", [100, 3_000_000])
def test_long_documents(longest):
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, longest, 1001)
    found = Lengths()
    for part in np.array_split(lengths, 7):
        found.add(part)
    exact = float(np.sort(lengths)[500])
    assert found.exact == (longest == 100)
    assert found.median == pytest.approx(exact, rel=0 if found.exact else 0.1)
    assert found.longest == lengths.max() and found.tokens.sum() == lengths.sum()
    kept = Lengths.of_counts([found.documents[:30].tolist()])
    assert (kept.longest, kept.tokens, kept.count) == (None, None, 1001)
    assert kept.median == pytest.approx(exact, rel=0.15)


def test_a_histogram_that_was_kept_is_used_and_checked(store_path, tmp_path):
    store = TokenStore.open(store_path)
    measured = sum((measure_lengths(store.streams(s)[0]) for s in store.splits), Lengths())

    def described(lengths):
        path = with_lengths(store_path, tmp_path / "s", lengths)
        return describe_data(DataConfig(store=path))[0].lengths

    kept = described({"a": measured.documents[:5].tolist(), "b": [0] * 5 + [7]})
    assert kept is not None and not kept.exact and kept.documents[5] == 7
    for wrong in ([1, 2], {"a": [-1]}, {"a": [0.5]}, {"a": [0] * 64}, {"a": "12"}):
        with pytest.raises(DataError, match="lengths are no histograms"):
            described(wrong)


def test_what_a_mixture_reads_is_what_its_loader_reads(store_path, tmp_path):
    content = SplitContent(np.full(60, 40), np.zeros(60, int), [np.array([7] * 39 + [1])] * 60)
    write_store(
        tmp_path / "two", tokenizer=byte_tokenizer(), domains=["x"], splits={"train": content}
    )
    sources = (
        SourceConfig(store=str(store_path), weight=1.0),
        SourceConfig(store=str(tmp_path / "two"), weight=3.0, epochs=2.0),
    )
    data = DataConfig(sources=sources, seq_len=32)
    config = dataclasses.replace(
        tiny_config(), data=data, train=TrainConfig(steps=60, batch_size=5)
    )
    one, two = describe_data(data, config)
    windows = open_run_windows(config, open_data(data))
    read = np.zeros(2, int)
    last_step = 0
    with Loader(windows, batch_size=5) as loader:
        for step in range(60):
            of_two = (loader.batch(step * 5).tokens == 7).any(axis=1).sum()
            read += [5 - of_two, of_two]
            last_step = step + 1 if of_two else last_step
    assert (one.planned.windows, two.planned.windows) == tuple(read)
    assert two.planned.epochs == pytest.approx(2.0) and one.planned.exhausted is None
    assert two.planned.exhausted in (last_step, last_step + 1)
    assert one.planned.share + two.planned.share == pytest.approx(1)
