"""Files that megatron-core wrote (tests/data/formats), and damaged ones."""

import json
import random
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from emo_jax.config import DataConfig
from emo_jax.data.windows import Windows, open_source
from emo_jax.errors import DataError, EmoError, UsageError

FILES = Path(__file__).parent / "formats"
DOCUMENTS = json.loads((FILES / "documents.json").read_text())
CONFIG = DataConfig(raw_vocab_size=300, raw_eos_id=7)
WITHOUT_EOS = [ids[:-1] or [9] for ids in DOCUMENTS]


def check(stream, documents, lengths=(1, 7, 100)):
    """Every token and boundary, in spans of several lengths."""
    ids = np.concatenate(documents)
    of_token = np.repeat(np.arange(len(documents)), [len(d) for d in documents])
    assert (stream.num_tokens, stream.num_documents) == (len(ids), len(documents))
    ends = np.cumsum([len(d) for d in documents])
    assert stream.document_ends(0, len(documents)).tolist() == ends.tolist()
    assert stream.document_ends(5, 9).tolist() == ends[5:9].tolist()
    some = range(0, len(ids), max(1, lengths[0] // 10))
    assert [stream.document_at(n) for n in some] == of_token[some].tolist()
    assert stream.document_ids(1, 3) == ["", ""]
    for length in (*lengths, len(ids)):
        for start in range(0, len(ids) - length + 1, max(1, length // 2)):
            span = stream.read(start, start + length)
            assert span.tokens.tolist() == ids[start : start + length].tolist()
            segments = of_token[start : start + length] - of_token[start]
            assert span.segment_ids.tolist() == segments.tolist()
            assert span.tokens.dtype == span.segment_ids.dtype == np.int32


@pytest.mark.parametrize("name", ["megatron_one", "megatron_one.bin", "megatron_o*.idx"])
def test_a_sequence_for_each_document(name):
    source = open_source(FILES / name, CONFIG)
    (stream,) = source.streams("train")
    check(stream, DOCUMENTS)
    assert source.streams("test") == [] and source.domains == ()


def test_documents_of_several_sequences_without_an_end_token():
    (stream,) = open_source(FILES / "megatron_several", CONFIG).streams("train")
    check(stream, WITHOUT_EOS)


def test_other_tokens_of_the_same_name_and_size_have_another_fingerprint(tmp_path):
    """For every format; files that were only moved keep theirs."""
    for kept, name, width in (
        ("megatron_one.bin", "megatron_one.bin", 2),
        ("datatrove.ds", "datatrove.ds", 2),
        ("mds_fixed/index.json", "mds_fixed/shard.00000.mds", 4),
    ):
        before = open_source(FILES / kept, CONFIG).fingerprint
        moved = tmp_path / kept.split(".")[0].replace("/", "-")
        shutil.copytree(FILES, moved)
        assert open_source(moved / kept, CONFIG).fingerprint == before
        content = bytearray((moved / name).read_bytes())
        content[-width] ^= 1
        (moved / name).write_bytes(content)
        assert open_source(moved / kept, CONFIG).fingerprint != before


def test_several_files_keep_their_order():
    names = [str(FILES / f"megatron_{name}.bin") for name in ("several", "one")]
    source = open_source(",".join(names), CONFIG)
    assert [s.name for s in source.streams("train")] == names
    again = open_source(",".join(names[::-1]), CONFIG)
    assert source.fingerprint != again.fingerprint
    assert Windows(source, 16)[0].tokens.tolist() == np.concatenate(WITHOUT_EOS)[:16].tolist()
    assert len(open_source(FILES / "megatron_*.bin", CONFIG).streams("train")) == 2


@pytest.fixture
def pair(tmp_path):
    for suffix in (".bin", ".idx"):
        shutil.copy(FILES / f"megatron_several{suffix}", tmp_path / f"a{suffix}")
    return tmp_path / "a"


NUM = 120  # sequences of `several`


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (0, b"MMIDIDY", r"a\.idx: not an index of Megatron"),
        (9, b"\x02", r"a\.idx: version 2 of Megatron's index"),
        (17, b"\x07", r"a\.idx: holds float32, not token ids"),
        (17, b"\x09", r"a\.idx: no dtype has the code 9"),
        (17, b"\x08", r"a\.idx: sequence 0 has \d+ tokens, which does not fit"),
        (18, b"\x77", r"a\.idx: 1802 bytes, 1790 are right for 119 sequences and 41"),
        (18, b"\xff" * 8, r"a\.idx: 1802 bytes, \d+ are right for 18446744073709551615 seq"),
        (26, b"\x00", r"a\.idx: 1802 bytes, 1474 are right"),
        (34 + 4 * 50, b"\xff\xff\xff\xff", r"a\.idx: sequence 50 has -1 tokens"),
        (34 + 4 * 50, b"\xff\xff\xff\x7f", r"a\.idx: sequence 50 has 2147483647 tokens"),
        (34 + 4 * (NUM - 1), b"\x33\x00", r"a\.idx: sequence 119 has 51 tokens.* 3084 bytes of"),
        (34 + 4 * NUM, b"\x04", r"a\.idx: sequence 0 has"),
        (34 + 12 * NUM - 8, b"\xff" * 8, r"a\.idx: sequence 118 has"),
        (34 + 12 * NUM - 8, b"\xff" * 7 + b"\x7f", r"a\.idx: sequence 118 has"),
        (34 + 12 * NUM, b"\x01", r"a\.idx: its first document is not at the start"),
        (34 + 12 * NUM + 80, b"\x01", r"a\.idx \(documents\): entry 10 is less than"),
        (34 + 12 * NUM + 80, b"\xff" * 8, r"a\.idx \(documents\): "),
        (34 + 12 * NUM + 320, b"\x77", r"a\.idx \(documents\): ends with 119, not 120"),
    ],
)
def test_a_damaged_index(pair, at, value, said):
    with open(f"{pair}.idx", "r+b") as file:
        file.seek(at)
        file.write(value)
    with pytest.raises(DataError, match=said):
        open_source(pair, CONFIG)


def test_files_that_do_not_belong_together(pair):
    tokens = Path(f"{pair}.bin")
    tokens.write_bytes(tokens.read_bytes() + bytes(4))
    with pytest.raises(DataError, match=r"sequence 119 has .* fit its pointers or the 3088 bytes"):
        open_source(pair, CONFIG)
    with pytest.raises(DataError, match=r"a\.bin: token \d+ has the id \d+, .* vocabulary of 100;"):
        shutil.copy(FILES / "megatron_several.bin", tokens)
        open_source(pair, DataConfig(raw_vocab_size=100, raw_eos_id=7))
    tokens.unlink()
    with pytest.raises(UsageError, match=r"a\.bin: no such file; a Megatron dataset is"):
        open_source(pair, CONFIG)


def test_forged_indexes_end_in_one_line(pair):
    """Bytes changed anywhere: an error of ours, or tokens with boundaries inside the file."""
    index, rng = Path(f"{pair}.idx"), random.Random(0)
    content = index.read_bytes()
    refused = 0
    for _ in range(400):
        forged = bytearray(content)
        at = rng.choice([rng.randrange(34), rng.randrange(len(content))])
        size = rng.choice((1, 4, 8))
        forged[at : at + size] = rng.randbytes(size)
        index.write_bytes(forged[: rng.choice((len(forged), rng.randrange(1, len(forged))))])
        try:
            (stream,) = open_source(pair, CONFIG).streams("train")
            stream.read(0, stream.num_tokens)
        except EmoError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 500
    assert refused > 300


def test_documents_without_tokens(tmp_path):
    """Windows leave them out; no other document gets another number."""
    sizes, boundaries = np.array([5, 3, 9, 2, 16, 1]), np.array([0, 0, 1, 3, 3, 5, 6, 6])
    ends = np.cumsum(sizes)
    with open(tmp_path / "a.idx", "wb") as file:
        file.write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, len(sizes), len(boundaries)))
        for values, dtype in ((sizes, "<i4"), ((ends - sizes) * 2, "<i8"), (boundaries, "<i8")):
            values.astype(dtype).tofile(file)
    np.arange(10, 46).astype("<u2").tofile(tmp_path / "a.bin")
    source = open_source(tmp_path / "a", CONFIG)
    (stream,) = source.streams("train")
    assert stream.document_ends(0, 7).tolist() == [0, 5, 17, 17, 35, 36, 36]
    documents = [1] * 5 + [2] * 12 + [4] * 18 + [5]
    assert [stream.document_at(n) for n in range(36)] == documents
    assert stream.read(0, 36).segment_ids.tolist() == [0] * 5 + [1] * 12 + [2] * 18 + [3]
    windows = Windows(source, 20, packing="document")
    assert [w.tokens[0] for w in windows] == [10, 15, 27, 45]
    assert [int((w.segment_ids == 0).sum()) for w in windows] == [5, 12, 18, 1]


