"""Data sets that mosaicml-streaming wrote (tests/data/formats), and damaged ones."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_megatron import check

from emo_jax.config import DataConfig
from emo_jax.data import mds
from emo_jax.data.windows import Windows, open_source
from emo_jax.errors import DataError, EmoError, UsageError

FILES = Path(__file__).parent / "formats"
DOCUMENTS = json.loads((FILES / "documents.json").read_text())
CONFIG = DataConfig(raw_vocab_size=300, raw_eos_id=7)
OTHER_END = DataConfig(raw_vocab_size=300, raw_eos_id=6)  # an id that does not occur
CUTS = [c.tolist() for c in np.concatenate(DOCUMENTS)[:800].reshape(-1, 16)]


def of_cuts():
    """The documents, as far as the cuts go: the last one is cut."""
    ids = np.concatenate(CUTS)
    ends = np.flatnonzero(ids == 7) + 1
    return [part.tolist() for part in np.split(ids, ends) if part.size]


@pytest.mark.parametrize("piece", [1 << 24, 100])
@pytest.mark.parametrize("name", ["dynamic", "any"])
def test_samples_that_are_documents(name, piece, monkeypatch):
    monkeypatch.setattr(mds, "_SCAN", piece)
    for config in (CONFIG, OTHER_END):  # with EOS among the tokens, and by the samples alone
        (stream,) = open_source(FILES / f"mds_{name}", config).streams("train")
        check(stream, DOCUMENTS)


@pytest.mark.parametrize("name", ["bytes", "fixed"])
def test_samples_that_are_cuts(name):
    (stream,) = open_source(FILES / f"mds_{name}", CONFIG).streams("train")
    check(stream, of_cuts())
    (stream,) = open_source(FILES / f"mds_{name}/index.json", OTHER_END).streams("train")
    check(stream, CUTS)


def test_fixed_sizes_are_not_scanned(tmp_path, monkeypatch):
    monkeypatch.setattr(mds.MdsStream, "_scan_samples", lambda self: pytest.fail("scanned"))
    (stream,) = open_source(FILES / "mds_fixed", OTHER_END, cache=tmp_path).streams("train")
    assert stream.num_documents == 50 and not list(tmp_path.iterdir())


def test_lengths_are_kept(tmp_path, monkeypatch):
    def opened():
        return open_source(FILES / "mds_any", OTHER_END, cache=tmp_path).streams("train")[0]

    opened()
    monkeypatch.setattr(mds.MdsStream, "_scan_samples", lambda self: pytest.fail("scanned"))
    check(opened(), DOCUMENTS)


def test_several_folders():
    names = [str(FILES / f"mds_{name}") for name in ("fixed", "any")]
    source = open_source(",".join(names), CONFIG)
    assert [s.name for s in source.streams("train")] == names
    assert len(Windows(source, 16)) == 50 + sum(map(len, DOCUMENTS)) // 16
    other = open_source(",".join(names[::-1]), CONFIG)
    assert other.fingerprint != source.fingerprint


def test_columns():
    with pytest.raises(UsageError, match=r"no column text; set .*raw_column to one of tokens \(by"):
        config = DataConfig(raw_vocab_size=300, raw_eos_id=7, raw_column="text")
        open_source(FILES / "mds_bytes", config)
    for column in ("id", "n"):
        config = DataConfig(raw_vocab_size=300, raw_eos_id=7, raw_column=column)
        with pytest.raises(UsageError, match=rf"column {column} is (str|int), not token ids; set"):
            open_source(FILES / "mds_dynamic", config)


def test_compressed_shards(tmp_path):
    with pytest.raises(DataError, match=r"mds_zstd: its shards are compressed; unpack each FILE"):
        open_source(FILES / "mds_zstd/", CONFIG)
    import zstandard

    folder = shutil.copytree(FILES / "mds_zstd", tmp_path / "a")
    for file in folder.glob("*.zstd"):
        content = zstandard.ZstdDecompressor().decompressobj().decompress(file.read_bytes())
        file.with_suffix("").write_bytes(content)
    check(open_source(folder, CONFIG).streams("train")[0], DOCUMENTS)


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(FILES / "mds_dynamic", tmp_path / "a")


def test_missing_and_cut_shards(folder):
    shard = folder / "shard.00001.mds"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"shard\.00001\.mds: 1058 bytes, index\.json says 1059"):
        open_source(folder, CONFIG)
    shard.unlink()
    with pytest.raises(UsageError, match=r"shard\.00001\.mds: no such file"):
        open_source(folder, CONFIG)
    shard.write_bytes(content[:20] + b"\xff" + content[21:])
    with pytest.raises(DataError, match=r"shard\.00001\.mds: sample 0 or one after it is not what"):
        open_source(folder, CONFIG)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda i: i["shards"][0].update(format="json"), r"shards\[0\]\.format must be one of mds"),
        (lambda i: i["shards"][1].update(column_names=["a"]), r"shards\[1\] has other columns"),
        (lambda i: i["shards"][0].pop("raw_data"), r"no field shards\[0\]\.raw_data"),
        (lambda i: i["shards"][0]["raw_data"].update(basename="../a"), r"is not in the folder"),
        (lambda i: i["shards"][0].update(samples=-1), r"samples must be a whole number"),
        (lambda i: i["shards"][0].update(samples=10**9), r"samples must be a whole number"),
        (lambda i: i["shards"][0].update(samples=27), r"sample 0 or one after it is not what"),
        (lambda i: i.update(shards=[]), r"index\.json: has no samples"),
        (lambda i: i.update(shards={}), r"shards must be a list"),
        (lambda i: [s.update(column_sizes=[None, 4, 8]) for s in i["shards"]], r"sample 0 or one"),
        (lambda i: [s.update(column_sizes=[None, "4", 8]) for s in i["shards"]], r"columns must"),
    ],
)
def test_a_damaged_index(folder, change, said):
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=said):
        open_source(folder, CONFIG)


def test_forged_shards_end_in_one_line(tmp_path):
    """Bytes changed anywhere in a shard: an error of ours, or ids of the vocabulary."""
    rng, refused = random.Random(0), 0
    for n in range(60):
        name = ("dynamic", "any", "bytes", "fixed")[n % 4]
        folder = shutil.copytree(FILES / f"mds_{name}", tmp_path / str(n))
        shard = folder / "shard.00000.mds"
        content = bytearray(shard.read_bytes())
        at = rng.choice([rng.randrange(120), rng.randrange(len(content))])
        content[at] = rng.randrange(256)
        shard.write_bytes(content)
        try:
            windows = Windows(open_source(folder, CONFIG), 16)
            for i in range(len(windows)):
                assert 0 <= windows[i].tokens.min() <= windows[i].tokens.max() < 300
        except EmoError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 500
        shutil.rmtree(folder)
    assert 15 < refused < 58
