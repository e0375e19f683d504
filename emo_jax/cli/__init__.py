"""The command `emo`. Each subcommand is a thin call into a package, imported when it is run."""

from emo_jax.cli import analysis, checks, compiling, data, evaluation, folders, modules, training  # noqa: F401  (they add their commands)
from emo_jax.cli.app import cli, main

__all__ = ["cli", "main"]
