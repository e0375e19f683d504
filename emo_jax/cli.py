"""The command `emo`. Each subcommand is a thin call into a package, imported when it is run."""

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import absl.logging  # before anything asks for the logger "absl", which would be another one
import click

from emo_jax import __version__
from emo_jax.errors import EXIT_FAILED, EXIT_USAGE, EmoError, PreemptedError, UsageError


class _Command(click.Command):
    """Shows its example as typed, unwrapped."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
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


def _command(example: str, **settings: Any) -> Callable:
    return cli.command(cls=_Command, epilog=example, **settings)


@_command("emo quickstart")
@click.option(
    "--documents",
    multiple=True,
    metavar="FILE…",
    help="Your own JSONL files or folders of text instead of the sample corpus.",
)
@click.argument("more_documents", nargs=-1, metavar="")
@click.option("--output", default="emo_quickstart", show_default=True, help="Folder to make.")
@click.option(
    "--steps", type=click.IntRange(min=1), default=None, help="Training steps of each model."
)
def quickstart(
    documents: tuple[str, ...], more_documents: tuple[str, ...], output: str, steps: int | None
) -> None:
    """Real documents to two trained models, a keep-k table and a Hugging Face folder."""
    from emo_jax.quickstart import run_quickstart

    if more_documents and not documents:
        raise UsageError(f"{more_documents[0]}: unknown argument; documents come after --documents")
    run_quickstart([*documents, *more_documents], Path(output), steps=steps)


@_command("emo prepare docs.jsonl.zst more_texts/ --output store --tokenizer tokenizer.json")
@click.argument("inputs", nargs=-1, required=True)
@click.option("--output", required=True, help="Folder of the token store to make.")
@click.option(
    "--tokenizer",
    required=True,
    help='A tokenizer.json, a folder that holds one, or "bytes".',
)
@click.option("--text-field", default="text", show_default=True)
@click.option("--id-field", default="id", show_default=True)
@click.option("--domain-field", default="domain", show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the order of documents.")
@click.option("--strict", is_flag=True, help="Fail at the first unusable document.")
def prepare(inputs: tuple[str, ...], output: str, tokenizer: str, **settings: Any) -> None:
    """Tokenise documents into a store with the splits train, select and test."""
    from emo_jax.data.prepare import prepare as run
    from emo_jax.data.tokenizers import load_tokenizer

    run(inputs, output, load_tokenizer(tokenizer), **settings)


@cli.group(no_args_is_help=False)
def tokenizer() -> None:
    """Make tokenizers."""


@tokenizer.command(
    "train", cls=_Command, epilog="emo tokenizer train docs.jsonl --vocab-size 4096 --output tok"
)
@click.argument("inputs", nargs=-1, required=True)
@click.option("--vocab-size", type=int, required=True, help="Entries, special tokens included.")
@click.option("--output", required=True, help="Folder to make.")
@click.option("--text-field", default="text", show_default=True)
def tokenizer_train(inputs: tuple[str, ...], vocab_size: int, output: str, text_field: str) -> None:
    """Train a byte-level BPE tokenizer on documents."""
    from emo_jax.data.documents import ReadReport, read_documents
    from emo_jax.data.progress import Progress
    from emo_jax.data.tokenizers import train_bpe
    from emo_jax.workdir import refuse_existing

    refuse_existing(output)
    report = ReadReport()
    documents = read_documents(list(inputs), text_field=text_field, report=report)
    with Progress("tokenizer") as shown:

        def texts() -> Iterator[str]:
            size = 0
            for document in documents:
                yield document.text
                size += len(document.text)
                if report.documents % 100 == 0:
                    shown.show(f"{report.documents:,} documents, {size / 1e6:,.0f} MB read")
            # Merging many documents takes long and says nothing itself.
            shown.show(f"merging pairs of {size / 1e6:,.0f} MB", always=size > 10_000_000)

        trained = train_bpe(texts(), vocab_size)
    trained.save(output)
    click.echo(report.summary())
    click.echo(f"{output}: {trained.vocab_size} entries, fingerprint {trained.fingerprint[:12]}")


@_command(
    "emo train --config experiments/emo_tiny.py --config.data.store=store --workdir runs/tiny",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.option("--config", required=True, help="Experiment file, with its argument after a colon.")
@click.option("--workdir", required=True, help="Folder of the run; a run that is there goes on.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def train(config: str, workdir: str, overrides: tuple[str, ...]) -> None:
    """Train, or go on training.

    OVERRIDES change the config: --config.model.num_layers=8.
    """
    from emo_jax.configfile import load_config

    loaded = load_config(config, overrides)
    from emo_jax.train.loop import Trainer

    Trainer(loaded, workdir).run()


@_command("emo export runs/tiny --output hf/tiny --layout qwen2_moe")
@click.argument("workdir")
@click.option("--output", required=True, help="Folder to make.")
@click.option(
    "--layout",
    type=click.Choice(["qwen2_moe", "emo"]),
    default="qwen2_moe",
    show_default=True,
    help="qwen2_moe loads in stock transformers; emo has the released checkpoints' names.",
)
@click.option(
    "--step", type=int, default=None, help="Checkpoint; the newest good one if not given."
)
@click.option("--tokenizer", default=None, help="Folder of the tokenizer; the run's if not given.")
def export(workdir: str, output: str, layout: str, step: int | None, tokenizer: str | None) -> None:
    """Write a Hugging Face folder."""
    from emo_jax.transfer import export_workdir
    from emo_jax.workdir import refuse_existing

    refuse_existing(output)  # before a large checkpoint is read
    made = export_workdir(workdir, output, layout=layout, step=step, tokenizer_dir=tokenizer)
    click.echo(f"{made}: layout {layout}")
    if not (made / "tokenizer.json").exists():
        click.echo(
            f"emo: no tokenizer found in {workdir} or its store, so {made} has none;"
            " give --tokenizer FOLDER",
            err=True,
        )


@_command("emo import hf/tiny --workdir runs/imported", name="import")
@click.argument("hf_dir")
@click.option(
    "--workdir",
    required=True,
    help="Folder to make; emo export reads it (training on from it comes later).",
)
def import_(hf_dir: str, workdir: str) -> None:
    """Read a Hugging Face folder (qwen2_moe or emo) into a workdir."""
    from emo_jax.transfer import import_folder

    config = import_folder(hf_dir, workdir)
    click.echo(f"{workdir}: {config.name}, {config.model.num_layers} layers")


@_command("emo verify --json verify.json")
@click.argument("case_dir", required=False)
@click.option("--json", "json_file", default=None, help="Write the errors and limits here.")
def verify(case_dir: str | None, json_file: str | None) -> None:
    """Hold this machine's numerics against golden numbers of the PyTorch reference."""
    if json_file:
        _refuse_unwritable("--json", Path(json_file))  # before minutes of work
    from emo_jax.verify import verify_cases

    results, failed = verify_cases(Path(case_dir) if case_dir else None, show=click.echo)
    if json_file:
        Path(json_file).write_text(json.dumps(results, indent=2) + "\n")
    if failed:
        raise EmoError(f"{failed} quantities are beyond their limits")