class Counted:
    """A file of ranges that counts its reads."""

    name, stamp = "big.idx", ""

    def __init__(self, file):
        self.file, self.reads, self.bytes, self.size = file, 0, 0, file.size

    def read(self, start, stop):
        self.reads, self.bytes = self.reads + 1, self.bytes + stop - start
        return self.file.read(start, stop)


def test_few_reads_of_a_long_index(tmp_path):
    """Of 2 million documents a window reads some pages; nothing is read whole."""
    from emo_jax.data.megatron import MegatronStream
    from emo_jax.data.token_files import Vocabulary, file_patience
    from emo_jax.files.ranges import open_ranges

    num, rng = 2_000_000, np.random.default_rng(0)
    sizes = rng.lognormal(2, 1.5, num).astype(np.int64) + 1
    ends = np.cumsum(sizes)
    with open(tmp_path / "big.idx", "wb") as file:
        file.write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, num, num + 1))
        for values, dtype in (
            (sizes, "<i4"),
            ((ends - sizes) * 2, "<i8"),
            (np.arange(num + 1), "<i8"),
        ):
            values.astype(dtype).tofile(file)
    with open(tmp_path / "big.bin", "wb") as file:
        file.truncate(int(ends[-1]) * 2)
    patience = file_patience()
    index = Counted(open_ranges(tmp_path / "big.idx", patience))
    tokens = open_ranges(tmp_path / "big.bin", patience)
    stream = MegatronStream(tokens, index, Vocabulary(300, 7, 7))
    assert index.reads < 10 and index.bytes < 1 << 19
    index.reads = index.bytes = 0
    for start in rng.integers(0, ends[-1] - 4096, 200).tolist():
        span = stream.read(start, start + 4096)
        inside = ends[(ends > start) & (ends < start + 4096)]
        assert (np.flatnonzero(np.diff(span.segment_ids)) + 1 + start).tolist() == inside.tolist()
    assert index.reads < 200 * 10 and index.bytes < 200 * (1 << 19)
