"""The data of a run and its workdir: whether they fit; the tokenizer that stays with the run."""

import shutil
from pathlib import Path
from typing import Any

from emo_jax.config import Config
from emo_jax.data.run_windows import RunWindows
from emo_jax.data.sources import MixedSource
from emo_jax.data.store import TokenStore
from emo_jax.data.stream import TokenSource
from emo_jax.errors import DataError, UsageError, one_line
from emo_jax.run.workdir import TOKENIZER_FOLDER, unusable
from emo_jax.training.init_from import windows_of


def check_vocab(config: Config, source: TokenSource) -> None:
    """Raises an error if the store's ids do not fit the model.

    Raises:
      UsageError: states both sizes.
    """
    if source.vocab_size > config.model.vocab_size:
        raise UsageError(
            f"{', '.join(config.data.stores[:3])}: its tokenizer has {source.vocab_size} ids, "
            f"config.model.vocab_size = {config.model.vocab_size}; give "
            f"--config.model.vocab_size={source.vocab_size}"
        )


def check_source(
    workdir: Path,
    config: Config,
    source: TokenSource,
    windows: RunWindows,
    extra: dict[str, Any],
) -> None:
    """Refuses to resume with other tokens, or another tokenizer's ids, than the run has had.

    Args:
      extra: of the newest checkpoint that can be read; empty if there is none. Those made before
        the store was recorded are accepted as they are.

    Raises:
      UsageError: says what is different.
    """
    if isinstance(source, TokenStore | MixedSource):
        try:
            source.check_tokenizer_in(workdir / TOKENIZER_FOLDER)
        except DataError as e:
            raise UsageError(f"{workdir} has a tokenizer of its own; {e}") from e
    if not extra:
        return
    ours = windows.fingerprint_at(windows_of(extra, f"{workdir}: step {extra.get('step')}"))
    theirs = extra.get("store", ours)
    if theirs == ours:
        return
    if config.data.sources:
        raise UsageError(
            f"{workdir}: its {extra['windows']} windows so far are not those of this"
            f" config.data.sources ({theirs[:12]} is not {ours[:12]}); give the stores and"
            " weights it began with, in the same order, and add what is to change with"
            " from_step, or give another workdir"
        )
    raise UsageError(
        f"{workdir} was trained on another store than {config.data.store} ({theirs[:12]}, then"
        f" at {extra['config']['data']['store']}, is not {ours[:12]}); give that store with"
        " --config.data.store=STORE, or another workdir"
    )


def keep_tokenizer(workdir: Path, source: TokenSource) -> None:
    """Copies the store's tokenizer into the workdir: an export needs it, a store may move."""
    folder = workdir / TOKENIZER_FOLDER
    store = source.tokenizer_store() if isinstance(source, MixedSource) else source
    if folder.exists() or not isinstance(store, TokenStore):
        return
    unfinished = folder.with_name(f".{folder.name}.tmp")
    try:
        if unfinished.is_symlink():  # made by someone else: do not write to its target
            unfinished.unlink()
        shutil.rmtree(unfinished, ignore_errors=True)
        store.tokenizer().save(unfinished)
        unfinished.rename(folder)
    except OSError as e:
        raise unusable(workdir, f"{folder}: cannot be written: {one_line(e)}") from e
