"""Tokens a second of the data loader, beside others' on the same tokens.

python experiments/bench_loader.py corpus FOLDER [--tokens N]  # makes the corpus
python experiments/bench_loader.py ours FOLDER …  # our loader: see loader_peers/measure.py
python experiments/bench_loader.py run FOLDER OUTPUT NAME=PYTHON … [--rounds N] [--seq-len S …]
python experiments/bench_loader.py table OUTPUT …

`run` measures every way of every script of `loader_peers` in turns, each in a process of its own
on cores 0 and 1, and appends a line of JSON each to OUTPUT; NAME is a script of `loader_peers` or
"ours", PYTHON the interpreter of its environment. `bench_loader.sh` makes these and runs it all.

Hardware and hours: two CPU cores, about 10 minutes a round. Figures: docs/benchmarks.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parent / "loader_peers"
sys.path.insert(0, str(PEERS))

CORES = "0,1"
OURS = "emo_jax"
WAY = "store, filter"  # of ours, what the others are compared with: all fields, checked, filtered
TOKENS = 1 << 28
LENGTHS = (4096, 256)


def make_corpus(arguments: list[str]) -> None:
    import corpus
    import measure

    options = argparse.ArgumentParser()
    options.add_argument("folder", type=Path)
    options.add_argument("--tokens", type=int, default=TOKENS)
    given = options.parse_args(arguments)
    corpus.make(given.folder / "corpus", tokens=given.tokens, seed=measure.SEED)
    print(corpus.facts(given.folder / "corpus"))


def prepare_store(job) -> None:
    """Writes the corpus as a token store."""
    import corpus
    import numpy as np

    from emo_jax.data.store_writer import SplitContent, write_store
    from emo_jax.tokenizer.vocabularies import KeptTokenizer

    if job.made("store").exists():
        return
    folder = job.folder / "corpus"
    settings = {"format": "emo_jax vocabulary", "kind": "ids", "fingerprint": "ids"}
    numbers = {"vocab_size": corpus.VOCAB_SIZE, "eos_id": corpus.EOS, "pad_id": corpus.PAD}
    flat, step = np.memmap(job.tokens, corpus.DTYPE, "r"), 1 << 22
    content = SplitContent(
        np.load(folder / "lengths.npy"),
        np.load(folder / "domains.npy"),
        (flat[i : i + step] for i in range(0, flat.size, step)),
    )
    write_store(
        job.made("store"),
        tokenizer=KeptTokenizer({**settings, **numbers}, None, "bench"),
        domains=[f"domain {i}" for i in range(corpus.DOMAINS)],
        splits={"train": content},
    )


def our_batches(job, *, raw: bool, filtered: bool):
    """Yields batches as dicts."""
    import measure

    from emo_jax.data.loader import Loader
    from emo_jax.data.raw import RawTokens
    from emo_jax.data.run_windows import in_order
    from emo_jax.data.store import TokenStore
    from emo_jax.data.windows import Windows

    source = RawTokens([job.tokens]) if raw else TokenStore.open(job.made("store"))
    windows = Windows(source, job.seq_len, repetition_filter=filtered)
    loader = Loader(in_order(windows, measure.SEED), batch_size=job.batch)
    return (batch._asdict() for _, batch in loader.iterate())


def ours(arguments: list[str]) -> None:
    import measure

    sys.argv[1:] = arguments
    measure.main(
        OURS,
        ("numpy", "tensorstore", "grain"),
        {
            f"{kind}, {'filter' if filtered else 'plain'}": measure.Way(
                partial(our_batches, raw=kind == "raw", filtered=filtered),
                measure.EVERYTHING if filtered else measure.EVERYTHING.removesuffix(measure.FILTER),
                lambda job, kind=kind: [job.tokens if kind == "raw" else job.made("store")],
            )
            for kind in ("store", "raw")
            for filtered in (True, False)
        },
        prepare=prepare_store,
    )


def run(arguments: list[str]) -> None:
    options = argparse.ArgumentParser()
    options.add_argument("folder", type=Path)
    options.add_argument("output", type=Path)
    options.add_argument("pythons", nargs="+", metavar="NAME=PYTHON")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seq-len", type=int, nargs="+", default=LENGTHS)
    options.add_argument("--passes", type=int, default=3)
    given = options.parse_args(arguments)
    commands = {}
    for text in given.pythons:
        name, python = text.split("=", 1)
        script = [__file__, "ours"] if name == "ours" else [str(PEERS / f"{name}.py")]
        commands[name] = [python, *script, str(given.folder)]
    for S in given.seq_len:
        for command in commands.values():
            subprocess.run([*command, "--prepare", "--seq-len", str(S)], check=True, env=_env())
    ways = [
        (name, way)
        for name, command in commands.items()
        for way in _last_line([*command, "--list"]) or sys.exit(f"{name} does not start")
    ]
    for number in range(given.rounds):
        for S in given.seq_len:
            for name, way in ways:
                how = ["--way", way, "--seq-len", str(S), "--passes", str(given.passes)]
                found = _last_line(["taskset", "-c", CORES, *commands[name], *how])
                if found is None:
                    continue
                with given.output.open("a") as file:
                    file.write(json.dumps({"round": number, **found}) + "\n")
                speed = found["tokens_per_second"] / 1e6
                print(f"{number} {name}, {way}, S = {S}: {speed:.2f} M tokens/s", flush=True)


def _last_line(command: list[str]) -> Any:
    """Returns the JSON in the last line that a command prints; None, and why, if there is none."""
    done = subprocess.run(command, capture_output=True, text=True, env=_env())
    try:  # not its exit code: OLMo-core's threads may abort a process that is done
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        print(f"{' '.join(command)}: {done.stderr[-1500:]}", file=sys.stderr, flush=True)
        return None


def _env() -> dict[str, str]:
    return {**os.environ, "JAX_PLATFORMS": "cpu"}


def table(arguments: list[str]) -> None:
    """Prints, for each loader and what its batches hold, the fastest of its ways."""
    lines = [json.loads(line) for file in arguments for line in Path(file).read_text().splitlines()]
    for S in sorted({line["seq_len"] for line in lines}, reverse=True):
        groups = defaultdict(lambda: defaultdict(list))
        for line in lines:
            if line["seq_len"] == S:
                what = line["loader"], line["does"], line["way"] if line["loader"] == OURS else ""
                groups[what][line["way"]].append(line)
        best = [max(ways.values(), key=_median) for ways in groups.values()]
        ours = max((_median(b) for b in best if b[0]["way"] == WAY), default=float("nan"))
        print(f"\nS = {S}, batches of {lines[0]['batch']} windows, M tokens/s; ours is {WAY}\n")
        print(
            "| loader | a batch holds | its fastest way | median | lowest to highest |"
            " ours / this | by second of CPU time | peak RSS, without files, MB |\n"
            "|---|---|---|---|---|---|---|---|"
        )
        for found in sorted(best, key=_median, reverse=True):
            first, speeds = found[0], [f["tokens_per_second"] / 1e6 for f in found]
            memory = [max(f[name] for f in found) for name in ("peak_rss_MB", "without_files_MB")]
            print(
                f"| {first['loader']} | {first['does']} | {first['way']} | {_median(found):.2f} |"
                f" {min(speeds):.2f} to {max(speeds):.2f} ({len(found)}) |"
                f" {ours / _median(found):.2f} | {_median(found, 'tokens_per_core_second'):.2f} |"
                f" {memory[0]}, {memory[1]} |"
            )


def _median(lines: list[dict], what: str = "tokens_per_second") -> float:
    return statistics.median(line[what] for line in lines) / 1e6


if __name__ == "__main__":
    MODES = {"corpus": make_corpus, "ours": ours, "run": run, "table": table}
    if len(sys.argv) < 2 or sys.argv[1] not in MODES:
        sys.exit(__doc__)
    MODES[sys.argv[1]](sys.argv[2:])
