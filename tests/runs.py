"""Real runs of the command `emo` on a very small model, shared by tests of the CLI and the loop."""

import importlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import compiling
import jax
import numpy as np

from emo_jax.checkpoint.manifest import read_manifest
from emo_jax.checkpoint.reading import checkpoints_of, read_leaves
from emo_jax.cli.app import _run
from emo_jax.run.metrics_file import METRICS_FILE

REPO = Path(__file__).parent.parent
EXPERIMENT = REPO / "experiments/emo_tiny.py"
WORDS = {"cooking": "flour butter salt oven", "law": "court judge statute appeal"}

TINY = {
    "model.vocab_size": 259,
    "model.num_layers": 2,
    "model.embed_dim": 32,
    "model.num_heads": 2,
    "model.head_dim": 16,
    "moe.num_experts": 8,
    "moe.top_k": 3,
    "moe.expert_dim": 16,
    "moe.pool.min_size": 2,
    "moe.pool.max_size": 8,
    "moe.pool.eval_size": 4,
    "data.seq_len": 64,
    "optimizer.warmup_steps": 4,
    "train.batch_size": 4,
    "train.loss_chunk": 64,
    "train.log_every": 1,
    "train.eval_windows": 8,
}
# The run that most tests look at, or take a copy of.
REFERENCE = {
    "train.steps": 40,
    "train.eval_every": 20,
    "checkpoint.save_every": 10,
    "checkpoint.keep_last": 2,
    "checkpoint.keep_every": 20,
}


def script(name: str) -> ModuleType:
    """A script of experiments/ as a module, which finds those that it imports."""
    folder = str(REPO / "experiments")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


def train_argv(store: Path | str, workdir: Path | str, **fields) -> list[str]:
    """Arguments of a small run; a field is written `train__steps=3`."""
    changed = {name.replace("__", "."): value for name, value in fields.items()}
    overrides = {**TINY, **REFERENCE, "data.store": store, **changed}
    return [
        *("train", "--config", str(EXPERIMENT), "--workdir", str(workdir)),
        *(f"--config.{name}={value}" for name, value in overrides.items()),
    ]


def environment(cache: Path | None = None, **changes: str) -> dict[str, str]:
    """Of a process of its own: one CPU device, compiled fast rather than well, or not again."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    env |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": compiling.FLAGS,
        "PYTHONPATH": str(REPO),
        "EMO_COMPILE_CACHE": "off",  # the user's own is not for tests
    }
    if cache is not None:
        env |= {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
    return env | changes


def emo(argv: list, env: dict[str, str], **settings) -> subprocess.CompletedProcess:
    """A finished `emo` process, with its output as text."""
    command = [sys.executable, "-m", "emo_jax.cli", *map(str, argv)]
    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=300, check=False, **settings
    )


def start(argv: list, env: dict[str, str], log: Path) -> subprocess.Popen:
    """A running `emo` process; what it says goes to `log`."""
    with log.open("w") as stream:
        command = [sys.executable, "-m", "emo_jax.cli", *map(str, argv)]
        return subprocess.Popen(command, env=env, stdout=stream, stderr=stream)


_STALLED = """
import os, signal, sys, time
from pathlib import Path
from emo_jax.config.file import load_config
from emo_jax.training.loop import Trainer

step, meanwhile, file, workdir, *overrides = sys.argv[1:]
trainer = Trainer(load_config(file, overrides), workdir)
batches = trainer._batches

def stalled(*given):
    for number, batch in enumerate(batches(*given), 1):
        while number == int(step):
            exec(meanwhile)
            time.sleep(0.01)
        yield batch

trainer._batches = stalled
trainer.run()
"""


def stalled(argv: list[str], *, step: int, meanwhile: str = "") -> list[str]:
    """Command of a fresh run of `train_argv` whose input never gives the batch of `step`.

    Args:
      meanwhile: Python that is run again and again while it waits; it knows `workdir`.
    """
    _, _, file, _, workdir, *overrides = argv
    return [sys.executable, "-c", _STALLED, str(step), meanwhile, file, workdir, *overrides]


# `emo`, which keeps the tokens of every batch it trains on.
_RECORDED = """
import sys
import numpy as np
from emo_jax.cli import main
from emo_jax.training.loop import Trainer

file = sys.argv.pop(1)
batches = Trainer._batches

def recorded(self, window, *watched):
    seen = []
    for consumed, batch in batches(self, window, *watched):
        seen.append(np.asarray(batch.tokens))
        np.save(file, np.concatenate(seen))
        yield consumed, batch

