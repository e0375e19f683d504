"""Byte ranges of local files and of a real S3 server."""

import pytest
from s3_server import bucket, s3_port  # noqa: F401

from emo_jax.errors import DataError, UsageError
from emo_jax.files import ranges
from emo_jax.files.waiting import Patience

BYTES = bytes(range(256)) * 4


def patience(seconds=0.0):
    return Patience(DataError, away="bring it back", spoilt="run it again", seconds=seconds)


def test_local_files(tmp_path):
    (tmp_path / "a.bin").write_bytes(BYTES)
    (tmp_path / "b.bin").write_bytes(b"")
    for name in (tmp_path / "a.bin", f"file://{tmp_path}/a.bin"):
        file = ranges.open_ranges(name, patience())
        assert (file.name, file.size) == (str(tmp_path / "a.bin"), 1024)
        assert bytes(file.read(250, 260)) == BYTES[250:260]
        assert ranges.read_all(name, 1024, patience()) == BYTES
    assert ranges.read_all(tmp_path / "b.bin", 10, patience()) == b""
    assert ranges.expand(f"{tmp_path}/*.bin", patience()) == [
        str(tmp_path / "a.bin"),
        str(tmp_path / "b.bin"),
    ]
    assert ranges.expand("no/such/file", patience()) == ["no/such/file"]
    with pytest.raises(DataError, match=r"a\.bin: 1024 bytes, more than the 9 that are read"):
        ranges.read_all(tmp_path / "a.bin", 9, patience())
    with pytest.raises(UsageError, match=r"c\*: no file fits"):
        ranges.expand(f"{tmp_path}/c*", patience())
    for name in ("c.bin", ""):
        with pytest.raises(UsageError, match="no such file"):
            ranges.open_ranges(tmp_path / name, patience())


@pytest.mark.parametrize("url", ["http://a/b", "ftp://a/b", "s3:///b", "memory://a"])
def test_other_urls(url):
    with pytest.raises(UsageError, match=r"not a local path, gs://BUCKET/NAME or s3://BUCKET"):
        ranges.open_ranges(url, patience())


@pytest.mark.system
def test_objects(bucket):  # noqa: F811
    names = ["a.npy", "b c%20#?+é.npy", "x/a.npy"]
    for name in names:
        bucket.put(f"dir/{name}", BYTES)
    base = f"s3://{bucket.name}/dir"
    assert ranges.expand(f"{base}/*.npy", patience()) == [f"{base}/{name}" for name in names[:2]]
    assert ranges.expand(f"{base}/**/*.npy", patience()) == [f"{base}/{name}" for name in names]
    for name in names:
        file = ranges.open_ranges(f"{base}/{name}", patience())
        assert (file.name, file.size) == (f"{base}/{name}", 1024) and file.stamp
        assert file.read(0, 3) + file.read(1000, 1024) == BYTES[:3] + BYTES[1000:]
        assert file.read(7, 7) == b""
        assert ranges.read_all(f"{base}/{name}", 1024, patience()) == BYTES
    assert ranges.exists(f"{base}/a.npy", patience())
    assert not ranges.exists(f"{base}/c.npy", patience())
    for name in ("c.npy", "x"):
        with pytest.raises(UsageError, match=rf"dir/{name}: no such file"):
            ranges.open_ranges(f"{base}/{name}", patience())
    with pytest.raises(UsageError, match=r"z\*\.npy: no file fits"):
        ranges.expand(f"{base}/z*.npy", patience())


@pytest.mark.system
def test_objects_that_change(bucket):  # noqa: F811
    url = f"s3://{bucket.name}/a.npy"

    def opened():
        bucket.put("a.npy", BYTES)
        file = ranges.open_ranges(url, patience())
        assert file.read(0, 4) == BYTES[:4]
        return file

    file = opened()
    bucket.put("a.npy", BYTES[::-1])
    with pytest.raises(DataError, match=r"a\.npy: was replaced or changed .*; run it again"):
        file.read(0, 4)
    file = opened()
    bucket.put("a.npy", BYTES[:100])
    with pytest.raises(DataError, match=r"a\.npy: cannot be read \(OUT_OF_RANGE: .*; run it"):
        file.read(90, 110)
    file = opened()
    bucket.delete("a.npy")
    with pytest.raises(DataError, match=r"a\.npy: is not there any more; bring it back"):
        file.read(0, 4)


@pytest.mark.system
def test_a_mix_in_a_bucket(bucket):  # noqa: F811
    """Opened and read like a local one; one setting names the server."""
    import numpy as np

    from emo_jax.config import DataConfig
    from emo_jax.data.windows import Windows, open_source

    for n, name in enumerate(("b", "a", "c")):
        bucket.put(f"m/t/{name}.npy", np.array([*range(10 + n, 15 + n), 7], "<u2").tobytes())
    bucket.put("m/mix.txt", b"web,t/b.npy\ncode,{TOKENIZER}/a.npy\nweb,t/c.npy\n")
    config = DataConfig(raw_vocab_size=300, raw_eos_id=7, raw_tokenizer="t")
    for source, domains in (
        (open_source(f"s3://{bucket.name}/m/mix.txt", config), [1, 0, 1]),
        (open_source(f"s3://{bucket.name}/m/t/*.npy", config), [-1, -1, -1]),
    ):
        windows = Windows(source, 6)
        order = [10, 11, 12] if source.domains else [11, 10, 12]
        assert [w.tokens[0] for w in windows] == order
        assert [w.domain_ids[0] for w in windows] == domains
        stream = source.streams("train")[0]
        assert (stream.num_documents, stream.document_ends(0, 1).tolist()) == (1, [6])
    bucket.delete("m/t/c.npy")
    with pytest.raises(UsageError, match=r"mix\.txt: s3://.*/m/t/c\.npy: no such file; data\.raw"):
        open_source(f"s3://{bucket.name}/m/mix.txt", config)
