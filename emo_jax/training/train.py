"""`emo_jax.train`: takes a config and a folder, and returns the trained state."""

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

    The state and the logs are written to the workdir: `emo_jax.load(workdir)` loads the trained
    model. SIGTERM and SIGINT end training after the current step, with the state saved.

    Args:
      config: a config from `emo_jax.load_config`; or an `ml_collections.ConfigDict` or a dict,
        which is checked first.
      workdir: a new or empty folder, or that of an existing run with this config.
      init_from: checkpoint of another run to start from, as `WORKDIR` (the newest) or
        `WORKDIR@STEP`; not read again once this run has a checkpoint. None: new parameters.
      init: what to take from it: "weights" (parameters only), "weights+optimizer" (also Adam's
        moments), or "all" (also the step and the position in the data). With the first two,
        training starts at step 0.
      stop: a stop request that already handles signals; None: `train` handles them itself.
      quiet: show no progress.

    Returns:
      The final state; its `params` are on the devices, sharded over the config's mesh.

    Raises:
      ConfigError: a field of `config` is unknown or has a value that is not allowed.
      UsageError: no such store, `workdir` is in use or belongs to another run, `init` is unknown,
        or `init_from` does not fit `config`.
      DataError: the store is damaged.
      CheckpointError: there is no checkpoint to start from, or it is damaged.
      PreemptedError: a signal stopped the run; its state is saved, and the same call continues it.
      EmoError: the loss or the gradient norm is not finite.
    """
    if not isinstance(config, Config):
        config = from_config_dict(config)
    asked = None if init_from is None else InitFrom.parse(os.fspath(init_from), init)
    return Trainer(config, os.fspath(workdir), init_from=asked, stop=stop, quiet=quiet).run()