Trainer._batches = recorded
main()
"""


def recorded(argv: list[str], env, file: Path) -> tuple[subprocess.CompletedProcess, np.ndarray]:
    """A finished run, and the windows that it trained on."""
    command = [sys.executable, "-c", _RECORDED, str(file), *map(str, argv)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done, np.load(file)


def wait_until(reached: Callable[[], bool], process: subprocess.Popen, log: Path) -> None:
    """Returns when `reached`; the process must still run then."""
    give_up = time.monotonic() + 240
    while not reached():
        assert process.poll() is None, f"ended before the moment to stop it:\n{log.read_text()}"
        assert time.monotonic() < give_up, f"too slow:\n{log.read_text()}"
        time.sleep(0.002)


def emo_here(*argv) -> int:
    """Runs `emo` in this process, which has eight devices; returns the exit code."""
    return _run([str(a) for a in argv], debug=False)


def steps_logged(workdir: Path) -> int:
    """The last step with a whole line in the log."""
    path = workdir / METRICS_FILE
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


def is_time(name: str) -> bool:
    """Whether a value of a record is measured with a clock, and so another in every run."""
    times = ("tokens_per_second", "mfu", "goodput", "badput", "wall_seconds")
    return name.startswith((*times, "step_seconds/", "data_seconds/"))


def log_as_written(workdir: Path) -> list[dict]:
    """The log with its numbers as the text that was written, without what depends on the time."""
    lines = (workdir / METRICS_FILE).read_text().splitlines()
    records = [json.loads(line, parse_float=str, parse_int=str) for line in lines]
    records = [record for record in records if "slow_process" not in record]
    return [{k: v for k, v in record.items() if not is_time(k)} for record in records]


def checkpoints(workdir: Path) -> list[int]:
    """Steps that have a folder."""
    folder = workdir / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir()) if folder.exists() else []


def state_of(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """All of the state in a checkpoint, by name: `params/embed/embedding`, `opt_state/…`."""
    folder = checkpoints_of(workdir) / str(step)
    manifest = read_manifest(folder)
    wanted = {
        tuple(leaf["path"]): jax.ShapeDtypeStruct(leaf["shape"], leaf["dtype"])
        for leaf in manifest["leaves"]
    }
    return {"/".join(path): np.asarray(x) for path, x in read_leaves(folder, manifest, wanted)}


def flip_byte(file: Path) -> None:
    """Damages a file without changing its size."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def damage_checkpoint(workdir: Path, step: int, item: str = "rest") -> None:
    """Flips a byte in the largest file of a checkpoint's `params`, or of the `rest`."""
    folder = workdir / "checkpoints" / str(step) / "data" / item
    flip_byte(max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size))


def write_corpus(path: Path, documents: int = 240) -> Path:
    """Two domains with words of their own; many documents are longer than a window."""
    draw = random.Random(0)
    records = []
    for i in range(documents):
        domain = list(WORDS)[i % 2]
        text = " ".join(draw.choices(WORDS[domain].split(), k=draw.randint(1, 60)))
        records.append({"text": text, "id": f"doc-{i}", "domain": domain})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def equal_trees(a: dict, b: dict) -> bool:
    """Nested dicts of arrays, bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal_trees(a[k], b[k]) for k in a)
    return a.dtype == b.dtype and np.array_equal(a, b)


def relative_differences(a: dict, b: dict, path: str = "") -> dict[str, float]:
    """The norm of b - a over that of a, for every array of two nested dicts."""
    if not isinstance(a, dict):
        return {path: float(np.linalg.norm(b - a) / np.linalg.norm(a))}
    assert a.keys() == b.keys()
    return {k: v for n in a for k, v in relative_differences(a[n], b[n], f"{path}/{n}").items()}


# --- made once a session, by whichever test comes first ------------------------------------------


def shared_cache(base: Path) -> Path:
    """Compiled programs of all processes of a session."""
    return base / "compiled"


def shared_store(base: Path) -> Path:
    """A byte store of `write_corpus`, made by `emo prepare`."""
    path = base / "shared_store"
    if not path.exists():
        corpus = write_corpus(base / "shared_corpus.jsonl")
        done = emo(["prepare", corpus, "--output", path, "--tokenizer", "bytes"], environment())
        assert done.returncode == 0, done.stderr
    return path


def shared_run(base: Path) -> Path:
    """A finished, never interrupted run; do not change it."""
    workdir = base / "shared_run"
    log = base / "shared_run.log"
    if not log.exists():
        done = emo(train_argv(shared_store(base), workdir), environment(shared_cache(base)))
        assert done.returncode == 0, done.stderr
        log.write_text(done.stderr)
    return workdir


def store_of_domains(folder: Path, workdir: Path, count: int) -> Path:
    """A token store of `count` domains, of the tokenizer of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"text": f"court {n} river {n * n}", "id": f"d{n}", "domain": f"d{n % count}"})
        for n in range(400)
    ]
    (folder / "domains.jsonl").write_text("\n".join(lines))
    store = folder / "store_of_domains"
    argv = ("--output", store, "--tokenizer", Path(workdir) / "tokenizer")
    assert emo_here("prepare", folder / "domains.jsonl", *argv) == 0
    return store
