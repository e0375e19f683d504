"""What the environment says of TPU slices that run together, left over from another run.

libtpu waits for the slices that `MEGASCALE_*` variables name. GKE sets them in the pods of a
JobSet, and the metadata of a TPU VM has them; those of another run would make this one wait for
ever.
"""

import os

from emo_jax.errors import UsageError
from emo_jax.parallel import private

_COORDINATOR = "MEGASCALE_COORDINATOR_ADDRESS"
_COUNT, _INDEX = "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID"


def refuse_stale_slices() -> None:
    """Raises UsageError if the environment has slices that cannot be those of this run."""
    given = {name: os.environ.get(name, "") for name in (_COORDINATOR, _COUNT, _INDEX)}
    if not any(given.values()) or "tpu" not in os.environ.get("JAX_PLATFORMS", "tpu"):
        return
    if reason := _fault(given):
        names = " ".join(sorted(name for name in os.environ if name.startswith("MEGASCALE_")))
        said = ", ".join(f"{name}={value}" for name, value in given.items() if value)
        raise UsageError(f"{said} in the environment: {reason}; unset {names}")


def _fault(given: dict[str, str]) -> str:
    """Why the variables cannot be of this run; empty if they can."""
    import jax  # noqa: F401  it finds the chips of this machine

    count, index = given[_COUNT], given[_INDEX]
    in_pod = private.cluster("GkeTpuCluster").is_env_present()
    if not in_pod and not private.cluster("GceTpuCluster").is_env_present():
        return "this process is in no TPU slice"
    if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
        return f"{_INDEX} must be a number below {_COUNT}"
    if int(count) > 1 and not given[_COORDINATOR]:
        return f"{_COORDINATOR} is missing"
    if in_pod:
        return ""
    metadata = private.tpu_vm_metadata()
    for name, value in given.items():
        if (found := metadata(name) or "") != value:
            return f"the metadata of this TPU VM says {name}={found}"
    return ""
