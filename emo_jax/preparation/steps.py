"""The three steps from inputs to a store, whatever runs their tasks."""

import dataclasses
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from emo_jax.data import store_writer
from emo_jax.data.stream import SPLITS
from emo_jax.documents.read import ReadReport
from emo_jax.files.progress import Progress
from emo_jax.preparation import buckets, pieces, plan, shards
from emo_jax.preparation.buckets import Merged
from emo_jax.preparation.plan import Span
from emo_jax.preparation.runs import OpenRun, RunFile
from emo_jax.preparation.shards import Bucket, Layout
from emo_jax.preparation.splits import Edges, shifted_edges, split_of, usual_edges
from emo_jax.preparation.tasks import Job, Outcome, Task, hash_of, outcome_of, whole_file
from emo_jax.preparation.workers import Beam, Here

_PLAN, _SORTED = "plan.json", "sorted.json"
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
class Sorted:
    """The sorted documents.

    Args:
      domains: M names, sorted.
      layout: where the documents of each split are.
      documents: (splits, M) numbers of documents.
      tokens: likewise, of tokens.
      lengths: for each domain, documents of length 1, of 2 and 3, of 4 to 7, …
      notes: for the user.
      key: stands for all of them.
    """

    domains: list[str]
    layout: Layout
    documents: list[list[int]]
    tokens: list[list[int]]
    lengths: list[list[int]]
    notes: list[str]
    key: str = ""

    @classmethod
    def empty(cls, domains: list[str]) -> "Sorted":
        """Returns one without documents."""
        documents, tokens = ([[0] * len(domains) for _ in SPLITS] for _ in range(2))
        return cls(domains, [[] for _ in SPLITS], documents, tokens, [[] for _ in domains], [])

    def add(self, outcome: Outcome) -> None:
        """Adds the documents of the next bucket."""
        for i, split in enumerate(outcome["splits"]):
            if split["documents"]:
                self.layout[i].append(Bucket(*(split[name] for name in Bucket._fields)))
            for domain, count, size, *lengths in split["domains"]:
                self.documents[i][domain] += count
                self.tokens[i][domain] += size
                mine = self.lengths[domain]
                mine += [0] * (len(lengths) - len(mine))
                for power, n in enumerate(lengths):
                    mine[power] += n


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

    def read(self, spans: Sequence[Span], settings: list[Any]) -> Sorted | list[Task]:
        """Tokenises all spans.

        Returns:
          the tasks that did; or, if they were sorted already, what `sort` returned then.
        """
        bins = self._bins(spans)
        self.job = job = dataclasses.replace(self.job, bins=bins)
        job.save()
        counting, size = plan.line_tasks(spans), sum(span.size for span in spans)
        numbers = [outcome["count"] for outcome in self.run(counting, "counting lines", size)]
        numbered = plan.number_lines(spans, numbers)
        tasks = plan.piece_tasks(numbered, [*settings, bins, job.run_bytes])
        before = self._load_sorted(hash_of([task["name"] for task in tasks]))
        if before is None:
            self._forget_others({task["name"] for task in (*counting, *tasks)})
            found = self.run(tasks, "reading", size)
        else:  # the runs are gone
            found = (outcome_of(task, job, files=False) or {} for task in tasks)
        for outcome in found:
            pieces.add_report(self.counts.read, outcome["report"])
            for source, (documents, tokens) in outcome["sources"].items():
                self.counts.sources[source, 0] += documents
                self.counts.sources[source, 1] += tokens
        return tasks if before is None else before

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

    def sort(self, tasks: Sequence[Task], fractions: Sequence[float]) -> Sorted:
        """Sorts all documents; what was read is removed."""
        job, names = self.job, [task["name"] for task in tasks]
        domains = set[str]()
        for outcome in self._read(tasks):
            domains.update(outcome["domains"])
        made = Sorted.empty(sorted(domains))
        rank = {name: i for i, name in enumerate(made.domains)}
        runs, ranks = [], []
        for number, (name, outcome) in enumerate(zip(names, self._read(tasks), strict=True)):
            runs += [(RunFile(*run), number) for run in outcome["runs"]]
            ranks.append(f"ranks/{name}.npy")
            with whole_file(job.path(ranks[-1])) as temporary, temporary.open("wb") as file:
                np.save(file, np.array([rank[name] for name in outcome["domains"]], np.int32))
        edges, notes = self._edges([run for run, _ in runs], fractions)
        made.notes += notes
        key = hash_of(names, edges)
        wanted = buckets.bucket_tasks(job, Merged(runs, ranks, edges), key)
        self._forget({task["name"] for task in wanted}, "bucket", "buckets")
        size = job.token.itemsize * sum(run.tokens for run, _ in runs)
        twice, first = 0, ""
        for outcome in self.run(wanted, "sorting", size):
            made.add(outcome)
            twice, first = twice + outcome["twice"], first or outcome["first_twice"]
        if twice:
            made.notes.append(
                f"note: {twice:,} documents have the id of an earlier one, the first: {first}"
            )
        made.key = hash_of(key, [task["name"] for task in wanted])
        with whole_file(job.work / _SORTED) as temporary:
            temporary.write_text(json.dumps([hash_of(names), vars(made)]))
        shutil.rmtree(job.work / "runs")
        return made

    def _read(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Yields the outcomes of pieces, one at a time: each lists its domains."""
        for task in tasks:
            yield outcome_of(task, self.job, files=False) or {}

    def _load_sorted(self, names: str) -> Sorted | None:
        """Returns what `sort` returned for the same pieces, if its files are there."""
        try:
            of, content = json.loads((self.job.work / _SORTED).read_text())
            made = Sorted(**content)
            made.layout = [[Bucket(*bucket) for bucket in split] for split in made.layout]
            sizes = [
                self.job.path(bucket.file).stat().st_size == bucket.size(self.job.token)
                for split in made.layout
                for bucket in split
            ]
        except (OSError, ValueError, TypeError):
            return None
        return made if of == names and all(sizes) else None

    def _describe_others(self, files: Mapping[str, Any]) -> dict[str, Any]:
        """Describes the small files of the store; removes what a killed process left of others."""
        found, store = {}, self.job.store
        for path in [path for path in store.rglob("*") if path.is_file()]:
            name = path.relative_to(store).as_posix()
            kind, last = name.split("/")[-3:-1], path.name
            if name.startswith("tokenizer/") or last == "zarr.json" or kind == ["doc_index", "c"]:
                found[name] = store_writer.describe_file(path)
            elif name not in files:
                path.unlink()
        return found

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
        for run in runs:
            with OpenRun(self.job.path(run.name), run, self.job.token, self.job.bins) as opened:
                keys_D = opened.part(0, 1 << 64).rows["split"].copy()
            counts += np.bincount(split_of(keys_D, edges), minlength=len(SPLITS))
            if few:
                keys.append(keys_D)
            elif all(counts[i] or not share for i, share in enumerate(fractions)):
                break
        if few and any(share and not counts[i] for i, share in enumerate(fractions)):
            return shifted_edges(np.concatenate(keys), fractions)
        return edges, ()

    def write(self, made: Sorted, facts: dict[str, Any]) -> None:
        """Writes the files of the store from the sorted documents."""
        job, domains = self.job, made.domains
        plans = shards.array_plans(job, made.layout)
        tokens = sum(bucket.tokens for split in made.layout for bucket in split)
        self._begin_store(made.key)
        self.shown.show(f"writing {tokens:,} tokens", always=True)
        job.tokenizer.save(job.store / "tokenizer")
        for array in plans:
            store_writer.create_array(job.store / array.name, array)
        files: dict[str, Any] = {}
        index: dict[str, list[int]] = {}
        tasks = shards.shard_tasks(job, made.layout, plans, made.key)
        for outcome in self.run(tasks, "writing", tokens * job.token.itemsize):
            files |= outcome["described"]
            for split, entries in outcome["index"]:
                index.setdefault(split, []).extend(entries)
        for split, entries in index.items():
            shards.write_index(job, split, entries)
        files |= self._describe_others(files)
        store_writer.write_manifest(
            job.store,
            tokenizer=job.tokenizer,
            domains=domains,
            splits={
                split: store_writer.describe_split(
                    np.array(made.documents[i]), np.array(made.tokens[i]), domains
                )
                for i, split in enumerate(SPLITS)
            },
            files={name: files[name] for name in sorted(files, key=lambda n: n.split("/"))},
            seed=job.seed,
            facts=facts | {"lengths": dict(zip(domains, made.lengths, strict=True))},
        )
