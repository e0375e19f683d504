"""Turns documents into a token store: any number of processes, in bounded memory.

Restartable tasks of three kinds, see `steps`: pieces of the inputs become sorted runs of tokens;
ranges of the key that orders documents are collected from all runs and sorted; the files of the
store are written from these. The bytes depend neither on what runs the tasks nor on how inputs are
cut or in which order they are given.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import emo_jax
from emo_jax.data.store import SOURCES, TokenStore
from emo_jax.data.store_writer import PARTIAL, TOP, check_target
from emo_jax.documents.document_filter import DocumentFilter
from emo_jax.documents.read import Found, no_document, read_documents
from emo_jax.documents.records import Fields, ReadReport
from emo_jax.documents.text_files import MAX_DOCUMENT_BYTES
from emo_jax.errors import DataError, UsageError
from emo_jax.files import json_files
from emo_jax.files.partial import remove_left_over
from emo_jax.files.progress import Progress
from emo_jax.preparation import plan
from emo_jax.preparation import workers as workers_lib
from emo_jax.preparation.drop import REASON, DropIds
from emo_jax.preparation.reading import Reading, as_given, name_of
from emo_jax.preparation.report import PrepareReport
from emo_jax.preparation.scratch import Scratch, open_scratch, others
from emo_jax.preparation.splits import DEFAULT_FRACTIONS, assign_splits, check_fractions
from emo_jax.preparation.steps import Counts, Sorted, Steps
from emo_jax.preparation.tasks import Job, hash_of
from emo_jax.tokenizer.base import Tokenizer
from emo_jax.tokenizer.load import load_tokenizer

__all__ = ["DEFAULT_FRACTIONS", "PrepareReport", "assign_splits", "prepare"]

_RUN_BYTES = 1 << 28
_SAMPLE_CHARS = 16_000_000
_SPOOL, _TOKENS = "spool", "tokens"  # of earlier versions


def prepare(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    tokenizer: Tokenizer | str | os.PathLike[str],
    *,
    text_field: str = "text",
    id_field: str = "id",
    domain_field: str = "domain",
    wanted: DocumentFilter | None = None,
    drop_ids: str | os.PathLike[str] | None = None,
    seed: int = 0,
    strict: bool = False,
    add_bos: bool = False,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
    eos_id: int | None = None,
    trust: bool = False,
    workers: int = 1,
    beam: str | None = None,
    scratch: str | os.PathLike[str] | None = None,
    quiet: bool = True,
) -> PrepareReport:
    """Writes a token store from documents.

    A document's split depends on its id alone, not on the seed; pieces of one document (ids that
    differ only in `~0`, `~1`, …) stay together. The order within a split depends on seed and id.

    If it is stopped, however that happens, the same command goes on from the tasks that were
    finished, in a hidden folder next to `output`.

    Args:
      inputs: files, folders, patterns of them, or seqio tasks, see `read_documents`.
      output: a new or empty folder.
      tokenizer: a `Tokenizer`, or what `load_tokenizer` accepts: a tokenizer.json, a folder with
        one, a SentencePiece .model, "bytes", or seqio:MODULE:VOCABULARY. It is saved in the store.
      text_field, id_field, domain_field: keys or columns of a record; a dot reaches into an object
        (a.b).
      wanted: which documents to keep; None: all. The manifest records it and what it dropped.
      drop_ids: a text file of ids, one a line: these documents are left out.
      seed: seed of the document order.
      strict: fail at the first unusable document instead of skipping it.
      add_bos: begin every document with the tokenizer's beginning-of-document token.
      max_document_bytes: size above which a document is skipped, see `read_documents`.
      fractions: shares of the documents for train, select and test, which must add up to 1.
      eos_id: the id that ends a document, overriding the tokenizer's files; None: as they state.
        Ignored for a `Tokenizer`.
      trust: allow a tokenizer whose file names code to import, see `emo_jax.load`.
      workers: processes on this machine; more than one needs Apache Beam.
      beam: options of Apache Beam, such as "--runner=FlinkRunner --flink_master=HOST:PORT", to run
        on its workers instead, which must see the same files.
      scratch: folder for what is between inputs and store; None: next to `output`.
      quiet: show no progress and no table.

    Returns:
      The store, what was read and skipped, the time in seconds, and notes for the user.

    Raises:
      UsageError: no such input or tokenizer, `output` is not empty or is being made, `fractions`
        do not add up to 1, Apache Beam is not installed, or (`add_bos`) the tokenizer has no
        beginning-of-document token.
      DataError: there is no usable document, or (`strict`) one is unusable; the tokenizer is
        damaged; a worker was killed; or the store cannot be written.
    """
    started = time.monotonic()
    check_fractions(fractions)
    target = check_target(output)
    runner = workers_lib.choose(workers, beam)
    wanted = wanted or DocumentFilter()
    drop = None if drop_ids is None else DropIds.read(Path(drop_ids))
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = load_tokenizer(
            os.fspath(tokenizer),
            eos_id=eos_id,
            sample=lambda: _sample_texts(
                inputs,
                quiet=quiet,
                text_field=text_field,
                wanted=wanted,
                max_document_bytes=max_document_bytes,
            ),
            trust=trust,
        )
    tokenizer.ready()
    if add_bos and tokenizer.bos_id is None:
        raise UsageError(
            "--add-bos: the tokenizer names no beginning-of-document token; name one as bos_token"
            " in a tokenizer_config.json beside it"
        )
    tokenizer.adds_bos = add_bos  # overrides its own settings; it is saved with the tokens
    counts = Counts(ReadReport())
    reading = Reading(
        Fields(text_field, id_field, domain_field),
        wanted,
        ids=tokenizer.reads_ids,
        strict=strict,
        max_document_bytes=max_document_bytes,
    )
    found = reading.find(inputs, counts.read)
    settings = [emo_jax.__version__, reading.described(), tokenizer.fingerprint, tokenizer.eos_id]
    settings += [add_bos, seed, None if drop is None else drop.digest]
    names = sorted(name_of(as_given(given)) for given in inputs)
    command = hash_of(os.getcwd(), names, settings, fractions)
    counts.notes += tokenizer.notes
    counts.notes += remove_left_over(target, (PARTIAL, _SPOOL), (*TOP, _TOKENS))
    with Progress("prepare", not quiet) as shown, contextlib.ExitStack() as stack:
        for line in counts.read.files_left_out():
            shown.show(line, always=True)
        try:
            folders = stack.enter_context(open_scratch(target, command, scratch))
            try:
                check_target(output)  # again: the same command may have just finished elsewhere
            except UsageError:
                folders.remove()
                raise
            counts.notes += _other_commands(target, folders)
            steps = Steps(
                Job(
                    folders.work,
                    folders.store,
                    reading,
                    tokenizer,
                    add_bos,
                    seed,
                    run_bytes=_RUN_BYTES,
                    drop=drop,
                    show=shown.show,
                ),
                runner,
                shown,
                counts,
            )
            _run(target, folders, found, steps, settings, fractions)
        except OSError as error:  # reading raises its own errors
            raise DataError(
                f"{target}: cannot be written ({error}); free or choose a disk: the same command"
                " goes on from what is finished"
            ) from error
    # The files were hashed as they were written.
    store = TokenStore.open(target, verify=False)
    made = PrepareReport(
        store,
        counts.read,
        time.monotonic() - started,
        tuple(counts.notes),
        counts.by_source(),
        counts.text_bytes,
        counts.documents_read,
        counts.processes,
    )
    if not quiet:
        parts = (made.table(), made.lengths(), made.by_source())
        print("\n".join(part for part in parts if part), flush=True)
    return made


def _run(
    target: Path,
    folders: Scratch,
    found: Sequence[tuple[str, Found]],
    steps: Steps,
    settings: list[Any],
    fractions: Sequence[float],
) -> None:
    """Runs all steps; what is finished stays for the same command if one fails."""
    counts, shown = steps.counts, steps.shown
    try:
        if folders.has_work():
            shown.show(f"going on from what is finished in {folders.work}", always=True)
        read = steps.read(plan.find_spans(found), settings)
        if not counts.by_source():
            folders.remove()
            raise _nothing_left([one for _, one in found], counts.read)
        made = read if isinstance(read, Sorted) else steps.sort(read, fractions)
        counts.notes += made.notes
        steps.write(made, _facts(steps.job, counts))
        sources = {
            name: {"documents": documents, "tokens": tokens}
            for name, (documents, tokens) in counts.by_source().items()
        }
        (folders.store / SOURCES).write_text(
            json_files.dumps(sources, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        check_target(target)
        folders.store.rename(target)  # an empty folder may exist there, nothing else
        folders.remove()
    except BaseException:
        if not folders.has_work():
            folders.remove()
        else:
            shown.show(
                f"what is finished is kept in {folders.work}; the same command goes on from it",
                always=True,
            )
        raise


def _facts(job: Job, counts: Counts) -> dict[str, Any]:
    """Returns what the manifest says besides what every store's does."""
    read, facts = counts.read, dict[str, Any]()
    if job.add_bos:
        facts["bos_id"] = job.tokenizer.bos_id
    dropped_by = dict(sorted(read.dropped.items()))
    if filters := job.reading.wanted.settings():
        by_filter = {why: n for why, n in dropped_by.items() if why != REASON}
        facts["filter"] = {**filters, "dropped": by_filter}
    facts["rejected"] = dict(sorted(read.skipped.items())) | dropped_by
    if job.drop is not None:
        facts["drop_ids"] = {"ids": len(job.drop), "sha256": job.drop.digest}
        if not read.dropped[REASON]:
            counts.notes.append(f"note: no document has an id of {REASON}")
    return facts


