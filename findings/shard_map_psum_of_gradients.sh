#!/usr/bin/env bash
# jax 0.10.2: pmap's data-parallel step, `pmean(grad(loss))`, has n times the gradient in shard_map.
#
# Guess: a step that is right under `pmap` is right in `shard_map`: inside it, the gradient of a device's own
# loss is that of its own data, which `pmean` averages.
# Seen: with the default check_vma=True the gradient of a weight that all devices share is summed over them
# already. `pmean` leaves that sum as it is, n times the mean; `psum` multiplies it by n again. Nothing warns, and
# with Adam, for which a gradient's scale does not matter, training looks right until gradients are clipped.
# check_vma=False gives pmap's. Prints the gradients on 4 devices (right: mean 3.5, sum 28); exits non-zero
# where they are others.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=4 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
weight, data = jnp.float32(2), jnp.arange(8, dtype=jnp.float32)


def averaged(weight, data):
    return jax.lax.pmean(jax.grad(lambda w: jnp.mean(w * data))(weight), "data")


def summed(weight, data):
    return jax.lax.psum(jax.grad(lambda w: jnp.sum(w * data))(weight), "data")


def sharded(step, check_vma):
    specs = (PartitionSpec(), PartitionSpec("data"))
    run = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=check_vma)
    return float(jax.jit(run)(weight, data))


found = {}
for step in (averaged, summed):
    by_pmap = jax.pmap(step, axis_name="data", in_axes=(None, 0))(weight, data.reshape(4, 2))
    found[step.__name__] = [float(by_pmap[0]), sharded(step, False), sharded(step, True)]
    print(step.__name__, "pmap, shard_map unchecked, shard_map:", found[step.__name__])
same = found == {"averaged": [3.5, 3.5, 14.0], "summed": [28.0, 28.0, 112.0]}
sys.exit(0 if same else "the behaviour has changed")
PYTHON
