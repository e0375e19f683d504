"""Mix files of Dolma and OLMo."""

import numpy as np
import pytest

from emo_jax.config import DataConfig
from emo_jax.data.token_mix import read_mix
from emo_jax.data.windows import Windows, open_source
from emo_jax.errors import DataError, UsageError

MIX = """# two corpora

dclm,pre/{TOKENIZER}/b.npy
code,pre/{TOKENIZER}/a[1].npy
 dclm , pre/{TOKENIZER}/c.npy
"""


@pytest.fixture
def mix(tmp_path):
    folder = tmp_path / "base/pre/some/tokenizer"
    folder.mkdir(parents=True)
    for n, name in enumerate(("b", "a[1]", "c")):
        np.array([*range(10 + n, 15 + n), 7], "<u2").tofile(folder / f"{name}.npy")
    (tmp_path / "base/mix.txt").write_text(MIX)
    return tmp_path / "base/mix.txt"


def config(**fields):
    known = dict(raw_vocab_size=300, raw_eos_id=7, raw_tokenizer="some/tokenizer")
    return DataConfig(**(known | fields))


def test_files_keep_the_order_of_the_lines(mix, tmp_path):
    source = open_source(mix, config())
    assert source.domains == ("code", "dclm")
    windows = Windows(source, 6)
    assert [w.tokens[0] for w in windows] == [10, 11, 12]
    assert [w.domain_ids[0] for w in windows] == [1, 0, 1]
    assert [s.name.rpartition("/")[2] for s in source.streams("train")] == [
        "b.npy",
        "a[1].npy",
        "c.npy",
    ]
    other = mix.with_name("other.txt")
    lines = MIX.splitlines()
    other.write_text("\n".join([*lines[:2], lines[3], lines[2], lines[4]]))
    assert open_source(other, config()).fingerprint != source.fingerprint
    other.write_text(MIX.replace("code", "web"))
    assert open_source(other, config()).fingerprint != source.fingerprint
    other.write_text(MIX)
    assert open_source(other, config()).fingerprint == source.fingerprint


def test_files_are_cut_for_the_order_of_the_reference(mix):
    np.full(20_000, 9, "<u2").tofile(mix.parent / "pre/some/tokenizer/b.npy")
    source = open_source(mix, config(order="olmo"))
    assert [s.num_tokens for s in source.streams("train")] == [16_384, 0, 0]


def test_paths_are_below_a_base(mix, tmp_path, monkeypatch):
    moved = tmp_path / "mix.txt"
    mix.rename(moved)
    source = open_source(moved, config(raw_base=str(tmp_path / "base")))
    assert len(Windows(source, 6)) == 3
    monkeypatch.chdir(tmp_path / "base")
    moved.rename("mix.txt")
    assert len(Windows(open_source("mix.txt", config()), 6)) == 3
    parts = read_mix("mix.txt", base="s3://bucket/base/", tokenizer="t")
    assert parts[0] == ("dclm", "s3://bucket/base/pre/t/b.npy")
    (tmp_path / "base/mix.txt").write_text("a,/b/c.npy\na,gs://d/e.npy\n")
    assert [p.path for p in read_mix("mix.txt", base="f")] == ["/b/c.npy", "gs://d/e.npy"]


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        ("", DataError, r"mix\.txt: names no file; give lines such as dclm,dclm/part-00\.npy"),
        ("# nothing\n\n", DataError, r"mix\.txt: names no file"),
        ("dclm,a.npy\n", UsageError, r"mix\.txt: .*base/a\.npy: no such file; data\.raw_base is"),
        ("dclm a.npy\n", DataError, r"mix\.txt, line 1: 'dclm a\.npy' is no line of a mix file"),
        ("\n,a.npy\n", DataError, r"mix\.txt, line 2: ',a\.npy' is no line"),
        ("dclm,\n", DataError, r"mix\.txt, line 1: 'dclm,' is no line"),
        ("a,b.npy\nc,b.npy\n", DataError, r"line 2: .*/b\.npy is in an earlier line too"),
        ("a,b\0.npy\n", DataError, r"line 1: .* is no line of a mix file"),
        (b"\xff\xfe", DataError, r"mix\.txt: not a mix file \(not UTF-8\)"),
        ("a,mix.txt\n", DataError, r"mix\.txt: 10 bytes are not a whole number|token 0 has the id"),
        ("a,pre\n", UsageError, r"mix\.txt: .*/pre: no such file"),
    ],
)
def test_wrong_mix_files(mix, content, error, said):
    mix.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=said) as found:
        open_source(mix, config())
    assert "\n" not in str(found.value)


def test_a_tokenizer_is_needed_for_its_placeholder(mix):
    with pytest.raises(UsageError, match=r"mix\.txt, line 3: names \{TOKENIZER\}; set data\.raw_t"):
        open_source(mix, config(raw_tokenizer=""))
    with pytest.raises(UsageError, match=r"other\.txt: no such file"):
        open_source(mix.with_name("other.txt"), config())
