#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: a process that saves alone loses its NumPy arrays, unless it is process 0.
#
# Guess: with MultiprocessingOptions(primary_host=i, active_processes={i}), as for a disk that only one
# host has, process i of a run saves a tree of NumPy arrays and can restore it.
# Seen: save, wait and the commit marker are the same on both processes of a run of two, no error, no
# warning. Process 0 restores its array; process 1 has written the tree's structure without the array
# (NumpyHandler writes only where the index of the process in the whole run is 0), and restoring it
# fails with NOT_FOUND. Prints what each restores; exits non-zero where that changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
cat > "$folder/alone.py" <<'PYTHON'
import sys

import jax

port, index, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", 2, index)

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

alone = ocp.options.MultiprocessingOptions(
    primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"alone{index}"
)
path = epath.Path(folder) / f"process{index}"
handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
    checkpointer.save(path, args=ocp.args.PyTreeSave({"w": np.full(3, 7.0)}))
    assert (path / "_METADATA").exists()
    try:
        found = checkpointer.restore(path, args=ocp.args.PyTreeRestore({"w": np.zeros(3)}))
        print(f"process {index}: saved, restores {found['w'].tolist()}")
    except ValueError as error:
        assert "NOT_FOUND" in str(error), error
        print(f"process {index}: saved, restores nothing (NOT_FOUND)")
PYTHON
port="$("$folder/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')"
export JAX_PLATFORMS=cpu
for index in 0 1; do
  "$folder/venv/bin/python" "$folder/alone.py" "$port" "$index" "$folder" > "$folder/said$index" 2> "$folder/log$index" &
done
wait
cat "$folder/said0" "$folder/said1"
grep -qx 'process 0: saved, restores \[7.0, 7.0, 7.0\]' "$folder/said0"
grep -qx 'process 1: saved, restores nothing (NOT_FOUND)' "$folder/said1"
