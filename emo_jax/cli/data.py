"""emo prepare, emo tokenizer train."""

from collections.abc import Iterator
from typing import Any

import click

from emo_jax.cli.app import Command, cli, command


@command("emo prepare docs.jsonl.zst more_texts/ --output store --tokenizer tokenizer.json")
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
    "train", cls=Command, epilog="emo tokenizer train docs.jsonl --vocab-size 4096 --output tok"
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
