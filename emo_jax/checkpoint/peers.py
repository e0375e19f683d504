"""Which processes save and restore together: all of a run, or each one alone on its own disk."""

from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp

from emo_jax.errors import EmoError
from emo_jax.parallel import processes
from emo_jax.run.workdir import all_succeed


class Peers:
    """All processes of the run, which share a file system."""

    @property
    def index(self) -> int:
        """Of this process among them."""
        return jax.process_index()

    @property
    def count(self) -> int:
        """How many there are."""
        return jax.process_count()

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all, see `processes.gather`."""
        return processes.gather(value)

    def all_succeed(self, action: Callable[[], None], kind: type[EmoError]) -> None:
        """Raises on all if `action` fails on any, see `workdir.all_succeed`."""
        all_succeed(action, kind)

    def options(self, name: str) -> ocp.options.MultiprocessingOptions:
        """Returns what orbax is to know of a save of this name."""
        return ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=name)


class Alone(Peers):
    """This process alone, whatever others do."""

    index, count = 0, 1

    def gather(self, value: Any) -> list[Any]:
        """Returns the value."""
        return [value]

    def all_succeed(self, action: Callable[[], None], kind: type[EmoError]) -> None:
        """Runs the action."""
        action()

    def options(self, name: str) -> ocp.options.MultiprocessingOptions:
        """Returns what orbax is to know of a save of this name."""
        ours = jax.process_index()
        return ocp.options.MultiprocessingOptions(
            primary_host=ours,
            active_processes={ours},
            barrier_sync_key_prefix=f"{name}.of{ours}",
        )


TOGETHER, ALONE = Peers(), Alone()
