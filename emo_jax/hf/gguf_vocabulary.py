"""Converts a tokenizer to llama.cpp's form, or says why that is not possible.

llama.cpp does not read a tokenizer.json: it has its own tokenizer for each kind, and identifies how
byte-level BPE splits text by a name. Only byte-level BPE is written here, not SentencePiece models,
which llama.cpp also reads. Anything that would give other ids than in training is rejected.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from emo_jax.errors import UsageError
from emo_jax.tokenizer.base import Tokenizer
from emo_jax.tokenizer.json_tokenizer import JsonTokenizer
from emo_jax.tokenizer.splitting import CL100K, DIGITS, GPT2, QWEN2, pattern_of

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # gguf.TokenType
# (the pattern that splits text, whether a word that is a token is kept whole) → llama.cpp's name.
_NAMES: dict[tuple[str, bool], str] = {
    (GPT2, False): "trillion",
    (CL100K, False): "dbrx",
    (CL100K, True): "llama-bpe",
    (QWEN2, False): "qwen2",
    (DIGITS, False): "smollm",
}
_NO_MERGE = ("<no", "merges>")  # the list may not be empty; no symbol in a text is this long
_INSTEAD = "export with --output for transformers, or give --gguf-ids: a file for token ids alone"


@dataclass(frozen=True)
class Vocabulary:
    """Keys below `tokenizer.ggml.`, the tokens, and their kinds."""

    keys: Mapping[str, Any]
    tokens: tuple[str, ...] = ()
    token_types: tuple[int, ...] = ()


def ids_alone() -> Vocabulary:
    """The vocabulary of a file that is given token ids."""
    return Vocabulary({"model": "none"})


def of_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> Vocabulary:
    """The vocabulary for the tokenizer of a model with `vocab_size` table rows.

    Raises:
      UsageError: llama.cpp would give other ids.
    """
    if not isinstance(tokenizer, JsonTokenizer):
        raise _refused("a vocabulary that is kept as it is")
    fields = tokenizer.fields
    model = fields["model"]
    if model.get("type", "BPE") != "BPE":
        raise _refused(f"a {model['type']} model")
    pre = _split_name(fields)
    _check_model(fields)
    tokens, types = _tokens(fields, vocab_size)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return Vocabulary(
        {
            "model": "gpt2",
            "pre": pre,
            "merges": merges or [" ".join(_NO_MERGE)],
            # llama.cpp sets unspecified ids to 11. EOS can replace BOS: it precedes a document.
            "bos_token_id": tokenizer.eos_id if tokenizer.first_id is None else tokenizer.first_id,
            "eos_token_id": tokenizer.eos_id,
            "padding_token_id": tokenizer.pad_id,
            "add_bos_token": tokenizer.first_id is not None,
            "add_eos_token": False,
            "add_space_prefix": False,
        },
        tokens,
        types,
    )


def _refused(what: str) -> UsageError:
    return UsageError(f"--gguf: no file for llama.cpp is made of {what}; {_INSTEAD}")


def _split_name(fields: Mapping[str, Any]) -> str:
    """llama.cpp's name for the way text is split."""
    before = fields.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before] if before else [])
    *cuts, last = steps or [{}]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space", True):
        raise _refused("BPE that is not byte-level, or puts a space in front")
    uses_regex = last.get("use_regex", True)
    if not cuts and not uses_regex and not fields["model"]["merges"]:
        return _NAMES[GPT2, False]  # single bytes, however text is split
    found = pattern_of(fields)
    name = _NAMES.get((found, bool(fields["model"].get("ignore_merges"))))
    if name is None:
        shown = found or ", ".join(str(step.get("type")) for step in steps)
        raise _refused(f"text split by {shown!r}")
    return name


def _check_model(fields: Mapping[str, Any]) -> None:
    model = fields["model"]
    if not set(ByteLevel.alphabet()) <= model["vocab"].keys():
        raise _refused("byte-level BPE without a token for each byte")
    if fields.get("normalizer"):
        raise _refused(f"the normalizer {fields['normalizer'].get('type')}")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(name):
            raise _refused(f"BPE with {name}")
    for token in fields["added_tokens"]:
        if not token["special"] and any(token[k] for k in ("lstrip", "rstrip", "single_word")):
            raise _refused(f"the added token {token['content']!r}, which takes in what is around")


def _tokens(fields: Mapping[str, Any], size: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Every id's token and kind; ids that the tokenizer lacks are marked unused."""
    tokens: list[str] = [""] * size
    types = [UNUSED] * size
    for token, i in fields["model"]["vocab"].items():
        tokens[i], types[i] = token, NORMAL
    for token in fields["added_tokens"]:
        i = token["id"]
        tokens[i] = token["content"]
        types[i] = CONTROL if token["special"] else USER_DEFINED
    taken = set(tokens)
    for i, kind in enumerate(types):
        if kind == UNUSED:
            tokens[i] = f"[unused {i}]"
            if tokens[i] in taken:
                raise _refused(f"the token {tokens[i]!r}")
    return tuple(tokens), tuple(types)
