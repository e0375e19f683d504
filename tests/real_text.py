"""Text and SentencePiece models for tests: the standard library's sources, and models of them."""

import io
import os
from pathlib import Path


def texts(files: int = 12) -> list[str]:
    """Paragraphs of real English and code."""
    found = []
    for file in sorted(Path(os.__file__).parent.glob("[a-d]*.py"))[:files]:
        found += [p for p in file.read_text(encoding="utf-8").split("\n\n") if p.strip()]
    return found


def train_sentencepiece(path: Path, **settings) -> Path:
    """A `.model` with 0 unknown, 1 begin, 2 end, unless told otherwise."""
    import sentencepiece

    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        **{
            "sentence_iterator": iter(texts()),
            "model_writer": content,
            "vocab_size": 600,
            "model_type": "bpe",
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "byte_fallback": True,
            "minloglevel": 2,
            "num_threads": 1,
            **settings,
        }
    )
    path.write_bytes(content.getvalue())
    return path
