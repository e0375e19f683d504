"""The corpus of the loader benchmark: the same tokens for every loader. Needs NumPy only.

    CORPUS/tokens.npy       (T,) little-endian uint32, no header: documents, each ended by EOS
    CORPUS/lengths.npy      (D,) int64, with a header: tokens of each document, EOS included
    CORPUS/domains.npy      (D,) int32, with a header: domain of each document
    CORPUS/corpus.json      what the others need to know

Lengths are log-normal (median 400 tokens, mean 730, half of the tokens in documents above 1 300),
ids are Zipf-like over 100 278, and one document in 1 000 holds a pattern repeated 40 times.
"""

import json
from pathlib import Path

import numpy as np

VOCAB_SIZE = 100_278
EOS = 100_257
PAD = 100_277
DOMAINS = 24
DTYPE = np.dtype("<u4")
MEDIAN, SIGMA, LONGEST = 400, 1.1, 200_000
BLOCK = 4096  # documents made at once


def make(folder: Path, *, tokens: int, seed: int) -> None:
    """Writes a corpus of at least `tokens` tokens."""
    folder.mkdir(parents=True)
    total, lengths, domains, block = 0, [], [], 0
    with (folder / "tokens.npy").open("wb") as file:
        while total < tokens:
            made, of_block, domain = _block(np.random.default_rng([seed, block]))
            made.tofile(file)
            lengths.append(of_block)
            domains.append(domain)
            total, block = total + made.size, block + 1
    np.save(folder / "lengths.npy", np.concatenate(lengths))
    np.save(folder / "domains.npy", np.concatenate(domains))
    facts = {"tokens": total, "documents": block * BLOCK, "seed": seed, "vocab_size": VOCAB_SIZE}
    (folder / "corpus.json").write_text(json.dumps({**facts, "eos": EOS, "pad": PAD}) + "\n")


def _block(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lengths = np.clip(rng.lognormal(np.log(MEDIAN), SIGMA, BLOCK), 2, LONGEST).astype(np.int64)
    ends = np.cumsum(lengths)
    # The density of an id falls as 1/id: 1 % of neighbours are equal, as in text of few words.
    ids = np.exp(rng.random(ends[-1]) * np.log(EOS)).astype(DTYPE)
    for document in rng.choice(BLOCK, BLOCK // 1000, replace=False):
        start, length = ends[document] - lengths[document], lengths[document] - 1
        period = int(rng.integers(1, 14))
        copies = np.tile(ids[start : start + period], 40)[:length]
        ids[start : start + copies.size] = copies
    ids[ends - 1] = EOS
    return ids, lengths, rng.integers(0, DOMAINS, BLOCK, dtype=np.int32)


def facts(folder: Path) -> dict[str, int]:
    """Returns what `corpus.json` says."""
    return json.loads((folder / "corpus.json").read_text())


def documents(folder: Path):
    """Yields the documents, (N,) uint32 each."""
    tokens = np.memmap(folder / "tokens.npy", DTYPE, "r")
    start = 0
    for length in np.load(folder / "lengths.npy"):
        yield tokens[start : start + length]
        start += length
