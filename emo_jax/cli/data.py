"""emo prepare, emo tokenizer train."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import emo_jax
from emo_jax.cli.app import TRUST, Command, Number, cli, command
from emo_jax.documents.text_files import MAX_DOCUMENT_BYTES
from emo_jax.errors import DataError

_MAX_DOCUMENT = click.option(
    "--max-document-mb",
    type=Number(min=0, min_open=True),
    default=MAX_DOCUMENT_BYTES / 1e6,
    show_default=True,
    help="Leave out longer lines, texts and rows; a document is held in memory.",
)


@command(
    "emo prepare docs.jsonl.zst parquet_files/ --output store --tokenizer tokenizer.json",
)
@click.argument("inputs", nargs=-1, required=True)
@click.option("--output", required=True, help="Folder of the token store to make.")
@click.option(
    "--tokenizer",
    required=True,
    help='A tokenizer.json, a SentencePiece .model, a folder that holds one, "bytes", or'
    " seqio:MODULE:VOCABULARY; sentencepiece:FILE keeps a .model unconverted.",
)
@click.option("--eos-id", type=int, default=None, help="Ends a document; the tokenizer's if unset.")
@click.option("--add-bos", is_flag=True, help="Begin documents with the tokenizer's begin token.")
@click.option("--text-field", default="text", show_default=True, help="A dot looks inside: a.b")
@click.option("--id-field", default="id", show_default=True)
@click.option("--domain-field", default="domain", show_default=True)
@click.option("--min-chars", type=int, default=None, help="Drop documents with fewer characters.")
@click.option("--max-chars", type=int, default=None, help="Drop documents with more.")
@click.option("--min-tokens", type=int, default=None, help="Drop documents with fewer tokens.")
@click.option("--max-tokens", type=int, default=None, help="Drop documents with more.")
@click.option(
    "--language",
    "languages",
    multiple=True,
    help="Keep documents of this language only; may be given several times.",
)
@click.option(
    "--language-field",
    default="language",
    show_default=True,
    help="Where it is: a name, a list (its first), or {name: score} (the best).",
)
@click.option(
    "--drop-ids",
    default=None,
    metavar="FILE",
    help="Leave out the documents with these ids, one a line.",
)
@_MAX_DOCUMENT
@click.option("--seed", default=0, show_default=True, help="Of the order of documents.")
@click.option("--strict", is_flag=True, help="Fail at the first unusable document.")
@click.option(
    "--workers",
    type=int,
    default=1,
    show_default=True,
    help="Processes on this machine; more than 1 needs the extra beam.",
)
@click.option(
    "--beam",
    default=None,
    metavar="OPTIONS",
    help='Run on workers of Apache Beam instead: "--runner=FlinkRunner --flink_master=HOST:PORT".',
)
@click.option(
    "--scratch",
    default=None,
    metavar="DIR",
    help="Where unfinished work is kept; next to the output if unset.",
)
@TRUST
def prepare(
    inputs: tuple[str, ...],
    output: str,
    tokenizer: str,
    eos_id: int | None,
    add_bos: bool,
    text_field: str,
    id_field: str,
    domain_field: str,
    drop_ids: str | None,
    max_document_mb: float,
    seed: int,
    strict: bool,
    workers: int,
    beam: str | None,
    scratch: str | None,
    trust: bool,
    **bounds: Any,
) -> None:
    """Tokenise documents into a store with the splits train, select and test.

    INPUTS are files (.jsonl, .parquet, .arrow, .tar, .txt, .md; lines, texts and .tar also .gz,
    .zst), patterns and folders of them, local or in s3:// and gs://; data sets of the hub:
    hf://ORG/NAME, also with /CONFIG and :SPLIT; and seqio tasks: seqio:MODULE:TASK or
    seqio:MODULE:TASK:SPLIT. If it is stopped, the
    same command goes on from what is finished.
    """
    from emo_jax.documents.document_filter import DocumentFilter

    emo_jax.prepare(
        inputs,
        output,
        tokenizer,
        text_field=text_field,
        id_field=id_field,
        domain_field=domain_field,
        wanted=DocumentFilter(**bounds),
        drop_ids=drop_ids,
        max_document_bytes=round(max_document_mb * 1e6),
        seed=seed,
        strict=strict,
        add_bos=add_bos,
        eos_id=eos_id,
        workers=workers,
        beam=beam,
        scratch=scratch,
        trust=trust,
        quiet=False,
    )


@cli.group(no_args_is_help=False)
def tokenizer() -> None:
    """Make tokenizers."""


@tokenizer.command(
    "train", cls=Command, epilog="emo tokenizer train docs.jsonl --vocab-size 2048 --output tok"
)
@click.argument("inputs", nargs=-1, required=True)
@click.option("--vocab-size", type=int, required=True, help="Entries, special tokens included.")
@click.option("--output", required=True, help="Folder to make.")
@click.option("--text-field", default="text", show_default=True)
@_MAX_DOCUMENT
def tokenizer_train(
    inputs: tuple[str, ...], vocab_size: int, output: str, text_field: str, max_document_mb: float
) -> None:
    """Train a byte-level BPE tokenizer on documents."""
    from emo_jax.data.store_writer import PARTIAL, new_folder
    from emo_jax.documents.read import ReadReport, read_documents
    from emo_jax.files.atomic import refuse_existing
    from emo_jax.files.partial import remove_left_over
    from emo_jax.files.progress import Progress
    from emo_jax.tokenizer.load import train_bpe

    refuse_existing(output)
    target, report = Path(output).absolute(), ReadReport()
    documents = read_documents(
        list(inputs),
        text_field=text_field,
        max_document_bytes=round(max_document_mb * 1e6),
        report=report,
    )
    with contextlib.ExitStack() as stack:
        try:  # what cannot be written shows now, not after hours of reading
            remove_left_over(target, (PARTIAL,), ())
            folder = stack.enter_context(new_folder(target))
        except OSError as error:
            raise DataError(
                f"{output}: cannot be written ({error}); give another folder"
            ) from error
        shown = stack.enter_context(Progress("tokenizer"))

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
        trained.save(folder)
    click.echo(report.summary())
    click.echo(f"{output}: {trained.vocab_size} entries, fingerprint {trained.fingerprint[:12]}")
