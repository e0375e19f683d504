"""Tokenizers of many kinds with settings that a model was not trained on, and texts to try."""

import functools
import json
import random
from collections.abc import Callable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre
from tokenizers import processors as post

from emo_jax.tokenizer.load import byte_tokenizer, train_bpe

WORDS = "the court finds that sample of river stone and bread in an oven, 1984 3.14 it's WE'LL"
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
ALPHABET = sorted(pre.ByteLevel.alphabet())
SCRIPTS = (
    "naïve café Ünïcödé e\u0301 ﬁ ½ ² ™ ＡＢＣ",
    "日本語の文章です。中文，测试！",
    "한국어 텍스트 조사는",
    "ประเทศไทย สวัสดี",
    "العربية עִבְרִית فارسی",
    "हिन्दी বাংলা தமிழ்",
    "Ελληνικά Кириллица Հայերեն ქართული",
    "🎉 👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 z\u200bw \u00ad\ufeff\u2028\u3000\xa0",
    "def f(x):\n    return {'a': [x ** 2, -1]}  # !@#$%^&*()",
    "1234567890 3.14 1,000,000 ٣٤٥ Ⅷ",
    "I'll we've IT'S don’t O'Neil's 'quoted'",
)
SPACES = ("", " ", "  ", "\t", "\n", "\n\n", " \n ", "\r\n", "   \t\n", "\xa0", "\u2003")


def texts(count: int = 200) -> list[str]:
    """Many scripts, every way of white space, names of special tokens; the empty text first."""
    draw = random.Random(14)
    names = [*SPECIAL, "<|endoftext|>", "<|padding|>", "[CLS]", "[SEP]", "<mask>", "<|user|>"]
    parts = [*SCRIPTS, *WORDS.split(), *names, *(f"a{name}b" for name in names), *names]
    found = ["", " ", "  leading and trailing  ", "\n", "The court", " The court", "▁ ▁▁a"]
    found += ["a\x00b", *SCRIPTS, *names, *(f"{name} {name}{name} x" for name in names)]
    while len(found) < count:
        chosen = [draw.choice(parts) for _ in range(draw.randint(1, 12))]
        text = "".join(part + draw.choice(SPACES) for part in chosen)
        found.append(draw.choice(SPACES) + text)
    return found[:count]


def _trained(model, trainer, before, decoder, *, size: int = 400, texts=None, **settings):
    made = Tokenizer(model)
    made.pre_tokenizer, made.decoder = before, decoder
    corpus = texts or [WORDS, *SCRIPTS, *SPECIAL] * 3
    made.train_from_iterator(corpus, trainer(vocab_size=size, show_progress=False, **settings))
    return made


def _byte_bpe(*, prefix: bool = False, pattern: str | None = None) -> Tokenizer:
    before = pre.ByteLevel(add_prefix_space=prefix)
    if pattern is not None:
        cut = pre.Split(Regex(pattern), "isolated")
        before = pre.Sequence([cut, pre.ByteLevel(add_prefix_space=prefix, use_regex=False)])
    return _trained(
        models.BPE(),
        trainers.BpeTrainer,
        before,
        decoders.ByteLevel(),
        special_tokens=SPECIAL,
        initial_alphabet=ALPHABET,
    )


def _around(*, end: bool) -> post.PostProcessor:
    """What `add_bos_token` and `add_eos_token` become in a tokenizer.json."""
    return post.TemplateProcessing(
        single="<s> $A </s>" if end else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )


def _llama(folder: Path) -> dict:
    made = _byte_bpe()
    made.post_processor = _around(end=False)
    made.save(str(folder / "tokenizer.json"))
    return {}


def _llama3(folder: Path) -> dict:
    made = _byte_bpe(pattern=r"(?i:'s|'t|'ll|'d)|\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+")
    made.post_processor = post.Sequence([post.ByteLevel(trim_offsets=True), _around(end=False)])
    made.enable_truncation(16)
    made.enable_padding(pad_id=3, pad_token="<pad>", length=16, direction="right")
    made.save(str(folder / "tokenizer.json"))
    return {"tokenizer_class": "LlamaTokenizerFast", "padding_side": "right"}


def _roberta(folder: Path) -> dict:
    made = _byte_bpe(prefix=True)
    made.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    made.post_processor = post.RobertaProcessing(("</s>", 2), ("<s>", 1), add_prefix_space=True)
    made.save(str(folder / "tokenizer.json"))
    settings = {"mask_token": "<mask>", "add_prefix_space": False}
    return settings | {"tokenizer_class": "RobertaTokenizer"}


def _t5(folder: Path) -> dict:
    """A unigram model, which finds the names of special tokens as if they were words."""
    made = _trained(
        models.Unigram(),
        trainers.UnigramTrainer,
        pre.Metaspace(),
        decoders.Metaspace(),
        special_tokens=SPECIAL,
        unk_token="<unk>",
    )
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    made.post_processor = post.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    made.save(str(folder / "tokenizer.json"))
    return {"tokenizer_class": "T5TokenizerFast", "extra_ids": 100}


def _bert(folder: Path) -> dict:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = _trained(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer,
        pre.BertPreTokenizer(),
        decoders.WordPiece(),
        special_tokens=special,
    )
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.post_processor = post.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.save(str(folder / "tokenizer.json"))
    return {
        "tokenizer_class": "BertTokenizer",
        "eos_token": "[SEP]",
        "bos_token": "[CLS]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "do_lower_case": False,
        "clean_up_tokenization_spaces": True,
    }


