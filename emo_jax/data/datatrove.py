"""What datatrove and nanotron write beside a token file: FILE.ds.index and FILE.ds.metadata.

The index is a little-endian uint64 for every document: one past its last token. The metadata are
lines of text: `TOKENIZER|BYTES OF A TOKEN`, then the number of tokens.
"""

import numpy as np

from emo_jax.data.ends import RisingList
from emo_jax.errors import DataError, clipped
from emo_jax.files.ranges import exists, open_ranges, read_all
from emo_jax.files.waiting import Patience

SUFFIX = ".ds"
_MOST_METADATA = 1 << 16  # bytes


def open_index(name: str, num_tokens: int, patience: Patience) -> RisingList | None:
    """Returns where the documents of a file end; None if it has no index.

    Raises:
      DataError: the index is damaged, or of another file.
    """
    if not exists(f"{name}.index", patience):
        return None
    file = open_ranges(f"{name}.index", patience)
    if file.size % 8 or not file.size:
        raise DataError(
            f"{file.name}: {file.size} bytes are not a whole number of uint64; copy it again"
        )

    def read(first: int, stop: int) -> np.ndarray:
        return np.frombuffer(file.read(8 * first, 8 * stop), "<u8").astype(np.int64)

    num = file.size // 8
    last = int(read(num - 1, num)[0])
    if last != num_tokens:
        raise DataError(
            f"{file.name}: its last document ends at token {last}, {name} has {num_tokens}; copy"
            " both again"
        )
    ends = RisingList(num, last, read, file.name)
    ends.check()
    return ends


def check_metadata(name: str, num_tokens: int, token_size: int, patience: Patience) -> None:
    """Raises DataError if FILE.metadata names another width or another number of tokens."""
    if not exists(f"{name}.metadata", patience):
        return
    content = read_all(f"{name}.metadata", _MOST_METADATA, patience)
    lines = content.decode("utf-8", "replace").splitlines()
    size = lines[0].rpartition("|")[2] if lines and "|" in lines[0] else ""
    if size in ("2", "4") and int(size) != token_size:
        raise DataError(
            f"{name}: has tokens of {size} bytes, as {name}.metadata says; set data.raw_dtype to"
            f" uint{8 * int(size)}"
        )
    count = lines[1].strip() if len(lines) > 1 else ""
    if count.isdecimal() and len(count) < 20 and int(count) != num_tokens:
        raise DataError(
            f"{name}.metadata: says {clipped(count)} tokens, {name} has {num_tokens}; copy both"
            " again"
        )
