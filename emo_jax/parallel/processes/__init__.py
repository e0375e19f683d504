"""Starting a run of several processes, and ending it when one of them fails.

`joined` is entered once, before any device is touched: the processes meet (`roster.py`), compare
what they run, and start `jax.distributed`. A single process starts nothing.
"""

import atexit
import contextlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Iterator
from typing import Any

import emo_jax
from emo_jax.errors import EXIT_FAILED, EmoError, UsageError
from emo_jax.parallel.processes.ending import Ending
from emo_jax.parallel.processes.meeting import Secret
from emo_jax.parallel.processes.place import Place, find_place
from emo_jax.parallel.processes.pulse import Pulse
from emo_jax.parallel.processes.relay import Relay
from emo_jax.parallel.processes.roster import Roster
from emo_jax.parallel.processes.slices import refuse_stale_slices
from emo_jax.parallel.processes.stall import WriteStacks
from emo_jax.parallel.processes.words import Facts

JOIN_TIMEOUT = 300.0  # seconds
SILENCE_TIMEOUT = 60.0
TOKEN_VARIABLE = "EMO_TOKEN"
_ANY = ("", "::", "0.0.0.0")  # listening there is listening at all addresses

_roster: Roster | None = None  # this process's roster, while it is one of several
pulse = Pulse()  # what this process does; its heartbeats say it
ending = Ending()  # of this process, if it gets stuck or another one is lost


@contextlib.contextmanager
def joined(
    count: int | None = None,
    index: int | None = None,
    coordinator: str | None = None,
    *,
    facts: Facts | None = None,
    join_timeout: float = JOIN_TIMEOUT,
    silence_timeout: float = SILENCE_TIMEOUT,
    stopped: Callable[[], bool] = lambda: False,
    token: Callable[[int], str | None] = lambda index: "",
) -> Iterator[None]:
    """Context in which this process is one of the processes of a run.

    Args:
      count, index, coordinator: explicit values; the scheduler supplies the rest (`place.py`).
      facts: what must be equal on all processes, besides the versions: JSON values.
      join_timeout: seconds to wait for all others.
      silence_timeout: seconds without a heartbeat after which a process counts as lost.
      stopped: whether to give up waiting for the others.
      token: given this process's index, returns what only the processes of this run know; None if
        it is not there yet. The environment variable EMO_TOKEN goes before it. With neither,
        whoever reaches the port is taken for one of them.

    Raises:
      UsageError: the processes differ, or their number or addresses are wrong, or the environment
        has TPU slices of another run.
      EmoError: one did not join.
      PreemptedError: stopped while waiting.
    """
    global _roster
    refuse_stale_slices()
    place = find_place(count, index, coordinator)
    if place is None:
        yield
        return
    if _roster is not None:
        raise UsageError("this process has joined a run already")
    _roster = Roster(
        place,
        _versions() | (facts or {}),
        join_timeout=join_timeout,
        silence_timeout=silence_timeout,
        stopped=stopped,
        secret=_secret(place.index, token),
        pulse=pulse,
        ending=ending,
    )
    try:
        _start_jax(place, _roster.bound, join_timeout, silence_timeout)
        devices = _devices()
        compare(devices)
        if devices["platform"] == "cpu":
            _silence_gloo()
        yield
    except BaseException as e:
        leave(e)
        raise
    _roster.leave(0, "", agreed=True)


def _secret(index: int, token: Callable[[int], str | None]) -> Secret:
    if given := os.environ.get(TOKEN_VARIABLE, ""):
        return lambda: given
    return lambda: token(index)


def slow() -> list[tuple[str, int, float]]:
    """Process 0: which processes stood still for some seconds and went on; each time once.

    Returns:
      Name, index and seconds of each.
    """
    return [] if _roster is None else _roster.slow()


def signs() -> dict[int, dict[str, Any]]:
    """Process 0: what each process said last (`Pulse.sign`), by index; empty for a single one."""
    return {} if _roster is None else _roster.signs()


def write_stacks_with(write: WriteStacks | None) -> None:
    """Sets what writes the stacks of this process's threads when the run does not get on."""
    if _roster is not None:
        _roster.stall.write = write


def stalled(limit: float) -> bool:
    """Says that there was no step for `limit` seconds; returns whether there are others to tell.

    All write their stacks, and end with exit code 75 and a line that says who waits for whom.
    """
    if _roster is not None:
        _roster.stalled(limit)
    return _roster is not None