def _added(folder: Path) -> dict:
    """Tokens found in every text, with spaces taken in, and settings that would add more."""
    made = _byte_bpe()
    made.add_tokens([AddedToken("<|user|>", lstrip=True, rstrip=True), AddedToken("oven,")])
    made.add_special_tokens(["<|system|>"])
    made.save(str(folder / "tokenizer.json"))
    return {
        "additional_special_tokens": ["<|never|>", "<|user|>"],
        "added_tokens_decoder": {"2": {"content": "</s>", "special": True, "lstrip": True}},
        "unk_token": "<unk>",
        "cls_token": "<cls>",
        "add_eos_token": True,
        "chat_template": "{{ messages }}",
    }


def _plain_pad(folder: Path) -> dict:
    """A padding token that a text can spell, and another that is only in the vocabulary."""
    made = _byte_bpe()
    made.save(str(folder / "tokenizer.json"))
    content = json.loads((folder / "tokenizer.json").read_text())
    added = {token["content"]: token for token in content["added_tokens"]}
    added["<pad>"]["special"] = False
    content["added_tokens"] = [added[t] for t in ("<unk>", "</s>", "<pad>")]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return {}


def _old_merges(folder: Path) -> dict:
    """As versions of the library before 0.20 wrote merges, and its truncation."""
    made = _byte_bpe()
    made.enable_truncation(4)
    made.save(str(folder / "tokenizer.json"))
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return {"tokenizer_class": "GPT2Tokenizer"}


def _ours(folder: Path) -> None:
    train_bpe([WORDS, *SCRIPTS] * 3, 400).save(folder)


def _bytes(folder: Path) -> None:
    byte_tokenizer().save(folder)


NAMED = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
KINDS: dict[str, Callable[[Path], dict | None]] = {
    "ours": _ours,
    "bytes": _bytes,
    "llama": _llama,
    "llama3": _llama3,
    "roberta": _roberta,
    "t5": _t5,
    "bert": _bert,
    "added": _added,
    "plain pad": _plain_pad,
    "old merges": _old_merges,
}


def make(kind: str, folder: Path) -> Path:
    """A folder with a tokenizer of this kind, as its library saves it."""
    folder.mkdir(parents=True)
    settings = KINDS[kind](folder)
    if settings is not None:
        text = json.dumps({**NAMED, **settings})
        (folder / "tokenizer_config.json").write_text(text)
    return folder


def differing(texts: list[str], found: list, expected: list) -> list:
    """The first texts whose ids differ, with both; a diff of all ids would take pytest minutes."""
    rows = zip(texts, found, expected, strict=True)
    return [(text, a, b) for text, a, b in rows if a != b][:2]


def has_begin(kind: str) -> bool:
    """Whether a kind names a token that documents can begin with."""
    return kind not in ("ours", "bytes")


# --- ways of splitting text that llama.cpp has a name for -----------------------------------------

# As the files on the hub have them: of Llama 3, cl100k and dolma2, and of Qwen 2.
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split_by(pattern: str, behavior: str = "isolated", *, invert: bool = False):
    """What tokenizers with a pattern of their own have."""
    cut = pre.Split(Regex(pattern), behavior, invert)
    return pre.Sequence([cut, pre.ByteLevel(add_prefix_space=False, use_regex=False)])


_WORDS = pre.ByteLevel(add_prefix_space=False)
# name → (what splits, whether a word that is a token is taken whole, llama.cpp's name)
SPLITS = {
    "gpt2": (_WORDS, False, "trillion"),
    "cl100k": (split_by(_CL100K), False, "dbrx"),
    "tiktoken": (split_by(_CL100K, "removed", invert=True), False, "dbrx"),
    "llama3": (split_by(_CL100K), True, "llama-bpe"),
    "qwen2": (split_by(_QWEN2), False, "qwen2"),
    "digits": (pre.Sequence([pre.Digits(individual_digits=True), _WORDS]), False, "smollm"),
}


def mixed_texts(count: int, *, seed: int = 5) -> list[str]:
    """Letters, digits, marks and white space in any order: wherever a text may be split."""
    draw, found = random.Random(seed), []
    rare = "éßñЖжαΩعא日本가กि́²½Ⅷ٣€“”’…—\u200d\u200b\xad"
    spaces = " \n\t\r\x0b\x0c\x1c\x85\xa0\u2003\u3000 '"
    for _ in range(count):
        made = ""
        for _ in range(draw.randint(1, 60)):
            kind = draw.random()
            ascii_ = chr(draw.randint(32, 126))
            made += (
                draw.choice(spaces) if kind < 0.3 else ascii_ if kind < 0.55 else draw.choice(rare)
            )
        found.append(made)
    return found


@functools.cache
def _merged_anywhere() -> Tokenizer:
    """BPE whose tokens go over the ends of words: its ids show where a text was split."""
    return _trained(
        models.BPE(),
        trainers.BpeTrainer,
        pre.ByteLevel(add_prefix_space=False, use_regex=False),
        decoders.ByteLevel(),
        size=2000,
        texts=[*mixed_texts(1000, seed=4), *texts()],
        special_tokens=SPECIAL,
        initial_alphabet=ALPHABET,
    )


def make_split(name: str, folder: Path) -> Path:
    """A folder with byte-level BPE that splits text in one of the ways of `SPLITS`."""
    folder.mkdir(parents=True)
    made = Tokenizer.from_str(_merged_anywhere().to_str())
    made.pre_tokenizer, ignore_merges, _ = SPLITS[name]
    content = json.loads(made.to_str())
    content["model"]["ignore_merges"] = ignore_merges
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps(NAMED))
    return folder
