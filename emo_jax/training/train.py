"""`emo_jax.train`: a config and a folder in, a trained state out."""

import os
from collections.abc import Mapping
from typing import Any

from emo_jax.config import Config, from_config_dict
from emo_jax.training.init_from import InitFrom
from emo_jax.training.loop import Trainer
from emo_jax.training.state import TrainState
from emo_jax.training.stop import StopRequest


def train(
    config: Config | Mapping[str, Any],
    workdir: str | os.PathLike[str],
    *,
    init_from: str | os.PathLike[str] | None = None,
    init: str = "all",
    stop: StopRequest | None = None,
    quiet: bool = True,
) -> TrainState:
    """Trains to `config.train.steps`, or continues the run in `workdir`.

    The state and everything that was logged are in the workdir: `emo_jax.load(workdir)` is the
    trained model. While it runs, SIGTERM and SIGINT save the state.

    Args:
      config: of `emo_jax.load_config`; an `ml_collections.ConfigDict` or a dict is checked first.
      workdir: a new or empty folder, or one of a run with this config.
      init_from: `WORKDIR` or `WORKDIR@STEP`, a checkpoint of another run to begin from; not read
        again once this run has a checkpoint.
      init: what is taken over from it: "weights" (parameters alone), "weights+optimizer" (Adam's
        moments too; both begin at step 0), or "all" (step and place in the data, too).
      stop: a request to stop that the caller watches already.
      quiet: show no progress.

    Returns:
      The final state: its `params` are on the devices, as the config's mesh shards them.

    Raises:
      ConfigError, UsageError, DataError: before anything is started.
      PreemptedError: stopped by a signal, with the state saved: the same call continues.
    """
    if not isinstance(config, Config):
        config = from_config_dict(config)
    asked = None if init_from is None else InitFrom.parse(os.fspath(init_from), init)
    return Trainer(config, os.fspath(workdir), init_from=asked, stop=stop, quiet=quiet).run()