def _refuse_unwritable(option: str, file: Path) -> None:
    """Raises UsageError where a file cannot be made or replaced."""
    if not file.parent.is_dir():
        raise UsageError(f"{option} {file}: no such folder {file.parent}; make it first")
    if file.is_dir():
        raise UsageError(f"{option} {file}: is a folder; give a file")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise UsageError(f"{option} {file}: cannot be written; give a file in another folder")


def main(argv: list[str] | None = None) -> None:
    """Runs the command and exits with its code; errors are one line without `--debug`."""
    argv = sys.argv[1:] if argv is None else argv
    # --debug is accepted anywhere.
    debug = "--debug" in argv
    argv = [a for a in argv if a != "--debug"]
    logging.basicConfig(format="emo: %(message)s", level=logging.WARNING)
    absl.logging.get_absl_logger().setLevel(logging.WARNING)
    if not debug:
        _drop_afterwords()
    sys.exit(_run(argv, debug))


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
        cli(argv or ["--help"], prog_name="emo", standalone_mode=False)
        return 0
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
    except Exception as e:
        text = " ".join(str(e).split())[:500]
        return _fail(
            f"{type(e).__name__}: {text} (run again with --debug for the traceback)",
            EXIT_FAILED,
            debug,
        )


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    click.echo(f"emo: {message}", err=True)
    return code


if __name__ == "__main__":
    main()
