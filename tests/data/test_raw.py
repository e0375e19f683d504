import dataclasses
import os

import numpy as np
import pytest

from emo_jax.config import DataConfig
from emo_jax.data.loader import Loader
from emo_jax.data.raw import RawTokens
from emo_jax.data.run_windows import in_order
from emo_jax.data.sources import MixedSource
from emo_jax.data.windows import Windows, open_source
from emo_jax.errors import ConfigError, DataError, UsageError

EOS = 100_257


@pytest.fixture
def files(tmp_path):
    """Two files of 21 and 10 tokens."""
    first = [7, 8, EOS, 9, EOS, *range(20, 35), EOS]
    second = [EOS, 100_000, 3, EOS, EOS, 5, 6, 7, 8, 9]
    for name, tokens in (("a.npy", first), ("b.npy", second)):
        np.array(tokens, "<u4").tofile(tmp_path / name)
    return tmp_path


def test_windows_of_files(files):
    source = RawTokens([files / "a.npy", files / "b.npy"], labels=["web", "code"])
    windows = Windows(source, 4)
    assert len(windows) == 5 + 2  # a window never crosses files
    assert windows.domains == ("code", "web")
    assert windows[0].tokens.tolist() == [7, 8, EOS, 9]
    assert windows[0].segment_ids.tolist() == [0, 0, 0, 1]
    assert windows[0].domain_ids.tolist() == [1] * 4
    assert windows[5].tokens.tolist() == [EOS, 100_000, 3, EOS]
    assert windows[5].segment_ids.tolist() == [0, 1, 1, 1]
    assert windows[6].segment_ids.tolist() == [0, 1, 1, 1]
    assert windows[6].domain_ids.tolist() == [0] * 4
    shifted = Windows(source, 4, eos_starts_next_pool=True)
    assert shifted[5].pool_ids.tolist() == [0, 0, 0, 1]
    assert shifted[6].pool_ids.tolist() == [0, 0, 0, 0]
    assert Loader(in_order(windows, 0), batch_size=4).batch(0).tokens.shape == (4, 4)


def test_pattern_and_units(files):
    source = open_source(str(files / "*.npy"), DataConfig())
    assert [s.num_tokens for s in source.streams("train")] == [21, 10]
    assert source.streams("test") == []
    floored = RawTokens([files / "*.npy"], floor_to=8)
    assert [s.num_tokens for s in floored.streams("train")] == [16, 8]


def test_16_bits_where_the_vocabulary_fits(tmp_path):
    np.array([5, 65_535, 0], "<u2").tofile(tmp_path / "a.npy")
    source = RawTokens([tmp_path / "a.npy"], vocab_size=65_536, eos_id=0)
    assert source.streams("train")[0].read(0, 3).tokens.tolist() == [5, 65_535, 0]


def test_files_of_another_vocabulary(tmp_path, caplog):
    """The ids that end documents are part of a source's identity."""
    path = tmp_path / "a.npy"
    np.array([5, 2, 7, 7, 2, 9], "<u2").tofile(path)
    config = DataConfig(raw_vocab_size=32_000, raw_eos_id=2, raw_pad_id=2)
    source = open_source(path, config)
    assert (source.vocab_size, source.eos_id, source.pad_id) == (32_000, 2, 2)
    assert source.streams("train")[0].read(0, 6).segment_ids.tolist() == [0, 0, 1, 1, 1, 2]
    other = open_source(path, dataclasses.replace(config, raw_eos_id=7, raw_pad_id=0))
    assert (other.pad_id, other.fingerprint == source.fingerprint) == (0, False)
    np.full(1 << 20, 5, "<u2").tofile(path)
    assert not caplog.records
    open_source(path, config)
    assert "a.npy: no end of document (id 2) in its first 1048576 tokens" in caplog.text


def test_wrong_files(files):
    np.save(files / "real.npy", np.zeros(8, np.uint32))
    with pytest.raises(DataError, match=r"real\.npy: has a NumPy header"):
        RawTokens([files / "real.npy"])
    (files / "odd.npy").write_bytes(b"12345")
    with pytest.raises(DataError, match=r"odd\.npy: 5 bytes are not a whole number of uint32"):
        RawTokens([files / "odd.npy"])
    with pytest.raises(UsageError, match="no such file"):
        RawTokens([files / "missing.npy"])
    with pytest.raises(UsageError, match="no file fits"):
        RawTokens([files / "*.bin"])
    with pytest.raises(UsageError, match="1 labels for 2 paths"):
        RawTokens([files / "a.npy", files / "b.npy"], labels=["x"])


def test_id_outside_the_vocabulary(files):
    with pytest.raises(DataError, match=r"b\.npy: token 0 has the id 100257, .* 70000; set"):
        RawTokens([files / "b.npy"], vocab_size=70_000, eos_id=9)
    tokens = np.zeros(1 << 20, "<u4")
    tokens[-1] = 70_001  # not at the start of the file: found when it is read
    tokens.tofile(files / "c.npy")
    windows = Windows(RawTokens([files / "c.npy"], vocab_size=70_000, eos_id=0), 4)
    with pytest.raises(DataError, match=r"c\.npy: token id 70001 is outside .* 70000"):
        windows[len(windows) - 1]


