"""Each packing: windows token by token, and the same as a slow way to make them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lists import EOS, PAD, ListSource, random_documents

from emo_jax.batch import Batch
from emo_jax.data import pack_index, packing
from emo_jax.data.packing import CutWindows, DocumentWindows, count_cuts
from emo_jax.data.windows import Windows
from emo_jax.errors import DataError

# Documents of 3, 2, 7, 1 and 4 tokens; windows of 5.
DOCUMENTS = [[5, 6, EOS], [7, EOS], [8, 9, 10, 11, 12, 13, EOS], [EOS], [14, 15, 16, EOS]]
GOLDEN = {
    "cut": {
        "tokens": [[5, 6, 1, 7, 1], [8, 9, 10, 11, 12], [13, 1, 1, 14, 15]],
        "labels": [[6, 1, 7, 1, 0], [9, 10, 11, 12, 0], [1, 1, 14, 15, 0]],
        "loss_mask": [[1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0]],
        "segment_ids": [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 1, 2, 2]],
        "domain_ids": [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0]],
    },
    # 7 tokens are cut into 5 and 2; the longest first, each where it leaves the least room.
    "best_fit": {
        "tokens": [[5, 6, 1, 7, 1], [8, 9, 10, 11, 12], [13, 1, PAD, PAD, PAD], [1, 14, 15, 16, 1]],
        "labels": [[6, 1, 0, 1, 0], [9, 10, 11, 12, 0], [1, 0, 0, 0, 0], [0, 15, 16, 1, 0]],
        "loss_mask": [[1, 1, 0, 1, 0], [1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [0, 1, 1, 1, 0]],
        "segment_ids": [[0, 0, 0, 1, 1], [0] * 5, [0, 0, -1, -1, -1], [0, 1, 1, 1, 1]],
        "domain_ids": [[0, 0, 0, 1, 1], [0] * 5, [0, 0, -1, -1, -1], [1, 0, 0, 0, 0]],
    },
    "document": {
        "tokens": [
            *([5, 6, 1, PAD, PAD], [7, 1, PAD, PAD, PAD], [8, 9, 10, 11, 12]),
            *([13, 1, PAD, PAD, PAD], [1, PAD, PAD, PAD, PAD], [14, 15, 16, 1, PAD]),
        ],
        "labels": [
            *([6, 1, 0, 0, 0], [1, 0, 0, 0, 0], [9, 10, 11, 12, 0]),
            *([1, 0, 0, 0, 0], [0] * 5, [15, 16, 1, 0, 0]),
        ],
        "loss_mask": [
            *([1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 0]),
            *([1, 0, 0, 0, 0], [0] * 5, [1, 1, 1, 0, 0]),
        ],
        "segment_ids": [
            *([0, 0, 0, -1, -1], [0, 0, -1, -1, -1], [0] * 5),
            *([0, 0, -1, -1, -1], [0, -1, -1, -1, -1], [0, 0, 0, 0, -1]),
        ],
        "domain_ids": [
            *([0, 0, 0, -1, -1], [1, 1, -1, -1, -1], [0] * 5),
            *([0, 0, -1, -1, -1], [1, -1, -1, -1, -1], [0, 0, 0, 0, -1]),
        ],
    },
}


@pytest.mark.parametrize("kind", GOLDEN)
def test_golden_batches(kind):
    windows = Windows(ListSource(DOCUMENTS), 5, packing=kind)
    batch = windows.read(np.arange(len(windows)))
    for name, expected in GOLDEN[kind].items():
        assert getattr(batch, name).tolist() == expected, name
    np.testing.assert_array_equal(batch.pool_ids, batch.segment_ids)
    assert (batch.positions == np.arange(5)).all()
    assert [f.dtype.name for f in batch] == [
        *("int32", "int32", "float32", "int32", "int32", "int32", "int32")
    ]


def slow_best_fit(lengths, size):
    """Lists of (document, offset, length) for each window, one piece after the other."""
    pieces = [(min(size, n - at), d, at) for d, n in enumerate(lengths) for at in range(0, n, size)]
    bins: list[tuple[int, list]] = []
    for length, document, offset in sorted(pieces, key=lambda p: (-p[0], p[1], p[2])):
        rooms = [(room, i) for i, (room, _) in enumerate(bins) if room >= length]
        if rooms:
            room, i = min(rooms)
            bins[i] = (room - length, [*bins[i][1], (document, offset, length)])
        else:
            bins.append((size - length, [(document, offset, length)]))
    return sorted(sorted(content) for _, content in bins)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(2, 17))
@settings(max_examples=80, deadline=None)
def test_best_fit_is_the_slow_one(lengths, size):
    count, block = packing._best_fit(np.array(lengths), size)
    found = [[] for _ in range(count)]
    for window, *piece in zip(*block, strict=True):
        found[window].append(tuple(map(int, piece)))
    assert found == slow_best_fit(lengths, size)


@pytest.mark.parametrize("kind", ["best_fit", "document"])
@pytest.mark.parametrize("block", [4, 1024])
def test_every_token_is_in_one_window_with_its_document(kind, block, monkeypatch):
    monkeypatch.setattr(packing, "BLOCK_DOCUMENTS", block)
    monkeypatch.setattr(packing, "_PASS_DOCUMENTS", 2 * block)
    documents = random_documents(np.random.default_rng(0), 50, 19)
    source = ListSource(documents, vocab_size=10**6)
    windows = Windows(source, 8, packing=kind)
    draw = np.random.default_rng(1).permutation(len(windows))
    batch = windows.read(draw)
    seen = []
    for tokens, segments, domains, mask, labels in zip(
        *(
            getattr(batch, n)
            for n in ("tokens", "segment_ids", "domain_ids", "loss_mask", "labels")
        ),
        strict=True,
    ):
        for segment in range(segments.max() + 1):
            at = np.flatnonzero(segments == segment)
            assert (np.diff(at) == 1).all()
            piece = tokens[at].tolist()
            seen.append(piece)
            assert len(set(domains[at])) == 1
            assert mask[at].tolist() == [1.0] * (len(at) - 1) + [0.0]
            assert labels[at[:-1]].tolist() == piece[1:]
        assert (mask[segments < 0] == 0).all() and (tokens[segments < 0] == PAD).all()
    whole = [d[at : at + 8] for d in documents for at in range(0, len(d), 8)]
    assert sorted(seen) == sorted(whole)
    if kind == "document":
        assert (batch.segment_ids.max(axis=1) == 0).all()


def test_padding_and_cuts_are_counted():
    source = ListSource(DOCUMENTS)
    cut = count_cuts(source.stream, 5, CutWindows(17, 5, tail=False))
    # Two of five: the third spans a border; of the last, the end falls behind the last window.
    assert (cut.windows, cut.tokens, cut.documents, cut.cut) == (3, 15, 5, 2)
    best = DocumentWindows(source.stream, 5, "best_fit").counts()
    assert (best.windows, best.tokens, best.documents, best.cut) == (4, 17, 5, 1)
    assert best.summary(5) == "4 windows, 15.0% padding, 1 of 5 documents cut (20.0%)"
    note = Windows(source, 5, packing="document").packing_note()
    assert note.startswith("packing document: 6 windows, 43.3% padding")
    assert Windows(source, 5).packing_note() == ""
    said = Windows(source, 5).packing_note(measure=True)
    assert said == "packing cut: 3 windows, 0.0% padding, 2 of 5 documents cut (40.0%)"


def test_an_index_is_kept_and_a_spoilt_one_is_counted_again(tmp_path):
    documents = random_documents(np.random.default_rng(2), 40, 9)

    def opened():
        return Windows(
            ListSource(documents, vocab_size=10**6), 8, packing="best_fit", cache=tmp_path / "index"
        )

    first = opened().read(np.arange(5))
    (file,) = (tmp_path / "index").iterdir()
    content = file.read_bytes()
    np.testing.assert_array_equal(opened().read(np.arange(5)).tokens, first.tokens)
    for spoilt in (b"", content[: len(content) // 2], content.replace(b"known", b"knawn")):
        file.write_bytes(spoilt)
        np.testing.assert_array_equal(opened().read(np.arange(5)).tokens, first.tokens)
        assert file.read_bytes() == content
    other = Windows(
        ListSource(documents, vocab_size=10**6), 9, packing="best_fit", cache=tmp_path / "index"
    )
    assert len(list((tmp_path / "index").iterdir())) == 2 and len(other) != len(opened())


def test_an_index_of_other_documents_is_noticed(tmp_path, monkeypatch):
    """Its checksum is right: somebody else has made it."""
    for module in (packing, pack_index):
        monkeypatch.setattr(module, "BLOCK_DOCUMENTS", 8)
    documents = random_documents(np.random.default_rng(2), 40, 9)
    source = ListSource(documents, vocab_size=10**6)

    def opened():
        return Windows(source, 8, packing="best_fit", cache=tmp_path)

    windows = opened()
    numbers, known = np.arange(len(windows)), windows._packed[0].known
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    for wrong in (known * 1000, -known, known[::-1], known[1:], known * 0 + 2**62):
        np.savez(file, known=wrong)
        assert (opened().read(numbers).tokens == windows.read(numbers).tokens).all()
        assert file.read_bytes() == content  # counted again
    np.savez(file, known=known + np.arange(len(known)) % 2)
    with pytest.raises(DataError, match=r"the index of its windows is of other documents; delete"):
        opened().read(numbers)


def test_repetition_and_batches_of_any_windows():
    """Whole batches equal windows one by one, with a filter that masks some of them."""
    rng = np.random.default_rng(3)
    documents = [
        [*rng.integers(2, 9, 60).tolist(), EOS] if i % 3 else [*([4, 5] * 40), EOS]
        for i in range(30)
    ]
    for kind in ("cut", "best_fit", "document"):
        windows = Windows(ListSource(documents), 100, packing=kind, repetition_filter=True)
        numbers = rng.integers(0, len(windows), 20)
        batch = windows.read(numbers)
        for row, number in enumerate(numbers):
            for ours, theirs in zip(batch, windows[number], strict=True):
                np.testing.assert_array_equal(ours[row], theirs)
        masked = ~batch.loss_mask.any(axis=1)
        assert masked.any() and not masked.all()


def test_a_source_without_documents_cannot_be_packed():
    class Plain:
        name, num_tokens = "plain.npy", 100

    class Source(ListSource):
        def streams(self, split):
            return [Plain()]

    from emo_jax.errors import UsageError

    with pytest.raises(UsageError, match=r"plain.npy: does not say where its documents end"):
        Windows(Source(DOCUMENTS), 5, packing="best_fit")
    with pytest.raises(DataError, match="less than one window"):
        Windows(ListSource([[EOS]]), 5)


def test_batch_has_the_fields_that_are_tested():
    assert set(GOLDEN["cut"]) | {"pool_ids", "positions"} == set(Batch._fields)
