"""Prompts and answers as windows: what counts in the loss, what is left out, and damage."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import runs

from emo_jax.config import DataConfig
from emo_jax.data.pairs import PairStore, pack_pairs, read_pairs, write_pairs
from emo_jax.data.windows import open_source, open_windows
from emo_jax.errors import DataError, UsageError
from emo_jax.tokenizer.load import load_tokenizer

INPUTS = Path(__file__).parents[1] / "documents/inputs"
PAIRS = [("What court? ", "law"), ("Butter: ", "cooking, of course"), ("Q", "A"), ("Who? ", "me")]


def _file(path, pairs=PAIRS):
    path.write_text(
        "".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in pairs), encoding="utf-8"
    )
    return path


def _packed(tmp_path, seq_len=32, pairs=PAIRS):
    tokenizer = load_tokenizer("bytes")
    found = list(read_pairs(_file(tmp_path / "pairs.jsonl", pairs)))
    return pack_pairs(found, tokenizer, seq_len), tokenizer


def test_only_answers_and_their_end_count(tmp_path):
    packed, tokenizer = _packed(tmp_path)
    write_pairs(tmp_path / "x.pairs.npz", packed, tokenizer)
    config = DataConfig(store=str(tmp_path / "x.pairs.npz"), seq_len=32, repetition_filter=False)
    windows = open_windows(config)
    assert len(windows) == len(packed.tokens_NS) == 3
    learned = []
    for n in range(len(windows)):
        batch = windows[n]
        for pair in range(batch.segment_ids.max() + 1):
            mine = batch.segment_ids == pair
            counted = mine & (batch.loss_mask > 0)
            labels = batch.labels[counted]
            assert labels[-1] == tokenizer.eos_id
            prompt = batch.tokens[mine & ~counted][:-1]  # but the end, which has no label
            learned.append((tokenizer.decode(prompt), tokenizer.decode(labels[:-1])))
        assert (batch.segment_ids[batch.tokens == tokenizer.pad_id] == -1).all()
    # The last token of a prompt is where the answer begins to be told.
    assert learned == [(p[:-1], a) for p, a in PAIRS]


def test_a_pair_is_never_cut(tmp_path):
    packed, _ = _packed(tmp_path, seq_len=27)
    assert packed.pairs == 4 and not packed.too_long
    packed, _ = _packed(tmp_path, seq_len=26)
    assert packed.pairs == 3 and packed.too_long == ("pairs.jsonl:2: 27 tokens",)
    assert "1 longer than a window left out (pairs.jsonl:2: 27 tokens)" in packed.summary()


def test_no_line_is_left_out_unless_asked(tmp_path):
    packed, _ = _packed(tmp_path, seq_len=26)
    with pytest.raises(DataError, match=r"f: 0 lines .* 1 pairs longer .*pairs.jsonl:2: 27 tokens"):
        packed.refuse_unusable("f")
    _packed(tmp_path)[0].refuse_unusable("f")


def test_lines_without_an_answer_are_named(tmp_path):
    file = tmp_path / "pairs.jsonl"
    _file(file)
    with file.open("a") as stream:
        stream.write('{"prompt": "x"}\nnot json\n[]\n{"prompt": "x", "answer": "  "}\n\n')
    packed = pack_pairs(list(read_pairs(file)), load_tokenizer("bytes"), 32)
    assert packed.pairs == 4
    assert packed.unusable == (
        "pairs.jsonl:5: no 'answer'",
        "pairs.jsonl:6: broken JSON",
        "pairs.jsonl:7: no 'prompt'",
        "pairs.jsonl:8: no 'answer'",
    )


@pytest.mark.parametrize("name", ["surrogate", "deep"])
def test_lines_that_no_tokenizer_takes_are_named(name):
    found = list(read_pairs(INPUTS / f"{name}.jsonl"))
    bad = [entry for entry in found if isinstance(entry, str)]
    why = {"surrogate": "half of a surrogate pair", "deep": "JSON that is nested too deep"}[name]
    assert bad == [f"{name}.jsonl:1: {why}"]
    packed = pack_pairs(found, load_tokenizer("bytes"), 32)
    assert packed.pairs == len(found) - 1 >= 1 and packed.unusable == tuple(bad)
    with pytest.raises(DataError, match=rf"{name}\.jsonl:1: {why}.*--skip-unusable"):
        packed.refuse_unusable(name)


def test_pairs_as_documents_are_read(tmp_path):
    """Packed, in another encoding, and files of another kind."""
    plain = _file(tmp_path / "a.jsonl")
    expected = [(p.prompt, p.answer) for p in read_pairs(plain)]
    assert expected == PAIRS
    for name, content in (
        ("a.jsonl.GZ", gzip.compress(plain.read_bytes())),
        ("b.jsonl", plain.read_text().encode("utf-16")),
    ):
        (tmp_path / name).write_bytes(content)
        assert [(p.prompt, p.answer) for p in read_pairs(tmp_path / name)] == expected
    whole = tmp_path / "whole.json"
    whole.write_text(json.dumps([{"prompt": "a", "answer": "b"}], indent=2))
    with pytest.raises(DataError, match=r"whole\.json: one JSON array, no lines; .*jq -c '.\[\]'"):
        list(read_pairs(whole))
    for name, content, what in (
        ("a.tsv", b"prompt\tanswer\n", "a table of text"),
        ("a.parquet", b"PAR1\0", "Parquet"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}: {what}.*; write it as lines of JSON"):
            list(read_pairs(tmp_path / name))
    (tmp_path / "c.jsonl.gz").write_bytes(plain.read_bytes())
    with pytest.raises(DataError, match=r"c\.jsonl\.gz: cannot be read .not packed as its name"):
        list(read_pairs(tmp_path / "c.jsonl.gz"))


def test_nothing_to_learn_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no pair can be used of 4; the first: pairs.jsonl:1"):
        _packed(tmp_path, seq_len=2)
    with pytest.raises(UsageError, match="no such file"):
        list(read_pairs(tmp_path / "none.jsonl"))


def test_damage_is_noticed(tmp_path):
    packed, tokenizer = _packed(tmp_path)
    file = tmp_path / "x.pairs.npz"
    write_pairs(file, packed, tokenizer)
    assert PairStore.open(file).fingerprint == PairStore.open(file).fingerprint
    runs.flip_byte(file)
    with pytest.raises(DataError, match="damaged"):
        open_source(file, DataConfig())
    with pytest.raises(UsageError, match="no such file"):
        PairStore.open(tmp_path / "none.pairs.npz")


def test_other_data_has_another_fingerprint(tmp_path):
    tokenizer = load_tokenizer("bytes")
    prints = set()
    for n, pairs in enumerate((PAIRS, PAIRS[::-1])):
        packed = pack_pairs(list(read_pairs(_file(tmp_path / f"{n}.jsonl", pairs))), tokenizer, 32)
        write_pairs(tmp_path / f"{n}.pairs.npz", packed, tokenizer)
        prints.add(PairStore.open(tmp_path / f"{n}.pairs.npz").fingerprint)
        assert np.array_equal(packed.loss_mask_NS.sum(), sum(len(a) + 1 for _, a in pairs))
    assert len(prints) == 2
