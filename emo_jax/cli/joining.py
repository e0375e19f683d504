"""Options of commands that several processes can share."""

from collections.abc import Callable
from typing import Any

import click

from emo_jax.cli.app import Number

_OPTIONS = (
    click.option(
        "--processes",
        type=click.IntRange(min=1),
        envvar="EMO_PROCESSES",
        help="How many processes share the run, where no scheduler says so (Slurm, Open MPI,"
        " Kubernetes, TPU pods do). [env: EMO_PROCESSES]",
    ),
    click.option(
        "--process-index",
        type=click.IntRange(min=0),
        envvar="EMO_PROCESS_INDEX",
        help="Which of them this one is, from 0. [env: EMO_PROCESS_INDEX]",
    ),
    click.option(
        "--coordinator",
        metavar="HOST:PORT",
        envvar="EMO_COORDINATOR",
        help="Where process 0 is, and a free port there. [env: EMO_COORDINATOR]",
    ),
    click.option(
        "--join-timeout",
        metavar="SECONDS",
        type=Number(min=1),
        default=300,
        show_default=True,
        envvar="EMO_JOIN_TIMEOUT",
        help="How long the processes wait for each other at the start. [env: EMO_JOIN_TIMEOUT]",
    ),
    click.option(
        "--silence-timeout",
        metavar="SECONDS",
        type=Number(min=1),
        default=60,
        show_default=True,
        envvar="EMO_SILENCE_TIMEOUT",
        help="A process that gives no sign of life for so long is lost, and the others end; one"
        " that dies is noticed at once. [env: EMO_SILENCE_TIMEOUT]",
    ),
)


def PROCESSES(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the options of `emo_jax.parallel.processes.joined`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
