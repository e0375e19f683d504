"""Faults, one after the other, into a run of four processes; it must end as if there were none.

    python tests/soak/soak.py --faults 60 --seed 1

At random steps of a run something is killed, stopped, damaged or filled up, and the same command is
typed again whenever it has ended. Then the same run is trained undisturbed: every loss and the
state must be equal to the last bit. A third run is of four processes, then of two, one, and four
again; its losses must agree to 1e-5.
"""

import contextlib
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/, as pytest does

import click
import runs
from faults import FAULTS, KILLED_AFTER, Fault
from launches import FIELDS, HangsError, Launch, Run, wait

TOLERANCE = 1e-5  # of losses, relative, where the number of processes differs
_DISK = "96m"
_BETWEEN = (3, 8)  # steps from one fault to the next


@dataclass
class Try:
    """What came of one fault.

    Attributes:
      step: last step that was logged when it began.
      code: exit code; None: the launch went on.
      seconds_to_end: from the fault on.
      seconds_to_go_on: from the next start, or the fault if it did not end, to a new step.
      lost: steps that were trained again.
      trouble: what must not be: it hung, showed a traceback, or did not go on.
    """

    kind: str
    step: int
    code: int | None = None
    seconds_to_end: float = 0.0
    seconds_to_go_on: float = 0.0
    lost: int = 0
    trouble: str = ""


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A folder on a disk of its own that can be filled up; False if none can be mounted here."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)


def plan(count: int, draw: random.Random, *, can_fill: bool) -> list[Fault]:
    """Each kind in turn, in an order that is drawn anew every time round."""
    kinds = [fault for fault in FAULTS if can_fill or fault.name != "disk full"]
    found: list[Fault] = []
    while len(found) < count:
        found += draw.sample(kinds, len(kinds))
    return found[:count]


def disturb(run: Run, launch: Launch, fault: Fault, draw: random.Random) -> tuple[Try, Launch]:
    """Brings a fault about in a launch that trains; returns what came of it, and who trains now."""
    done = Try(fault.name, run.steps_logged())
    begun = time.monotonic()
    try:
        mend = fault.do(run, launch, draw)
        ends = fault.ends
        if ends is None:
            ends = _ends_soon(launch)
        if ends:
            done.code = run.wait_for_end(launch)
            done.seconds_to_end = time.monotonic() - begun
        if mend is not None:
            mend()
        if ends:
            begun, launch = time.monotonic(), run.start()
            first = run.steps_logged()
            wait(lambda: launch.step_shown() > 0, launch, "new step")
            done.lost = max(done.step, first) - launch.resumed_at()
        else:
            run.wait_for_steps(2, launch)
        done.seconds_to_go_on = time.monotonic() - begun
        done.trouble = _trouble(run)
        if done.code is not None and done.code not in fault.codes:
            done.trouble = f"exit code {done.code}, not {fault.codes}"
        elif done.seconds_to_end > fault.within:
            done.trouble = f"ended in {done.seconds_to_end:.0f} s, not {fault.within:.0f} s"
    except HangsError as error:
        done.trouble = f"{error}; {_last_line(launch)}"
        run.end()
        launch = run.start()
        wait(lambda: launch.step_shown() > 0, launch, "new step")
    return done, launch


def _ends_soon(launch: Launch) -> bool:
    """Whether a launch ends before it has trained some more steps."""
    last = launch.step_shown() + 6
    wait(lambda: launch.code is not None or launch.step_shown() >= last, launch, "some more steps")
    return launch.code is not None


def _trouble(run: Run) -> str:
    for launch in run.launches[-2:]:
        for mark in ("Traceback (most recent", "*** Check failure", "Fatal Python error"):
            if mark in launch.text:
                return f"{mark} in {launch.log.name}"
    return ""


