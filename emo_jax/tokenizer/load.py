"""One tokenizer interface, wherever the ids come from; nearly all are a `tokenizer.json`.

A tokenizer is saved next to the tokens, in the files that stock `transformers.AutoTokenizer` reads,
so training and export do not need seqio, SentencePiece or TensorFlow. What cannot be written as a
`tokenizer.json` is kept as is, see `vocabularies`.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as _Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from emo_jax.errors import DataError, UsageError, one_line
from emo_jax.files import json_files, named_code
from emo_jax.files.inside import check_own_files
from emo_jax.tokenizer import sentencepiece_model, seqio_vocabulary, vocabularies
from emo_jax.tokenizer.base import Tokenizer
from emo_jax.tokenizer.json_tokenizer import JsonTokenizer, token_of
from emo_jax.tokenizer.vocabularies import BYTE_OFFSET

EOS_TEXT = "<|endoftext|>"
PAD_TEXT = "<|padding|>"
_EOS_NAMES = (EOS_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]")
_PAD_NAMES = (PAD_TEXT, "<|pad|>", "<pad>", "[PAD]")
_SENTENCEPIECE = "sentencepiece:"
_MODELS = ("tokenizer.model", "spiece.model")
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_BYTE_SPECIAL = {"<pad>": 0, "</s>": 1, "<unk>": 2}


class _ByteTokenizer(JsonTokenizer):
    """Gives the same ids as its `tokenizer.json`, by an addition instead of a merge table."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [
            np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32) + BYTE_OFFSET
            for text in texts
        ]


def byte_tokenizer() -> Tokenizer:
    """Returns a tokenizer with the ids of `seqio.ByteVocabulary()`.

    Byte b is b + 3; 0 pads, 1 ends a document, 2 is unknown.
    """
    vocabulary = _BYTE_SPECIAL | {c: b + BYTE_OFFSET for b, c in _byte_chars().items()}
    plain = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)
    # Spelt out, so that the fingerprint does not depend on the library's version.
    content = dict(
        version="1.0",
        truncation=None,
        padding=None,
        added_tokens=[dict(id=i, content=t, **plain) for t, i in _BYTE_SPECIAL.items()],
        normalizer=None,
        pre_tokenizer=byte_level,
        post_processor=None,
        decoder=byte_level,
        model=dict(type="BPE", vocab=vocabulary, merges=[]),
    )
    return _ByteTokenizer(
        json.dumps(content, ensure_ascii=False), eos="</s>", pad="<pad>", where="bytes"
    )


