"""Measures the speed of a run."""

import time

import jax

from emo_jax.config import Config
from emo_jax.training import flops


class Clock:
    """Tokens per second and MFU between two logged steps, without the first (compiling) step."""

    def __init__(self, config: Config):
        self._config = config
        self._tokens = config.train.batch_size * config.data.seq_len
        self._mark: tuple[int, float] | None = None

    def restart(self, step: int) -> None:
        """Discards the time so far, because something other than training ran."""
        self._mark = (step, time.perf_counter())

    def speed(self, step: int, *, early: bool = False) -> dict[str, float | None]:
        """Returns the speed since the last call; empty on the first and for a step logged early."""
        now, mark = time.perf_counter(), self._mark
        if early and mark is not None and step - mark[0] < 2:
            return {}  # the previous step was logged late: the time between means nothing
        self._mark = (step, now)
        if mark is None or step <= mark[0]:
            return {}
        tokens_per_second = (step - mark[0]) * self._tokens / (now - mark[1])
        return {
            "tokens_per_second": round(tokens_per_second, 1),
            "mfu": flops.mfu(self._config, tokens_per_second, jax.devices()),
        }
