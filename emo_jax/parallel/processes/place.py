"""Which process this is, out of how many: from flags, or from the scheduler that started it.

JAX's own cluster detection (`parallel.private`) is used where it is right. Beyond it: a single
process stays alone; a process that is alone on its node gets all its GPUs, not one; Open MPI 5,
which no longer reports where it was started, is supported; pods that do not know how many they are
get an error instead of a separate run each.
"""

import contextlib
import importlib.util
import os
import subprocess
import zlib
from dataclasses import dataclass
from typing import Any

from emo_jax.errors import UsageError
from emo_jax.parallel import private

# Variables in which a scheduler gives the index of this process. The first one set is used.
_INDEX_VARIABLES = (
    "JOB_COMPLETION_INDEX",
    "OMPI_COMM_WORLD_RANK",
    "SLURM_PROCID",
    "SKYPILOT_NODE_RANK",
)
# Of process 0, on TPU VMs and in pods, which no other job shares: the port that rules of firewalls
# open for JAX, which itself takes another since 0.8.1.
COORDINATOR_PORT = 8476
_ASKED = "give --processes N --process-index I --coordinator HOST:PORT"


@dataclass(frozen=True, kw_only=True)
class Place:
    """One process of several.

    Args:
      index: index of this process.
      count: number of processes.
      coordinator: `host:port` of process 0, the same for all.
      local_devices: which GPUs of this machine this process uses; None: all it can see.
      found: where this information comes from.
    """

    index: int
    count: int
    coordinator: str
    local_devices: list[int] | None = None
    found: str = "the command line"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the coordinator."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def find_place(
    count: int | None = None, index: int | None = None, coordinator: str | None = None
) -> Place | None:
    """The place of this process, or None if it is alone. No device is touched.

    Args:
      count, index, coordinator: explicit values; a scheduler supplies the rest.

    Raises:
      UsageError: something is missing or impossible.
    """
    if count == 1 and index in (None, 0):
        return None
    if count is not None and coordinator is not None:
        place = Place(count=count, index=_index(index), coordinator=coordinator)
    else:
        found = _open_mpi(coordinator) or _slurm() or _tpu_pod() or _kubernetes()
        if found is None:
            if (count, index, coordinator) != (None, None, None):
                raise UsageError(f"no scheduler is found that says the other processes: {_ASKED}")
            return None
        if count not in (None, found.count) or index not in (None, found.index):
            raise UsageError(
                f"process {index} of {count} is asked for, and {found.found} says"
                f" {found.index} of {found.count}: {_ASKED}, or none of them"
            )
        if found.count == 1:
            return None
        place = found if coordinator is None else _with_coordinator(found, coordinator)
    return _checked(place)


def _with_coordinator(place: Place, coordinator: str) -> Place:
    return Place(**{**vars(place), "coordinator": coordinator})


def _checked(place: Place) -> Place:
    host, colon, port = place.coordinator.rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
        raise UsageError(f"--coordinator {place.coordinator}: must be HOST:PORT of process 0")
    if not 0 <= place.index < place.count:
        raise UsageError(
            f"--process-index {place.index}: must be in 0..{place.count - 1}, of --processes"
            f" {place.count}"
        )
    return place


def _index(index: int | None) -> int:
    if index is not None:
        return index
    for name in _INDEX_VARIABLES:
        if value := os.environ.get(name):
            return int(value)
    raise UsageError(f"which process is this? {_ASKED}")


# --- schedulers ----------------------------------------------------------------------------------


def _open_mpi(coordinator: str | None) -> Place | None:
    env = os.environ
    names = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
    if not all(name in env for name in names):
        return None
    count, index, local = (int(env[name]) for name in names)
    local_count = int(env.get("OMPI_COMM_WORLD_LOCAL_SIZE", count))
    if count == 1:
        coordinator = "alone"
    elif coordinator is None and local_count == count:  # one machine
        name = env.get("PMIX_NAMESPACE") or env.get("OMPI_MCA_orte_hnp_uri") or str(os.getppid())
        coordinator = f"127.0.0.1:{_port(name)}"
    elif coordinator is None and importlib.util.find_spec("mpi4py"):
        coordinator = _of(private.cluster("Mpi4pyCluster"))
    elif coordinator is None and "OMPI_MCA_orte_hnp_uri" in env:
        coordinator = _of(private.cluster("OmpiCluster"))
    elif coordinator is None:
        raise UsageError(
            "Open MPI does not say where process 0 is: give --coordinator HOST:PORT, or install"
            " mpi4py"
        )
    gpus = _share_of_gpus(local, local_count)
    return Place(
        count=count, index=index, coordinator=coordinator, local_devices=gpus, found="Open MPI"
    )


_TPU_CLUSTERS = ("GkeTpuCluster", "GceTpuCluster")  # JAX's, in the order in which they are tried


