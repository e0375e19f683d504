"""What the launchers share: how each shows its example, and how it runs commands or shows them.

With `--dry-run` a launcher prints, as a shell script, exactly what it would run; `| bash` runs it.
"""

import re
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import click
import yaml

_END = "END_OF_INPUT"


class Command(click.Command):
    """A command whose `epilog` is an example, shown as it is typed."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the example below the options."""
        formatter.write(f"\nExample:\n  {self.epilog}\n")


def command(example: str, **settings: Any) -> Any:
    """Decorator: a launcher; `example` is shown by --help."""
    names = {"help_option_names": ["-h", "--help"]}
    return click.command(cls=Command, epilog=example, context_settings=names, **settings)


class _JobName(click.ParamType):
    name = "text"

    def convert(self, value, param, ctx) -> str:
        """A name that Kubernetes accepts, with room for what it appends."""
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", value):
            self.fail(
                f"{value!r}: must be 1 to 40 of a-z, 0-9 and -, and begin with a letter", param, ctx
            )
        return value


DRY_RUN = click.option("--dry-run", is_flag=True, help="Print what would be run, as a script.")
COMMAND = click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
NAME = click.option(
    "--name", type=_JobName(), default="emo", show_default=True, help="Name of the job."
)
MAX_FAILURES = click.option(
    "--max-failures",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="How often the job starts again after a failure. Exit code 75 (state saved) does not"
    " count; 2 (bad usage) ends the job at once.",
)


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as such."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def as_yaml(value: Any) -> str:
    """A document of YAML."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=1000)


@dataclass(frozen=True)
class Call:
    """One command to run.

    Args:
      argv: the command.
      text: its standard input; None: it has none.
    """

    argv: Sequence[str]
    text: str | None = None

    def script(self) -> str:
        """The command as lines of a shell script."""
        line = shlex.join(self.argv)
        if self.text is None:
            return f"{line}\n"
        if _END in self.text.splitlines():
            raise click.UsageError(f"a line {_END} is in the command; it ends the script")
        return f"{line} <<'{_END}'\n{self.text}{_END}\n"


def carry_out(calls: Iterable[Call], *, dry_run: bool) -> None:
    """Runs commands one after the other, or prints them.

    Raises:
      click.ClickException: one cannot be started, or fails.
    """
    for call in calls:
        if dry_run:
            click.echo(call.script(), nl=False)
            continue
        if code := run(call):
            raise click.ClickException(f"{call.argv[0]} failed with exit code {code}")


def run(call: Call, **settings: Any) -> int:
    """Runs a command; returns its exit code.

    Raises:
      click.ClickException: it cannot be started.
    """
    settings |= {"stdin": subprocess.DEVNULL} if call.text is None else {"input": call.text}
    try:
        return subprocess.run(call.argv, text=True, check=False, **settings).returncode
    except OSError as e:
        raise click.ClickException(
            f"{call.argv[0]}: cannot be started: {e.strerror}; install it, or see --dry-run"
        ) from e
