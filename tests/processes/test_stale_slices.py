"""Variables of TPU slices that are left over from another run."""

import os

import pytest

from emo_jax.errors import UsageError
from emo_jax.parallel import private
from emo_jax.parallel.processes import joined
from emo_jax.parallel.processes.slices import refuse_stale_slices

SLICES = {
    "MEGASCALE_COORDINATOR_ADDRESS": "emo-train-0-0.emo",
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
}


@pytest.fixture
def env(monkeypatch):
    """An environment without TPUs, to add to."""
    for name in os.environ:
        if name.startswith(("MEGASCALE_", "TPU_", "JAX_PLATFORMS")):
            monkeypatch.delenv(name)
    return lambda **variables: [monkeypatch.setenv(k, v) for k, v in variables.items()]


@pytest.fixture
def tpu_vm(monkeypatch):
    """What a TPU VM has: chips, and metadata to fill in."""
    import jax._src.clusters.cloud_tpu_cluster as clusters

    monkeypatch.setattr(clusters, "running_in_cloud_tpu_vm", True)
    metadata = {}
    monkeypatch.setattr(clusters, "get_metadata", lambda key: ("0", 200))
    monkeypatch.setattr(private, "tpu_vm_metadata", lambda: metadata.get)
    return metadata


def test_they_are_refused_where_there_is_no_slice(env):
    refuse_stale_slices()
    env(**SLICES, MEGASCALE_PORT="8080")
    with pytest.raises(UsageError) as error, joined():
        pass
    assert str(error.value) == (
        "MEGASCALE_COORDINATOR_ADDRESS=emo-train-0-0.emo, MEGASCALE_NUM_SLICES=2,"
        " MEGASCALE_SLICE_ID=1 in the environment: this process is in no TPU slice; unset"
        " MEGASCALE_COORDINATOR_ADDRESS MEGASCALE_NUM_SLICES MEGASCALE_PORT MEGASCALE_SLICE_ID"
    )
    env(JAX_PLATFORMS="cpu")  # libtpu is not used
    refuse_stale_slices()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, None),
        ({"MEGASCALE_NUM_SLICES": "1", "MEGASCALE_SLICE_ID": "0"}, None),
        ({"MEGASCALE_SLICE_ID": "2"}, "MEGASCALE_SLICE_ID must be a number below"),
        ({"MEGASCALE_NUM_SLICES": ""}, "MEGASCALE_SLICE_ID must be a number below"),
        ({"MEGASCALE_COORDINATOR_ADDRESS": ""}, "MEGASCALE_COORDINATOR_ADDRESS is missing"),
    ],
)
def test_a_pod_of_gke_has_all_of_them(env, tpu_vm, changed, message):
    env(**SLICES | changed, TPU_WORKER_HOSTNAMES="a,b", TPU_WORKER_ID="0")
    if message is None:
        refuse_stale_slices()
    else:
        with pytest.raises(UsageError, match=message):
            refuse_stale_slices()


def test_a_tpu_vm_has_those_of_its_metadata(env, tpu_vm):
    env(**SLICES)
    with pytest.raises(UsageError, match=r"the metadata of this TPU VM says MEGASCALE_COORD.*=; "):
        refuse_stale_slices()
    tpu_vm.update(SLICES)
    refuse_stale_slices()
    tpu_vm["MEGASCALE_NUM_SLICES"] = "4"
    with pytest.raises(UsageError, match="this TPU VM says MEGASCALE_NUM_SLICES=4; unset"):
        refuse_stale_slices()
