"""The command `emo`: its group, its exit codes, and errors as one line."""

import contextlib
import gc
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import absl.logging  # before anything asks for the logger "absl", which would be another one
import click

from emo_jax import __version__
from emo_jax.cli import streams
from emo_jax.config.names import MOE_LAYOUT_NAMES
from emo_jax.errors import (
    EXIT_FAILED,
    EXIT_USAGE,
    EmoError,
    OutputClosedError,
    PreemptedError,
    UsageError,
    escaped,
    one_line,
    without_secrets,
)
from emo_jax.files import compile_cache
from emo_jax.parallel import libtpu

if TYPE_CHECKING:
    from rich.console import Console

_LARGEST = 3.4e38  # of a float32
_WIDTH = 240  # where the output is no terminal


class Command(click.Command):
    """Shows its example as typed, unwrapped."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the example below the options."""
        if self.epilog:
            formatter.write("\nExample:\n")
            for line in self.epilog.splitlines():
                formatter.write(f"  {line}\n")


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="emo")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Pretrain modular mixture-of-experts language models (EMO) and use their modules.

    Exit codes: 0 finished, 1 failed, 2 bad usage, 75 state saved: run again.
    """


def command(example: str, **settings: Any) -> Callable:
    """Decorator: a subcommand of `emo`; `example` is shown by --help and can be typed."""
    return cli.command(cls=Command, epilog=example, **settings)


MOE_LAYOUT = click.option(
    "--layout",
    type=click.Choice(MOE_LAYOUT_NAMES),
    default=None,
    help="What stock transformers loads, if not given: mixtral or glm4_moe where they fit, else"
    " qwen2_moe; emo has the released checkpoints' names.",
)
TRUST = click.option(
    "--trust",
    is_flag=True,
    help="Import and call the code that a file beside the tokens or the model names as its"
    " vocabulary, where there is one: any code that this Python can import.",
)


class Items(click.ParamType):
    """Items with commas between."""

    name = "text"

    def __init__(self, metavar: str):
        self._metavar = metavar

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Shown by --help."""
        return self._metavar

    def convert(self, value, param, ctx) -> tuple[str, ...]:
        """The items; of `a,,b` too."""
        if isinstance(value, tuple):
            return value
        return tuple(part.strip() for part in str(value).split(",") if part.strip())


class Number(click.FloatRange):
    """A number in a range, as float32 has it: NaN is in every range of click's own."""

    def convert(self, value, param, ctx) -> float:
        """The number."""
        found = super().convert(value, param, ctx)
        if not abs(found) <= _LARGEST:
            self.fail(f"{value} is no finite number", param, ctx)
        return found


def refuse_unwritable(option: str, file: Path) -> None:
    """Raises UsageError where a file cannot be made, or is there already."""
    if not file.parent.is_dir():
        raise UsageError(f"{option} {file}: no such folder {file.parent}; make it first")
    if file.is_dir():
        raise UsageError(f"{option} {file}: is a folder; give a file")
    if file.exists():
        raise UsageError(f"{option} {file}: is there already; give a new file")
    if not os.access(file.parent, os.W_OK):
        raise UsageError(f"{option} {file}: cannot be written; give a file in another folder")


def console() -> "Console":
    """Returns where tables go; in a file no line is broken."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)


def main(argv: list[str] | None = None) -> None:
    """Runs the command and exits with its code; errors are one line without `--debug`."""
    streams.protect()
    # Importing and tracing make millions of objects that stay. By default Python looks through all
    # of them again and again, a tenth of the time to a run's second step.
    gc.set_threshold(50_000, 20, 20)
    argv = sys.argv[1:] if argv is None else argv
    # --debug is accepted anywhere.
    debug = "--debug" in argv
    argv = [a for a in argv if a != "--debug"]
    logging.basicConfig(format="emo: %(message)s", level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_OneLine("emo: %(message)s"))
    absl.logging.get_absl_logger().setLevel(logging.WARNING)
    if not debug:
        _drop_afterwords()
    compile_cache.enable()
    libtpu.silence_without_tpus()
    # Before jax is imported. Every dtype is ours or the config's: 64 bits change only how sums are
    # rounded, and a run would not go on with the same bits.
    os.environ["JAX_ENABLE_X64"] = "0"
    code = _run(argv, debug)
    with contextlib.suppress(EmoError):  # it was said, or nobody reads it
        sys.stdout.flush()
    sys.exit(code)


class _OneLine(logging.Formatter):
    """A message as `escaped` has it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Without the traceback, where there is one."""
        return escaped(super().formatMessage(record))


def _drop_afterwords() -> None:
    """Keeps asyncio and tensorstore from printing tracebacks of writes that failed.

    The failure itself reaches `_run`; these come once more for each file that was under way.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    show = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = hook


def _run(argv: list[str], debug: bool) -> int:
    try:
        code = cli(argv or ["--help"], prog_name="emo", standalone_mode=False)
        sys.stdout.flush()
        return code if type(code) is int else 0  # of ctx.exit
    except OutputClosedError as e:
        return e.exit_code
    except click.exceptions.Exit as e:
        return e.exit_code
    except click.ClickException as e:
        where = e.ctx.command_path if isinstance(e, click.UsageError) and e.ctx else "emo"
        text = " ".join(e.format_message().split()).rstrip(".")
        return _fail(f"{text} (see {where} --help)", EXIT_USAGE, debug)
    except PreemptedError as e:
        return _fail(str(e), e.exit_code, debug=False)
    except EmoError as e:
        return _fail(str(e), e.exit_code, debug)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", 130, debug)
    except OSError as e:
        if e.filename is None or e.strerror is None:
            return _fail_unforeseen(e, debug)
        where = os.fsdecode(e.filename) if isinstance(e.filename, bytes) else e.filename
        said = f"{where}: {e.strerror}; mend that, or give another (--debug shows where it failed)"
        return _fail(said, EXIT_FAILED, debug)
    except MemoryError as e:
        return _fail(_out_of_memory(e), EXIT_FAILED, debug)
    except Exception as e:
        if "RESOURCE_EXHAUSTED" in str(e):  # of XLA
            return _fail(_out_of_memory(e), EXIT_FAILED, debug)
        return _fail_unforeseen(e, debug)


def _out_of_memory(error: Exception) -> str:
    return (
        f"out of memory: {one_line(error)}; ask for less at once (a smaller batch, window or"
        " model), or use a larger machine"
    )


def _fail_unforeseen(e: Exception, debug: bool) -> int:
    text = " ".join(str(e).split())[:500]
    return _fail(
        f"{type(e).__name__}: {text} (run again with --debug for the traceback)",
        EXIT_FAILED,
        debug,
    )


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        click.echo(without_secrets(traceback.format_exc()), err=True, nl=False)
    click.echo(f"emo: {escaped(message)}", err=True)
    return code
