"""Runs every engine on four exported models, and writes the tables of docs/huggingface.md.

    python experiments/engines/run.py --folder engines

Creates in the folder: the models (trained in minutes), an environment for each engine (pinned,
about 10 GB in total), and each engine's results. Existing results are not repeated: delete them to
rerun. `--only vLLM,PEFT` runs some of the engines; the tables include all existing results.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from case import Case, read_arrays, read_case
from engines import ENGINES, Engine
from models import emo, logits_of, make_models
from tables import RESULTS_FILE, write_page

from emo_jax.files.atomic import write_atomic
from emo_jax.files.json_files import dumps

HERE = Path(__file__).parent
# One thread: the models are small, and threads waiting for each other slow down a busy machine.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
INSTALL_SECONDS, RUN_SECONDS = 3600, 1800


def make_environment(engine: Engine, folder: Path) -> Path:
    """The Python of the engine's environment, made afresh unless it has the pinned packages."""
    mark, python = folder / "pins.json", folder / "bin/python"
    if mark.exists() and json.loads(mark.read_text()) == list(engine.pins):
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--upgrade", "pip"], check=True)
    subprocess.run([*pip, *engine.pins], check=True, timeout=INSTALL_SECONDS)
    if engine.without:
        subprocess.run([*pip[:3], "uninstall", "--quiet", "--yes", *engine.without], check=True)
    mark.write_text(json.dumps(list(engine.pins)))
    return python


def run_engine(engine: Engine, python: Path, case: Path, result: Path) -> dict[str, Any]:
    """An engine's results on a case, compared with those of emo_jax."""
    shutil.rmtree(result, ignore_errors=True)
    result.mkdir(parents=True)
    if engine.gguf and not (case / "model.gguf").exists():
        emo("export", case / "model", "--gguf", case / "model.gguf")
    log = result / "log.txt"
    begin = time.monotonic()
    with log.open("w") as out:
        done = subprocess.run(
            [python, HERE / engine.driver, case.resolve(), result.resolve()],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | ENVIRONMENT,
            timeout=RUN_SECONDS,
        )
    seconds = round(time.monotonic() - begin)
    if done.returncode or not (result / "result.json").exists():
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        return {"failed": lines[-1][:300] if lines else f"exit {done.returncode}"}
    return compare(case, result) | {"seconds": seconds}


def compare(case_dir: Path, result: Path) -> dict[str, Any]:
    """Figures for one engine and model; null for what it does not report."""
    case, said = read_case(case_dir), json.loads((result / "result.json").read_text())
    found = {key: said[key] for key in ("version", "missing", "unexpected", "held")}
    expected = read_arrays(case_dir / "logits.npz")
    if (result / "result.npz").exists():
        found |= difference(read_arrays(result / "result.npz"), expected)
    if said["scores"] is not None:
        pairs = zip(said["scores"], case.scores, strict=True)
        found["scores"] = worst(abs(a - b) for a, b in pairs)
    for name, mine in (("greedy", case.greedy), ("ids", case.ids)):
        if said[name] is not None:
            same = sum(a == b for a, b in zip(said[name], mine, strict=True))
            found[name] = f"{same} of {len(mine)}"
    found["imports"] = {
        folder.name: import_again(folder, case, expected) for folder in made_folders(result)
    }
    return found


def worst(values: Any) -> float:
    """The largest value; NaN if any is NaN."""
    values = list(values)
    return math.nan if any(math.isnan(x) for x in values) else max(values)


def difference(found: list[np.ndarray], expected: list[np.ndarray]) -> dict[str, Any]:
    """The largest difference of logits, and how many of them are NaN."""
    pairs = list(zip(found, expected, strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return {"failed": f"logits of shape {found[0].shape}, not {expected[0].shape}"}
    return {
        "nan": int(sum(np.isnan(a).sum() for a in found)),
        "difference": worst(float(np.abs(a - b).max()) for a, b in pairs),
        "largest": max(float(np.abs(b).max()) for b in expected),
    }


def made_folders(result: Path) -> list[Path]:
    """Folders that an engine left: saved again or merged."""
    found = [*result.glob("saved"), *result.glob("made/*")]
    return sorted(folder for folder in found if folder.is_dir())


def import_again(folder: Path, case: Case, expected: list[np.ndarray]) -> dict[str, Any]:
    """Runs `emo import` on what an engine made and compares its logits with the engine's own."""
    workdir = folder.with_name(f"{folder.name}-imported")
    command = [sys.executable, "-m", "emo_jax.cli", "import", folder, "--workdir", workdir]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        return {"refused": done.stderr.strip().splitlines()[-1].replace(str(folder), "DIR")}
    own = folder.with_name(f"{folder.name}.npz")
    return difference(logits_of(workdir, case.ids), read_arrays(own) if own.exists() else expected)


@click.command()
@click.option("--folder", required=True, type=click.Path(path_type=Path), help="For all of it.")
@click.option("--only", default="", help="Names of engines, commas between.")
@click.option("--docs", default=HERE.parents[1] / "docs", type=click.Path(path_type=Path))
def main(folder: Path, only: str, docs: Path) -> None:
    """Runs what has not been run yet, and writes the tables."""
    wanted = [name.strip().lower() for name in only.split(",") if name.strip()]
    if unknown := set(wanted) - {engine.name.lower() for engine in ENGINES}:
        raise click.UsageError(f"--only {', '.join(unknown)}: no such engine")
    cases = make_models(folder)
    for engine in ENGINES:
        if wanted and engine.name.lower() not in wanted:
            continue
        python = make_environment(engine, folder / "envs" / engine.folder)
        for model in engine.models:
            result = folder / "results" / engine.folder / model
            if not (result / "compared.json").exists():
                found = run_engine(engine, python, cases[model], result)
                write_atomic(result / "compared.json", dumps(found))
            print(engine.name, model, (result / "compared.json").read_text(), flush=True)
    everything = {
        engine.name: {
            model: json.loads(file.read_text())
            for model in engine.models
            if (file := folder / "results" / engine.folder / model / "compared.json").exists()
        }
        for engine in ENGINES
    }
    write_atomic(docs / RESULTS_FILE, dumps(everything, indent=1) + "\n")
    write_page(docs)


if __name__ == "__main__":
    main()
