"""Processes that save until something stops them; started by test_checkpoint_faults.py."""

import errno
import os
import pathlib
import random
import resource
import signal
import sys
import time

# Imported once and before the forks below, which is what makes many kills cheap.
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from emo_jax.checkpoint import checkpointer as checkpoint
from emo_jax.checkpoint.checkpointer import Checkpointer
from emo_jax.config import CheckpointConfig
from emo_jax.errors import CheckpointError

ROWS = 512


def state(step):
    names = "abcdefgh"
    return {
        "params": {name: jnp.full((ROWS, 1024), step, jnp.float32) for name in names},
        "step": np.int32(step),
    }


def abstract():
    shaped = {name: np.zeros((ROWS, 1024), np.float32) for name in "abcdefgh"}
    return {"params": shaped, "step": np.zeros((), np.int32)}


def check(checkpointer):
    """Restores, and returns the step after looking at every number."""
    got, extra, step = checkpointer.restore(abstract())
    assert extra["windows"] == 8 * step == 8 * int(got["step"])
    for leaf in got["params"].values():
        assert (leaf == step).all()
    return step


def save_for_ever(workdir):
    checkpointer = Checkpointer(workdir, CheckpointConfig(save_every=1, keep_last=2))
    step = check(checkpointer) if checkpointer.steps() else 0
    while True:
        step += 1
        checkpointer.save(step, state(step), {"windows": 8 * step})


def killed(workdir, times, seed):
    """Kills a run at random moments, again and again; each goes on where the last one was."""
    rng = random.Random(seed)
    for _ in range(times):
        child = os.fork()
        if child == 0:
            save_for_ever(workdir)
        first = time.monotonic()
        while not os.path.exists(f"{workdir}/checkpoints") or not any(
            os.path.exists(f"{workdir}/checkpoints/{s}/manifest.json")
            for s in os.listdir(f"{workdir}/checkpoints")
        ):
            assert time.monotonic() - first < 60
            time.sleep(0.01)
        time.sleep(rng.uniform(0.3, 1.2))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the run ended by itself, with an error"
    checkpointer = Checkpointer(workdir, CheckpointConfig(save_every=1, keep_last=2))
    print("restored", check(checkpointer), "skipped", len(checkpointer.skipped))


def full(workdir):
    """A disk that takes no file above 1 MB: writes fail with EFBIG, as they do with ENOSPC."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with Checkpointer(workdir, CheckpointConfig(save_every=1, keep_last=1)) as checkpointer:
        checkpointer.save(1, state(1), {"windows": 8})
        checkpointer.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, resource.RLIM_INFINITY))
        checkpointer.save(2, state(2), {"windows": 16})
        try:
            checkpointer.wait()
        except CheckpointError as e:
            print(e)
        print(os.strerror(errno.EFBIG))
        print("restored", check(checkpointer))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        checkpointer.save(3, state(3), {"windows": 24})
        checkpointer.wait()
        print("restored", check(checkpointer), os.listdir(f"{workdir}/checkpoints"))


def together(workdir, port, process):
    """Two processes of one run: saves, a damaged file that one of them finds, a full disk."""
    jax.distributed.initialize(f"localhost:{port}", 2, process)
    mesh = jax.make_mesh((4,), ("a",), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, PartitionSpec("a")), NamedSharding(mesh, PartitionSpec())

    def sharded(step):
        full = np.full((8, 4), step, np.float32)
        return {"params": jax.make_array_from_callback(full.shape, rows, lambda i: full[i])}

    with Checkpointer(workdir, CheckpointConfig(save_every=1, keep_last=2)) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, sharded(step), {"windows": step})
        checkpointer.wait()
        folder = pathlib.Path(workdir, "checkpoints")
        if process == 1:
            (folder / "3/data/_CHECKPOINT_METADATA").write_text("")
        multihost_utils.sync_global_devices("damaged")
        wanted = {"params": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=whole)}
        got, extra, step = checkpointer.restore(wanted)
        values = np.asarray(got["params"].addressable_data(0))
        assert (step, extra["windows"]) == (2, 2) and (values == 2).all()
        assert [s for s, _ in checkpointer.skipped] == [3]
        publish = checkpoint.publish
        if process == 0:
            checkpoint.publish = lambda *_: os.stat(
                "/no/such/file"
            )  # a failure of one process only
        for _ in range(2):
            checkpointer.save(4, sharded(4), {})
            try:
                checkpointer.wait()
            except CheckpointError as e:
                print(e)
        assert checkpointer.steps() == [2, 3]
        checkpoint.publish = publish
        # One process cannot write: the other, which can, does not wait for it until a time-out.
        if process == 1:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (16, resource.RLIM_INFINITY))
        begun = time.monotonic()
        checkpointer.save(5, sharded(5), {})
        try:
            checkpointer.wait()
        except CheckpointError as e:
            print(e)
        assert time.monotonic() - begun < 30
        if process == 1:
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )
        multihost_utils.sync_global_devices("space again")
        checkpointer.save(6, sharded(6), {})
        checkpointer.wait()
        assert checkpointer.steps() == [2, 6]
        # One process fails as it begins: all raise it where they wait, and stay in step.
        begin = checkpoint.start_writing

        def no_memory(*args):
            begin(*args)
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

        if process == 1:
            checkpoint.start_writing = no_memory
        assert checkpointer.save(7, sharded(7), {})
        checkpoint.start_writing = begin
        try:
            checkpointer.wait()
        except CheckpointError as e:
            print("step 7:", e)
        checkpointer.save(8, sharded(8), {})
        checkpointer.wait()
        assert checkpointer.latest_step() == 8


def end(workdir, close):
    """Ends while a save is being written."""
    checkpointer = Checkpointer(workdir, CheckpointConfig(save_every=1))
    checkpointer.save(1, state(1), {})
    if close:
        checkpointer.close()


if __name__ == "__main__":
    if sys.argv[1] in ("forgets", "remembers"):
        end(sys.argv[2], sys.argv[1] == "remembers")
    elif sys.argv[1] == "killed":
        killed(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    elif sys.argv[1] == "together":
        together(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        full(sys.argv[2])