def of_width(path, dtype):
    ids = np.random.default_rng(0).integers(5, 300, 20_000)
    ids[49::50] = 0
    ids.astype(dtype).tofile(path)
    return ids


def test_the_width_of_a_token(tmp_path):
    """A vocabulary says only how small tokens may be, not how they were written."""
    path = tmp_path / "a.npy"
    fields = dict(raw_vocab_size=320, raw_eos_id=0, raw_pad_id=1)
    ids = of_width(path, "<u2")
    source = open_source(path, DataConfig(**fields))
    assert source.streams("train")[0].read(0, 20_000).tokens.tolist() == ids.tolist()
    ids = of_width(path, "<u4")
    with pytest.raises(DataError, match=r"a\.npy: every second 16 bits .*raw_dtype to uint32"):
        open_source(path, DataConfig(**fields))
    source = open_source(path, DataConfig(raw_dtype="uint32", **fields))
    assert source.streams("train")[0].read(0, 20_000).tokens.tolist() == ids.tolist()
    meant = open_source(path, DataConfig(raw_dtype="uint16", **fields))
    assert meant.streams("train")[0].num_tokens == 40_000
    assert meant.fingerprint != source.fingerprint
    of_width(path, "<u2")
    with pytest.raises(DataError, match=r"token 0 has the id \d+, .*data\.raw_dtype to uint16"):
        open_source(path, DataConfig())  # of Dolma 2's vocabulary, so of 32 bits


@pytest.mark.parametrize("dtype", ["<i8", "<u8"])
def test_tokens_of_64_bits(tmp_path, dtype):
    """As NumPy makes them; in halves of 32 bits every second one would be the id 0."""
    path = tmp_path / "a.npy"
    of_width(path, dtype)
    small = dict(raw_vocab_size=320, raw_eos_id=0, raw_pad_id=1)
    for fields in ({}, small, {"raw_dtype": "uint32", **small}):
        with pytest.raises(DataError, match=r"a\.npy: every second 32 bits .*astype\('uint32'\)"):
            open_source(path, DataConfig(**fields))


def test_an_id_of_the_end_alone_also_fills_windows(tmp_path):
    path = tmp_path / "a.npy"
    np.array([5, 2, 7], "<u2").tofile(path)
    source = open_source(path, DataConfig(raw_vocab_size=320, raw_eos_id=2))
    assert (source.eos_id, source.pad_id) == (2, 2)
    assert DataConfig().raw_padding_id == 100_277
    with pytest.raises(ConfigError, match=r"raw_eos_id = 100257: .* Dolma 2's, give that of your"):
        DataConfig(raw_vocab_size=320, raw_pad_id=1)


def test_files_of_datatrove(files):
    """Headerless too; the index and the metadata beside them are not needed."""
    (files / "a.npy").rename(files / "a.ds")
    source = open_source(files / "a.ds", DataConfig())
    assert source.streams("train")[0].num_tokens == 21
    (files / "b.npy").unlink()
    with pytest.raises(DataError, match=r"a folder of \.ds files.* name them as '.*/\*\.ds'"):
        open_source(files, DataConfig())


def test_a_folder_of_npy_files(files):
    with pytest.raises(DataError, match=r"a folder of \.npy files.* name them as '.*/\*\.npy'"):
        open_source(files, DataConfig())


@pytest.mark.parametrize("second", [[9, 209, 309, 399], [99, 149, 349, 399]])
def test_files_that_differ_in_their_folder_only(tmp_path, second):
    """Of the same name, size, time and number of documents, as copied shards may be."""
    ends = {"a": [99, 199, 299, 399], "b": second}
    for name, last in ends.items():
        (tmp_path / name).mkdir()
        tokens = np.arange(5, 405).astype("<u2")
        tokens[last] = 3
        tokens.tofile(tmp_path / name / "part.npy")
        os.utime(tmp_path / name / "part.npy", (10**9, 10**9))
    paths = [tmp_path / name / "part.npy" for name in ends]
    for _ in range(2):  # found, and kept
        source = RawTokens(paths, vocab_size=1000, eos_id=3, cache=tmp_path / "cache")
        found = [s.document_ends(0, s.num_documents) - 1 for s in source.streams("train")]
        assert [e.tolist() for e in found] == list(ends.values())
        for packing in ("best_fit", "document"):
            cached = Windows(source, 250, packing=packing, cache=tmp_path / "cache")
            fresh = Windows(source, 250, packing=packing)
            assert len(cached) == len(fresh)
            for ours, theirs in zip(cached, fresh, strict=True):
                np.testing.assert_array_equal(ours.segment_ids, theirs.segment_ids)
    parts = [RawTokens([p], vocab_size=1000, eos_id=3) for p in paths]
    assert MixedSource(["a", "b"], parts, ["", ""]).streams("train")
    again = RawTokens([tmp_path / "a/../a/part.npy"], vocab_size=1000, eos_id=3)
    with pytest.raises(UsageError, match="holds the same tokens as a"):
        MixedSource(["a", "c"], [parts[0], again], ["", ""])
