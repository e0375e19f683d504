"""An engine's inputs and outputs, as files, so that the engine can run in any environment.

A case is a folder: `model/` (exported), `case.json` (prompts as texts and as ids, and the tokens
that emo_jax generates for them) and `logits.npz` (one (S,V) float32 array per prompt). A driver
imports this file, runs its engine on the case, and writes `result.json` and `result.npz` in the
same format.

Needs only Python 3.10 and NumPy. Legend: S tokens of a prompt, V vocabulary.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

NEW_TOKENS = 40  # per prompt, fewer if the document ends


@dataclass
class Case:
    """Prompts of one model; `model` is the exported folder."""

    model: str
    texts: list[str]
    ids: list[list[int]]
    eos_id: int
    greedy: list[list[int]] = field(default_factory=list)
    continuations: list[str] = field(default_factory=list)  # `greedy` as texts
    scores: list[float] = field(default_factory=list)  # log-likelihood after an EOS, nats

    def up_to_eos(self, tokens: Any) -> list[int]:
        """The tokens before the one that ends a document."""
        tokens = [int(token) for token in tokens]
        return tokens[: tokens.index(self.eos_id)] if self.eos_id in tokens else tokens


def read_case(folder: str | Path) -> Case:
    """Reads the case in a folder."""
    return Case(**json.loads((Path(folder) / "case.json").read_text(encoding="utf-8")))


def arguments() -> tuple[Case, Path]:
    """Arguments of a driver: the case, and the folder for its result (which exists)."""
    return read_case(sys.argv[1]), Path(sys.argv[2])


def write_arrays(file: Path, arrays: list[np.ndarray]) -> None:
    """Writes one array per prompt."""
    np.savez(file, **{str(i): np.asarray(array, np.float32) for i, array in enumerate(arrays)})


def read_arrays(file: Path) -> list[np.ndarray]:
    """Reads what `write_arrays` wrote."""
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
    """Writes the results of an engine; None for what it does not report.

    Args:
      folder: the folder for the result.
      version: version of the engine.
      logits: one (S,V) array per prompt.
      ids: ids of the prompts, from the engine's own tokenizer.
      greedy: the likeliest tokens after each prompt, up to the end of the document.
      missing: tensors for which it found no values.
      unexpected: tensors for which it had no place.
      scores: log-likelihood of each prompt after an end-of-document token, in nats.
      held: further trials: name → a figure, or whether it succeeded.
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
