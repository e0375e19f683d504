"""launch/tpu_vm.py with a gcloud that runs on this machine; the real one reads its commands."""

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys

import pytest
from shown import launch, module, refused, shown

TPU = ("--tpu", "v5p:4x4x4", "--zone", "us-east5-a", "--spot", "--source", "emo.whl[tpu]")
# Two hosts, whose pip installs nothing. The slice is there after the second look.
_GCLOUD = """#!{python}
import os, pathlib, subprocess, sys

words, folder = sys.argv[1:], pathlib.Path({folder!r})
state = folder / "state"
with (folder / "log").open("a") as log:
    print(*words[2:4], file=log)
if "describe" in words:
    if (away := folder / "away").exists():
        away.unlink()
        sys.exit("ERROR: gcloud crashed (TransportError): no route to host")
    if not state.exists():
        sys.exit("ERROR: (gcloud) NOT_FOUND: Resource was not found.")
    print(state.read_text())
    state.write_text(state.read_text().replace("WAITING_FOR_RESOURCES", "ACTIVE"))
elif "create" in words:
    state.write_text("WAITING_FOR_RESOURCES")
elif "delete" in words:
    state.unlink()
else:
    [command] = [w.removeprefix("--command=") for w in words if w.startswith("--command=")]
    if "pip install" in command:
        sys.exit(0)
    for host in "01":
        subprocess.run(["bash", "-c", command], env=os.environ | {{"HOST": host}}, check=True)
"""
CREATE, SSH = "queued-resources create", "tpu-vm ssh"


@pytest.fixture
def gcloud(tmp_path, monkeypatch):
    """Runs the launcher; returns its exit code, and the gcloud commands, without the looks."""
    file = tmp_path / "bin/gcloud"
    file.parent.mkdir()
    file.write_text(_GCLOUD.format(python=sys.executable, folder=str(tmp_path)))
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{file.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(module("tpu_vm"), "_POLL", 0.01)

    def go(command: str, *options: str) -> tuple[int, list[str]]:
        done = launch("tpu_vm", *TPU, *options, "--", "bash", "-c", command)
        log = (tmp_path / "log").read_text().splitlines()
        return done.exit_code, [line for line in log if "describe" not in line]

    return go


def test_a_network_that_is_away_for_a_moment_asks_for_no_second_slice(gcloud, tmp_path):
    (tmp_path / "state").write_text("ACTIVE")
    (tmp_path / "away").touch()
    assert gcloud("exit 0") == (0, [SSH, SSH])


def test_a_slice_is_made_and_the_command_run_until_it_has_finished(gcloud, tmp_path):
    """The hosts save twice: 75."""
    count = f"echo x >>{tmp_path}/$HOST; [ $(wc -l <{tmp_path}/$HOST) -gt 2 ] || exit 75"
    assert gcloud(count) == (0, [CREATE, *[SSH, SSH] * 3])


def test_a_slice_that_was_preempted_is_made_again(gcloud, tmp_path):
    lost = f"[ -e {tmp_path}/once ] || [ $HOST = 0 ] || {{ touch {tmp_path}/once; printf SUSPENDED"
    command = f"{lost} >{tmp_path}/state; kill -9 $$; }}"
    code, log = gcloud(command, "--max-failures", "0")
    assert (code, log) == (0, [CREATE, SSH, SSH, "queued-resources delete", CREATE, SSH, SSH])


@pytest.mark.parametrize(("command", "code", "starts"), [("exit 2", 2, 1), ("exit 3", 3, 2)])
def test_failures(gcloud, command, code, starts):
    one_host = f"[ $HOST = 0 ] || {command}"
    assert gcloud(one_host, "--max-failures", "1") == (code, [CREATE, *[SSH, SSH] * starts])


def test_the_last_of_the_hosts_codes_that_counts():
    code = module("tpu_vm").exit_code
    assert [code([0, 0]), code([75, 0]), code([75, 1, 0]), code([2, 137]), code([])] == [
        *(0, 75, 1, 2, 1)
    ]


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="Google Cloud's gcloud is not installed")
@pytest.mark.system
def test_gcloud_takes_the_commands(tmp_path):
    """Without an account it gets as far as asking for one."""
    env = os.environ | {"CLOUDSDK_CONFIG": str(tmp_path), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"}
    script = shown("tpu_vm", *TPU, "--project", "p", "--nfs", "10.0.0.2:/vol1")
    script += shown("tpu_vm", *TPU, "--project", "p", "--delete")
    commands = re.findall(r"gcloud (?:[^'\n$\")]|'[^']*'|\"'\"|\$HOME|\$\?)+", script)
    assert len(commands) == 5, commands
    for command in commands:
        done = subprocess.run(
            shlex.split(command), env=env, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 1 and "account" in done.stderr, (command, done.stderr)


def test_bad_usage():
    assert "give --source and a command, or --delete" in refused("tpu_vm", *TPU)
