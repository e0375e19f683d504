"""Where the windows of whole documents are, kept in a file: counting them takes a pass over all.

An index has a number for each 1024 documents. It is keyed by what it was counted from; a file that
is not what it should be is counted again.
"""

import hashlib
import io
from pathlib import Path

import numpy as np
from etils import epath

from emo_jax.config.names import Packing
from emo_jax.data.packing import BLOCK_DOCUMENTS, DocumentWindows, Packed, make_packed
from emo_jax.data.stream import Stream, TokenSource
from emo_jax.errors import UsageError
from emo_jax.files.atomic import write_bytes_atomic
from emo_jax.files.json_files import NotReadableError
from emo_jax.files.npz import read_npz


def open_packed(
    stream: Stream,
    source: TokenSource,
    seq_len: int,
    kind: Packing,
    *,
    tail: bool,
    cache: Path | None,
) -> Packed:
    """Opens the windows of a stream.

    Args:
      tail: keep the tail of a stream that is cut.
      cache: folder for the index; None: it is counted anew.

    Raises:
      UsageError: the stream does not know its documents.
    """
    if kind == "cut":
        return make_packed(stream, seq_len, kind, tail=tail)
    documents = getattr(stream, "num_documents", None)
    if documents is None:
        raise UsageError(
            f"{stream.name}: does not say where its documents end, which data.packing = {kind!r}"
            " needs; use data.packing = 'cut'"
        )
    if cache is None:
        return make_packed(stream, seq_len, kind, tail=tail)
    name = getattr(stream, "identity", Path(stream.name).name)  # a store's may be moved
    of = (source.fingerprint, name, stream.num_tokens, documents, seq_len)
    key = hashlib.sha256(repr((1, kind, BLOCK_DOCUMENTS, *of)).encode()).hexdigest()[:32]
    file = cache / f"packing-{key}.npz"
    try:
        known = read_npz(file, {"known": "int64"})["known"]
        blocks = -(-documents // BLOCK_DOCUMENTS)
        if known.shape == (blocks + 1,) and _may_be(known, stream.num_tokens, documents):
            return make_packed(stream, seq_len, kind, tail=tail, known=known)
    except (OSError, NotReadableError):
        pass  # not there yet, or not whole
    packed = make_packed(stream, seq_len, kind, tail=tail)
    assert isinstance(packed, DocumentWindows)
    content = io.BytesIO()
    np.savez(content, known=packed.known)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(epath.Path(file), content.getvalue())
    except OSError:
        pass  # a folder that cannot be written: counted again next time
    return packed


def _may_be(known: np.ndarray, tokens: int, documents: int) -> bool:
    """Whether these can be numbers of windows; each block's is checked when it is read."""
    rise = bool((known[1:-1] > known[:-2]).all()) and (len(known) < 2 or known[0] > 0)
    return rise and int(known[:-1].max(initial=0)) <= tokens and 0 <= known[-1] <= documents
