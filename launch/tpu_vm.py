"""Runs a command on all hosts of one TPU slice, without Kubernetes.

  python launch/tpu_vm.py --tpu v5p:4x4x4 --zone us-east5-a --nfs 10.0.0.2:/vol1 \\
      --source '/shared/emo_jax-0.1.0-py3-none-any.whl[tpu]' -- \\
      emo train --config /shared/experiments/emo_1b14b.py --config.data.store=/shared/store \\
      --workdir /shared/runs/emo_1b14b
  python launch/tpu_vm.py --tpu v5p:4x4x4 --zone us-east5-a --delete

The slice is made if it is not there, and the hosts mount a network file system as /shared. emo
finds the hosts of the slice by itself. For several slices use launch/gke.py.
"""

import collections
import re
import shlex
import subprocess
import sys
import time

import click
from launching import DRY_RUN, MAX_FAILURES, NAME, Call, carry_out, command, run
from slices import SLICE, Slice

from emo_jax.errors import EXIT_FAILED, EXIT_OK, EXIT_RUN_AGAIN, EXIT_USAGE

_POLL = 30.0  # seconds between looks at a slice that is being made
_THERE, _ABSENT = "ACTIVE", "ABSENT"  # states of a request for a slice
_GONE = ("SUSPENDING", "SUSPENDED", "FAILED")  # preempted, or never to be had
_MARK = "emo-exit-code="  # gcloud has exit codes of its own