def compare(facts: Facts) -> None:
    """Raises UsageError on all processes if `facts` differ; does nothing for a single process.

    All processes call it, in the same order.
    """
    if _roster is not None:
        _roster.compare(facts)


def gather(value: Any) -> list[Any]:
    """The values of all processes, by index. All processes call it and wait for each other.

    Processes that joined through `joined` use no device for this, unlike JAX's own
    `process_allgather`, which waits for the running step and on CPUs can block it forever.

    Args:
      value: a number, a boolean or None.
    """
    if _roster is not None:
        return _roster.gather(value)
    import jax

    if jax.process_count() == 1:
        return [value]
    import numpy as np
    from jax.experimental import multihost_utils

    # One dtype for any value: processes that run different programs would wait forever.
    return multihost_utils.process_allgather(np.asarray(value or 0, np.int32)).tolist()


def compile_together(function: Any, *args: Any, **kwargs: Any) -> None:
    """Compiles a jitted function for these arguments on all processes before any of them runs it.

    A process that already has the program, from the cache on disk, would wait in its first
    collective, which on CPUs times out after 30 seconds. Does nothing for a single process.
    """
    import jax

    if jax.process_count() > 1:
        function.lower(*args, **kwargs).compile()  # the call that follows finds it in memory
        gather(None)


def leave(error: BaseException | None) -> None:
    """Tells the other processes that this one ends with an error; no-op for a single process.

    Call it before any cleanup that waits for the others.
    """
    if _roster is None or error is None:
        return
    ours = isinstance(error, EmoError | KeyboardInterrupt)
    code = getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else EXIT_FAILED)
    text = " ".join(str(error).split())[:500]
    _roster.leave(code, text if ours and text else f"{type(error).__name__}: {text}", agreed=ours)
    atexit.register(_exit_now, code)


def _exit_now(code: int) -> None:
    """Exits without JAX's final barrier, which would wait for processes that are gone."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def _start_jax(
    place: Place, bound: tuple[str, int], join_timeout: float, silence_timeout: float
) -> None:
    import jax

    host, port = place.address
    # Traffic between the processes must bypass proxies; JAX only warns about them.
    for name in ("no_grpc_proxy", "NO_GRPC_PROXY"):
        others = [os.environ[name]] if os.environ.get(name) else []
        local = [bound[0]] if bound[0] else []
        os.environ[name] = ",".join([*others, host, *local, "127.0.0.1", "localhost"])
    jax.config.update("jax_check_proxy_envs", False)
    # The preemption service catches SIGTERM, which then no longer reaches `StopRequest`.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if place.index == 0:
        address = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        bind = f"{address}:{port}" if address else f"[::]:{port}"
        here = bind if address and bound[0] not in _ANY else f"127.0.0.1:{port}"
    else:
        here, bind = f"127.0.0.1:{Relay(place.address, join_timeout).port}", None
    try:
        jax.distributed.initialize(
            here,
            place.count,
            place.index,
            local_device_ids=place.local_devices,
            cluster_detection_method="deactivate",
            coordinator_bind_address=bind,
            initialization_timeout=max(1, int(join_timeout)),
            # Long enough that the roster reports first.
            heartbeat_timeout_seconds=max(100, int(3 * silence_timeout)),
        )
    except RuntimeError as e:
        raise EmoError(
            f"process {place.index}: JAX's coordination service at {place.coordinator} cannot be"
            f" used: {' '.join(str(e).split())[:300]}"
        ) from e


def _silence_gloo() -> None:
    """Hides what gloo prints to stdout (peers of each group); Python's own output still appears."""
    sys.stdout.flush()
    ours = os.dup(1)
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.close(sink)
    sys.stdout = os.fdopen(ours, "w", buffering=1, encoding=sys.stdout.encoding, errors="replace")


def _versions() -> Facts:
    found: dict[str, Any] = {"emo_jax": emo_jax.__version__, "python": platform.python_version()}
    for name in ("jax", "jaxlib", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _devices() -> Facts:
    import jax

    local = jax.local_devices()
    kinds = sorted({device.device_kind for device in local})
    return {"platform": local[0].platform, "device kind": kinds, "devices": len(local)}
