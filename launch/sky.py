"""Submits a command to SkyPilot as a managed job, on any cloud.

  python launch/sky.py --nodes 2 --gpus H100:8 --volume my-volume:/shared -- \\
      emo train --config experiments/emo_1b14b.py --config.data.store=/shared/store \\
      --workdir /shared/runs/emo_1b14b

Started in the repository, whose code the nodes get. A volume is a network file system
(`sky volumes apply`).
"""

import shlex
from pathlib import Path
from typing import Any

import click
from launching import COMMAND, DRY_RUN, MAX_FAILURES, NAME, Call, as_yaml, carry_out, command

from emo_jax.errors import EXIT_RUN_AGAIN
from emo_jax.parallel.processes.place import COORDINATOR_PORT


def task(
    name: str,
    words: tuple[str, ...],
    *,
    nodes: int,
    gpus: str,
    spot: bool,
    volumes: dict[str, str],
    failures: int,
) -> dict[str, Any]:
    """The task.

    Args:
      name: its name.
      words: the command of each node.
      nodes: how many.
      gpus: of a node, as in `H100:8`.
      spot: whether nodes may be preempted.
      volumes: folder → volume.
      failures: how often the job is started again after a failure.
    """
    coordinator = f'"$(echo "$SKYPILOT_NODE_IPS" | head -n1):{COORDINATOR_PORT}"'
    lines = [
        "export EMO_PROCESSES=$SKYPILOT_NUM_NODES",
        "export EMO_PROCESS_INDEX=$SKYPILOT_NODE_RANK",
        f"export EMO_COORDINATOR={coordinator}",
        'export PATH="$HOME/emo/bin:$PATH"',
        f"exec {shlex.join(words)}",
    ]
    return {
        "name": name,
        "num_nodes": nodes,
        "resources": {
            "accelerators": gpus,
            "use_spot": spot,
            "job_recovery": {
                "max_restarts_on_errors": failures,
                "recover_on_exit_codes": [EXIT_RUN_AGAIN],
            },
        },
        **({"volumes": volumes} if volumes else {}),
        "workdir": ".",
        "setup": "python3 -m venv ~/emo\n~/emo/bin/pip install --quiet '.[gpu]'\n",
        "run": "\n".join(lines) + "\n",
    }


def _volumes(given: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in given:
        volume, colon, folder = text.partition(":")
        if not (colon and volume and folder.startswith("/")):
            raise click.UsageError(f"--volume {text}: must be VOLUME:/FOLDER")
        found[folder] = volume
    return found


@command(
    "python launch/sky.py --nodes 2 --gpus H100:8 --volume my-volume:/shared -- emo train --config"
    " experiments/emo_1b14b.py --config.data.store=/shared/store --workdir /shared/runs/emo_1b14b"
)
@click.option("--nodes", type=click.IntRange(min=1), required=True, help="How many.")
@click.option("--gpus", required=True, help="Of a node, as SkyPilot has them: H100:8.")
@click.option("--on-demand", is_flag=True, help="Nodes that are not preempted, instead of spot.")
@click.option(
    "--volume", multiple=True, metavar="VOLUME:/FOLDER", help="A volume, and where nodes have it."
)
@NAME
@MAX_FAILURES
@DRY_RUN
@COMMAND
def main(
    nodes: int,
    gpus: str,
    on_demand: bool,
    volume: tuple[str, ...],
    name: str,
    max_failures: int,
    dry_run: bool,
    command: tuple[str, ...],
) -> None:
    """Submit COMMAND to SkyPilot as a managed job; its task is left as NAME.yaml.

    The job is started again when its nodes are preempted, and when emo exits with 75 (state saved).
    """
    made = task(
        name,
        command,
        nodes=nodes,
        gpus=gpus,
        spot=not on_demand,
        volumes=_volumes(volume),
        failures=max_failures,
    )
    file = Path(f"{name}.yaml")
    text = as_yaml(made)
    submit = Call(["sky", "jobs", "launch", "--yes", str(file)])
    if dry_run:
        click.echo(Call(["tee", str(file)], text).script(), nl=False)
    else:
        file.write_text(text)
    carry_out([submit], dry_run=dry_run)


if __name__ == "__main__":
    main()
