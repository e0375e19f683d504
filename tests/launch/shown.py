"""Launchers, called in this process, and what they show with --dry-run."""

import importlib.util
import re
import sys
from functools import cache
from typing import Any

import runs
import yaml
from click.testing import CliRunner

TRAIN = ["emo", "train", "--config", "experiments/emo_tiny.py", "--workdir", "/shared/a run"]


@cache
def module(name: str) -> Any:
    """A file of launch/, such as `gke`."""
    folder = runs.REPO / "launch"
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # they import what they share
    spec = importlib.util.spec_from_file_location(f"launch_{name}", folder / f"{name}.py")
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


def launch(launcher: str, *options: str, **settings):
    """A finished launcher: `exit_code`, `stdout`, `stderr`."""
    done = CliRunner().invoke(module(launcher).main, options, prog_name=launcher, **settings)
    assert isinstance(done.exception, SystemExit | None), done.exc_info
    return done


def shown(launcher: str, *options: str, command=TRAIN) -> str:
    """The script."""
    done = launch(launcher, *options, "--dry-run", "--", *command)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def document(script: str) -> Any:
    """The YAML that a script gives to its first command."""
    return yaml.safe_load(re.search(r"<<'(\w+)'\n(.*?)\n\1\n", script, re.DOTALL)[2])


def refused(launcher: str, *options: str) -> str:
    """The last line of a launcher that refuses its options."""
    done = launch(launcher, *options)
    assert done.exit_code == 2, done.stdout
    return done.stderr.splitlines()[-1]
