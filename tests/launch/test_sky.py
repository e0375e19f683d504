"""launch/sky.py: SkyPilot's own loader takes the task."""

import json
import os
import subprocess

import pytest
from shown import TRAIN, document, refused, shown

OPTIONS = ("--nodes", "2", "--gpus", "H100:8", "--volume", "my-volume:/shared", "--name", "big")
_LOAD = """
import json, sys
import sky

task = sky.Task.from_yaml(sys.argv[1])
[resources] = task.resources
facts = {
    "name": task.name,
    "nodes": task.num_nodes,
    "accelerators": resources.accelerators,
    "spot": resources.use_spot,
    "recovery": resources.job_recovery,
    "run": task.run,
}
print(json.dumps(facts))
"""


def test_the_nodes_run_the_command(tmp_path):
    task = document(shown("sky", *OPTIONS, command=["env"]))
    assert (task["num_nodes"], task["volumes"]) == (2, {"/shared": "my-volume"})
    # As SkyPilot sets them on a node.
    env = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "HOME": str(tmp_path)}
    env |= {"SKYPILOT_NODE_IPS": "10.0.0.3\n10.0.0.4", "PATH": os.environ["PATH"]}
    done = subprocess.run(["bash", "-c", task["run"]], env=env, capture_output=True, text=True)
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert (found["EMO_PROCESSES"], found["EMO_PROCESS_INDEX"]) == ("2", "1")
    assert found["EMO_COORDINATOR"] == "10.0.0.3:8476"


@pytest.mark.system
def test_skypilot_takes_the_task(tmp_path):
    python = os.environ.get("EMO_SKYPILOT_PYTHON")
    if python is None:
        assert "CI" not in os.environ, ".ci/run says where SkyPilot is"
        pytest.skip("EMO_SKYPILOT_PYTHON names no Python with skypilot, which wants one of its own")
    script = shown("sky", *OPTIONS)
    *write, submit = script.splitlines(keepends=True)
    assert submit == "sky jobs launch --yes big.yaml\n"
    subprocess.run(["bash"], input="".join(write), text=True, cwd=tmp_path, check=True)
    env = {
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
    }
    load = [python, "-c", _LOAD, tmp_path / "big.yaml"]
    done = subprocess.run(load, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    run = facts.pop("run")
    assert facts == {
        "name": "big",
        "nodes": 2,
        "accelerators": {"H100": 8},
        "spot": True,
        "recovery": {
            "strategy": None,
            "max_restarts_on_errors": 10,
            "recover_on_exit_codes": [75],
        },
    }
    assert run.splitlines()[-1] == "exec emo train --config experiments/emo_tiny.py --workdir" + (
        f" '{TRAIN[-1]}'"
    )


def test_bad_usage():
    line = refused("sky", *OPTIONS, "--volume", "shared", "--dry-run", "emo")
    assert "--volume shared: must be VOLUME:/FOLDER" in line
