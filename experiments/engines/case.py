"""What an engine is given and what it gives back: files, so that it may run in any environment.

A case is a folder: `model/` (exported), `case.json` (prompts as texts and as ids, and the tokens
that emo_jax makes of them) and `logits.npz` (one (S,V) float32 array a prompt). A driver imports
this file, runs its engine on the case and writes `result.json` and `result.npz` of the same form.

Needs Python 3.10 and NumPy only. Legend: S tokens of a prompt, V vocabulary.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

NEW_TOKENS = 40  # of each prompt, fewer where the document ends


@dataclass
class Case:
    """Prompts of one model; `model` is the exported folder."""

    model: str
    texts: list[str]
    ids: list[list[int]]
    eos_id: int
    greedy: list[list[int]] = field(default_factory=list)
    continuations: list[str] = field(default_factory=list)  # `greedy` as texts
    scores: list[float] = field(default_factory=list)  # log-likelihood behind an EOS, nats

    def up_to_eos(self, tokens: Any) -> list[int]:
        """Tokens before the one that ends a document."""
        tokens = [int(token) for token in tokens]
        return tokens[: tokens.index(self.eos_id)] if self.eos_id in tokens else tokens


def read_case(folder: str | Path) -> Case:
    """The case of a folder."""
    return Case(**json.loads((Path(folder) / "case.json").read_text(encoding="utf-8")))


def arguments() -> tuple[Case, Path]:
    """Of a driver: the case, and the folder for its result (which is there)."""
    return read_case(sys.argv[1]), Path(sys.argv[2])


def write_arrays(file: Path, arrays: list[np.ndarray]) -> None:
    """One array a prompt."""
    np.savez(file, **{str(i): np.asarray(array, np.float32) for i, array in enumerate(arrays)})


def read_arrays(file: Path) -> list[np.ndarray]:
    """What `write_arrays` wrote."""
    with np.load(file) as arrays:
        return [arrays[str(i)] for i in range(len(arrays.files))]


def write_result(
    folder: Path,
    *,
    version: str,
    logits: list[np.ndarray] | None = None,
    ids: list[list[int]] | None = None,
    greedy: list[list[int]] | None = None,
    missing: list[str] | None = None,
    unexpected: list[str] | None = None,
    scores: list[float] | None = None,
    held: dict[str, Any] | None = None,
) -> None:
    """Writes what an engine gave; None where it does not say.

    Args:
      version: of the engine.
      logits: one (S,V) array a prompt.
      ids: of the prompts, made of their texts by the engine's own tokenizer.
      greedy: the likeliest tokens behind each prompt, up to the end of the document.
      missing, unexpected: tensors that it had no values for, or no place.
      scores: log-likelihood of each prompt behind an end-of-document token, in nats.
      held: more that was tried: what → a figure, or whether it held.
    """
    if logits is not None:
        write_arrays(folder / "result.npz", logits)
    result = {
        "version": version,
        "ids": ids,
        "greedy": greedy,
        "missing": missing,
        "unexpected": unexpected,
        "scores": scores,
        "held": held or {},
    }
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