def _slurm() -> Place | None:
    env, slurm = os.environ, private.cluster("SlurmCluster")
    if not slurm.is_env_present():
        return None
    # Tasks of the step: an allocation may have more tasks than `srun -n` starts.
    count = int(env.get("SLURM_STEP_NUM_TASKS") or slurm.get_process_count())
    gpus = None
    if "SLURM_GPUS_PER_TASK" not in env:  # with it each task sees its own
        per_node, node = _slurm_tasks_per_node(), int(env.get("SLURM_NODEID", 0))
        here = per_node[node] if node < len(per_node) else count
        gpus = _share_of_gpus(int(env["SLURM_LOCALID"]), here)
    return Place(
        count=count,
        index=slurm.get_process_id(),
        coordinator=_of(slurm),
        local_devices=gpus,
        found="Slurm",
    )


def _slurm_tasks_per_node() -> list[int]:
    """Parses `2(x3),1` as 2, 2, 2, 1."""
    text = os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ.get("SLURM_TASKS_PER_NODE", "")
    per_node: list[int] = []
    with contextlib.suppress(ValueError):
        for part in text.split(","):
            tasks, _, times = part.partition("(x")
            per_node += [int(tasks)] * int(times.rstrip(")") or 1)
    return per_node


def _tpu_pod() -> Place | None:
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and "tpu" not in platforms:
        return None
    import jax  # noqa: F401  it finds the chips of this machine

    for cluster in map(private.cluster, _TPU_CLUSTERS):
        if cluster.is_env_present():
            count = cluster.get_process_count()
            coordinator = "alone" if count == 1 else _of(cluster, COORDINATOR_PORT)
            index = cluster.get_process_id()
            return Place(count=count, index=index, coordinator=coordinator, found="the TPU pod")
    return None


def _kubernetes() -> Place | None:
    env = os.environ
    if "KUBERNETES_SERVICE_HOST" not in env or "JOB_COMPLETION_INDEX" not in env:
        return None
    if importlib.util.find_spec("kubernetes") is None:
        raise UsageError(
            "this is a pod of an indexed job, and how many there are is not known: set"
            " EMO_PROCESSES and EMO_COORDINATOR=HOST:PORT in its environment (EMO_PROCESSES=1 for"
            " a run of one pod), as launch/gke.py does, or install kubernetes"
        )
    kubernetes = private.cluster("K8sCluster")
    kubernetes.is_env_present()  # opens its clients
    try:
        count = kubernetes.get_process_count()
        coordinator = "alone" if count == 1 else _of(kubernetes, COORDINATOR_PORT)
    except RuntimeError as e:
        raise UsageError(f"Kubernetes: {' '.join(str(e).split())}") from e
    index = kubernetes.get_process_id()
    return Place(count=count, index=index, coordinator=coordinator, found="Kubernetes")


def _of(cluster: Any, port: int | None = None) -> str:
    """The coordinator address that a JAX cluster reports.

    Args:
      port: None: JAX chooses one for each job, since jobs may share a machine.
    """
    asked = os.environ.get("JAX_COORDINATOR_PORT") or (str(port) if port else None)
    return cluster.get_coordinator_address(timeout_secs=300, override_coordinator_port=asked)


def _port(name: str) -> int:
    """A port derived from a name, in the range from which JAX also picks ports."""
    return 61440 + zlib.crc32(name.encode()) % 4096


def _share_of_gpus(local_index: int, local_count: int) -> list[int] | None:
    """GPUs for one of several processes on a machine; None: all that it sees.

    Raises:
      UsageError: they cannot be shared evenly.
    """
    if local_count == 1:
        return None
    names = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
    visible = next((v for n in names if (v := os.environ.get(n))), "")
    if not visible:
        return [local_index]  # as in JAX: one process per GPU
    here = len(visible.split(","))
    if here == 1:
        return None  # chosen by the scheduler
    if here % local_count:
        raise UsageError(
            f"{here} GPUs cannot be shared by the {local_count} processes of this machine; start"
            " one process, or one for each GPU"
        )
    each = here // local_count
    return list(range(local_index * each, (local_index + 1) * each))


def hosts(place: Place) -> dict[int, str]:
    """Hosts by process, as far as the scheduler reports them."""
    try:
        if place.found == "Slurm":
            command = ["scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"]]
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
            nodes = zip(done.stdout.split(), _slurm_tasks_per_node(), strict=True)
            names = [name for name, tasks in nodes for _ in range(tasks)]
            block = os.environ.get("SLURM_DISTRIBUTION", "block").startswith("block")
            return dict(enumerate(names)) if block and len(names) == place.count else {}
        if place.found == "the TPU pod" and "MEGASCALE_NUM_SLICES" not in os.environ:
            gke, gce = map(private.cluster, _TPU_CLUSTERS)
            found = gke if gke.is_env_present() else gce
            return dict(enumerate(private.workers_of_tpu_slice(found)))
    except Exception:  # this only improves a message
        return {}
    return {}
