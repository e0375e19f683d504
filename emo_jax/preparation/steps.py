"""The three steps from inputs to a store, whatever runs their tasks."""

import dataclasses
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from emo_jax.data import store_writer
from emo_jax.data.stream import SPLITS, token_dtype
from emo_jax.documents.read import ReadReport
from emo_jax.files.progress import Progress
from emo_jax.preparation import buckets, pieces, plan, shards
from emo_jax.preparation.buckets import Merged
from emo_jax.preparation.plan import Span
from emo_jax.preparation.runs import OpenRun, RunFile
from emo_jax.preparation.splits import Edges, shifted_edges, split_of, usual_edges
from emo_jax.preparation.tasks import Job, Outcome, Task, hash_of, whole_file
from emo_jax.preparation.workers import Beam, Here

_PLAN = "plan.json"
_BYTES_A_SECOND = {"counting lines": 1e9, "reading": 2e6, "sorting": 1e8, "writing": 1e8}
_FEW = 1 << 23  # documents whose keys are held in memory, to shift the edges of splits


@dataclass
class Counts:
    """What was counted over all steps."""

    read: ReadReport
    sources: Counter[tuple[str, int]] = field(default_factory=Counter)
    text_bytes: int = 0  # read by this command
    documents_read: int = 0
    processes: int = 1
    notes: list[str] = field(default_factory=list)

    def by_source(self) -> dict[str, tuple[int, int]]:
        """Returns (documents, tokens) of each input, sorted by name."""
        names = sorted({name for name, _ in self.sources})
        return {name: (self.sources[name, 0], self.sources[name, 1]) for name in names}


