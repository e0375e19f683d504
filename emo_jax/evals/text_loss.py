"""The losses of individual texts.

Legend: B windows, S tokens, N tokens of a text.
"""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from emo_jax.batch import BATCH_TOKENS, PADDING_ID, Batch, from_documents
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import Params
from emo_jax.parallel import mesh as mesh_lib

_LEAST_TOKENS = 64  # of a window


class TextLosses:
    """Measures the losses of texts without a pool; compiled programs are kept between calls.

    Args:
      model: a model on a mesh, with a `within_documents` config.
      params: on the devices, sharded by `ModelFunctions.param_shardings`.
      pad_id: id of padding tokens.
    """

    def __init__(self, model: ModelFunctions, params: Params, pad_id: int = 0):
        self._model, self._params, self._pad_id = model, params, pad_id
        self._step = jax.jit(self._losses)

    def sums(self, documents: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Nats (n,) float64 and predicted tokens (n,) int64 of each document.

        A document longer than the model's window is read in windows that overlap by one token, so
        that every token but the first is predicted once.

        Args:
          documents: ids of each document, (N,) int32.
        """
        nats, counts = np.zeros(len(documents)), np.zeros(len(documents), np.int64)
        for number_B, batch in self._batches(documents):
            losses_BS = np.asarray(self._step(self._params, batch), np.float64)
            here = number_B >= 0
            np.add.at(nats, number_B[here], losses_BS.sum(axis=1)[here])
            np.add.at(counts, number_B[here], np.asarray(batch.loss_mask).sum(1)[here].astype(int))
        return nats, counts

    def _losses(self, params: Params, batch: Batch) -> jax.Array:
        hidden_BSD, _ = self._model.hidden(params, batch)
        return self._model.label_losses(params, hidden_BSD, batch.labels, batch.loss_mask)

    def _batches(self, documents: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, Batch]]:
        """Yields the document of each row (B,), -1 for none, and the rows on the devices."""
        mesh, window = self._model.mesh, self._model.config.data.seq_len
        assert mesh is not None
        longest = max((len(ids) for ids in documents), default=0)
        ways = mesh.shape["context"] * mesh.shape["tensor"]
        S = min(window, max(_LEAST_TOKENS, 1 << (longest - 1).bit_length()))
        S = window if S % ways else S
        pieces = [
            (n, ids[at : at + S])
            for n, ids in enumerate(documents)
            for at in range(0, max(len(ids) - 1, 0), S - 1)
        ]
        rows = max(1, BATCH_TOKENS // S) * mesh.size
        rows = min(rows, -(-len(pieces) // mesh.size) * mesh.size)
        where = mesh_lib.windows_sharding(mesh)
        for first in range(0, len(pieces), max(rows, 1)):
            number_B = np.full(rows, -1)
            tokens_BS = np.full((rows, S), self._pad_id, np.int32)
            segments_BS = np.full((rows, S), PADDING_ID, np.int32)
            for row, (n, ids) in enumerate(pieces[first : first + rows]):
                number_B[row] = n
                tokens_BS[row, : len(ids)] = ids
                segments_BS[row, : len(ids)] = 0
            batch = from_documents(tokens_BS, segments_BS)
            yield number_B, jax.tree.map(lambda a: jax.device_put(a, where), batch)
