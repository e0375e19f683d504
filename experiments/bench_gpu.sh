#!/usr/bin/env bash
# Everything that is reported of one GPU (H100 or H200): the largest batch, the whole step with MFU,
# memory and a breakdown, a decoder layer alone, tokamax against lax.ragged_dot, and EMO against a
# standard mixture of experts. About ten minutes; figures come as JSON into a new folder.
#
#   bash experiments/bench_gpu.sh OUTPUT [--config.section.field=value …]
#
# The shape is experiments/bench_gpu.py's. Rehearsal on a CPU, with the same commands:
#
#   MEMORY_GB=0.1 bash experiments/bench_gpu.sh rehearsal --config.model.embed_dim=32 \
#     --config.model.head_dim=2 --config.model.vocab_size=512 --config.moe.expert_dim=8 \
#     --config.data.seq_len=64 --config.train.loss_chunk=64
#
# where MEMORY_GB stands for the memory that a CPU does not run out of.
set -euo pipefail

if [ $# -lt 1 ] || [[ "$1" == --* ]]; then
    echo "usage: bash $0 OUTPUT [--config.section.field=value …]" >&2
    exit 2
fi
OUTPUT=$1
shift
if [ -e "$OUTPUT" ]; then
    echo "$0: $OUTPUT: is there already; give a new folder" >&2
    exit 2
fi
HERE=$(cd "$(dirname "$0")" && pwd)
EMO=(python -m emo_jax.cli bench train)
export PYTHONPATH="$HERE/..${PYTHONPATH:+:$PYTHONPATH}"
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.95}
LIMIT=()
if [ -n "${MEMORY_GB:-}" ]; then
    LIMIT=(--memory "$MEMORY_GB")
fi
mkdir -p "$OUTPUT"

if python -c 'import jax, sys; sys.exit(jax.default_backend() == "cpu")'; then
    FAST=tokamax
else
    echo "a rehearsal on a CPU: lax.ragged_dot stands in for tokamax, which has no CPU kernel" >&2
    FAST=ragged_dot
fi

bench() {
    local name=$1 config=$2
    shift 2
    echo "== $name" >&2
    "${EMO[@]}" --config "$HERE/bench_gpu.py:$config" --json "$OUTPUT/$name.json" "$@" \
        | tee "$OUTPUT/$name.txt"
}

bench largest_batch "emo,$FAST" --largest-batch ${LIMIT[@]+"${LIMIT[@]}"} "$@"
BATCH=(--config.train.batch_size="$(cat "$OUTPUT/largest_batch.txt")")

bench emo_tokamax "emo,$FAST" --rounds 5 --steps 3 --profile "$OUTPUT/profile" "$@" "${BATCH[@]}"
bench std_tokamax "std,$FAST" --rounds 5 --steps 3 "$@" "${BATCH[@]}"
# Of two layers, so that the larger of the two models compared has the four that fit.
bench layer_tokamax "emo,$FAST" --per-layer --rounds 5 --steps 3 "$@" "${BATCH[@]}" \
    --config.model.num_layers=2
bench layer_std "std,$FAST" --per-layer --rounds 5 --steps 3 "$@" "${BATCH[@]}" \
    --config.model.num_layers=2
# May need far more memory and time: a smaller batch, and its own comparison.
SMALL=(--config.train.batch_size=2)
bench emo_tokamax_small "emo,$FAST" --rounds 3 --steps 2 "$@" "${SMALL[@]}"
bench emo_ragged_dot_small emo,ragged_dot --rounds 3 --steps 2 "$@" "${SMALL[@]}" \
    || echo "lax.ragged_dot did not run; see the line above" >&2

python - "$OUTPUT" <<'PYTHON'
import json
import sys
from pathlib import Path

folder = Path(sys.argv[1])


def speed(name):
    file = folder / f"{name}.json"
    return json.loads(file.read_text())["configs"][0]["tokens_per_second_median"]


print(f"EMO against standard: {speed('std_tokamax') / speed('emo_tokamax') - 1:+.1%} time a token")
if (folder / "emo_ragged_dot_small.json").exists():
    ratio = speed("emo_tokamax_small") / speed("emo_ragged_dot_small")
    print(f"tokamax against lax.ragged_dot: {ratio:.2f} times as fast")
PYTHON
