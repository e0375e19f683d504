"""A Slurm of one node on this machine, in a folder of its own: munged, slurmctld and slurmd."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
CPUS = 2

# No cgroups, no accounting. A job that is requeued waits until the credentials of its last start
# are out of date: `cred_expire`.
_CONF = """
ClusterName=emo
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=10000
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue=1
ReturnToService=2
KillWait=30
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def missing() -> list[str]:
    """Programs that are not installed."""
    return [name for name in PROGRAMS if _program(name) is None]


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Starts the daemons; gives the variables with which Slurm's commands find them."""
    host = socket.gethostname().partition(".")[0]
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o755)
    key = folder / "munge/key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    conf = folder / "slurm.conf"
    ports = _free_ports(2)
    conf.write_text(_CONF.format(host=host, user=user, folder=folder, ports=ports, cpus=_cpus()))
    env = os.environ | {"SLURM_CONF": str(conf)}
    files = [
        f"--{what}={folder}/munge/{name}"
        for what, name in (
            ("socket", "socket"),
            ("key-file", "key"),
            ("log-file", "log"),
            ("pid-file", "pid"),
            ("seed-file", "seed"),
        )
    ]
    with contextlib.ExitStack() as stack:
        # --force: the folder may be below one that everybody can write to.
        stack.enter_context(_daemon(["munged", "--foreground", "--force", *files], env, folder))
        _wait(lambda: (folder / "munge/socket").exists(), folder)
        stack.enter_context(_daemon(["slurmctld", "-D", "-c"], env, folder))
        stack.enter_context(_daemon(["slurmd", "-D", "-N", host], env, folder))
        _wait(lambda: "idle" in _said(["sinfo", "--noheader"], env), folder)
        yield {"SLURM_CONF": str(conf)}


def _said(command: list[str], env: dict[str, str]) -> str:
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=30).stdout


@contextlib.contextmanager
def _daemon(command: list[str], env: dict[str, str], folder: Path) -> Iterator[None]:
    name = command[0]
    program = _program(name)
    assert program is not None
    with (folder / f"{name}.out").open("w") as out:
        process = subprocess.Popen(
            [program, *command[1:]], env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(ready, folder: Path) -> None:
    give_up = time.monotonic() + 60
    while not ready():
        said = "\n".join(file.read_text(errors="replace") for file in folder.glob("*.out"))
        assert time.monotonic() < give_up, f"Slurm does not start:\n{said}"
        time.sleep(0.1)


def _program(name: str) -> str | None:
    """Daemons are in folders that are not on everybody's PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin")


def _cpus() -> int:
    """Slurm refuses a node that has fewer CPUs than it says."""
    return min(CPUS, os.cpu_count() or 1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for found in sockets:
            found.bind(("127.0.0.1", 0))
        return [found.getsockname()[1] for found in sockets]