class Tpu:
    """The gcloud commands for one slice.

    Args:
      name: of the slice and of the request for it.
      where: --zone and --project.
    """

    def __init__(self, name: str, where: list[str]):
        self._name, self._where = name, where

    def _gcloud(self, *words: str) -> Call:
        return Call(["gcloud", "compute", "tpus", *words, *self._where])

    def create(self, tpu: Slice, *, spot: bool) -> Call:
        """Asks for the slice."""
        return self._gcloud(
            *("queued-resources", "create", self._name, f"--node-id={self._name}"),
            f"--accelerator-type={tpu.accelerator_type}",
            f"--runtime-version={tpu.runtime_version}",
            *(["--spot"] if spot else []),
        )

    def delete(self) -> Call:
        """Gives the slice back."""
        return self._gcloud("queued-resources", "delete", self._name, "--force", "--quiet")

    def describe(self) -> Call:
        """Prints the state of the request, such as ACTIVE; fails where there is none."""
        return self._gcloud(
            "queued-resources", "describe", self._name, "--format=value(state.state)"
        )

    def on_all(self, shell: str) -> Call:
        """Runs a shell command on all hosts."""
        return self._gcloud("tpu-vm", "ssh", self._name, "--worker=all", f"--command={shell}")

    def state(self) -> str:
        """What `describe` prints; ABSENT: there is no such request; UNKNOWN: it does not answer."""
        call = self.describe()
        done = subprocess.run(call.argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode == 0:
            return done.stdout.strip()
        if "NOT_FOUND" in done.stderr:
            return _ABSENT
        # The network, or a login that has expired: the job lives for weeks, and waits.
        last = (done.stderr.strip().splitlines() or ["gcloud said nothing"])[-1]
        click.echo(f"launch: the slice's state is not known: {last}", err=True)
        return "UNKNOWN"


def install(source: str, nfs: str | None) -> str:
    """The shell command that prepares a host. It may be repeated."""
    steps = ["python3 -m venv ~/emo", f"~/emo/bin/pip install --quiet {shlex.quote(source)}"]
    if nfs is not None:
        mount = f"mountpoint -q /shared || sudo mount {shlex.quote(nfs)} /shared"
        get = "sudo apt-get install -qy nfs-common"
        steps = [get, "sudo mkdir -p /shared", f"{{ {mount}; }}", *steps]
    return " && ".join(steps)


def marked(words: tuple[str, ...]) -> str:
    """The shell command for COMMAND that prints its exit code last."""
    return f'PATH="$HOME/emo/bin:$PATH" {shlex.join(words)}; echo {_MARK}$?'


def watched(call: Call) -> list[int]:
    """Runs the marked command on all hosts; passes on what they say; returns their exit codes."""
    codes = []
    with subprocess.Popen(
        call.argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(rf"{_MARK}(\d+)", line):
                codes.append(int(found[1]))
            click.echo(line, nl=False)
    return codes


def exit_code(codes: list[int]) -> int:
    """One exit code for those of all hosts.

    Bad usage comes first, then other failures; if no host said one, all have failed.
    """
    if not codes:
        return EXIT_FAILED
    count = collections.Counter(codes)
    failures = sorted(set(codes) - {EXIT_OK, EXIT_USAGE, EXIT_RUN_AGAIN})
    order = [EXIT_USAGE, *failures, EXIT_RUN_AGAIN, EXIT_OK]
    return next(code for code in order if count[code])


def get(slice_: Tpu, create: Call) -> None:
    """Waits for the slice; asks for it where nobody has, and again where it was preempted."""
    while (state := slice_.state()) != _THERE:
        if state in _GONE:
            carry_out([slice_.delete()], dry_run=False)
        if state in _GONE or state == _ABSENT:
            carry_out([create], dry_run=False)
        time.sleep(_POLL)


def go_on(slice_: Tpu, create: Call, prepare: Call, command: Call, *, failures: int) -> int:
    """Runs the command until it has finished; returns its exit code."""
    failed = 0
    while True:
        get(slice_, create)
        code = EXIT_FAILED if run(prepare) else exit_code(watched(command))
        if code in (EXIT_OK, EXIT_USAGE):
            return code
        if code == EXIT_RUN_AGAIN:
            failed = 0
        elif slice_.state() == _THERE:
            failed += 1
            if failed > failures:
                return code
        click.echo(f"launch: exit code {code}; the command is run again", err=True)


@command(
    "python launch/tpu_vm.py --tpu v5p:4x4x4 --zone us-east5-a --nfs 10.0.0.2:/vol1 --source"
    " '/shared/emo_jax-0.1.0-py3-none-any.whl[tpu]' -- emo train"
    " --config /shared/experiments/emo_1b14b.py --config.data.store=/shared/store"
    " --workdir /shared/runs/emo_1b14b"
)
@click.option("--tpu", type=SLICE, required=True, help="v5p:4x4x4, v5e:16x16, v6e-64.")
@click.option("--zone", required=True, help="Of Google Cloud.")
@click.option("--project", help="Of Google Cloud; gcloud's own, if not given.")
@click.option("--spot", is_flag=True, help="A slice that may be preempted.")
@click.option("--nfs", metavar="HOST:/SHARE", help="Network file system that becomes /shared.")
@click.option(
    "--source",
    help="What pip installs on the hosts: a wheel under /shared with [tpu] behind its name, or"
    " emo-jax[tpu] @ git+https://….",
)
@click.option("--delete", is_flag=True, help="Give the slice back, and run nothing.")
@NAME
@MAX_FAILURES
@DRY_RUN
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def main(
    tpu: Slice,
    zone: str,
    project: str | None,
    spot: bool,
    nfs: str | None,
    source: str | None,
    delete: bool,
    name: str,
    max_failures: int,
    dry_run: bool,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND on all hosts of a TPU slice, until it has finished.

    It is run again when it exits with 75 (state saved), and on a new slice when this one was
    preempted. The slice stays until --delete.
    """
    where = [f"--zone={zone}", *([f"--project={project}"] if project else [])]
    slice_ = Tpu(name, where)
    if delete:
        carry_out([slice_.delete()], dry_run=dry_run)
        return
    if not command or source is None:
        raise click.UsageError("give --source and a command, or --delete")
    create = slice_.create(tpu, spot=spot)
    prepare = slice_.on_all(install(source, nfs))
    work = slice_.on_all(marked(command))
    if dry_run:
        state = f'"$({shlex.join(slice_.describe().argv)})"'
        click.echo("# The slice, where nobody has asked for it yet:")
        carry_out([create], dry_run=True)
        click.echo(f"until [ {state} = {_THERE} ]; do sleep {_POLL:.0f}; done")
        click.echo("# Again and again, until the last line that each host prints has no 75:")
        carry_out([prepare, work], dry_run=True)
        return
    sys.exit(go_on(slice_, create, prepare, work, failures=max_failures))


if __name__ == "__main__":
    main()