def _nothing_left(found: Sequence[Found], report: ReadReport) -> DataError:
    after = sum(n for why, n in report.dropped.items() if "-tokens" in why or why == REASON)
    if not after and not report.skipped["no tokens"]:
        return no_document(found, report)
    dropped = ", ".join(f"{n} dropped by {why}" for why, n in sorted(report.dropped.items()))
    return DataError(
        f"no document is left ({dropped}); widen these bounds"
        if dropped
        else "no document has a token; check the input and the tokenizer"
    )


def _other_commands(target: Path, folders: Scratch) -> list[str]:
    return [
        f"note: {folder} is the unfinished work of another command for this store; remove it, or"
        " run that command again"
        for folder in others(target)
        if folder != folders.home
    ]


def _sample_texts(
    inputs: Sequence[str | os.PathLike[str]],
    *,
    quiet: bool,
    text_field: str = "text",
    wanted: DocumentFilter | None = None,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
) -> Iterator[str]:
    """Yields the first texts of every input, 16 million characters in all."""
    with Progress("tokenizer", not quiet) as shown:
        for given in inputs:
            left = _SAMPLE_CHARS // len(inputs)
            try:
                for document in read_documents(
                    [given],
                    text_field=text_field,
                    wanted=wanted,
                    max_document_bytes=max_document_bytes,
                ):
                    yield document.text
                    left -= len(document.text)
                    if left <= 0:
                        break
                    shown.show("comparing its ids with those of its tokenizer.json")
            except DataError:
                continue  # the pass over all documents reports it better
