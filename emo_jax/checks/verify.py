"""`emo verify`: checks this machine's numerics, or a Hugging Face folder against its run."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from emo_jax.checks.folder import compare_folder
from emo_jax.checks.numerics import verify_cases
from emo_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Verification:
    """The result of `verify`.

    Attributes:
      results: for numerics, `{"case/quantity": {"error", "limit", "ok"}}`; for a folder, the fields
        of `checks.folder.Comparison`.
      failed: number of quantities beyond their limits, or of differences.
      summary: one line about what failed.
    """

    results: dict[str, Any]
    failed: int
    summary: str

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failed


def verify(
    folder: str | os.PathLike[str] | None = None,
    *,
    against: str | os.PathLike[str] | None = None,
    quiet: bool = True,
) -> Verification:
    """Compares this machine's numerics with golden values of the PyTorch reference.

    With `against`, compares a Hugging Face folder with the run it came from instead: every tensor,
    the fields of config.json, and the tokenizer.

    Args:
      folder: with `against`, the Hugging Face folder; otherwise the folder of one case of golden
        values, or None for all cases shipped with the package.
      against: what to compare the folder with: `WORKDIR`, `WORKDIR@STEP`, or another Hugging Face
        folder.
      quiet: print nothing; otherwise one line per quantity or difference.

    Returns:
      The errors or differences; `ok` tells whether there is nothing to report.

    Raises:
      UsageError: no such case, folder or run, or `against` without a folder.
      HfFormatError: the folder cannot be read or has an unsupported architecture.
      CheckpointError: the run has no good checkpoint.
      DataError: a case is damaged.
    """
    show = _ignore if quiet else _print
    if against is None:
        results, failed = verify_cases(None if folder is None else Path(folder), show=show)
        return Verification(results, failed, f"{failed} quantities are beyond their limits")
    if folder is None:
        raise UsageError(f"--against {against}: give the folder too, before it: emo verify HF_DIR")
    found = compare_folder(folder, os.fspath(against))
    at = "" if found.step is None else f" at step {found.step}"
    for line in found.differences:
        show(f"{folder}: {line}")
    if not found.count:
        show(f"{folder}: as {against}{at}: {found.tensors} tensors, config, tokenizer")
    summary = f"{folder}: {found.count} differences from {against}{at}"
    return Verification(dataclasses.asdict(found), found.count, summary)


def _print(line: str) -> None:
    print(line, flush=True)


def _ignore(line: str) -> None:
    pass
