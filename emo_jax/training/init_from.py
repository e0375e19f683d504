"""Starting a run from another run's checkpoint: what is taken over, and what may differ.

Everything here only reads; `start.py` makes the state. The source is recorded in WORKDIR/init.json
and in every checkpoint.
"""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

from emo_jax.checkpoint.checkpointer import Checkpointer
from emo_jax.checkpoint.manifest import LeafPath, compare, read_manifest
from emo_jax.checkpoint.reading import checkpoints_of
from emo_jax.config import Config, differences, may_change
from emo_jax.config.digest import config_digest
from emo_jax.config.names import INIT_MODES
from emo_jax.data.run_windows import RunWindows
from emo_jax.data.sources import MixedSource
from emo_jax.data.store import TokenStore
from emo_jax.data.stream import TokenSource
from emo_jax.errors import CheckpointError, DataError, EmoError, UsageError, one_line
from emo_jax.files.inside import check_own_files
from emo_jax.files.json_files import (
    Fields,
    NotReadableError,
    parse,
    read_regular,
)
from emo_jax.hf.fields import is_hugging_face
from emo_jax.run.workdir import (
    INIT_FILE,
    TOKENIZER_FOLDER,
    read_workdir_config,
    split_step,
)
from emo_jax.saved.expert_names import names_beside


class InitFrom(NamedTuple):
    """The source that the command line requests."""

    workdir: Path
    step: int | None  # None: the newest
    mode: str

    @classmethod
    def parse(cls, text: str, mode: str) -> "InitFrom":
        """Parses `WORKDIR` or `WORKDIR@STEP`.

        Raises:
          UsageError: no such mode.
        """
        if mode not in INIT_MODES:
            raise UsageError(f"--init {mode}: must be one of {', '.join(INIT_MODES)}")
        folder, step = split_step(text)
        return cls(folder.absolute(), step, mode)

    def __str__(self) -> str:
        return f"--init-from {self.workdir}" + ("" if self.step is None else f"@{self.step}")


class Source(NamedTuple):
    """A checkpoint that fits."""

    workdir: Path
    step: int
    mode: str
    window: int  # where its data continues
    changes: list[str]  # `field: theirs -> ours`, all of them expected
    record: dict[str, Any]  # for init.json


def find_source(
    asked: InitFrom,
    config: Config,
    *,
    source: TokenSource,
    windows: RunWindows,
    wanted: dict[LeafPath, Any],
    record: dict[str, Any] | None,
) -> Source:
    """Returns the checkpoint that a run requests, if the run may start from it.

    Args:
      source: the tokens of the run.
      windows: their order.
      wanted: leaves of the state that are to be read, by path.
      record: from an earlier start of this run that saved nothing; it says which step was newest.

    Raises:
      UsageError: no such run, or it has unexpected differences.
      CheckpointError: no such checkpoint, or its manifest is damaged.
    """
    theirs = _config_of(asked)
    digest = config_digest(theirs)
    checkpoints = Checkpointer(asked.workdir, theirs.checkpoint)
    steps, step = checkpoints.steps(), asked.step
    if step is None and record is not None and record.get("config_sha256") == digest:
        step = record["step"] if _same(asked, record) and record["step"] in steps else None
    if step is None:
        step = max(steps, default=None)
    if step not in steps:
        which = "" if step is None else f" of step {step}"
        raise CheckpointError(
            f"{asked}: no checkpoint{which} in {asked.workdir} (steps there: {steps or 'none'})"
        )
    extra = checkpoints.read_extra(step)
    if asked.mode != "weights" and "rest" not in checkpoints.items(step):
        raise UsageError(
            f"{asked} --init {asked.mode}: step {step} holds parameters only, as an import does;"
            " give --init weights"
        )
    _check_shapes(asked, step, config, theirs, wanted)
    changes = _check_differences(asked, config, theirs)
    if not expects(config, "data.store"):
        _check_data(asked, extra, source, windows)
    if asked.mode == "all" and config.train.steps <= step:
        raise UsageError(
            f"{asked} --init all goes on at step {step}, and config.train.steps ="
            f" {config.train.steps}: nothing is left to train; give more steps, or --init weights"
        )
    about: dict[str, Any] = {
        "workdir": str(asked.workdir),
        "name": theirs.name,
        "step": step,
        "mode": asked.mode,
        "config_sha256": digest,
    }
    if experts := names_beside(asked.workdir):
        about["experts"] = list(experts)
    window = windows_of(extra, f"{asked}: step {step}")
    if asked.mode == "all":
        _check_steps(asked, config, step, window)
    return Source(asked.workdir, step, asked.mode, window, changes, about)


def windows_of(extra: dict[str, Any], where: str) -> int:
    """Returns the number of windows that a checkpoint has consumed, from what was saved with it."""
    try:
        return Fields(extra).integer("windows", high=2**63 - 1)
    except NotReadableError as error:
        raise CheckpointError(f"{where}: {error}; it is no checkpoint of emo train") from None


def _config_of(asked: InitFrom) -> Config:
    foreign = False
    try:
        return read_workdir_config(asked.workdir)
    except UsageError as e:
        with contextlib.suppress(EmoError):
            foreign = is_hugging_face(asked.workdir)
        if foreign:
            raise UsageError(
                f"{asked}: a Hugging Face folder, not a workdir; make one of it with emo import"
                f" {asked.workdir} --workdir WORKDIR, and give that with --init weights"
            ) from e
        raise


