"""A small corpus of three domains, and the byte store made of it."""

import json
import random
from pathlib import Path

import pytest

from emo_jax.data.store import TokenStore
from emo_jax.preparation.prepare import prepare
from emo_jax.tokenizer.load import byte_tokenizer

DOMAINS = ("cooking", "law", "music")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """600 documents of 2 to 122 tokens (bytes and the end), in three domains."""
    draw = random.Random(0)
    records = []
    for i in range(600):
        text = "".join(draw.choice("abcdefgh ") for _ in range(draw.randint(0, 120)))
        records.append({"text": f"{i % 10}{text}", "id": f"doc-{i}", "domain": DOMAINS[i % 3]})
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


@pytest.fixture(scope="session")
def store_path(corpus, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "bytes"
    prepare([corpus], path, byte_tokenizer())
    return path


@pytest.fixture
def store(store_path) -> TokenStore:
    return TokenStore.open(store_path)
