#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: a run that goes back to an earlier step saves nothing until it has passed the newest.
#
# Guess: after a loss spike at step 300, a run restored from step 100 in the same folder saves 150, 200, ... again:
# steps that exist are overwritten or refused with an error, new ones between them are saved.
# Seen: `CheckpointManager.save` returns False, without a warning or an exception, for every step up to the newest
# that exists, also for one that was never saved (150). A run that is preempted before step 300 has lost all it did,
# and the next one begins at the spike. Prints what `save` returned; exits non-zero where it is another.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 orbax-checkpoint==0.12.8
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - "$folder/run" 2>"$folder/err" <<'PYTHON' || { cat "$folder/err" >&2; exit 1; }
import sys
import warnings

import jax.numpy as jnp
import orbax.checkpoint as ocp

manager = ocp.CheckpointManager(sys.argv[1])


def save(step, weight):
    return manager.save(step, args=ocp.args.StandardSave({"weight": jnp.full(4, weight, jnp.float32)}))


first = [save(step, step) for step in (100, 200, 300)]
manager.wait_until_finished()
state = manager.restore(100, args=ocp.args.StandardRestore({"weight": jnp.zeros(4)}))
print("restored:", float(state["weight"][0]))
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    again = {step: save(step, -step) for step in (150, 200, 250, 300, 350)}
manager.wait_until_finished()
print("saved at first:", first, "after going back:", again, "steps there:", sorted(manager.all_steps()))
kept = manager.restore(200, args=ocp.args.StandardRestore({"weight": jnp.zeros(4)}))["weight"]
same = (
    all(first)
    and again == {150: False, 200: False, 250: False, 300: False, 350: True}
    and sorted(manager.all_steps()) == [100, 200, 300, 350]
    and float(kept[0]) == 200
    and not said
)
sys.exit(0 if same else "the behaviour has changed")
PYTHON
