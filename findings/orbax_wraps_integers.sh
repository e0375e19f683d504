#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: an array restored as another dtype is cast in silence, integers modulo 2^8.
#
# Guess: a target of another dtype is refused like one of another shape, or only exact conversions pass.
# Seen: another shape is a ValueError; any dtype is taken, without a warning. A counter of 300 restored
# as int8 is 44, -1 as uint8 is 255; floats are cut to integers: 0.75 as int32 is 0. Prints them; exits non-zero
# where they are others.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 orbax-checkpoint==0.12.8
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - "$folder/checkpoint" 2>"$folder/err" <<'PYTHON' || { cat "$folder/err" >&2; exit 1; }
import sys
import warnings

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
checkpointer = ocp.StandardCheckpointer()
saved = {"count": jnp.array([300, -1], jnp.int32), "weight": jnp.array([0.75, 2.5], jnp.float32)}
checkpointer.save(sys.argv[1], saved)
checkpointer.wait_until_finished()


def restored(name, dtype, shape=(2,)):
    target = {key: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here) for key, a in saved.items()}
    target[name] = jax.ShapeDtypeStruct(shape, dtype, sharding=here)
    return checkpointer.restore(sys.argv[1], target)[name].tolist()


try:
    refused = not restored("count", jnp.int32, (3,))
except ValueError:
    refused = True
print("another shape is refused:", refused)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    found = {
        (name, dtype.__name__): restored(name, dtype)
        for name, dtype in (("count", jnp.int8), ("count", jnp.uint8), ("weight", jnp.int32))
    }
for (name, dtype), values in found.items():
    print(f"{name} {saved[name].tolist()} as {dtype}: {values}")
same = refused and not said and found == {
    ("count", "int8"): [44, -1],
    ("count", "uint8"): [44, 255],
    ("weight", "int32"): [0, 2],
}
sys.exit(0 if same else "the behaviour has changed")
PYTHON
