#!/usr/bin/env bash
# A run on one TPU slice without Kubernetes. Fill in the lines marked <--, then:
#
#   launch/tpu_vm.sh create
#   launch/tpu_vm.sh install
#   launch/tpu_vm.sh train --config experiments/emo_1b14b.py \
#       --config.data.store=/shared/store --workdir=/shared/runs/emo_1b14b
#   launch/tpu_vm.sh delete
#
# /shared is a network file system that `install` mounts on all hosts. emo finds the hosts of the
# slice by itself. `train` reruns the same command as long as it exits with 75 (state saved), and
# after recreating a slice that was preempted.
set -euo pipefail

NAME=${NAME:-emo}                 # <--
PROJECT=${PROJECT:-my-project}    # <--
ZONE=${ZONE:-us-east5-a}          # <--
TYPE=${TYPE:-v5p-128}             # <-- v5p-128 is 64 chips, topology 4x4x4
VERSION=${VERSION:-v2-alpha-tpuv5}
SOURCE=${SOURCE:-emo-jax[tpu]}    # <-- what pip installs: a release, a wheel, git+https://…
SHARED=${SHARED:-10.0.0.2:/vol1}  # <-- an NFS share, such as Filestore's

tpu() { gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE"; }
on_all() { tpu tpu-vm ssh "$NAME" --worker=all --command="$1"; }
state() { tpu tpu-vm describe "$NAME" --format='value(state)' 2>/dev/null || echo ABSENT; }

create() {
  tpu queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" \
    --runtime-version="$VERSION" --spot
  until [ "$(state)" = READY ]; do sleep 30; done
}

install() {
  on_all "sudo apt-get install -qy nfs-common && sudo mkdir -p /shared && sudo mount $SHARED /shared \
    && python3 -m venv ~/emo && ~/emo/bin/pip install --quiet '$SOURCE'"
}

delete() { tpu queued-resources delete "$NAME" --force --quiet; }

train() {
  local code words log
  log=$(mktemp)
  printf -v words ' %q' "$@"
  while true; do
    # The hosts' exit codes are passed in the output, because gcloud has its own.
    on_all "~/emo/bin/emo train$words; echo emo-exit-code=\$?" | tee "$log" >&2 || true
    code=$(sed -n 's/^emo-exit-code=//p' "$log" | sort -n | uniq | paste -sd' ')
    case $code in
      0) return 0 ;;
      75) ;;
      *)
        if [ "$(state)" = READY ]; then
          echo "tpu_vm.sh: emo ended with ${code:-no exit code}" >&2
          return 1
        fi
        delete || true
        create
        install
        ;;
    esac
  done
}

case ${1:-} in
  create | install | train | delete) "$@" ;;
  *)
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
    exit 2
    ;;
esac
