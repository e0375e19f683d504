"""A store of 10¹² tokens, nearly all of them holes: what does not grow with the corpus."""

import subprocess
import sys
import time

import numpy as np
import pytest
import sparse_store
import tensorstore as ts

from emo_jax.data.store import TokenStore
from emo_jax.data.store_files import StoreFiles
from emo_jax.data.windows import Windows
from emo_jax.errors import DataError

pytestmark = pytest.mark.system
FAR = 2 * 10**8  # a window of 4096 tokens


def _seconds(work):
    """The least of three: others use the machine too."""
    taken = []
    for _ in range(3):
        begin = time.perf_counter()
        found = work()
        taken.append(time.perf_counter() - begin)
    return min(taken), found


def _file_reads():
    name = "/tensorstore/kvstore/file/read"
    found = {m["name"]: m for m in ts.experimental_collect_matching_metrics(name)}
    return found[name]["values"][0]["value"]


@pytest.fixture(scope="module")
def huge(tmp_path_factory):
    path = tmp_path_factory.mktemp("huge") / "store"
    return sparse_store.make(path, 10**12, starts=(0, FAR * 4096))


def test_a_trillion_tokens(huge):
    seconds, source = _seconds(lambda: TokenStore.open(huge))
    assert seconds < 2 and source.count("train") == 10**12
    taken = []
    for _ in range(3):  # each with caches of its own
        windows = Windows(TokenStore.open(huge), 4096)
        before, begin = _file_reads(), time.perf_counter()
        window = windows[FAR]
        taken.append(time.perf_counter() - begin)
        # An index of a shard and a chunk, for each of tokens, doc_ends and doc_domains.
        assert _file_reads() - before == 6
    assert min(taken) < 0.05
    first = FAR * 4096 // sparse_store.DOCUMENT
    starts = np.arange(FAR * 4096, (FAR + 1) * 4096) // sparse_store.DOCUMENT - first
    np.testing.assert_array_equal(window.segment_ids, starts)
    in_chunk = (first + starts) % sparse_store.CHUNK
    np.testing.assert_array_equal(window.domain_ids, in_chunk % 3)
    np.testing.assert_array_equal(window.tokens, windows[0].tokens)  # all chunks are alike


_IN_A_PROCESS = """
import resource, sys
from emo_jax.data.store import TokenStore
from emo_jax.data.windows import Windows
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
windows = Windows(TokenStore.open(sys.argv[1]), 4096)
for n in range(1000):
    windows[int(sys.argv[2]) + n % 2]
    windows._streams[0]._tokens.read(slice(n * 9 * 10**8, n * 9 * 10**8 + 4096))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_corpus(huge):
    """16 MB of index, twice while it is read, and 64 MB of cache; the manifest."""
    command = [sys.executable, "-c", _IN_A_PROCESS, str(huge), str(FAR)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 250_000, f"{done.stdout} KB"


def test_fifty_thousand_domains(tmp_path):
    path = sparse_store.make(tmp_path / "store", 10**9, domains=50_000)
    seconds, source = _seconds(lambda: TokenStore.open(path))
    assert seconds < 1 and len(source.domains) == 50_000
    seconds, grouped = _seconds(lambda: source.grouped(1000))
    assert seconds < 1 and len(grouped.domains) == 1001


def test_the_chunks_of_a_large_store_are_not_compared_and_all_else_is(tmp_path, monkeypatch):
    path = sparse_store.make(tmp_path / "store", 10**8)  # 0.2 GB, so that opening compares it all
    with pytest.raises(DataError, match=r"train/doc_domains/c/0: damaged \(content differs"):
        TokenStore.open(path)
    monkeypatch.setattr("emo_jax.data.store.VERIFY_BELOW_BYTES", 10**8)
    TokenStore.open(path)
    file = path / "tokenizer/tokenizer.json"
    file.write_bytes(file.read_bytes().replace(b'"A"', b'"B"'))
    with pytest.raises(DataError, match=r"tokenizer/tokenizer.json: damaged \(content differs"):
        TokenStore.open(path)


def test_what_is_wrong_is_told_in_order_whatever_ends_first(tmp_path):
    path = sparse_store.make(tmp_path / "store", 2 * 10**8)
    source = TokenStore.open(path, verify=False)
    listed = source.manifest["files"]
    found = list(StoreFiles(str(path)).compare(listed))
    assert [name for name, _ in found] == list(listed)
    assert {name for name, why in found if why} == {name for name in listed if "/c/" in name}
    (path / "train/tokens/c/2").unlink()
    assert dict(StoreFiles(str(path)).compare(listed))["train/tokens/c/2"] == "missing"
