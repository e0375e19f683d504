"""Starts one command as several processes on this machine, as a cluster would.

Each process gets its own CPU devices; they communicate through real collectives (gloo):

  python launch/local.py --processes 4 --devices-per-process 2 -- \\
    emo train --config experiments/emo_tiny.py --config.data.store=store --workdir runs/tiny

Any command works if, like emo train, it reads EMO_PROCESSES, EMO_PROCESS_INDEX and EMO_COORDINATOR.
"""

import contextlib
import ctypes
import os
import queue
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO

import click
from launching import COMMAND, DRY_RUN, command

from emo_jax.errors import EXIT_RUN_AGAIN

SETTLE = 10.0  # seconds for processes that end together, or notice a failure by themselves
TIMED_OUT = 124
_PR_SET_PDEATHSIG = 1  # of Linux
_DEVICES = "--xla_force_host_platform_device_count"


class Group:
    """The processes of one command; `run` returns the exit code for all of them."""

    def __init__(self, kill_after: float, timeout: float | None):
        self._kill_after, self._timeout = kill_after, timeout
        self._processes: list[subprocess.Popen] = []
        self._ended: queue.Queue[tuple[int, int]] = queue.Queue()
        self._readers: list[threading.Thread] = []
        self._stopping = False  # by us, not by a forwarded signal

    def start(self, command: Sequence[str], processes: int, devices: int) -> None:
        """Starts all processes; raises click.UsageError if the command cannot be started."""
        address, token = f"127.0.0.1:{free_port()}", secrets.token_hex(32)
        for index in range(processes):
            env = {"EMO_TOKEN": token} | environment(processes, index, address, devices)
            try:
                process = subprocess.Popen(
                    command,
                    env=env,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C reaches them only once, from here
                    preexec_fn=_die_with(os.getpid()),  # there are no threads yet
                )
            except OSError as e:
                self._signal(signal.SIGKILL)
                raise click.UsageError(f"{command[0]}: cannot be started: {e.strerror}") from e
            self._processes.append(process)
        for index, process in enumerate(self._processes):
            for source, sink in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                assert source is not None
                reader = threading.Thread(target=_pass_on, args=(index, source, sink), daemon=True)
                reader.start()
                self._readers.append(reader)
            threading.Thread(target=self._await, args=(index,), daemon=True).start()

    def pass_on(self, number: int, frame: object) -> None:
        """Signal handler: forwards the signal to all processes."""
        say(f"{signal.Signals(number).name} goes to all processes")
        self._signal(number)

    def run(self) -> int:
        """Waits for all processes; if one fails, stops the others."""
        give_up = time.monotonic() + self._timeout if self._timeout else None
        failed: list[int] = []  # statuses of those that we did not stop, in chronological order
        stop_at = kill_at = None
        timed_out = False
        for _ in self._processes:
            while True:
                now = time.monotonic()
                if give_up is not None and now >= give_up and not timed_out:
                    say(f"not done within {self._timeout:.0f} s; the processes are stopped")
                    timed_out, stop_at = True, now
                if stop_at is not None and now >= stop_at:
                    stop_at, kill_at = None, now + self._kill_after
                    self._stop(signal.SIGTERM)
                if kill_at is not None and now >= kill_at:
                    kill_at = None
                    self._stop(signal.SIGKILL)
                with contextlib.suppress(queue.Empty):
                    index, status = self._ended.get(timeout=0.1)
                    break
            if status == 0 or self._stopping:
                continue
            say(f"process {index} {described(status)}")
            if not failed:
                stop_at = time.monotonic() + SETTLE
            failed.append(status)
        for reader in self._readers:
            reader.join(timeout=5)
        if timed_out:
            return TIMED_OUT
        return exit_code(failed)

    def _await(self, index: int) -> None:
        self._ended.put((index, self._processes[index].wait()))

    def _stop(self, number: int) -> None:
        left = [i for i, p in enumerate(self._processes) if p.poll() is None]
        if left:
            self._stopping = True
            names = ", ".join(map(str, left))
            say(f"{signal.Signals(number).name} to process{'es' * (len(left) > 1)} {names}")
            self._signal(number)

    def _signal(self, number: int) -> None:
        for process in self._processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)


