"""One tensor and its place in a leaf: in pieces and in blocks, the same as in one."""

import itertools

import numpy as np
import pytest

from emo_jax.checkpoint.slices import extent
from emo_jax.hf.sources import TreeSource
from emo_jax.hf.tensors import HfTensor

LEAF = np.random.default_rng(0).normal(size=(3, 6, 5)).astype(np.float32)
INSIDE = (slice(1, 2), slice(2, 6), slice(1, 5))  # does not begin where the leaf does
TENSORS = {
    "rows are axis 1": HfTensor("t", (4, 4), "leaf", INSIDE, (0, 1, 2)),
    "rows are axis 2": HfTensor("t", (4, 4), "leaf", INSIDE, (0, 2, 1), scale=2.0),
    "rows are two axes": HfTensor("t", (16,), "leaf", INSIDE, (0, 2, 1)),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_in_pieces_is_the_tensor(name):
    tensor, source = TENSORS[name], TreeSource({"leaf": LEAF})
    whole = tensor.read(source)
    expected = LEAF[INSIDE].transpose(tensor.axes).reshape(tensor.shape) * tensor.scale
    np.testing.assert_array_equal(whole, expected)
    pieces = list(tensor.pieces(max_bytes=3 * 16))
    assert [start for start, _ in pieces] == ([0] if "two" in name else [0, 3])
    np.testing.assert_array_equal(np.concatenate([p.read(source) for _, p in pieces]), whole)


@pytest.mark.parametrize("name", TENSORS)
def test_every_block_of_the_leaf_gets_its_part(name):
    tensor = TENSORS[name]
    whole = tensor.read(TreeSource({"leaf": LEAF}))
    expected = np.zeros_like(LEAF)
    expected[INSIDE] = LEAF[INSIDE]
    ranges = [[slice(a, b) for a in range(n) for b in range(a + 1, n + 1)] for n in LEAF.shape]
    for block in itertools.product(*ranges):
        out = np.zeros(extent(block), np.float32)
        found = tensor.within(block)
        if found is not None:
            start, part = found
            part.write(whole[start : start + part.shape[0]], out, block)
        assert (found is None) == (not expected[block].any())
        np.testing.assert_array_equal(out, expected[block])
