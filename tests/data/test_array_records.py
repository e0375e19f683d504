"""ArrayRecord files: bare tokens, and Examples that TensorFlow made (tests/data/formats)."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from test_megatron import check

from emo_jax.config import DataConfig
from emo_jax.data import array_records
from emo_jax.data.example import int64_features
from emo_jax.data.windows import Windows, open_source
from emo_jax.errors import DataError, EmoError, UsageError

FILES = Path(__file__).parent / "formats"
EXAMPLES = [bytes.fromhex(line) for line in (FILES / "examples.hex").read_text().split()]
DOCUMENTS = json.loads((FILES / "documents.json").read_text())
OTHER_END = dict(raw_eos_id=6)  # an id that does not occur


def config(**fields):
    return DataConfig(**(dict(raw_vocab_size=300, raw_eos_id=7) | fields))


def write(path, records, options="group_size:1"):
    writer = ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return path


def bare(dtype):
    return [np.array(d, dtype).tobytes() for d in DOCUMENTS]


@pytest.mark.parametrize("end", [{}, OTHER_END])
@pytest.mark.parametrize(
    ("dtype", "fields"),
    [
        ("<u2", {}),
        ("<i8", {}),
        ("<i4", {}),
        ("<u4", {"raw_dtype": "uint32"}),
        ("<u4", {"raw_vocab_size": 100_000}),
    ],
)
def test_bare_tokens(tmp_path, dtype, fields, end):
    file = write(tmp_path / "a.array_record-00000-of-00001", bare(dtype), "group_size:8")
    check(open_source(file, config(**fields, **end)).streams("train")[0], DOCUMENTS)


@pytest.fixture
def examples(tmp_path):
    return write(tmp_path / "examples.array_record", EXAMPLES)


def test_examples(examples, tmp_path, monkeypatch):
    def opened(**fields):
        return open_source(examples, config(**OTHER_END, **fields), cache=tmp_path / "index")

    check(opened().streams("train")[0], DOCUMENTS)
    monkeypatch.setattr(
        array_records.ArrayRecordStream, "_scan_records", lambda *a: pytest.fail("scanned")
    )
    check(opened().streams("train")[0], DOCUMENTS)  # the lengths are kept
    with pytest.raises(UsageError, match=r"no feature id of int64; .* one of input_ids, number"):
        opened(raw_column="id")


def test_values_of_examples():
    record = EXAMPLES[3]
    found = int64_features(record)
    assert list(found) == ["input_ids", "number"] or list(found) == ["number", "input_ids"]
    assert found["input_ids"].tolist() == DOCUMENTS[3]
    assert found["number"].tolist() == [3, -3, 1 << 40]
    # Not packed, as old writers make it: {"a": [5, 300]}.
    entry = b"\x0a\x01a" + b"\x12\x07" + b"\x1a\x05" + b"\x08\x05\x08\xac\x02"
    example = b"\x0a" + bytes([len(entry) + 2]) + b"\x0a" + bytes([len(entry)]) + entry
    assert int64_features(example)["a"].tolist() == [5, 300]
    for content in (b"", b"\x0a\x00", b"\x07", b"\x0a\xff\xff\xff\x0f", example[:-1]):
        assert int64_features(content) is None
    longest = b"\x0a\x0d" + b"\x80" * 10 + b"\x01"  # packed, of 11 bytes: beyond int64
    entry = b"\x0a\x01a" + b"\x12\x0f" + b"\x1a\x0d" + longest[:1] + b"\x0b" + longest[2:]
    assert int64_features(b"\x0a\x16" + b"\x0a\x14" + entry) is None
    for seed in range(300):
        rng = random.Random(seed)
        forged = bytearray(record)
        forged[rng.randrange(len(forged))] = rng.randrange(256)
        found = int64_features(bytes(forged)) or {}
        assert sum(v.size for v in found.values()) <= len(record)


def test_several_files(tmp_path):
    for n, some in enumerate((DOCUMENTS[:20], DOCUMENTS[20:])):
        records = [np.array(d, "<u2").tobytes() for d in some]
        write(tmp_path / f"a.array_record-0000{n}-of-00002", records)
    source = open_source(f"{tmp_path}/a.array_record-*", config())
    first, second = source.streams("train")
    check(first, DOCUMENTS[:20])
    check(second, DOCUMENTS[20:])
    other = open_source(f"{second.name},{first.name}", config())
    assert other.fingerprint != source.fingerprint


def test_wrong_files(examples, tmp_path):
    path = tmp_path / "a.array_record"
    for content in (b"", b"abc", examples.read_bytes()[:-1000], bytes(1 << 17)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.array_record: cannot be read \(.*; copy it again"):
            open_source(path, config())
    path.unlink()
    with pytest.raises(UsageError, match=r"a\.array_record: no such file"):
        open_source(path, config())
    with pytest.raises(UsageError, match=r"s3://b/a\.array_record: .* must be on a local disk"):
        open_source("s3://b/a.array_record", config())
    for records, said in (
        ([], r"holds no record"),
        ([b"", b""], r"holds no token"),
        ([b"123"], r"a record of 3 bytes is not a whole number of uint16 tokens; set data\.raw_d"),
        ([b"12"] * 20 + [b"123"], r"record 20 has 3 bytes, no whole number of uint16"),
        ([b"\xff\xff"], r"token 0 has the id 65535, outside the vocabulary of 300"),
        ([*EXAMPLES[:3], b"1234"], r"record 3 is no tf\.train\.Ex"),
    ):
        fields = {"raw_vocab_size": 13_000} if b"12" in records else {}
        write(path, records)
        with pytest.raises(DataError, match=said):
            open_source(path, config(**fields))


def test_a_file_that_is_replaced(examples):
    (stream,) = open_source(examples, config()).streams("train")
    write(examples, bare("<u2")[::-1])
    with pytest.raises(DataError, match=r"examples\.array_record: (was replaced|has \d+ bytes)"):
        stream.read(0, 4)


def test_forged_files_end_in_one_line(examples, tmp_path):
    rng, refused = random.Random(0), 0
    path = write(tmp_path / "good.array_record", bare("<u2"))
    for n, content in enumerate([examples.read_bytes(), path.read_bytes()] * 60):
        forged = bytearray(content)
        for _ in range(20):
            forged[rng.randrange(len(forged))] = rng.randrange(256)
        path = tmp_path / f"{n}.array_record"
        path.write_bytes(forged)
        try:
            windows = Windows(open_source(path, config()), 16)
            for i in range(len(windows)):
                assert 0 <= windows[i].tokens.min() <= windows[i].tokens.max() < 300
        except EmoError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 700
        path.unlink()
    assert refused