def _die_with(launcher: int) -> Callable[[], None] | None:
    """What a new process calls to be killed when the launcher is, even by SIGKILL: Linux only."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != launcher:  # it is gone already
            os._exit(1)

    return ask


def free_port() -> int:
    """A free port on this machine."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(processes: int, index: int, address: str, devices: int) -> dict[str, str]:
    """Environment of one process. XLA_FLAGS is kept, except for the number of CPU devices."""
    flags = re.sub(rf"{_DEVICES}=\S*", "", os.environ.get("XLA_FLAGS", ""))
    return {
        "JAX_PLATFORMS": "cpu",
        "PYTHONUNBUFFERED": "1",
        **os.environ,
        "XLA_FLAGS": " ".join([*flags.split(), f"{_DEVICES}={devices}"]),
        "EMO_PROCESSES": str(processes),
        "EMO_PROCESS_INDEX": str(index),
        "EMO_COORDINATOR": address,
    }


def exit_code(failed: Sequence[int]) -> int:
    """The overall exit code, from the statuses of failed processes in chronological order.

    A process killed by a signal takes precedence: the others may notice and end while the kernel is
    still cleaning it up.
    """
    if killed := [status for status in failed if status < 0]:
        return 128 - killed[0]
    return next((code for code in failed if code != EXIT_RUN_AGAIN), failed[0] if failed else 0)


def described(status: int) -> str:
    """Describes how a process ended."""
    if status < 0:
        return f"was ended by {signal.Signals(-status).name} (exit code {128 - status})"
    return f"ended with exit code {status}"


def say(text: str) -> None:
    """Prints a line from the launcher itself."""
    _write(sys.stderr, f"launch: {text}\n")


def _write(sink: IO[str], text: str) -> None:
    """Writes to `sink`; if its reader is gone, discards output so that processes do not block."""
    try:
        sink.write(text)
        sink.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sink.fileno())


def _pass_on(index: int, source: IO[bytes], sink: IO[str]) -> None:
    for line in source:
        _write(sink, f"[{index}] {line.decode(errors='replace').rstrip()}\n")


def script(words: Sequence[str], processes: int, devices: int) -> str:
    """The processes as lines of a shell script: each with the variables that are its own."""
    address = f"127.0.0.1:{free_port()}"
    lines = []
    for index in range(processes):
        env = environment(processes, index, address, devices)
        changed = [f"{name}={env[name]}" for name in env if env[name] != os.environ.get(name)]
        lines.append(f"{shlex.join(['env', *changed, *words])} &")
    return "\n".join([*lines, "wait", ""])


@command(
    "python launch/local.py --processes 2 --devices-per-process 4 -- emo train"
    " --config experiments/emo_tiny.py --config.data.store=store --workdir runs/tiny"
)
@click.option("--processes", type=click.IntRange(min=1), required=True, help="How many.")
@click.option(
    "--devices-per-process",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="CPU devices of each.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Stop all after this time, with exit code 124. No limit, if not given.",
)
@click.option(
    "--kill-after",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    default=30,
    show_default=True,
    help="From SIGTERM to SIGKILL, for processes that are stopped.",
)
@DRY_RUN
@COMMAND
def main(
    processes: int,
    devices_per_process: int,
    timeout: float | None,
    kill_after: float,
    dry_run: bool,
    command: tuple[str, ...],
) -> None:
    """Start COMMAND as several processes on this machine.

    Each line of output begins with the index of its process. SIGTERM, SIGINT and SIGHUP are
    forwarded. When a process fails, the others have 10 seconds to end, and are then stopped. If the
    launcher is killed, so are they (on Linux).

    Exit codes: 0 if all ended with 0; 75 (state saved, run again) if all that failed ended with 75;
    otherwise 128 + signal if a signal killed one, or the code of the first that failed; 124 after
    --timeout.
    """
    if dry_run:
        click.echo(script(command, processes, devices_per_process), nl=False)
        return
    group = Group(kill_after, timeout)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets SIGHUP
            signal.signal(number, group.pass_on)
    group.start(command, processes, devices_per_process)
    sys.exit(group.run())


if __name__ == "__main__":
    main()
