"""launch/gke.py: what it submits is valid, and emo finds its place in the pods."""

import json
from pathlib import Path

import jsonschema
import pytest
from shown import TRAIN, document, refused, shown

from emo_jax.parallel.processes.place import find_place

SCHEMA = json.loads((Path(__file__).parent / "jobset_schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
IMAGE = ("--image", "registry.example/emo:1", "--volume", "shared:/shared")
GPUS = ("--gpu", "nvidia-h100-80gb:8", "--nodes", "4")


def jobset(*options):
    return document(shown("gke", *options, *IMAGE))


def job_of(made):
    [job] = made["spec"]["replicatedJobs"]
    return job["replicas"], job["template"]["spec"]


def pod_of(made):
    return job_of(made)[1]["template"]["spec"]


@pytest.mark.parametrize(
    "options",
    [
        ("--tpu", "v5p:4x4x4"),
        ("--tpu", "v6e-64", "--slices", "4", "--spot", "--service-account", "writer"),
        ("--tpu", "v5e:2x4", "--chips-per-host", "8", "--env", "A=b=c", "--max-failures", "0"),
        GPUS,
        (*GPUS, "--spot", "--save-seconds", "25", "--name", "emo-130b", "--volume", "more:/data"),
    ],
)
def test_kubernetes_and_jobset_accept_it(options):
    VALIDATOR.validate(jobset(*options))


@pytest.mark.parametrize(
    "damage",
    [
        lambda made: made["spec"].update(replicas=1),
        lambda made: made["spec"]["failurePolicy"]["rules"][0].update(action="Fail"),
        lambda made: job_of(made)[1].update(backOffLimit=0),
        lambda made: pod_of(made).update(nodeSelector=["a"]),
        lambda made: pod_of(made)["containers"][0].pop("name"),
        lambda made: pod_of(made)["containers"][0]["env"].append({"value": "b"}),
        lambda made: pod_of(made)["volumes"][0]["persistentVolumeClaim"].update(claim="shared"),
    ],
)
def test_they_do_not_accept_everything(damage):
    made = jobset(*GPUS)
    damage(made)
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(made)


def test_hosts_of_slices():
    slices, job = job_of(jobset("--tpu", "v5p-128", "--slices", "2"))  # 64 chips
    assert (slices, job["parallelism"], job["completions"]) == (2, 16, 16)
    [container] = job["template"]["spec"]["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert container["command"] == TRAIN
    assert job["template"]["spec"]["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
    }
    for options, hosts, chips in (
        (("v5e:1x1",), 1, 1),
        (("v5e:2x4",), 2, 4),
        (("v5e:2x4", "--chips-per-host", "8"), 1, 8),
    ):
        _, job = job_of(jobset("--tpu", *options))
        limits = job["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert (job["parallelism"], limits) == (hosts, {"google.com/tpu": chips})


def test_exit_codes():
    _, job = job_of(jobset("--tpu", "v5e:4x4"))
    rules = job["podFailurePolicy"]["rules"]
    taken_away, *rules = rules
    assert taken_away == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    actions = {rule["onExitCodes"]["values"][0]: rule["action"] for rule in rules}
    assert actions == {75: "Ignore", 2: "FailJob"}  # any other code starts all pods again
    [container] = job["template"]["spec"]["containers"]
    assert {rule["onExitCodes"]["containerName"] for rule in rules} == {container["name"]}


def test_pods_with_gpus_know_their_place(monkeypatch):
    [container] = pod_of(jobset(*GPUS, "--name", "big"))["containers"]
    for name in ("EMO_PROCESSES", "EMO_COORDINATOR"):
        monkeypatch.delenv(name, raising=False)
    env = {variable["name"]: variable["value"] for variable in container["env"]}
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")  # which Kubernetes sets
    place = find_place(int(env["EMO_PROCESSES"]), None, env["EMO_COORDINATOR"])
    assert (place.index, place.count) == (3, 4)
    assert place.address == ("big-train-0-0.big", 8476)
    assert container["ports"] == [{"containerPort": 8476}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give --tpu, or --gpu and --nodes"),
        (("--tpu", "v5e:4x4", *GPUS), "give --tpu, or --gpu and --nodes"),
        (("--gpu", "h100:8"), "--gpu: give --nodes too"),
        (("--gpu", "h100", "--nodes", "2"), "--gpu h100: must be KIND:COUNT"),
        (("--tpu", "v5p:4x4x5"), "--tpu v5p:4x4x5: no such topology; did you mean 'v5p:4x4x8'"),
        (("--tpu", "v5e:4x4", "--chips-per-host", "3"), "--chips-per-host 3: must divide the 16"),
        (("--tpu", "v5e:4x4", "--volume", "shared"), "--volume shared: must be CLAIM:/FOLDER"),
        (("--tpu", "v5e:4x4", "--env", "A"), "--env A: must be NAME=VALUE"),
        (("--tpu", "v5e:4x4", "--name", "Emo"), "'Emo': must be 1 to 40 of a-z, 0-9 and -"),
    ],
)
def test_bad_usage(options, message):
    assert message in refused("gke", *options, *IMAGE, "--dry-run", "emo")
