"""Which process of how many: what flags and schedulers say."""

import os
import sys
import types

import pytest

from emo_jax.errors import UsageError
from emo_jax.parallel.processes import place
from emo_jax.parallel.processes.place import Place, find_place

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NODELIST": "node[003-004,007]",
    "SLURM_NTASKS": "8",  # of the allocation
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
}
OMPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "PMIX_NAMESPACE": "prterun-host-17@1",
}


@pytest.fixture
def env(monkeypatch):
    """An environment without schedulers, to add to."""
    starts = ("SLURM_", "OMPI_", "PMIX_", "KUBERNETES_", "JOB_COMPLETION", "EMO_", "CUDA_V")
    for name in os.environ:
        if name.startswith(starts) or name == "JAX_COORDINATOR_PORT":
            monkeypatch.delenv(name)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    return lambda **variables: [monkeypatch.setenv(k, v) for k, v in variables.items()]


def test_one_process_is_alone(env):
    assert find_place() is None
    assert find_place(1) is None
    assert find_place(1, 0, "localhost:1") is None
    env(**SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"})
    assert find_place() is None
    env(**OMPI | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"})
    assert find_place() is None


def test_flags(env):
    env(**SLURM)  # they count first
    assert find_place(3, 2, "host:99") == Place(index=2, count=3, coordinator="host:99")
    assert find_place(3, 2, "[::1]:99").address == ("::1", 99)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((3, 3, "host:99"), r"--process-index 3: must be in 0\.\.2"),
        ((3, 1, "host"), "--coordinator host: must be HOST:PORT"),
        ((3, 1, "host:0"), "--coordinator host:0: must be HOST:PORT"),
        ((3, 1, None), "no scheduler is found .* give --processes N"),
        ((None, 1, None), "no scheduler is found"),
        ((3, None, "host:99"), "which process is this"),
    ],
)
def test_flags_that_do_not_do(env, given, message):
    with pytest.raises(UsageError, match=message):
        find_place(*given)


def test_slurm(env):
    env(**SLURM)
    port = 4711 % 4096 + 61440
    assert find_place() == Place(
        index=5, count=6, coordinator=f"node003:{port}", local_devices=[1], found="Slurm"
    )
    with pytest.raises(UsageError, match=r"process None of 2 is asked for, and Slurm says 5 of 6"):
        find_place(2)


@pytest.mark.parametrize(
    ("variables", "gpus"),
    [
        ({}, [1]),  # as JAX does
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [2, 3]),
        ({"CUDA_VISIBLE_DEVICES": "5"}, None),  # the scheduler has chosen
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_PER_TASK": "4"}, None),
        # Alone on its node, it has all of them: JAX would take one.
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2),4", "SLURM_NODEID": "1"}, None),
    ],
)
def test_gpus_of_a_process(env, variables, gpus):
    env(**SLURM | variables)
    assert find_place().local_devices == gpus


def test_gpus_that_cannot_be_shared(env):
    env(**SLURM, CUDA_VISIBLE_DEVICES="0,1,2")
    with pytest.raises(UsageError, match="3 GPUs cannot be shared by the 2 processes"):
        find_place()


def test_open_mpi_on_one_machine(env):
    env(**OMPI)
    found = find_place()
    assert (found.index, found.count, found.found) == (2, 4, "Open MPI")
    host, port = found.address
    assert host == "127.0.0.1" and 61440 <= port < 65536
    env(OMPI_COMM_WORLD_RANK="3")
    assert find_place().coordinator == found.coordinator


def test_open_mpi_on_several_machines(env, monkeypatch):
    env(**OMPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"})
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setattr(place.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="Open MPI does not say where process 0 is"):
        find_place()
    found = find_place(coordinator="host:99")
    assert (found.index, found.count, found.coordinator) == (2, 4, "host:99")
    env(OMPI_MCA_orte_hnp_uri="1531576320.0;tcp://10.96.0.1,10.148.0.1:34911")  # before Open MPI 5
    assert find_place().address[0] == "10.96.0.1"


def test_a_pod_of_an_indexed_job(env, monkeypatch):
    env(KUBERNETES_SERVICE_HOST="10.0.0.1", JOB_COMPLETION_INDEX="3")
    found = find_place(4, None, "train-0.train:8476")
    assert (found.index, found.count, found.coordinator) == (3, 4, "train-0.train:8476")
    monkeypatch.setattr(place.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="set EMO_PROCESSES and EMO_COORDINATOR=HOST:PORT"):
        find_place()
    assert find_place(1) is None


def test_a_tpu_pod(env, monkeypatch):
    """JAX's own detection, of what GKE puts into the environment of a pod."""
    import jax._src.clusters.cloud_tpu_cluster as clusters

    env(JAX_PLATFORMS="tpu,cpu", TPU_WORKER_HOSTNAMES="localhost,host-b", TPU_WORKER_ID="1")
    env(MEGASCALE_COORDINATOR_ADDRESS="", MEGASCALE_NUM_SLICES="1", MEGASCALE_SLICE_ID="0")
    monkeypatch.setattr(clusters, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(clusters, "get_tpu_env_value", lambda key: os.environ.get(key))
    assert find_place() == Place(
        index=1, count=2, coordinator="localhost:8476", found="the TPU pod"
    )
    env(JAX_PLATFORMS="cpu")  # the chips are not used
    assert find_place() is None


def test_hosts_that_slurm_knows(env, monkeypatch):
    env(**SLURM)
    answer = types.SimpleNamespace(stdout="node003\nnode004\nnode007\n")
    monkeypatch.setattr(place.subprocess, "run", lambda *args, **kwargs: answer)
    assert place.hosts(find_place()) == dict(
        enumerate(["node003", "node003", "node004", "node004", "node007", "node007"])
    )


def test_nodes_with_different_numbers_of_tasks(env, monkeypatch):
    env(**SLURM | {"SLURM_STEP_TASKS_PER_NODE": "4,1(x2)"})
    answer = types.SimpleNamespace(stdout="node003\nnode004\nnode007\n")
    monkeypatch.setattr(place.subprocess, "run", lambda *args, **kwargs: answer)
    names = ["node003"] * 4 + ["node004", "node007"]
    assert place.hosts(find_place()) == dict(enumerate(names))
    env(SLURM_DISTRIBUTION="cyclic")  # tasks are dealt out: no name is better than a wrong one
    assert place.hosts(find_place()) == {}
