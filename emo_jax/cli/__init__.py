"""The command `emo`. Each subcommand is a thin call into a package, imported when it is run."""

from emo_jax.cli import (  # noqa: F401  (they add their commands)
    analysis,
    branching,
    checks,
    compiling,
    data,
    dedup,
    evaluation,
    folders,
    inspect,
    modules,
    removing,
    status,
    task_data,
    tasks,
    training,
    upcycling,
)
from emo_jax.cli.app import cli, main

__all__ = ["cli", "main"]
