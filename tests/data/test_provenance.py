"""The documents that windows are said to consist of, against the tokens that were read."""

import numpy as np
import pytest

from emo_jax.data.provenance import documents_of
from emo_jax.data.raw import RawTokens
from emo_jax.data.store import TokenStore
from emo_jax.data.windows import Windows


@pytest.mark.parametrize("packing", ["cut", "best_fit", "document"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_parts_are_the_window(store: TokenStore, packing, split):
    windows = Windows(store, 64, split=split, packing=packing)
    numbers = np.arange(len(windows))
    batch = windows.read(numbers)
    rebuilt = np.full_like(batch.tokens, store.pad_id)
    segments = np.full_like(batch.segment_ids, -1)
    order = []
    for part in documents_of(windows, numbers):
        (document,) = store.documents(split, part.document, part.document + 1)
        assert part.length == len(document.tokens)
        assert part.domain == store.domains[document.domain_id]
        assert part.stream.endswith(f"/{split}")
        rebuilt[part.row, slice(*part.columns)] = document.tokens[slice(*part.tokens)]
        segments[part.row, slice(*part.columns)] = part.segment
        order.append((part.row, part.columns[0]))
    np.testing.assert_array_equal(rebuilt, batch.tokens)
    np.testing.assert_array_equal(segments, batch.segment_ids)
    assert order == sorted(order)


def test_documents_of_token_files_are_found_by_their_ends(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 9, 400).astype(np.uint16)
    tokens.tofile(tmp_path / "a.npy")
    source = RawTokens([tmp_path / "a.npy"], vocab_size=300, eos_id=0, pad_id=1)
    ends = [*(np.flatnonzero(tokens == 0) + 1).tolist(), 400]
    windows = Windows(source, 50)
    numbers = np.array([3, 0])
    rebuilt = np.zeros((2, 50), np.int64)
    for part in documents_of(windows, numbers):
        begin = ends[part.document - 1] if part.document else 0
        assert part.length == ends[part.document] - begin
        assert (part.id, part.domain) == ("", "")
        document = tokens[begin : ends[part.document]]
        rebuilt[part.row, slice(*part.columns)] = document[slice(*part.tokens)]
    np.testing.assert_array_equal(rebuilt, windows.read(numbers).tokens)


def test_a_stream_that_does_not_know_its_documents(tmp_path, monkeypatch):
    """As the pairs of emo finetune: parts are segments, in tokens of the stream."""
    tokens = np.random.default_rng(0).integers(0, 9, 400).astype(np.uint16)
    tokens.tofile(tmp_path / "a.npy")
    source = RawTokens([tmp_path / "a.npy"], vocab_size=300, eos_id=0, pad_id=1)
    windows = Windows(source, 50)
    monkeypatch.setattr(type(source.streams("train")[0]), "num_documents", None)
    numbers = np.array([3, 0])
    batch = windows.read(numbers)
    rebuilt, segments = np.zeros((2, 50), np.int64), np.zeros((2, 50), np.int64)
    for part in documents_of(windows, numbers):
        assert part.document is None and part.length is None
        rebuilt[part.row, slice(*part.columns)] = tokens[slice(*part.tokens)]
        segments[part.row, slice(*part.columns)] = part.segment
    np.testing.assert_array_equal(rebuilt, batch.tokens)
    np.testing.assert_array_equal(segments, batch.segment_ids)
