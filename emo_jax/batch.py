"""The batch: the one type that data and model share.

Legend used everywhere: B windows (rows), S tokens per window, L layers, D model width, H heads,
E experts (shared included), R routed experts, K picks, F expert hidden size, G documents per
window, V vocabulary rows.
"""

from typing import Any, NamedTuple

import numpy as np

BATCH_TOKENS = 8192  # approximate tokens of a batch on one device, where nothing is trained
PADDING_ID = -1  # segment and pool id of a padding token


class Batch(NamedTuple):
    """B windows of S tokens; every field is (B,S). A pytree of NumPy or JAX arrays.

    Padding has segment_ids = pool_ids = -1 and loss_mask 0: it is not attended to, routed, pooled
    or counted.
    """

    tokens: Any  # int32, input ids
    labels: Any  # int32, the next token; arbitrary where loss_mask is 0
    loss_mask: Any  # float32, 1 where the label counts
    segment_ids: Any  # int32, the token's document within its window, from 0, for attention
    pool_ids: Any  # int32, the token's document for the expert pool
    positions: Any  # int32, rotary position: 0..S-1, not reset between documents (SPEC 1.2)
    domain_ids: Any  # int32, domain of the token's document; -1 unknown


def from_documents(tokens: np.ndarray, segment_ids: np.ndarray) -> Batch:
    """Builds a NumPy batch with next-token labels; the last position has none.

    Args:
      tokens: (B,S) int.
      segment_ids: (B,S) int, -1 for padding. Pools use the same ids.
    """
    tokens = np.asarray(tokens, np.int32)
    segment_ids = np.asarray(segment_ids, np.int32)
    labels = np.roll(tokens, -1, axis=1)
    loss_mask = np.ones(tokens.shape, np.float32)
    loss_mask[:, -1] = 0.0
    loss_mask[:, :-1] *= segment_ids[:, 1:] >= 0
    loss_mask *= segment_ids >= 0
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    domain_ids = np.full(tokens.shape, -1, np.int32)
    return Batch(tokens, labels, loss_mask, segment_ids, segment_ids, positions, domain_ids)