def read_record(workdir: Path) -> dict[str, Any] | None:
    """Returns the contents of init.json; None if the run did not start from another."""
    path = workdir / INIT_FILE
    check_own_files(workdir, [INIT_FILE], error=UsageError)
    try:
        if not path.exists():
            return None
        record = parse(read_regular(path))
        fields = Fields(record)
        texts = {name: fields.text(name) for name in ("workdir", "name", "mode")}
        return {**record, **texts, "step": fields.integer("step")}
    except (OSError, NotReadableError) as e:
        raise UsageError(
            f"{path}: cannot be read as what a run began from: {one_line(e)}; restore the file"
        ) from e


def check_same_source(asked: InitFrom, record: dict[str, Any] | None, workdir: Path) -> None:
    """Refuses to resume a run that started differently.

    Raises:
      UsageError: names both sources.
    """
    if record is None:
        raise UsageError(
            f"{workdir} holds a run that did not begin with --init-from; leave it out to go on"
            " with that run, or give another workdir"
        )
    if not _same(asked, record):
        raise UsageError(
            f"{workdir} holds a run that began from {described(record)}, not with {asked} --init"
            f" {asked.mode}; give another workdir"
        )


def described(record: dict[str, Any]) -> str:
    """Returns a short description of a source."""
    return f"{record['workdir']}@{record['step']} ({record['mode']})"


def _same(asked: InitFrom, record: dict[str, Any]) -> bool:
    if asked.mode != record["mode"] or asked.step not in (None, record["step"]):
        return False
    if str(asked.workdir) == record["workdir"]:
        return True
    try:  # it may have moved
        theirs = read_workdir_config(asked.workdir)
    except UsageError:
        return False
    return theirs.name == record["name"] and config_digest(theirs) == record.get("config_sha256")


# --- what may differ -----------------------------------------------------------------------------


def expects(config: Config, name: str) -> bool:
    """Whether the config lists a field, or a section that contains it, as one that may differ."""
    return any(name == e or name.startswith(f"{e}.") for e in config.init.expected_changes)


def counted_differences(config: Config, theirs: Config, mode: str) -> list[str]:
    """Returns `field: theirs -> ours` for the fields that matter to init mode `mode`."""

    def counts(line: str) -> bool:
        when = may_change(line.partition(":")[0])
        return when not in ("resume", "init") and (when, mode) != ("weights", "weights")

    return [line for line in differences(config, theirs) if counts(line)]


def unexpected_differences(config: Config, theirs: Config, mode: str) -> list[str]:
    """Returns the differences that `init.expected_changes` does not list."""
    lines = counted_differences(config, theirs, mode)
    return [line for line in lines if not expects(config, line.partition(":")[0])]


def _check_differences(asked: InitFrom, config: Config, theirs: Config) -> list[str]:
    found = unexpected_differences(config, theirs, asked.mode)
    if found:
        names = [*config.init.expected_changes, *(line.partition(":")[0] for line in found)]
        more = f"; and {len(found) - 8} more" if len(found) > 8 else ""
        raise UsageError(
            f"{asked}: its config differs from this one's in what is not expected"
            f" ({'; '.join(found[:8])}{more}); if it is meant, name it in the experiment file's"
            f" init.expected_changes, or give --config.init.expected_changes={','.join(names)}"
        )
    return counted_differences(config, theirs, asked.mode)


def _check_shapes(
    asked: InitFrom, step: int, config: Config, theirs: Config, wanted: dict[LeafPath, Any]
) -> None:
    folder = checkpoints_of(asked.workdir) / str(step)
    below: LeafPath = ("params",) if asked.mode == "weights" else ()
    try:
        compare(folder, read_manifest(folder), wanted, below)
    except CheckpointError as e:
        shapes = ("model", "moe", "optimizer")
        lines = [x for x in differences(config, theirs) if x.startswith(shapes)]
        differs = f"its config differs in what shapes depend on ({'; '.join(lines[:5])}); "
        raise UsageError(f"{asked}: {differs if lines else ''}{e}") from e


def _check_steps(asked: InitFrom, config: Config, step: int, window: int) -> None:
    """Refuses weights by step where another batch size has moved steps away from windows."""
    size = config.train.batch_size
    if window != step * size and any(one.from_step > step for one in config.data.sources):
        raise UsageError(
            f"{asked} --init all goes on at window {window}, which is not where step {step} begins"
            f" with config.train.batch_size = {size}, so config.data.sources cannot change by step"
            " (from_step); keep the batch size, or give --init weights+optimizer"
        )


def _check_data(
    asked: InitFrom, extra: dict[str, Any], source: TokenSource, windows: RunWindows
) -> None:
    meant = "if it is meant, give --config.init.expected_changes with data.store among its names"
    if isinstance(source, TokenStore | MixedSource):
        try:
            source.check_tokenizer_in(asked.workdir / TOKENIZER_FOLDER)
        except DataError as e:
            raise UsageError(f"{asked} has a tokenizer of its own; {e}; {meant}") from e
    ours = windows.fingerprint_at(windows_of(extra, str(asked)))
    theirs = extra.get("store", ours)
    if asked.mode == "all" and theirs != ours:
        differs = "config.data.store is another store"
        if windows.mixture is not None:
            differs = "config.data.sources (stores, weights, in their order) read another past"
        raise UsageError(
            f"{asked} --init all goes on with its data, and {differs}"
            f" ({ours[:12]} is not {theirs[:12]}); {meant}"
        )
