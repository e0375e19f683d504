"""Token files of every format that object stores may hold, on a real S3 server."""

import json
from pathlib import Path

import numpy as np
import pytest
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
