"""Files that the tokenizers library fails on, with exceptions of its own or with a panic."""

import json

import pytest

from emo_jax.errors import DataError
from emo_jax.tokenizer.json_tokenizer import JsonTokenizer
from emo_jax.tokenizer.load import load_tokenizer

BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1, "é": 2, "ab": 3, "</s>": 4}, "merges": ["a b"]}
EOS = {
    "id": 4,
    "content": "</s>",
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}


def written(folder, **changes):
    content = {"version": "1.0", "added_tokens": [EOS], "model": BPE} | changes
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder / "tokenizer.json"


def test_the_file_that_the_others_are_made_of(tmp_path):
    tokenizer = load_tokenizer(written(tmp_path))
    assert tokenizer.encode_batch(["abb"])[0].tolist() == [3, 1]
    assert tokenizer.eos_id == 4


UNLOADABLE = {
    "charsmap": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "prefix": {"model": BPE | {"continuing_subword_prefix": "longprefix"}},
    # The library ends the process for this one: it makes a string of half a character.
    "half a character": {
        "model": BPE | {"merges": ["a é"], "continuing_subword_prefix": "x"},
    },
    "size": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "large id": {"model": BPE | {"vocab": BPE["vocab"] | {"b": 2**32 - 1}}},
    "list": {"added_tokens": {"a": 1}},
    "NUL": {"added_tokens": [EOS | {"content": "a\0"}]},
    "nothing": {"model": None},
}


@pytest.mark.parametrize("changes", UNLOADABLE.values(), ids=list(UNLOADABLE))
def test_one_line_and_nothing_else(tmp_path, capfd, changes):
    with pytest.raises(DataError, match=r"tokenizer\.json: .*; save it again") as caught:
        load_tokenizer(written(tmp_path, **changes))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "content", ["{", "[" * 5000, '{"added_tokens": ["\\ud800"]}', "[]", '{"added_tokens": [3]}']
)
def test_no_json(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer\.json .*; save it"):
        load_tokenizer(tmp_path)


def test_a_panic_when_it_is_used(tmp_path):
    strip = {"type": "Strip", "content": "a", "start": 5, "stop": 5}
    tokenizer = load_tokenizer(written(tmp_path, decoder=strip))
    with pytest.raises(DataError, match=r"tokenizer\.json: cannot decode ids"):
        tokenizer.decode([0])
    words = {"type": "WordLevel", "vocab": {"x": 0, "</s>": 4}, "unk_token": "none"}
    with pytest.raises(DataError, match="cannot encode its own tokens"):
        load_tokenizer(written(tmp_path, model=words))
    tokenizer = JsonTokenizer(written(tmp_path, model=BPE).read_text(), eos="</s>", where="it")
    with pytest.raises(DataError, match="it: cannot encode a text"):
        tokenizer.encode_batch(["\ud800"])


@pytest.mark.parametrize(
    "content", ["[]", "[" * 5000, '{"eos_token": 3}', '{"eos_token": {"content": 3}}']
)
def test_settings_beside_it(tmp_path, content):
    written(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(DataError, match=r"tokenizer_config\.json: .*; mend or remove it"):
        load_tokenizer(tmp_path)


def test_an_interrupt_is_no_panic(tmp_path, monkeypatch):
    def interrupted(content):
        raise KeyboardInterrupt

    library = type("Library", (), {"from_str": staticmethod(interrupted)})
    monkeypatch.setattr("emo_jax.tokenizer.backend.Tokenizer", library)
    with pytest.raises(KeyboardInterrupt):
        load_tokenizer(written(tmp_path))
