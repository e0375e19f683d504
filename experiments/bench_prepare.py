"""Speed and memory of `emo prepare`, beside `datasets.map` with the same tokenizer.

    python experiments/bench_prepare.py --megabytes 150 --rounds 3
    python experiments/bench_prepare.py --megabytes 1000 --rounds 1 --only "emo prepare, 2 workers"

The text is the Python files of this environment, a document each, again and again until it is as
much as asked for; the tokenizer a byte-level BPE trained on the first 20 MB. Every figure is from a
process of its own, the cases in turn, medians over rounds. MB/s a core is text over the seconds of
CPU of the process and all it starts: it does not depend on what else the machine does.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

VOCABULARY = 8192
CASES = {
    "emo prepare": ["emo", "1"],
    "emo prepare, 2 workers": ["emo", "2"],
    "datasets.map": ["datasets", "1"],
    "datasets.map, num_proc=2": ["datasets", "2"],
}


def texts() -> Iterator[str]:
    """Yields the Python files of this environment."""
    folder = Path(os.__file__).parent
    packages = Path(json.__file__).parents[1], Path(sys.prefix) / "lib"
    seen = set()
    for root in (folder, *packages):
        for path in sorted(root.rglob("*.py")):
            if path not in seen:
                seen.add(path)
                text = path.read_text("utf-8", "replace")
                if text.strip():
                    yield text


def write_corpus(folder: Path, megabytes: float) -> list[Path]:
    """Writes JSONL files of 50 MB of text and the tokenizer's."""
    from emo_jax.tokenizer.load import train_bpe

    every = list(texts())
    few, size = [], 0
    for text in every[::7]:
        few.append(text)
        size += len(text)
        if size > 20e6:
            break
    train_bpe(few, VOCABULARY).save(folder / "tokenizer")
    files, written, number = [], 0, 0
    while written < megabytes * 1e6:
        files.append(folder / f"{len(files):03}.jsonl")
        here = 0
        with files[-1].open("w") as file:
            while here < 50e6 and written < megabytes * 1e6:
                text = every[number % len(every)]
                file.write(json.dumps({"text": text, "id": f"{number}"}) + "\n")
                number += 1
                here += len(text.encode("utf-8", "replace"))
                written += len(text.encode("utf-8", "replace"))
    return files


def run_datasets(folder: Path, processes: int, output: Path) -> None:
    """Tokenises as `datasets` users do; the same tokenizer, 1000 documents at once."""
    import datasets
    from tokenizers import Tokenizer

    if processes > 1:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer/tokenizer.json"))
    files = sorted(str(path) for path in folder.glob("*.jsonl"))
    found = datasets.load_dataset("json", data_files=files, split="train", cache_dir=str(output))

    def encode(batch: dict) -> dict:
        encoded = tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)
        return {"input_ids": [e.ids for e in encoded]}

    number = processes if processes > 1 else None
    found.map(encode, batched=True, num_proc=number, remove_columns=found.column_names)


def run_emo(folder: Path, processes: int, output: Path) -> None:
    """Makes a store."""
    import emo_jax

    files = sorted(folder.glob("*.jsonl"))
    emo_jax.prepare(files, output / "store", folder / "tokenizer", workers=processes)


def peaks_below(pid: int, peaks: dict[int, int], stop: threading.Event) -> None:
    """Keeps the largest resident set of a process and of all below it, in KiB."""
    while not stop.wait(0.2):
        parents, names = {}, [e for e in os.listdir("/proc") if e.isdigit()]
        for name in names:
            try:
                stat = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                parents[int(name)] = int(stat[1])
            except (OSError, IndexError):
                continue
        for one in parents:
            above = one
            while above > 1 and above != pid:
                above = parents.get(above, 0)
            if above == pid:
                try:
                    lines = Path(f"/proc/{one}/status").read_text().splitlines()
                except OSError:
                    continue
                for line in lines:
                    if line.startswith("VmHWM"):
                        peaks[one] = max(peaks.get(one, 0), int(line.split()[1]))


def measure(case: list[str], folder: Path) -> tuple[float, float, float]:
    """Returns seconds, seconds of CPU, and the largest resident set of a process in MB."""
    output = Path(tempfile.mkdtemp(dir=folder))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, __file__, "--run", *case, str(folder), str(output)])
    peaks: dict[int, int] = {}
    stop = threading.Event()
    watching = threading.Thread(target=peaks_below, args=(process.pid, peaks, stop))
    watching.start()
    code = process.wait()
    seconds = time.monotonic() - started
    stop.set()
    watching.join()
    if code:
        sys.exit(code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    shutil.rmtree(output)
    return seconds, cpu, max(peaks.values()) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=float, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=CASES, default=None)
    parser.add_argument("--folder", default=None, help="where files are made; a temporary one")
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        what, processes, folder, output = args.run
        run = run_emo if what == "emo" else run_datasets
        run(Path(folder), int(processes), Path(output))
        return
    cases = {name: case for name, case in CASES.items() if args.only in (None, name)}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        write_corpus(folder, args.megabytes)
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in cases}
        for _ in range(args.rounds):
            for name, case in cases.items():
                found[name].append(measure(case, folder))
    print(f"{args.megabytes:g} MB of text, BPE of {VOCABULARY}, {args.rounds} rounds")
    print("| | MB/s | MB/s a core | largest process, MB |\n|---|---|---|---|")
    for name, rounds in found.items():
        seconds, cpu, peak = (statistics.median(column) for column in zip(*rounds, strict=True))
        rates = args.megabytes / seconds, args.megabytes / cpu
        print(f"| {name} | {rates[0]:.2f} | {rates[1]:.2f} | {peak:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
