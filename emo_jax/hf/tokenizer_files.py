"""The tokenizer of a Hugging Face folder: read as the folder defines it, written as in training.

What a folder's settings add around a text (a token before it, one after it, token_type_ids) differs
between versions of transformers, and from what a model was trained on. Here the settings are
rewritten so that every version gives the ids of training; see `JsonTokenizer.settings`.
"""

import shutil
from pathlib import Path
from typing import Any

from emo_jax.errors import DataError, UsageError
from emo_jax.files.inside import check_own_files
from emo_jax.files.json_files import read_object
from emo_jax.hf.hf_config import OUR_SECTION
from emo_jax.tokenizer.json_tokenizer import FILES as WRITTEN
from emo_jax.tokenizer.json_tokenizer import JsonTokenizer, write_files
from emo_jax.tokenizer.load import load_tokenizer

TEMPLATE = "chat_template.jinja"
FILES = (*WRITTEN, TEMPLATE)
_TEMPLATE_FIELD = "chat_template"


def _object(path: Path) -> dict[str, Any]:
    """The fields of a JSON file; empty if it does not exist."""
    try:
        return read_object(path, error=UsageError, advice="give another tokenizer, or mend it")
    except FileNotFoundError:
        return {}


def load(folder: Path, *, eos_id: int | None = None) -> JsonTokenizer:
    """The tokenizer of a folder that has one for other libraries.

    Its `adds_bos` follows `add_bos_token`. Where that is missing (transformers 5 omits it), it
    follows bos_token_id in a folder that we exported, and the post-processor in any other.

    Args:
      folder: folder with a tokenizer.json, of a model or of a tokenizer alone.
      eos_id: the end-of-document id, overriding the files.

    Raises:
      UsageError: there is no tokenizer, or `eos_id` is not an id.
      DataError: not a tokenizer, or none of its tokens can end a document.
    """
    check_own_files(folder, FILES, error=DataError)
    if not (folder / "tokenizer.json").is_file():
        raise UsageError(f"{folder}: has no tokenizer.json; give the folder of a tokenizer")
    found = load_tokenizer(folder / "tokenizer.json", eos_id=eos_id)
    assert isinstance(found, JsonTokenizer)
    said = _object(folder / "tokenizer_config.json").get("add_bos_token")
    if not isinstance(said, bool):
        model = _object(folder / "config.json")
        said = OUR_SECTION not in model or model.get("bos_token_id") is not None
    if said and not found.adds_bos:
        found.begin_as_post_processor()
    return found


def check(tokenizer: JsonTokenizer, where: Path, vocab_size: int) -> None:
    """Rejects a tokenizer that produces ids the model does not have."""
    if tokenizer.vocab_size > vocab_size:
        raise UsageError(
            f"{where}/tokenizer.json: has id {tokenizer.vocab_size - 1}, but the model ends at "
            f"{vocab_size - 1} (model.vocab_size); give the tokenizer that it was trained with"
        )


def write(tokenizer: JsonTokenizer, source: Path, output: Path, **changes: Any) -> None:
    """Writes a tokenizer's files, and the chat template of the folder it comes from.

    Args:
      tokenizer: the tokenizer to write.
      source: the folder it comes from.
      output: the folder to write to.
      **changes: overridden settings, such as `model_max_length`.
    """
    template = _object(source / "tokenizer_config.json").get(_TEMPLATE_FIELD)
    if template is not None:
        changes[_TEMPLATE_FIELD] = template
    write_files(output, tokenizer.fields, tokenizer.settings | changes, tokenizer.special_tokens)
    if (source / TEMPLATE).is_file():
        shutil.copyfile(source / TEMPLATE, output / TEMPLATE)
