"""Submits a command to Kubernetes as a JobSet: TPU slices of GKE, or nodes with GPUs.

  python launch/gke.py --tpu v5p:4x4x4 --slices 2 --image IMAGE --volume shared:/shared -- \\
      emo train --config experiments/emo_1b14b.py --config.mesh.replica=2 \\
      --config.data.store=/shared/store --workdir /shared/runs/emo_1b14b

The cluster needs JobSet 0.6 or newer. GKE tells the pods of TPU slices about each other, and emo
finds them; pods with GPUs get EMO_PROCESSES and EMO_COORDINATOR.
"""

from typing import Any

import click
from launching import COMMAND, DRY_RUN, MAX_FAILURES, NAME, Call, as_yaml, carry_out, command
from slices import CHIPS_PER_HOST, SLICE, Slice

from emo_jax.errors import EXIT_RUN_AGAIN, EXIT_USAGE
from emo_jax.parallel.processes.place import COORDINATOR_PORT

_JOB = "train"  # of the JobSet: its pods are called NAME-train-SLICE-INDEX
_CONTAINER = "emo"


def jobset(
    name: str,
    container: dict[str, Any],
    pod: dict[str, Any],
    *,
    jobs: int,
    pods_per_job: int,
    failures: int,
    one_pool_per_job: bool,
) -> dict[str, Any]:
    """The JobSet.

    Args:
      name: its name.
      container: the fields of the container.
      pod: further fields of the pods.
      jobs: equal jobs: TPU slices.
      pods_per_job: hosts of each.
      failures: how often all pods are started again.
      one_pool_per_job: all pods of a job, and of no other job, go to one node pool, which is how
        GKE has slices.
    """
    exit_code = lambda code: {"containerName": _CONTAINER, "operator": "In", "values": [code]}  # noqa: E731
    metadata: dict[str, Any] = {"name": name}
    if one_pool_per_job:
        pools = "cloud.google.com/gke-nodepool"
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": pools}
    job = {
        "completionMode": "Indexed",
        "parallelism": pods_per_job,
        "completions": pods_per_job,
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                # The node was taken away: no failure of the job.
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
                # Another pod replaces the one whose state is saved.
                {"action": "Ignore", "onExitCodes": exit_code(EXIT_RUN_AGAIN)},
                {"action": "FailJob", "onExitCodes": exit_code(EXIT_USAGE)},
            ]
        },
        "template": {"spec": {"restartPolicy": "Never", **pod, "containers": [container]}},
    }
    # Without the rule, a job that fails starts all pods again.
    rule = {
        "name": "badUsage",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {"maxRestarts": failures, "rules": [rule]},
            "replicatedJobs": [{"name": _JOB, "replicas": jobs, "template": {"spec": job}}],
        },
    }


def _gpus(text: str | None) -> tuple[str, int]:
    kind, colon, count = (text or "").rpartition(":")
    if not (colon and kind and count.isdecimal() and int(count)):
        raise click.UsageError(f"--gpu {text}: must be KIND:COUNT, as in nvidia-h100-80gb:8")
    return kind, int(count)


