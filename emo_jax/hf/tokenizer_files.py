"""The tokenizer of an exported folder: its files, and the ids that generation needs."""

import json
import shutil
from pathlib import Path
from typing import Any

from emo_jax.errors import UsageError

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def _load(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: not readable as JSON ({error}); give another tokenizer"
        ) from None
    return value if isinstance(value, dict) else {}


def _token_ids(folder: Path) -> dict[str, int]:
    """Every token of tokenizer.json with its id."""
    tokenizer = _load(folder / "tokenizer.json")
    vocab = tokenizer.get("model", {}).get("vocab", {})
    if isinstance(vocab, list):  # unigram: [[token, score], …]
        vocab = {entry[0]: i for i, entry in enumerate(vocab)}
    return vocab | {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}


def special_id(folder: Path, name: str) -> int | None:
    """Id of `eos` or `pad`, as the folder's files say; None where they do not."""
    for file in ("generation_config.json", "config.json"):
        value = _load(folder / file).get(f"{name}_token_id")
        if isinstance(value, int):
            return value
    token = _load(folder / "tokenizer_config.json").get(f"{name}_token")
    token = token.get("content") if isinstance(token, dict) else token
    return _token_ids(folder).get(token) if token else None


def check(folder: Path, vocab_size: int) -> None:
    """Refuses a folder without a tokenizer, or with one that makes ids the model does not have."""
    ids = _token_ids(folder)
    if not ids:
        raise UsageError(f"{folder}: has no tokenizer.json with a vocabulary; give its folder")
    if max(ids.values()) >= vocab_size:
        raise UsageError(
            f"{folder}/tokenizer.json: has id {max(ids.values())}, but the model ends at "
            f"{vocab_size - 1} (model.vocab_size); give the tokenizer that it was trained with"
        )


def copy(folder: Path, output: Path, *, eos_id: int | None, pad_id: int | None) -> None:
    """Copies the files, and sees to it that tokenizer_config.json names a class all versions know.

    Without one, transformers 5 takes the architecture's own tokenizer, which splits text another
    way than tokenizer.json says and gives other ids without a word; the name that transformers 5
    writes for a plain tokenizer.json is unknown to transformers 4. All other fields stay.
    """
    for name in FILES:
        if (folder / name).exists():
            shutil.copyfile(folder / name, output / name)
    fields = _load(folder / "tokenizer_config.json")
    if fields.get("tokenizer_class") not in (None, "TokenizersBackend"):
        return
    tokens = {i: token for token, i in _token_ids(folder).items()}
    added: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name, i in (("eos", eos_id), ("pad", pad_id)):
        if i in tokens and f"{name}_token" not in fields:
            added[f"{name}_token"] = tokens[i]
    text = json.dumps(fields | added, indent=2, ensure_ascii=False)
    (output / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
