from dataclasses import replace

import numpy as np
import pytest

from emo_jax.batch import Batch
from emo_jax.config import DataConfig
from emo_jax.data.stream import Span
from emo_jax.data.windows import Windows, open_windows
from emo_jax.errors import DataError

EOS, PAD = 1, 0
DTYPES = Batch("i4", "i4", "f4", "i4", "i4", "i4", "i4")


class FakeStream:
    """Tokens in memory; the domain of a document is its number modulo 3."""

    def __init__(self, tokens, name="fake"):
        self.name, self._tokens, self.num_tokens = name, np.asarray(tokens, np.int32), len(tokens)
        document, self._documents = 0, []
        for token in tokens:
            self._documents.append(document)
            document += token == EOS
        self._documents = np.array(self._documents, np.int32)

    def read(self, start, stop):
        document = self._documents[start:stop]
        return Span(self._tokens[start:stop], document - document[0], document % 3)


class FakeSource:
    eos_id, pad_id, vocab_size = EOS, PAD, 100
    domains, tokenizer_fingerprint = ("a", "b", "c"), ""

    def __init__(self, *streams):
        self._streams = [FakeStream(s) for s in streams]

    def streams(self, split):
        return self._streams


def slow_window(tokens, start, size, eos_starts_next_pool):
    """One token after the other, as SPEC 2.1 and 5.4 say."""
    out = {name: [] for name in Batch._fields}
    here = tokens[start : start + size]
    segment = pool = 0
    for i in range(size):
        document = sum(t == EOS for t in tokens[: start + i])
        real = i < len(here)
        if real and i > 0 and here[i] == EOS:
            pool += eos_starts_next_pool
        out["tokens"].append(here[i] if real else PAD)
        out["loss_mask"].append(float(i + 1 < len(here)))
        out["labels"].append(here[i + 1] if i + 1 < len(here) else 0)
        out["segment_ids"].append(segment if real else -1)
        out["pool_ids"].append((pool if eos_starts_next_pool else segment) if real else -1)
        out["positions"].append(i)
        out["domain_ids"].append(document % 3 if real else -1)
        if real and here[i] == EOS:
            segment += 1
    return out


STREAMS = {
    "eos at 0": [1, 5, 6, 1, 7, 8, 9, 10],
    "consecutive eos": [5, 1, 1, 1, 6, 7, 1, 1],
    "eos at the end of a window": [5, 6, 7, 1, 8, 9, 10, 1],
    "no eos": [5, 6, 7, 8, 9, 10, 11, 12],
    "tail": [5, 1, 6, 7, 8, 9, 1, 10, 11, 12, 1],
    "tail of one": [5, 6, 7, 1, 8],
}


@pytest.mark.parametrize("eos_starts_next_pool", [False, True])
@pytest.mark.parametrize("name", STREAMS)
def test_fields(name, eos_starts_next_pool):
    tokens = STREAMS[name]
    windows = Windows(
        FakeSource(tokens), 4, split="test", eos_starts_next_pool=eos_starts_next_pool
    )
    assert len(windows) == -(-len(tokens) // 4)
    for i in range(len(windows)):
        expected = slow_window(tokens, 4 * i, 4, eos_starts_next_pool)
        for field, dtype in zip(Batch._fields, DTYPES, strict=True):
            got = getattr(windows[i], field)
            assert got.dtype == np.dtype(dtype) and got.shape == (4,)
            np.testing.assert_array_equal(got, expected[field], err_msg=f"window {i}: {field}")


def test_random_streams():
    draw = np.random.default_rng(0)
    for _ in range(50):
        tokens = draw.integers(1, 6, int(draw.integers(1, 100))).tolist()
        shift, size = bool(draw.integers(2)), int(draw.integers(2, 30))
        windows = Windows(FakeSource(tokens), size, split="test", eos_starts_next_pool=shift)
        for i in range(len(windows)):
            for field, expected in slow_window(tokens, i * size, size, shift).items():
                np.testing.assert_array_equal(getattr(windows[i], field), expected, field)


def test_train_drops_the_tail_of_each_stream():
    source = FakeSource([5] * 11, [6] * 3, [7] * 8)
    train = Windows(source, 4)
    assert [w.tokens.tolist() for w in train] == [[5] * 4] * 2 + [[7] * 4] * 2
    held_out = Windows(source, 4, split="test")
    assert [w.tokens[0] for w in held_out] == [5, 5, 5, 6, 7, 7]
    with pytest.raises(IndexError):
        train[4]


def test_too_few_tokens():
    with pytest.raises(DataError, match="split 'train' has 3 tokens, less than one window of 4"):
        Windows(FakeSource([5, 6, 7]), 4)
    with pytest.raises(DataError, match="split 'test' has 0 tokens"):
        Windows(FakeSource(), 4, split="test")


def test_token_outside_the_vocabulary():
    for bad in (100, -1):
        windows = Windows(FakeSource([5, bad, 6, 7]), 4)
        with pytest.raises(DataError, match=rf"fake: token id {bad} is outside the vocabulary"):
            windows[0]


def test_filtered_window_is_routed_but_has_no_loss():
    tokens = [5] * 40 + list(range(10, 50))
    plain = Windows(FakeSource(tokens), 40)
    filtered = Windows(FakeSource(tokens), 40, repetition_filter=True)
    assert plain[0].loss_mask.sum() == 39
    assert filtered[0].loss_mask.sum() == 0
    for field in set(Batch._fields) - {"loss_mask"}:
        np.testing.assert_array_equal(getattr(filtered[0], field), getattr(plain[0], field))
    assert filtered[1].loss_mask.sum() == 39


def test_windows_of_a_store_hold_its_documents(store):
    windows = Windows(store, 64, split="test")
    joined = np.concatenate([w.tokens[w.segment_ids >= 0] for w in windows])
    documents = store.documents("test", 0, 10**6)
    np.testing.assert_array_equal(joined, np.concatenate([d.tokens for d in documents]))
    domains = np.concatenate([w.domain_ids[w.segment_ids >= 0] for w in windows])
    np.testing.assert_array_equal(
        domains, np.concatenate([np.full(d.tokens.size, d.domain_id) for d in documents])
    )


def test_windows_of_a_config(store_path):
    config = DataConfig(store=str(store_path), seq_len=64, eos_starts_next_pool=True)
    train, test = (open_windows(config, split=s) for s in ("train", "test"))
    assert train._repetition_filter and not test._repetition_filter
    assert any((w.pool_ids != w.segment_ids).any() for w in train)
    assert not open_windows(replace(config, repetition_filter=False))._repetition_filter
