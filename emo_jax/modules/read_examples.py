"""Documents that a model is measured on: of a token store's split `select`, or of a file."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from emo_jax.data.store import TokenStore
from emo_jax.documents.input_files import is_of_documents
from emo_jax.documents.locations import is_remote
from emo_jax.documents.read import ReadReport, read_documents
from emo_jax.errors import UsageError
from emo_jax.evals.by_domain import SELECT, check_source
from emo_jax.saved.load import ModelOnDisk
from emo_jax.selection.examples import (
    Examples,
    examples_of,
    split_location,
    store_examples,
    take,
)


def read_examples(
    model: ModelOnDisk,
    data: str,
    *,
    max_tokens: int,
    number: int | None = None,
    min_tokens: int = 1,
    seed: int = 0,
) -> Examples:
    """Documents of `STORE`, `STORE:DOMAIN` or a file; for the arguments see `store_examples`.

    Raises:
      UsageError: no such store, domain or file, too few documents, or another tokenizer.
    """
    location, domain = split_location(data, lambda text: Path(text).exists())
    if is_of_documents(location):
        if domain is not None:
            raise UsageError(
                f"{data}: a file of documents has no domains to choose from; give a token store, or"
                " a file of this domain alone"
            )
        return _of_file(model, location, number, max_tokens, min_tokens)
    if not is_remote(location) and not Path(location).exists():
        raise UsageError(
            f"{location}: no such token store or file of documents; make a store with `emo prepare`"
        )
    store = TokenStore.open(location)
    check_source(location, store, model.config, model.tokenizer)
    return store_examples(
        store,
        SELECT,
        domain=domain,
        number=number,
        max_tokens=max_tokens,
        min_length=min_tokens,
        seed=seed,
    )


def _of_file(
    model: ModelOnDisk, file: str, number: int | None, max_tokens: int, min_tokens: int
) -> Examples:
    """Documents of a file, in its order, as ids of the model's tokenizer."""
    tokenizer, report = model.need_tokenizer(), ReadReport()

    def documents() -> Iterator[np.ndarray]:
        for document in read_documents([file], report=report):
            (ids,) = tokenizer.documents([document.text])
            if len(ids) >= min_tokens:
                yield ids

    found, _ = take(documents(), number, max_tokens)
    if report.skipped:
        logging.warning("%s: %s", file, "; ".join(report.summary().split("\n  ")))
    if not found or (number is not None and len(found) < number):
        long = f" of at least {min_tokens} tokens" if min_tokens > 1 else ""
        raise UsageError(f"{file}: {len(found)} documents{long}, not {number or 'any'}")
    return examples_of(found, file)