def _volumes(given: tuple[str, ...]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes of a pod, and where its container has them."""
    volumes, mounts = [], []
    for number, text in enumerate(given):
        claim, colon, path = text.partition(":")
        if not (colon and claim and path.startswith("/")):
            raise click.UsageError(f"--volume {text}: must be CLAIM:/FOLDER")
        volumes.append({"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": f"volume-{number}", "mountPath": path})
    return volumes, mounts


def _variables(given: tuple[str, ...]) -> list[dict[str, str]]:
    found = []
    for text in given:
        name, equals, value = text.partition("=")
        if not (equals and name):
            raise click.UsageError(f"--env {text}: must be NAME=VALUE")
        found.append({"name": name, "value": value})
    return found


@command(
    "python launch/gke.py --tpu v5p:4x4x4 --image IMAGE --volume shared:/shared -- emo train"
    " --config experiments/emo_1b14b.py --config.data.store=/shared/store"
    " --workdir /shared/runs/emo_1b14b"
)
@click.option("--tpu", type=SLICE, help="Slice of TPUs: v5p:4x4x4, v5e:16x16, v6e-64.")
@click.option("--slices", type=click.IntRange(min=1), default=1, show_default=True, help="Of TPUs.")
@CHIPS_PER_HOST
@click.option("--gpu", metavar="KIND:COUNT", help="GPUs of a node: nvidia-h100-80gb:8.")
@click.option("--nodes", type=click.IntRange(min=1), help="How many nodes with GPUs.")
@click.option("--image", required=True, help="Container image: launch/Dockerfile makes it.")
@click.option(
    "--volume",
    multiple=True,
    metavar="CLAIM:/FOLDER",
    help="A PersistentVolumeClaim that all pods can write to, and where they have it.",
)
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="An environment variable.")
@click.option("--spot", is_flag=True, help="Use spot nodes.")
@click.option("--service-account", help="Kubernetes service account, for buckets.")
@click.option("--namespace", help="Kubernetes namespace.")
@click.option(
    "--save-seconds",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    help="From SIGTERM to SIGKILL: time to save.",
)
@NAME
@MAX_FAILURES
@DRY_RUN
@COMMAND
def main(
    tpu: Slice | None,
    slices: int,
    chips_per_host: int | None,
    gpu: str | None,
    nodes: int | None,
    image: str,
    volume: tuple[str, ...],
    env: tuple[str, ...],
    spot: bool,
    service_account: str | None,
    namespace: str | None,
    save_seconds: int,
    name: str,
    max_failures: int,
    dry_run: bool,
    command: tuple[str, ...],
) -> None:
    """Submit COMMAND to Kubernetes as a JobSet.

    A pod that is evicted gets SIGTERM; emo train saves, and all pods exit with 75 and are replaced.
    """
    if (tpu is None) == (gpu is None and nodes is None):
        raise click.UsageError("give --tpu, or --gpu and --nodes")
    selector = {"cloud.google.com/gke-spot": "true"} if spot else {}
    volumes, mounts = _volumes(volume)
    variables = _variables(env)
    if tpu is not None:
        chips = tpu.chips_per_host(chips_per_host)
        jobs, pods = slices, tpu.topology.num_chips // chips
        selector |= {
            "cloud.google.com/gke-tpu-accelerator": tpu.gke_name,
            "cloud.google.com/gke-tpu-topology": "x".join(map(str, tpu.topology.shape)),
        }
        device = {"google.com/tpu": chips}
    else:
        kind, count = _gpus(gpu)
        if nodes is None:
            raise click.UsageError("--gpu: give --nodes too")
        jobs, pods = 1, nodes
        selector["cloud.google.com/gke-accelerator"] = kind
        device = {"nvidia.com/gpu": count}
        variables += [
            {"name": "EMO_PROCESSES", "value": str(nodes)},
            {"name": "EMO_COORDINATOR", "value": f"{name}-{_JOB}-0-0.{name}:{COORDINATOR_PORT}"},
        ]
        volumes.append({"name": "memory", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "memory", "mountPath": "/dev/shm"})  # NCCL's, within a node
    container = {
        "name": _CONTAINER,
        "image": image,
        "command": list(command),  # no shell: SIGTERM goes to emo itself
        "ports": [{"containerPort": COORDINATOR_PORT}],
        "resources": {"limits": device},
    }
    pod: dict[str, Any] = {"terminationGracePeriodSeconds": save_seconds, "nodeSelector": selector}
    if variables:
        container["env"] = variables
    if volumes:
        container["volumeMounts"], pod["volumes"] = mounts, volumes
    if service_account is not None:
        pod["serviceAccountName"] = service_account
    if spot:
        spots = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"}
        pod["tolerations"] = [{**spots, "effect": "NoSchedule"}]
    made = jobset(
        name,
        container,
        pod,
        jobs=jobs,
        pods_per_job=pods,
        failures=max_failures,
        one_pool_per_job=tpu is not None,
    )
    kubectl = ["kubectl", "apply", *(["--namespace", namespace] if namespace else []), "-f", "-"]
    carry_out([Call(kubectl, as_yaml(made))], dry_run=dry_run)


if __name__ == "__main__":
    main()
