"""Writes the golden files of the command line and of the experiment configs again.

    python tests/cli/regenerate.py

Do so when a new option or another default is what you want, and look at the diff: it is what users
of the command and of the experiment files will meet.
"""

import functools
import json
from pathlib import Path
from typing import Any

import click

from emo_jax.cli import cli
from emo_jax.config import to_dict
from emo_jax.config.baselines import LABEL_KINDS, LOSS_FREE, SPLITS
from emo_jax.config.file import load_config
from emo_jax.config.presets import ABLATIONS

TESTS = Path(__file__).parent.parent
COMMANDS = TESTS / "golden/cli.txt"
CONFIGS = TESTS / "golden/configs"
EXPERIMENTS = TESTS.parent / "experiments"
# Arguments an experiment file takes; none is always among them.
ANNEALS = ("std", "std_to_emo")
STAGES = ("branch", "mixed")
ARGUMENTS = {
    "emo_1b14b": ("130b", "1t"),
    "stdmoe_1b14b": ("130b", "1t"),
    "anneal_1b14b": ANNEALS,
    "anneal_tiny": ANNEALS,
    "bench_cpu": ("standard",),
    "ablation_tiny": ABLATIONS[1:],
    "modularity": ABLATIONS[1:],
    "btx_tiny": STAGES,
    "flexolmo_tiny": STAGES,
    "split_tiny": SPLITS[:2],
    "baselines": ("standard", "labels", "mixtral", "switch", "split", "btx", "flexolmo"),
    "labels_tiny": LABEL_KINDS[1:],
    "lossfree_tiny": LOSS_FREE[1:],
    "control_tiny": ("decay", "span-64", "penalty-2"),
}


def command_line() -> str:
    """Every command with its arguments, options, types and defaults, one a line."""
    return "\n".join(_lines(cli, "emo")) + "\n"


def _lines(command: click.Command, name: str) -> list[str]:
    lines = [name]
    lines += [f"  {_described(parameter)}" for parameter in command.params]
    for sub_name, sub in sorted(getattr(command, "commands", {}).items()):
        lines += _lines(sub, f"{name} {sub_name}")
    return lines


def _described(parameter: click.Parameter) -> str:
    is_option = isinstance(parameter, click.Option)
    head = ", ".join(parameter.opts) if is_option else (parameter.name or "").upper()
    if is_option and parameter.is_flag:
        return f"{head}: flag"
    kind = parameter.type
    text = "|".join(kind.choices) if isinstance(kind, click.Choice) else kind.name
    if parameter.multiple if is_option else parameter.nargs == -1:
        text += ", repeated"
    if parameter.required:
        return f"{head}: {text}, required"
    # What "no default" is inside of click differs between its versions.
    default = parameter.default if isinstance(parameter.default, str | int | float) else None
    return f"{head}: {text}, default {default!r}"


@functools.cache
def experiment_configs() -> dict[str, dict[str, Any]]:
    """The full config of each experiment file, by `name` or `name-argument`."""
    found = {}
    for file in sorted(EXPERIMENTS.glob("*.py")):
        if "def get_config(" not in file.read_text(encoding="utf-8"):
            continue  # a script
        for argument in ("", *ARGUMENTS.get(file.stem, ())):
            spec = f"{file}:{argument}" if argument else str(file)
            name = f"{file.stem}-{argument}" if argument else file.stem
            found[name] = to_dict(load_config(spec))
    return found


def as_text(config: dict[str, Any]) -> str:
    """As it is kept."""
    return json.dumps(config, indent=2) + "\n"


def main() -> None:
    """Writes the files, and deletes those of experiments that are gone."""
    COMMANDS.write_text(command_line())
    CONFIGS.mkdir(exist_ok=True)
    configs = experiment_configs()
    for stale in CONFIGS.glob("*.json"):
        if stale.stem not in configs:
            stale.unlink()
    for name, config in configs.items():
        (CONFIGS / f"{name}.json").write_text(as_text(config))


if __name__ == "__main__":
    main()
