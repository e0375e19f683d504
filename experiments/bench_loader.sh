#!/usr/bin/env bash
# Our data loader and others' on the same tokens, in turns, each in an environment of its own.
#
#   bash experiments/bench_loader.sh setup ENVS           # makes ENVS/NAME, versions pinned
#   bash experiments/bench_loader.sh run ENVS FOLDER OUTPUT [OPTION …]
#
# `run` makes the corpus in FOLDER if it is not there (8 GB with what the loaders make of it), adds
# a line of JSON a measurement to OUTPUT, and prints the table; OPTIONs are those of `run` in
# bench_loader.py: --rounds N, --seq-len S …. Ours runs in the environment that `python` is of.
# MaxText needs Python 3.12: PYTHON312 names it. About 10 minutes a round on two cores.
set -euo pipefail

usage() {
    sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

HERE=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$HERE/..${PYTHONPATH:+:$PYTHONPATH}"

make_env() {
    local name=$1 python=$2
    shift 2
    if [ -e "$ENVS/$name/done" ]; then
        return
    fi
    echo "== $name: $*" >&2
    "$python" -m venv --clear "$ENVS/$name"
    "$ENVS/$name/bin/pip" install --quiet --disable-pip-version-check "$@"
    if [ "$name" = maxtext_grain ]; then # without its trainers' 200 packages
        "$ENVS/$name/bin/pip" install --quiet --disable-pip-version-check --no-deps maxtext==0.2.5
    fi
    touch "$ENVS/$name/done"
}

case "${1:-}" in
setup)
    [ $# -eq 2 ] || usage
    ENVS=$2
    mkdir -p "$ENVS"
    make_env torch_memmap python torch==2.13.0+cpu numpy==2.4.1
    make_env olmo_core_numpy python torch==2.13.0+cpu ai2-olmo-core==3.0.0
    make_env megatron_core python torch==2.13.0+cpu megatron-core==0.16.1 pybind11==3.1.0
    # streaming imports torchvision, whose wheels are for torch with CUDA.
    make_env mosaic_streaming python torch==2.12.1 torchvision==0.27.1 mosaicml-streaming==0.13.0
    make_env maxtext_grain "${PYTHON312:-python3.12}" absl-py==2.5.1 array_record==0.8.6 \
        datasets==5.2.0 etils==1.15.0 grain==0.2.18 jax==0.12.0.1 ml_collections==1.1.0 \
        numpy==2.5.5 omegaconf==2.4.0 pathwaysutils==0.1.13 pillow==13.0.0 pyyaml==6.0.4 \
        requests==2.34.2 sentencepiece==0.2.3 tiktoken==0.14.0 tqdm==4.70.1 transformers==5.24.0
    ;;
run)
    [ $# -ge 4 ] || usage
    ENVS=$2 FOLDER=$3 OUTPUT=$4
    shift 4
    if [ ! -e "$FOLDER/corpus/corpus.json" ]; then
        python "$HERE/bench_loader.py" corpus "$FOLDER"
    fi
    python "$HERE/bench_loader.py" run "$FOLDER" "$OUTPUT" ours="$(command -v python)" \
        torch_memmap="$ENVS/torch_memmap/bin/python" \
        megatron_core="$ENVS/megatron_core/bin/python" \
        olmo_core_numpy="$ENVS/olmo_core_numpy/bin/python" \
        mosaic_streaming="$ENVS/mosaic_streaming/bin/python" \
        maxtext_grain="$ENVS/maxtext_grain/bin/python" "$@"
    python "$HERE/bench_loader.py" table "$OUTPUT"
    ;;
*)
    usage
    ;;
esac
