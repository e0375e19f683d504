"""The small corpus and its store."""

from corpus_fixtures import corpus, store, store_path  # noqa: F401
