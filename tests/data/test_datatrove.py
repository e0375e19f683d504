"""A file that datatrove wrote, with its index and metadata."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_megatron import check

from emo_jax.config import DataConfig
from emo_jax.data.windows import open_source
from emo_jax.errors import DataError

FILES = Path(__file__).parent / "formats"
DOCUMENTS = json.loads((FILES / "documents.json").read_text())


@pytest.fixture
def file(tmp_path):
    for suffix in ("", ".index", ".metadata"):
        shutil.copy(FILES / f"datatrove.ds{suffix}", tmp_path / f"a.ds{suffix}")
    return tmp_path / "a.ds"


def opened(file, **fields):
    return open_source(file, DataConfig(**(dict(raw_vocab_size=300, raw_eos_id=7) | fields)))


def test_documents_of_the_index(file):
    check(opened(file).streams("train")[0], DOCUMENTS)
    # The index says so, not the end-of-document token.
    check(opened(file, raw_eos_id=299).streams("train")[0], DOCUMENTS)


def test_documents_without_an_index(file):
    file.with_name("a.ds.index").unlink()
    file.with_name("a.ds.metadata").unlink()
    check(opened(file).streams("train")[0], DOCUMENTS)


def test_an_index_or_metadata_of_another_file(file):
    index, metadata = (file.with_name(f"a.ds.{kind}") for kind in ("index", "metadata"))
    ends = np.fromfile(index, "<u8")
    for wrong, said in (
        (np.append(ends, 900), r"a\.ds\.index: its last document ends at token 900, .* has 808"),
        (np.insert(ends, 5, 1), r"a\.ds\.index: entry 5 is less than the one before"),
        (np.insert(ends, 5, 2**64 - 1), r"a\.ds\.index: entry 5 is less|a\.ds\.index: has -1"),
        (ends[:0], r"a\.ds\.index: 0 bytes are not a whole number of uint64"),
    ):
        wrong.astype("<u8").tofile(index)
        with pytest.raises(DataError, match=said):
            opened(file)
    ends.tofile(index)
    metadata.write_text("some/tokenizer|4\n404\n")
    with pytest.raises(DataError, match=r"tokens of 4 bytes, .*set data\.raw_dtype to uint32"):
        opened(file)
    metadata.write_text("some/tokenizer|2\n809\n809T")
    with pytest.raises(DataError, match=r"a\.ds\.metadata: says 809 tokens, .*a\.ds has 808"):
        opened(file)
    metadata.write_bytes(b"\xff\n\x00")  # says nothing
    assert opened(file).streams("train")[0].num_tokens == 808
