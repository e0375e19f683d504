"""Many malformed files for one reader, in workers that may hang or die.

python tests/fuzz/driver.py FIRST LAST [READER…]     # prints what is wrong, and counts
"""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
START_SECONDS, INPUT_SECONDS = 300, 60  # a worker ends an input itself after 20 s if it can


def fuzz(name: str, first: int, last: int, seeds: Path) -> list[dict[str, Any]]:
    """The outcome of every input, as `worker.attempt` says it; hangs and ends of a worker too."""
    found: list[dict[str, Any]] = []
    while first <= last:
        here = _one_worker(name, first, last, seeds)
        found += here
        first = here[-1]["seed"] + 1 if here else last + 1
    return found


def _one_worker(name: str, first: int, last: int, seeds: Path) -> list[dict[str, Any]]:
    """What one worker says until it is done, or must be ended."""
    import compiling  # of the folder above

    env = os.environ | {"JAX_PLATFORMS": "cpu", "EMO_COMPILE_CACHE": "off"}
    env["XLA_FLAGS"] = compiling.FLAGS
    argv = [sys.executable, str(HERE / "worker.py"), name, str(first), str(last), str(seeds)]
    found: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory() as work,
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            argv,
            env=env | {"EMO_FUZZ_WORK": work},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as worker,
    ):
        lines: queue.Queue[str] = queue.Queue()
        assert worker.stdout is not None
        threading.Thread(target=_pass_on, args=(worker.stdout, lines), daemon=True).start()
        seconds, at = START_SECONDS, first
        while True:
            try:
                line = lines.get(timeout=seconds)
            except queue.Empty:
                if found and found[-1]["seed"] == last:
                    break  # all were read; it is slow to end
                found.append(
                    {"seed": at, "fault": f"hangs, for {seconds} s, where nothing ends it"}
                )
                break
            if not line:
                if (code := worker.wait()) != 0:
                    errors.seek(0)
                    said = " ".join(errors.read().split())[-300:]
                    found.append({"seed": at, "fault": f"the process ends with {code}: {said}"})
                break
            try:
                value = json.loads(line)
            except ValueError:
                continue  # printed by what was tested
            seconds = INPUT_SECONDS
            if "begin" in value:
                at = value["begin"]
            else:
                found.append(value)
        worker.kill()
    return found


def _pass_on(stream: Any, lines: "queue.Queue[str]") -> None:
    for line in stream:
        lines.put(line)
    lines.put("")


def confirmed(name: str, outcomes: list[dict[str, Any]], seeds: Path) -> list[dict[str, Any]]:
    """Faults; a hang is one where it hangs again: the machine may have been busy."""
    faults = []
    for outcome in outcomes:
        if "fault" not in outcome:
            continue
        if outcome["fault"].startswith("hangs"):
            again = fuzz(name, outcome["seed"], outcome["seed"], seeds) or [outcome]
            outcome = next((o for o in again if "fault" in o), again[-1])
        if "fault" in outcome:
            faults.append(outcome)
    return faults


def report(name: str, outcomes: list[dict[str, Any]], faults: list[dict[str, Any]]) -> str:
    """How many inputs ended how, and each kind of fault once, with the seeds that show it."""
    counts = Counter(o.get("ok", "fault") for o in outcomes)
    lines = [f"{name}: {len(outcomes)} inputs; {', '.join(f'{n} {k}' for k, n in counts.items())}"]
    kinds: dict[str, list[dict[str, Any]]] = {}
    for fault in faults:
        kinds.setdefault(fault.get("where", fault["fault"])[:80], []).append(fault)
    for of_kind in kinds.values():
        of_kind.sort(key=lambda f: f.get("size", 0))
        some = " ".join(str(f["seed"]) for f in of_kind[:5])
        lines.append(f"  {len(of_kind)} x {of_kind[0]['fault']} (seeds {some})")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Runs some or all readers and prints their reports."""
    sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "data")]
    from readers import READERS
    from seeds import make_seeds

    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        seeds = make_seeds(Path(folder) / "seeds")
        for name in argv[2:] or READERS:
            outcomes = fuzz(name, int(argv[0]), int(argv[1]), seeds)
            faults = confirmed(name, outcomes, seeds)
            bad += len(faults)
            print(report(name, outcomes, faults), flush=True)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