def _byte_chars() -> dict[int, str]:
    """Returns the printable character that byte-level models use for each byte (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


def train_bpe(texts: Iterable[str], vocab_size: int, *, min_frequency: int = 2) -> Tokenizer:
    """Trains byte-level BPE; the same texts in the same order give the same tokenizer.

    The vocabulary contains the 256 bytes, so every text can be encoded; it is smaller than
    `vocab_size` if too few pairs occur `min_frequency` times in the texts.

    Raises:
      UsageError: `vocab_size` has no room for the bytes and the two special tokens.
      DataError: no text.
    """
    smallest = 256 + 2
    if vocab_size < smallest:
        raise UsageError(f"vocab_size = {vocab_size}: must be at least {smallest} (all bytes)")
    tokenizer = _Backend(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[EOS_TEXT, PAD_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    seen = 0

    def counted() -> Iterator[str]:
        nonlocal seen
        for text in texts:
            seen += 1
            yield text

    tokenizer.train_from_iterator(counted(), trainer)
    if not seen:
        raise DataError("no documents to train a tokenizer on; check the input")
    return JsonTokenizer(tokenizer.to_str(), eos=EOS_TEXT, pad=PAD_TEXT, where="trained tokenizer")


def load_tokenizer(
    spec: str | Path,
    *,
    eos_id: int | None = None,
    sample: Callable[[], Iterable[str]] | None = None,
    trust: bool = False,
    within: Path | None = None,
) -> Tokenizer:
    """Loads the tokenizer that `spec` names.

    One of: "bytes"; a `tokenizer.json`; a SentencePiece `.model` file; a folder that contains one
    of these (the first that exists, in this order: what `vocabularies` wrote, `tokenizer.json`,
    `tokenizer.model`, `spiece.model`); `seqio:MODULE:VOCABULARY`, see `seqio_vocabulary`. With
    `sentencepiece:FILE` a `.model` is kept as is, even where a tokenizer.json would do.

    The end-of-document and padding tokens are those of `tokenizer_config.json` or
    `special_tokens_map.json` next to it, then those of the `.model`, else the first of the usual
    names that it has.

    Args:
      spec: see above.
      eos_id: the end-of-document id, whatever the files say.
      sample: texts on which a `.model` and its conversion to a tokenizer.json must agree.
      trust: code that a file names may be imported and called, see `vocabularies`; a `seqio:` spec
        comes from the caller and needs no trust.
      within: a data folder that `spec` is part of; no link may lead out of it. None: the folder
        that `spec` is or is in.

    Raises:
      UsageError: no such file or folder, or `eos_id` is not an id.
      DataError: not a tokenizer, one of its files is not inside its folder, or none of its tokens
        can end a document.
    """
    text = str(spec)
    if text == "bytes":
        if eos_id not in (None, 1):
            raise UsageError(f"--eos-id {eos_id}: bytes end a document with id 1; leave it out")
        return byte_tokenizer()
    if text.startswith(named_code.PREFIX):
        return _of_seqio(text, eos_id, sample)
    keep = text.startswith(_SENTENCEPIECE)
    path = Path(text.removeprefix(_SENTENCEPIECE))
    _check_files(path, within)
    file = _file_of(path, models_only=keep)
    if file is None:
        raise UsageError(
            f'{spec}: no such tokenizer; give "bytes", a tokenizer.json, a SentencePiece .model, a'
            " folder with one of these, or seqio:MODULE:VOCABULARY"
        )
    if file.name == vocabularies.FILE:
        kept = vocabularies.load(file.parent, trust=trust)
        if eos_id not in (None, kept.eos_id):
            raise UsageError(
                f"--eos-id {eos_id}: {file} ends a document with id {kept.eos_id}; leave it out,"
                " or give the vocabulary that it was made of"
            )
        return kept
    if file.suffix == ".json":
        return _load_json(file, eos_id)
    added, named = _added_tokens(file.parent), _named_tokens(file.parent)
    return _sentencepiece(
        file.read_bytes(),
        str(file),
        eos_id=eos_id,
        added=added,
        named=named,
        sample=None if keep else sample or tuple,
    )


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has what `Tokenizer.save` writes, of either kind, or a link of that name.

    `load_tokenizer` decides whether that can be used.
    """
    names = (vocabularies.FILE, "tokenizer.json")
    return any(os.path.lexists(folder / name) for name in names)


def _check_files(path: Path, within: Path | None) -> None:
    """Raises DataError if a tokenizer file that would be read is not inside its folder."""
    names: tuple[str, ...] = _BESIDE
    folder = path.parent
    if path.is_dir():
        names = (vocabularies.FILE, "tokenizer.json", *_MODELS, *_BESIDE)
        folder = path
    if folder.is_dir():
        check_own_files(folder, names, error=DataError, within=within or folder)


def _file_of(path: Path, *, models_only: bool) -> Path | None:
    if path.is_file():
        return path
    names = _MODELS if models_only else (vocabularies.FILE, "tokenizer.json", *_MODELS)
    return next((path / n for n in names if (path / n).is_file()), None)


def _load_json(file: Path, eos_id: int | None) -> Tokenizer:
    try:
        content = json_files.decode(json_files.read_regular(file))
        items = json_files.Fields(json_files.parse(content)).items("added_tokens", [])
        added = [json_files.Fields(t, "added_tokens").text("content") for t in items]
    except (OSError, json_files.NotReadableError) as error:
        raise DataError(
            f"{file}: not a tokenizer.json ({one_line(error)}); save it again"
        ) from error
    named = _named_tokens(file.parent)
    eos = named.get("eos_token") or next((t for t in _EOS_NAMES if t in added), None)
    if eos_id is not None:
        eos = token_of(content, eos_id, str(file))
    if eos is None:
        raise DataError(
            f"{file}: no end-of-document token; name one as eos_token in a tokenizer_config.json"
            " beside it, or give --eos-id"
        )
    pad = named.get("pad_token") or next((t for t in _PAD_NAMES if t in added), None)
    bos = named.get("bos_token")
    found = JsonTokenizer(content, eos=eos, pad=pad, bos=bos, where=str(file))
    adds = _settings(file.parent, "tokenizer_config.json").value("add_bos_token", None)
    found.adds_bos = adds is True and found.bos_id is not None
    return found


def _settings(folder: Path, name: str) -> json_files.Fields:
    """Reads a JSON file next to a tokenizer; empty if there is none."""
    try:
        value = json_files.read_object(folder / name, advice="mend or remove it")
    except (FileNotFoundError, NotADirectoryError):
        value = {}
    return json_files.Fields(value)


