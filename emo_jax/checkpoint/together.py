"""Processes that save together: where one fails, the others know within a second or two.

orbax's processes meet at barriers when they have written. One that has failed does not come, and
the others would wait for the whole time-out. Here it says so, and the others stop waiting.
"""

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp

from emo_jax.checkpoint.peers import Peers
from emo_jax.errors import one_line
from emo_jax.parallel import private

_LOOK = 0.5  # seconds between looks at what others say
_LONGEST = 300  # characters of an error


class OtherFailedError(Exception):
    """Another process could not write its part.

    Attributes:
      index: of that process.
    """

    def __init__(self, index: int, text: str):
        super().__init__(text)
        self.index = index


class Meeting:
    """One save of all processes; does nothing for a single one.

    Args:
      name: of the save: the same on all processes, and of no other save.
      peers: who saves.
    """

    def __init__(self, name: str, peers: Peers):
        self._folder = f"emo_jax/saves/{name}"
        self._client = private.coordination_client() if peers.count > 1 else None

    def barrier(self) -> Callable[..., None] | None:
        """Returns orbax's barrier, left with OtherFailedError once another process has failed."""
        if self._client is None:
            return None
        meet = ocp.multihost.get_barrier_sync_fn()

        def wait(*, key: str, timeout_ms: int) -> None:
            ended: list[BaseException | None] = []
            done = threading.Event()

            def run() -> None:
                try:
                    meet(key=key, timeout_ms=timeout_ms)
                    ended.append(None)
                except BaseException as error:
                    ended.append(error)
                done.set()

            # A thread of its own, which may be left behind: a barrier cannot be called off.
            threading.Thread(target=run, name="save-barrier", daemon=True).start()
            while not done.wait(_LOOK):
                self._look()
            if ended[0] is not None:
                raise ended[0]

        return wait

    def fail(self, error: BaseException) -> None:
        """Tells the others that this process has failed, unless one of them told it."""
        if self._client is not None and not isinstance(error, OtherFailedError):
            text = one_line(error)[:_LONGEST]
            with contextlib.suppress(Exception):
                self._client.key_value_set(f"{self._folder}/{jax.process_index()}", text)

    def _look(self) -> None:
        for name, text in _said(self._client, self._folder):
            index = int(name.rpartition("/")[2])
            if index != jax.process_index():
                raise OtherFailedError(index, text)


def _said(client: Any, folder: str) -> list[tuple[str, str]]:
    try:
        return client.key_value_dir_get(folder)
    except Exception:  # the coordinator is away, which ends the run elsewhere
        return []
