import dataclasses

import numpy as np
import pytest

from emo_jax.config import DataConfig
from emo_jax.data.loader import Loader
from emo_jax.data.raw import RawTokens
from emo_jax.data.windows import Windows, open_source
from emo_jax.errors import DataError, UsageError

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
    assert Loader(windows, batch_size=4, seed=0).batch(0).tokens.shape == (4, 4)


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
    windows = Windows(RawTokens([files / "b.npy"], vocab_size=70_000, eos_id=9), 4)
    with pytest.raises(DataError, match=r"b\.npy: token id 100257 is outside .* 70000"):
        windows[0]


def test_files_that_go_away_are_cut_short_or_change(files, monkeypatch):
    """Nothing is mapped: a mapped file that is cut short kills the process."""
    monkeypatch.setenv("EMO_READ_WAIT", "0.3")
    path = files / "a.npy"
    content = path.read_bytes()
    stream = RawTokens([path]).streams("train")[0]
    path.rename(files / "away")
    with pytest.raises(DataError, match=r"a\.npy: is not there any more; bring it back and run"):
        stream.read(0, 4)
    (files / "away").rename(path)
    assert stream.read(0, 3).tokens.tolist() == [7, 8, EOS]
    path.write_bytes(content[:40])
    with pytest.raises(DataError, match=r"a\.npy: has 40 bytes, had 84"):
        stream.read(12, 16)
    path.write_bytes(bytes(84))
    with pytest.raises(DataError, match=r"a\.npy: was replaced or changed while it was in use"):
        stream.read(0, 4)
