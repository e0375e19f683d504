"""Reading a local array by byte ranges gives what tensorstore gives, and finds the same damage."""

import shutil

import numpy as np
import pytest
import tensorstore as ts

from emo_jax.errors import DataError
from emo_jax.files import arrays, shards
from emo_jax.files.arrays import StoredArray
from emo_jax.files.steady import SteadyFiles
from emo_jax.files.waiting import Patience

SIZE, SHARD, CHUNK = 1000, 256, 32


def write(folder, *, codecs=("bytes", "crc32c"), values=None):
    settings = {"bytes": {"configuration": {"endian": "little"}}, "zstd": {"configuration": {}}}
    inner = [{"name": c} | settings.get(c, {}) for c in codecs]
    index = [{"name": "bytes"} | settings["bytes"], {"name": "crc32c"}]
    sharding = {"chunk_shape": [CHUNK], "codecs": inner, "index_codecs": index}
    array = ts.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{folder}/a/"},
            "metadata": {
                "shape": [SIZE],
                "data_type": "uint32",
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [SHARD]}},
                "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            },
            "store_data_equal_to_fill_value": True,
        },
        create=True,
    ).result()
    values = np.random.default_rng(0).integers(0, 2**31, SIZE).astype(np.uint32)
    array.write(values).result()
    return values


def opened(folder):
    files = {p.relative_to(folder).as_posix(): None for p in folder.rglob("*") if p.is_file()}
    return StoredArray(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/a/"}},
        name="a",
        patience=Patience(DataError, away="bring it back", spoilt="copy it again", seconds=0.2),
        context=ts.Context,
        files=SteadyFiles(folder, files),
        folder="a",
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "s").mkdir()
    return tmp_path / "s"


def test_rows_are_those_of_the_array(folder):
    values = write(folder)
    array = opened(folder)
    assert array._local is not None
    rng = np.random.default_rng(1)
    for length in (1, 7, CHUNK, 3 * CHUNK + 1, SHARD + 5, SIZE):
        for _ in range(5):
            starts = rng.integers(0, SIZE - length + 1, 20).tolist()
            rows = array.start_rows(starts, length)()
            expected = np.stack([values[s : s + length] for s in starts])
            np.testing.assert_array_equal(rows, expected)
    assert array._local is not None and len(array._local._open) == 4


def test_few_files_stay_open(folder, monkeypatch):
    values = write(folder)
    monkeypatch.setattr(shards, "_MOST_OPEN", 2)
    array = opened(folder)
    for start in (0, 300, 600, 900, 10, 310):
        np.testing.assert_array_equal(array.start_rows([start], 9)()[0], values[start : start + 9])
        assert len(array._local._open) <= 2


def test_many_arrays_do_not_run_out_of_files(folder, monkeypatch):
    values = write(folder)
    monkeypatch.setattr(shards, "_all_open", set())
    monkeypatch.setattr(shards, "_MOST_OPEN_IN_ALL", 6)
    arrays_open = [opened(folder) for _ in range(5)]
    for _ in range(2):
        for array in arrays_open:
            np.testing.assert_array_equal(array.start_rows([10], 900)()[0], values[10:910])
            assert sum(len(a._local._open) for a in arrays_open) == len(shards._all_open) <= 6


@pytest.mark.parametrize("codecs", [("bytes",), ("bytes", "zstd", "crc32c"), ("bytes", "zstd")])
def test_other_layouts_are_read_by_tensorstore(folder, codecs):
    values = write(folder, codecs=codecs)
    array = opened(folder)
    assert array._local is None
    np.testing.assert_array_equal(
        array.start_rows([5, 500], 100)(), [values[5:105], values[500:600]]
    )


def test_chunks_in_another_order_are_read_by_tensorstore(folder):
    """Allowed by the format: the index says where each chunk is."""
    values = write(folder)
    file = folder / "a/c/1"
    content = bytearray(file.read_bytes())
    size = CHUNK * 4 + 4
    content[:size], content[size : 2 * size] = content[size : 2 * size], content[:size]
    entries = len(content) - (SHARD // CHUNK * 16 + 4)
    index = content[entries:-4]
    index[:16], index[16:32] = index[16:32], index[:16]
    import google_crc32c

    content[entries:] = index + google_crc32c.value(bytes(index)).to_bytes(4, "little")
    file.write_bytes(content)
    array = opened(folder)
    rows = array.start_rows([SHARD, SHARD + CHUNK], CHUNK)()
    np.testing.assert_array_equal(rows.reshape(-1), values[SHARD : SHARD + 2 * CHUNK])
    assert array._local is None


@pytest.mark.parametrize("at", [100, 5000])
def test_damage_is_found_when_it_is_read(folder, at):
    write(folder)
    file = folder / "a/c/0"
    content = bytearray(file.read_bytes())
    content[min(at, len(content) - 30)] ^= 1  # a token; or the index
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"a/c/0: .*damaged \(CRC-32C\); copy it again"):
        opened(folder).start_rows([0], 40)()
    opened(folder).start_rows([SHARD], 40)()


def test_files_that_go_or_change_while_in_use(folder):
    values = write(folder)
    array = opened(folder)
    array.start_rows([0], 8)()
    shutil.move(folder / "a", folder / "away")
    with pytest.raises(DataError, match=r"a/c/0: is not there any more.*bring it back"):
        array.start_rows([0], 8)()
    shutil.move(folder / "away", folder / "a")
    np.testing.assert_array_equal(array.start_rows([40], 8)()[0], values[40:48])
    content = bytearray((folder / "a/c/0").read_bytes())
    content[300] ^= 255
    (folder / "a/c/0").write_bytes(content)
    with pytest.raises(DataError, match="was replaced or changed while it was in use"):
        array.start_rows([40], 8)()


def test_a_layout_that_is_none():
    assert arrays.layout_of({}) is None
    assert arrays.layout_of({"metadata": {"codecs": [1]}}) is None