@contextlib.contextmanager
def _reading(folder: Path, name: str) -> Iterator[None]:
    """Adds the file's name to an error about one of its fields."""
    try:
        yield
    except json_files.NotReadableError as error:
        raise DataError(f"{folder / name}: {error}; mend or remove it") from error


def _named_tokens(folder: Path) -> dict[str, str]:
    """Returns `eos_token`, `pad_token` and `bos_token` from the settings next to a tokenizer."""
    found: dict[str, str] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        values = _settings(folder, name)
        with _reading(folder, name):
            for key in ("eos_token", "pad_token", "bos_token"):
                if not values.value(key, None):
                    continue
                whole = isinstance(values.value(key), dict)
                token = values.inner(key).text("content", "") if whole else values.text(key)
                if token:
                    found.setdefault(key, token)
    return found


def _added_tokens(folder: Path) -> dict[int, str]:
    """Returns the tokens that a Hugging Face folder adds to its `.model`."""
    found = {}
    values = _settings(folder, "added_tokens.json")
    with _reading(folder, "added_tokens.json"):
        for token in values:
            found[values.integer(token)] = token
    values = _settings(folder, "tokenizer_config.json")
    with _reading(folder, "tokenizer_config.json"):
        decoder = values.inner("added_tokens_decoder", {})
        for i in decoder:
            if not i.isdecimal() or len(i) > 9:
                raise json_files.NotReadableError(f"added_tokens_decoder: {i[:40]!r} is no id")
            found[int(i)] = decoder.inner(i).text("content")
    return found


def _of_seqio(spec: str, eos_id: int | None, sample: Callable | None) -> Tokenizer:
    vocabulary = seqio_vocabulary.find(spec)
    plain = seqio_vocabulary.is_bytes(vocabulary) and not vocabulary.extra_ids
    if plain and eos_id in (None, 1):
        return byte_tokenizer()
    content = seqio_vocabulary.sentencepiece_content(vocabulary)
    if content is not None:
        return _sentencepiece(
            content, spec, eos_id=eos_id, pad_id=vocabulary.pad_id, sample=sample or tuple
        )
    return vocabularies.of_seqio(vocabulary, spec, eos_id)


def _sentencepiece(
    content: bytes,
    where: str,
    *,
    eos_id: int | None,
    pad_id: int | None = None,
    added: dict[int, str] | None = None,
    named: dict[str, str] | None = None,
    sample: Callable[[], Iterable[str]] | None,
) -> Tokenizer:
    """Loads a SentencePiece model: a tokenizer.json if ids are equal on `sample`, else as is."""
    processor = sentencepiece_model.load_processor(content, where)
    pieces = processor.GetPieceSize()
    added = {i: token for i, token in (added or {}).items() if i >= pieces}
    size = max([pieces - 1, *added]) + 1
    ids = {token: i for i, token in added.items()}
    unknown = processor.unk_id()

    def id_of(key: str, own: int) -> int | None:
        token = (named or {}).get(key)
        if token is None:
            return own if own >= 0 else None
        found = ids.get(token, processor.PieceToId(token))
        if found == unknown and processor.IdToPiece(unknown) != token:
            raise DataError(f"{where}: no token {token[:60]!r}; name one that the vocabulary has")
        return found

    eos = eos_id if eos_id is not None else id_of("eos_token", processor.eos_id())
    if eos is None:
        raise DataError(f"{where}: no end-of-document token; give --eos-id")
    vocabularies.check_eos(eos, size, where)
    pad = pad_id if pad_id is not None else id_of("pad_token", processor.pad_id())
    pad = eos if pad is None else pad
    bos = id_of("bos_token", processor.bos_id())
    reason = "as asked for"
    if sample is not None:
        try:
            converted = sentencepiece_model.convert(content, added)
            differing = sentencepiece_model.first_difference(converted, processor, sample())
            if differing is None:
                tokens = added | {i: processor.IdToPiece(i) for i in range(pieces)}
                return JsonTokenizer(
                    converted,
                    eos=tokens[eos],
                    pad=tokens[pad],
                    bos=None if bos is None else tokens[bos],
                    where=where,
                )
            reason = f"a tokenizer.json gives other ids, first for {differing!r}"
        except sentencepiece_model.NotExactError as error:
            reason = f"no tokenizer.json can stand for it: {error}"
    kept = vocabularies.of_sentencepiece(content, size, eos_id=eos, pad_id=pad, bos_id=bos)
    kept.notes = (f"note: {where} is kept as a SentencePiece model ({reason})",)
    return kept