def _last_line(launch: Launch) -> str:
    lines = [line for line in launch.text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"


def stop(run: Run, launch: Launch) -> str:
    """Stops a run as a scheduler does; returns what is wrong, if anything."""
    launch.process.terminate()
    try:
        code = run.wait_for_end(launch, KILLED_AFTER)
    except HangsError as error:
        return str(error)
    return "" if code == 75 else f"exit code {code}: {_last_line(launch)}"


def train_alone(folder: Path, store: Path, cache: Path, last: int, processes: int) -> Run:
    """Trains a run up to a step and a bit more, undisturbed, with every checkpoint kept."""
    folder.mkdir()
    every = FIELDS["checkpoint.save_every"]
    run = Run(folder, folder / "run", store, cache, processes, checkpoint__keep_every=every)
    launch = run.start()
    wait(lambda: last in run.checkpoints(), launch, f"step {last}", seconds=3600)
    wrong = stop(run, launch)
    assert not wrong, wrong
    return run


def differences(run: Run, alone: Run, last: int) -> list[str]:
    """What differs between two runs up to a step; nothing should."""
    found = []
    ours, theirs = run.numbers(), alone.numbers()
    for step in range(1, last + 1):
        if ours.get(step) != theirs[step]:
            found.append(f"step {step}: {ours.get(step)} is not {theirs[step]}")
    state, expected = runs.state_of(run.workdir, last), runs.state_of(alone.workdir, last)
    if not runs.equal_trees(state, expected):
        found.append(f"the states of step {last} differ")
    return found


def furthest(run: Run, alone: Run, last: int) -> float:
    """Largest relative difference of a loss up to a step."""
    ours, theirs = run.numbers(), alone.numbers()
    if not set(range(1, last + 1)) <= ours.keys():
        return float("inf")
    return max(
        abs(float(ours[s]["loss"]) / float(theirs[s]["loss"]) - 1) for s in range(1, last + 1)
    )


def soak(
    folder: Path, *, faults: int, seed: int, only: str, hosts: bool, processes: int = 4
) -> dict:
    """Runs all of it below a folder; returns what is reported."""
    draw, cache = random.Random(seed), folder / "compiled"
    runs.write_corpus(folder / "corpus.jsonl")
    store, begun = folder / "store", time.monotonic()
    made = runs.emo(
        ["prepare", folder / "corpus.jsonl", "--output", store, "--tokenizer", "bytes"],
        runs.environment(),
    )
    assert made.returncode == 0, made.stderr
    (folder / "disturbed").mkdir()
    tries: list[Try] = []
    with small_disk(folder / "disk") as can_fill:
        if not can_fill:
            click.echo("no disk can be mounted here: none is filled up", err=True)
        kinds = plan(faults, draw, can_fill=can_fill)
        if only:
            kinds = draw.choices([fault for fault in FAULTS if only in fault.name], k=faults)
        run = Run(folder / "disturbed", folder / "disk/run", store, cache, processes)
        try:
            launch = run.start()
            for number, fault in enumerate(kinds, 1):
                run.wait_for_steps(draw.randint(*_BETWEEN), launch)
                done, launch = disturb(run, launch, fault, draw)
                tries.append(done)
                click.echo(f"{number}/{faults} {_described(done)}", err=True)
            run.wait_for_steps(FIELDS["checkpoint.save_every"], launch)
            wrong = stop(run, launch)
            last = max(s for s in run.checkpoints() if s % FIELDS["checkpoint.save_every"] == 0)
            moved = _other_hosts(folder / "moved", store, cache) if hosts else None
            click.echo(f"undisturbed, up to step {last}", err=True)
            alone = train_alone(folder / "alone", store, cache, last, processes)
            found = [wrong] if wrong else differences(run, alone, last)
        finally:
            run.end()
    return {
        "seed": seed,
        "faults": faults,
        "steps": last,
        "tries": [vars(one) for one in tries],
        "differences": found,
        "other hosts": moved and furthest(moved, alone, min(last, moved.steps_logged())),
        "seconds": time.monotonic() - begun,
    }


def _other_hosts(folder: Path, store: Path, cache: Path) -> Run:
    """Trains with four processes, then goes on with two, one, and four."""
    folder.mkdir()
    run = Run(folder, folder / "run", store, cache)
    try:
        for processes in (4, 2, 1, 4):
            launch = run.start(processes)
            run.wait_for_steps(6, launch)
            wrong = stop(run, launch)
            assert not wrong, wrong
        return run
    finally:
        run.end()


def _described(done: Try) -> str:
    ended = "went on" if done.code is None else f"exit {done.code} in {done.seconds_to_end:.1f} s"
    text = f"{done.kind} at step {done.step}: {ended}; {done.lost} steps lost,"
    text += f" steps again after {done.seconds_to_go_on:.1f} s"
    return f"{text}; TROUBLE: {done.trouble}" if done.trouble else text


def table(report: dict) -> str:
    """The report as a table of Markdown, by kind of fault."""
    lines = [
        "| fault | tries | survived | steps lost | s to end | s to steps | exit codes |",
        "|---|---|---|---|---|---|---|",
    ]
    tries = [Try(**one) for one in report["tries"]]
    for kind in dict.fromkeys(fault.name for fault in FAULTS):
        of_kind = [one for one in tries if one.kind == kind]
        if not of_kind:
            continue
        codes = sorted({"went on" if one.code is None else str(one.code) for one in of_kind})
        ends = [one.seconds_to_end for one in of_kind if one.code is not None]
        cells = [
            kind,
            str(len(of_kind)),
            str(sum(not one.trouble for one in of_kind)),
            _spread([one.lost for one in of_kind], "{:.0f}"),
            _spread(ends, "{:.1f}") if ends else "",
            _spread([one.seconds_to_go_on for one in of_kind], "{:.1f}"),
            ", ".join(codes),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: list, form: str) -> str:
    middle, most = form.format(statistics.median(values)), form.format(max(values))
    return middle if middle == most else f"{middle} (at most {most})"


@click.command()
@click.option("--faults", type=click.IntRange(min=1), default=60, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--only", default="", help="Only faults whose name contains this.")
@click.option("--hosts/--no-hosts", default=True, help="Go on with 2, 1 and 4 processes too.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the report there.")
@click.option("--keep", type=click.Path(path_type=Path), help="New folder for all that is made.")
def main(
    faults: int, seed: int, only: str, hosts: bool, file: Path | None, keep: Path | None
) -> None:
    """Disturbs a run of four processes, and prints what came of it."""
    folder = Path(tempfile.mkdtemp(prefix="soak")) if keep is None else keep
    folder.mkdir(parents=True, exist_ok=True)
    try:
        report = soak(folder.absolute(), faults=faults, seed=seed, only=only, hosts=hosts)
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    if file is not None:
        file.write_text(json.dumps(report, indent=1) + "\n")
    click.echo(table(report))
    trouble = [one for one in report["tries"] if one["trouble"]]
    click.echo(f"\n{len(report['tries'])} faults, {len(trouble)} with trouble", nl=False)
    click.echo(f", {report['seconds']:.0f} s; ", nl=False)
    click.echo("; ".join(report["differences"]) or "the end is that of a run left alone")
    moved = report["other hosts"]
    if moved is not None:
        click.echo(f"with 4, 2, 1 and 4 processes, losses are within {moved:.1e}")
    far = moved is not None and moved > TOLERANCE
    sys.exit(1 if trouble or report["differences"] or far else 0)


if __name__ == "__main__":
    main()
