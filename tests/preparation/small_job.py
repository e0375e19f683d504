"""A program: `emo prepare` with tasks so small that a little corpus has hundreds of them.

small_job.py OUTPUT WORKERS INPUT… prints a JSON object of the report; an error, to stderr.
"""

import fcntl
import json
import os
import resource
import socket
import struct
import sys

import emo_jax
from emo_jax.errors import EmoError
from emo_jax.preparation import buckets, plan, shards, workers
from emo_jax.preparation import prepare as prepare_lib

_UP = 1


def make_small(run_bytes: int = 100_000) -> None:
    """Makes the tasks small, and runs each with Beam where there are several workers."""
    plan.PIECE_BYTES = 100_000
    plan._BIN_BYTES = 200_000
    prepare_lib._RUN_BYTES = run_bytes
    buckets.BUCKET_BYTES = 200_000
    shards._GROUP_BYTES = 0
    workers.WORTH_SECONDS = 0


def loopback_up() -> None:
    """Starts the loopback device of a new network namespace, which has nothing else."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, 0x8914, struct.pack("16sh", b"lo", _UP))  # SIOCSIFFLAGS


def main() -> None:
    output, number, *inputs = sys.argv[1:]
    if "LOOPBACK" in os.environ:
        loopback_up()
    make_small()
    try:
        settings = {"beam": os.environ["BEAM"]} if "BEAM" in os.environ else {}
        made = emo_jax.prepare(
            inputs, output, "bytes", workers=int(number), strict=True, **settings
        )
    except EmoError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {
                "processes": made.processes,
                "documents_read": made.documents_read,
                "notes": made.notes,
                "peak_kib": peak,
            }
        )
    )


if __name__ == "__main__":
    main()
