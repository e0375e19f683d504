"""Submits a command to Slurm as a job of several nodes that goes on after every stop.

  python launch/slurm.py --nodes 2 --gpus-per-node 8 --time 24:00:00 \\
      --setup 'source /shared/venv/bin/activate' -- \\
      emo train --config experiments/emo_1b14b.py --config.data.store=/shared/store \\
      --workdir /shared/runs/emo_1b14b

Store and workdir are on a file system that all nodes share. emo finds its processes by Slurm's
variables.
"""

import shlex

import click
from launching import COMMAND, DRY_RUN, MAX_FAILURES, NAME, Call, carry_out, command

from emo_jax.errors import EXIT_OK, EXIT_RUN_AGAIN, EXIT_USAGE

# When one task fails, emo ends the others by itself; srun ends any still running after that.
_WAIT = 120  # seconds


def script(
    words: tuple[str, ...], options: dict[str, str | None], setup: tuple[str, ...], failures: int
) -> str:
    """The batch script.

    Args:
      words: the command of each task.
      options: sbatch options without their dashes; the value None: the option has none.
      setup: lines of shell that come first.
      failures: how often the job is started again after a failure.
    """
    lines = [f"#SBATCH --{k}" + (f"={v}" if v is not None else "") for k, v in options.items()]
    return "\n".join(
        [
            "#!/bin/bash",
            *lines,
            *setup,
            f"srun --label --wait={_WAIT} --kill-on-bad-exit=0 {shlex.join(words)}",
            "code=$?",
            "# Slurm itself requeues a job only when a node fails.",
            'failures="$SLURM_SUBMIT_DIR/$SLURM_JOB_NAME-$SLURM_JOB_ID.failures"',
            'count=$(cat "$failures" 2>/dev/null || echo 0)',
            "case $code in",
            f'  {EXIT_OK} | {EXIT_USAGE}) rm -f "$failures"; exit "$code" ;;',
            f'  {EXIT_RUN_AGAIN}) rm -f "$failures" ;;',
            f'  *) [ "$count" -lt {failures} ] || exit "$code"',
            '     echo $((count + 1)) >"$failures" ;;',
            "esac",
            'scontrol requeue "$SLURM_JOB_ID"',
            'exit "$code"',
            "",
        ]
    )


@command(
    "python launch/slurm.py --nodes 2 --gpus-per-node 8 -- emo train --config"
    " experiments/emo_1b14b.py --config.data.store=/shared/store --workdir /shared/runs/emo_1b14b"
)
@click.option("--nodes", type=click.IntRange(min=1), required=True, help="How many.")
@click.option(
    "--tasks-per-node",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes of a node. They share its GPUs.",
)
@click.option("--gpus-per-node", type=click.IntRange(min=1), help="None, if not given.")
@click.option("--time", default="24:00:00", show_default=True, help="Time limit, as Slurm has it.")
@click.option(
    "--save-seconds",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    help="From SIGTERM to the time limit: time to save.",
)
@click.option(
    "--shared-nodes", is_flag=True, help="Leave the rest of each node's CPUs and memory to others."
)
@click.option("--setup", multiple=True, metavar="LINE", help="A line of shell that comes first.")
@click.option(
    "--sbatch",
    "more",
    multiple=True,
    metavar="OPTION",
    help="Another option of sbatch: --sbatch partition=gpu.",
)
@NAME
@MAX_FAILURES
@DRY_RUN
@COMMAND
def main(
    nodes: int,
    tasks_per_node: int,
    gpus_per_node: int | None,
    time: str,
    save_seconds: int,
    shared_nodes: bool,
    setup: tuple[str, ...],
    more: tuple[str, ...],
    name: str,
    max_failures: int,
    dry_run: bool,
    command: tuple[str, ...],
) -> None:
    """Submit COMMAND to Slurm.

    Before the time limit, and when the job is preempted, every task gets SIGTERM: emo train saves
    and exits with 75, and the job is requeued. `scancel JOB` stops it for good.
    """
    options: dict[str, str | None] = {
        "job-name": name,
        "nodes": str(nodes),
        "ntasks-per-node": str(tasks_per_node),
        "time": time,
        "signal": f"TERM@{save_seconds}",
        "requeue": None,
        "open-mode": "append",
        "output": "%x-%j.log",
    }
    if gpus_per_node is not None:
        options["gpus-per-node"] = str(gpus_per_node)
    if not shared_nodes:
        options |= {"exclusive": None, "mem": "0"}
    for option in more:
        key, equals, value = option.removeprefix("--").partition("=")
        options[key] = value if equals else None
    text = script(command, options, setup, max_failures)
    carry_out([Call(["sbatch"], text)], dry_run=dry_run)


if __name__ == "__main__":
    main()