@dataclass
class Steps:
    """The steps of one command.

    Args:
      job: what its tasks share.
      runner: what runs them.
      shown: told of the progress.
      counts: filled in.
    """

    job: Job
    runner: Here | Beam
    shown: Progress
    counts: Counts

    def run(self, tasks: list[Task], what: str, size: int) -> Iterator[Outcome]:
        """Runs the tasks of a step over `size` bytes; yields their outcomes in order."""
        done, pids, started = 0, set[int](), time.monotonic()

        def tell(outcome: Outcome) -> None:
            nonlocal done
            done += 1
            pids.add(outcome["pid"])
            self.counts.processes = max(self.counts.processes, len(pids))
            text = f"{what}: {done:,} of {len(tasks):,} tasks"
            if "report" in outcome:
                self.counts.text_bytes += outcome["text_bytes"]
                self.counts.documents_read += outcome["report"]["documents"]
                text += f", {self.counts.documents_read:,} documents"
                seconds = max(time.monotonic() - started, 1e-3)
                text += f", {self.counts.text_bytes / 1e6:,.0f} MB of text"
                text += f" ({self.counts.text_bytes / 1e6 / seconds:,.1f} MB/s)"
            self.shown.show(text)

        yield from self.runner.run(tasks, self.job, tell, size / _BYTES_A_SECOND[what])

    def read(self, spans: Sequence[Span], settings: list[Any]) -> tuple[list[Task], list[Outcome]]:
        """Tokenises all spans; returns the tasks and their outcomes."""
        bins = self._bins(spans)
        self.job = job = dataclasses.replace(self.job, bins=bins)
        job.save()
        counting, size = plan.line_tasks(spans), sum(span.size for span in spans)
        numbers = [outcome["count"] for outcome in self.run(counting, "counting lines", size)]
        numbered = plan.number_lines(spans, numbers)
        tasks = plan.piece_tasks(numbered, [*settings, bins, job.run_bytes])
        self._forget_others({task["name"] for task in (*counting, *tasks)})
        outcomes = []
        for outcome in self.run(tasks, "reading", size):
            pieces.add_report(self.counts.read, outcome["report"])
            for source, (documents, tokens) in outcome["sources"].items():
                self.counts.sources[source, 0] += documents
                self.counts.sources[source, 1] += tokens
            outcomes.append(outcome)
        return tasks, outcomes

    def _bins(self, spans: Sequence[Span]) -> int:
        """Returns the number of bins, the same as before for a command that goes on."""
        path = self.job.work / _PLAN
        if path.exists():
            return int(json.loads(path.read_text())["bins"])
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps({"bins": plan.num_bins(spans)}))
        return plan.num_bins(spans)

    def _forget_others(self, wanted: set[str]) -> None:
        """Removes what is left of pieces that have changed."""
        changed = self._forget(wanted, "piece", "runs")
        self._forget(wanted, "lines", "")
        if changed:
            self.counts.notes.append(
                f"note: inputs have changed since this command was interrupted; {changed} pieces of"
                " them are read again"
            )

    def _forget(self, wanted: set[str], kind: str, folder: str) -> int:
        """Removes the outcomes and files of other tasks of a kind; returns how many there were."""
        others = [
            path
            for path in (self.job.work / "done").glob(f"{kind}-*.json")
            if path.stem not in wanted
        ]
        for path in others:
            path.unlink()
        if folder and (self.job.work / folder).is_dir():
            for path in (self.job.work / folder).iterdir():
                if path.name.partition(".")[0] not in wanted:
                    path.unlink()
        return len(others)

    def sort(
        self, tasks: Sequence[Task], outcomes: Sequence[Outcome], fractions: Sequence[float]
    ) -> tuple[list[str], list[Outcome], str]:
        """Sorts all documents; returns the domains, the outcomes and what stands for them."""
        job = self.job
        domains = sorted(set().union(*(outcome["domains"] for outcome in outcomes)))
        rank = {name: i for i, name in enumerate(domains)}
        names = [task["name"] for task in tasks]
        runs, ranks = [], []
        for number, (name, outcome) in enumerate(zip(names, outcomes, strict=True)):
            runs += [(RunFile(*run), number) for run in outcome["runs"]]
            ranks.append(f"ranks/{name}.npy")
            with whole_file(job.path(ranks[-1])) as temporary, temporary.open("wb") as file:
                np.save(file, np.array([rank[name] for name in outcome["domains"]], np.int32))
        edges, notes = self._edges([run for run, _ in runs], fractions)
        self.counts.notes += notes
        key = hash_of(names, edges)
        wanted = buckets.bucket_tasks(job, Merged(runs, ranks, edges), key)
        keep = {task["name"] for task in wanted}
        self._forget(keep, "bucket", "buckets")
        width = np.dtype(token_dtype(job.tokenizer.vocab_size)).itemsize
        size = width * sum(run.tokens for run, _ in runs)
        found = list(self.run(wanted, "sorting", size))
        twice = sum(outcome["twice"] for outcome in found)
        if twice:
            first = next(outcome["first_twice"] for outcome in found if outcome["twice"])
            self.counts.notes.append(
                f"note: {twice:,} documents have the id of an earlier one, the first: {first}"
            )
        return domains, found, hash_of(key, sorted(keep))

    def _begin_store(self, key: str) -> None:
        """Removes what is there of a store from other documents."""
        file = self.job.work / "store.key"
        if file.exists() and file.read_text() != key:
            self._forget(set(), "shard", "")
            shutil.rmtree(self.job.store, ignore_errors=True)
        file.write_text(key)

    def _edges(
        self, runs: Sequence[RunFile], fractions: Sequence[float]
    ) -> tuple[Edges, tuple[str, ...]]:
        """Returns the ranges of the splits, shifted if a small corpus would have none of one."""
        edges = usual_edges(fractions)
        counts = np.zeros(len(SPLITS), np.int64)
        keys = []
        few = sum(run.documents for run in runs) <= _FEW
        dtype = np.dtype(token_dtype(self.job.tokenizer.vocab_size))
        for run in runs:
            with OpenRun(self.job.path(run.name), run, dtype, self.job.bins) as opened:
                keys_D = opened.part(0, 1 << 64).rows["split"].copy()
            counts += np.bincount(split_of(keys_D, edges), minlength=len(SPLITS))
            if few:
                keys.append(keys_D)
            elif all(counts[i] or not share for i, share in enumerate(fractions)):
                break
        if few and any(share and not counts[i] for i, share in enumerate(fractions)):
            return shifted_edges(np.concatenate(keys), fractions)
        return edges, ()

    def write(
        self, domains: Sequence[str], sorted_: Sequence[Outcome], key: str, facts: dict[str, Any]
    ) -> None:
        """Writes the files of the store from the sorted documents."""
        job = self.job
        layout = shards.layout_of(sorted_)
        plans = shards.array_plans(job, layout)
        tokens = sum(piece.tokens for split in layout for piece in split)
        self._begin_store(key)
        size = tokens * np.dtype(token_dtype(job.tokenizer.vocab_size)).itemsize
        self.shown.show(f"writing {tokens:,} tokens", always=True)
        job.tokenizer.save(job.store / "tokenizer")
        for array in plans:
            store_writer.create_array(job.store / array.name, array)
        files: dict[str, Any] = {}
        index: dict[str, list[int]] = {}
        tasks = shards.shard_tasks(job, layout, plans, key)
        for outcome in self.run(tasks, "writing", size):
            files |= outcome["described"]
            for split, entries in outcome["index"]:
                index.setdefault(split, []).extend(entries)
        for split, entries in index.items():
            shards.write_index(job, split, entries)
        for path in job.store.rglob("*"):
            name = path.relative_to(job.store).as_posix()
            if path.is_file() and name not in files:
                files[name] = store_writer.describe_file(path)
        documents, tokens_, lengths = _count(sorted_, len(domains))
        store_writer.write_manifest(
            job.store,
            tokenizer=job.tokenizer,
            domains=domains,
            splits={
                split: store_writer.describe_split(documents[i], tokens_[i], domains)
                for i, split in enumerate(SPLITS)
            },
            files={name: files[name] for name in sorted(files, key=lambda n: n.split("/"))},
            seed=job.seed,
            facts=facts | {"lengths": dict(zip(domains, lengths, strict=True))},
        )


def _count(outcomes: Sequence[Outcome], M: int) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """Returns documents and tokens of each split and domain, and lengths of each domain."""
    documents, tokens = np.zeros((2, len(SPLITS), M), np.int64)
    powers: list[list[int]] = [[] for _ in range(M)]
    for outcome in outcomes:
        for i, split in enumerate(outcome["splits"]):
            for domain, count, size, *lengths in split["domains"]:
                documents[i, domain] += count
                tokens[i, domain] += size
                mine = powers[domain]
                mine += [0] * (len(lengths) - len(mine))
                for power, n in enumerate(lengths):
                    mine[power] += n
    return documents, tokens, powers
