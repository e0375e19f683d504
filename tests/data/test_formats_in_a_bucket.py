"""Token files of every format that object stores may hold, on a real S3 server."""

import json
from pathlib import Path

import numpy as np
import pytest
from s3_proxy import Plan
from s3_server import bucket, s3_port  # noqa: F401
from test_megatron import WITHOUT_EOS, check

from emo_jax.config import DataConfig
from emo_jax.data.windows import open_source
from emo_jax.errors import DataError, UsageError

FILES = Path(__file__).parent / "formats"
DOCUMENTS = json.loads((FILES / "documents.json").read_text())
CONFIG = DataConfig(raw_vocab_size=300, raw_eos_id=7)

pytestmark = pytest.mark.system


def test_formats_in_a_bucket(bucket, tmp_path):  # noqa: F811
    url = bucket.upload(FILES, "tokens")
    np.concatenate(DOCUMENTS).astype("<u2").tofile(tmp_path / "a.npy")
    bucket.put("tokens/a.npy", (tmp_path / "a.npy").read_bytes())
    for name, documents in (
        ("a.npy", DOCUMENTS),
        ("datatrove.ds", DOCUMENTS),
        ("*.ds", DOCUMENTS),
        ("megatron_one.bin", DOCUMENTS),
        ("megatron_several.idx", WITHOUT_EOS),
        ("mds_dynamic/index.json", DOCUMENTS),
        ("mds_a*/index.json", DOCUMENTS),
    ):
        source = open_source(f"{url}/{name}", CONFIG, cache=tmp_path / "index")
        check(source.streams("train")[0], documents, lengths=(100, 700))
    for name in ("b.npy", "b.bin", "b/index.json"):
        with pytest.raises(UsageError, match=r"no such file"):
            open_source(f"{url}/{name}", CONFIG)
    bucket.proxy.forget()
    open_source(f"{url}/mds_fixed/index.json", CONFIG)
    assert not bucket.proxy.counted("shard.00001", "HEAD")  # listed with the others
    bucket.delete("tokens/mds_any/shard.00002.mds")
    with pytest.raises(UsageError, match=r"mds_any/shard\.00002\.mds: no such file"):
        open_source(f"{url}/mds_any/index.json", CONFIG)
    with pytest.raises(DataError, match=r"mds_zstd: its shards are compressed"):
        open_source(f"{url}/mds_zstd/index.json", CONFIG)


def test_a_failing_server_never_changes_what_is_read(bucket, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("EMO_READ_WAIT", "60")
    url = bucket.upload(FILES, "tokens")
    bucket.proxy.plan = Plan(seed=1, share=0.4, most=8)
    bucket.proxy.delay_seconds = 0.02
    for name, documents in (
        ("megatron_several.bin", WITHOUT_EOS),
        ("*.ds", DOCUMENTS),
        ("mds_dynamic/index.json", DOCUMENTS),
    ):
        source = open_source(f"{url}/{name}", CONFIG, cache=tmp_path / "index")
        check(source.streams("train")[0], documents, lengths=(200,))
    assert all(bucket.proxy.met[fault] for fault in ("cut", "reset", "busy"))


def test_a_server_that_stays_away(bucket, monkeypatch):  # noqa: F811
    monkeypatch.setenv("EMO_READ_WAIT", "1")
    url = bucket.upload(FILES, "tokens")
    (stream,) = open_source(f"{url}/megatron_one.bin", CONFIG).streams("train")
    bucket.proxy.plan = Plan(share=1, faults=("busy",))
    with pytest.raises(DataError, match=r"megatron_one\.bin: cannot be read \(.*; bring it back"):
        stream.read(0, 4)
    with pytest.raises(DataError, match=r"megatron_one\.bin: cannot be listed \(.*; bring it back"):
        open_source(f"{url}/megatron_one.bin", CONFIG)
    bucket.proxy.plan = Plan()
    assert stream.read(0, 4).tokens.tolist() == np.concatenate(DOCUMENTS)[:4].tolist()
