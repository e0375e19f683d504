"""Host memory and time of saving and restoring a state, shared and on a host's own disk.

    python experiments/bench_checkpoint.py --megabytes 1024 --saves 20

A state of that size is cut over four CPU devices of one process, saved again and again while it is
updated, and restored. CPU devices keep their arrays in host memory too, so what counts is the peak
of resident memory above that with the state alone, over the size of the state: what a host needs
beside its accelerators, in units of the parts that they hold.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

DEVICES = 4
LEAVES = 16


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


class Peak:
    """A context that watches the resident memory."""

    def __enter__(self) -> "Peak":
        self.most, self._over = resident(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.most = max(self.most, resident())

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


def measure(case: str, megabytes: int, saves: int) -> dict[str, float]:
    """Saves and restores in this process; returns the figures."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    from emo_jax.checkpoint.checkpointer import Checkpointer
    from emo_jax.checkpoint.local import LocalCheckpointer
    from emo_jax.config import CheckpointConfig

    mesh = jax.make_mesh((DEVICES,), ("fsdp",), axis_types=(AxisType.Auto,))
    cut = NamedSharding(mesh, PartitionSpec("fsdp"))
    size = megabytes * 2**20
    rows = size // LEAVES // 4 // 1024 // DEVICES * DEVICES
    names = [f"w{n}" for n in range(LEAVES)]

    def fresh(step: int) -> dict[str, jax.Array]:
        return {name: jnp.full((rows, 1024), step, jnp.float32, device=cut) for name in names}

    def grown(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {name: value + 1 for name, value in params.items()}

    update = jax.jit(grown, donate_argnums=0)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "run"
        work.mkdir()
        config = CheckpointConfig(local=f"{folder}/disk", local_every=1)
        shared, local = Checkpointer(work, config), LocalCheckpointer(work, config)
        params = update(fresh(0))
        jax.block_until_ready(params)
        alone, stalls = resident(), []
        with Peak() as peak:
            for step in range(1, saves + 1):
                begun = time.perf_counter()
                (local if case == "local" else shared).save(step, {"params": params}, {})
                stalls.append(time.perf_counter() - begun)
                params = update(params)
                jax.block_until_ready(params)
            shared.wait()
            local.close()
        saving = peak.most - alone
        shape = jax.ShapeDtypeStruct((rows, 1024), jnp.float32, sharding=cut)
        abstract = {"params": dict.fromkeys(names, shape)}
        for value in params.values():
            value.delete()
        del params, value
        before = resident()
        with Peak() as peak:
            begun = time.perf_counter()
            if case == "local":
                got = local.restore(abstract, saves)
            else:
                got, _, _ = shared.restore(abstract)
            jax.block_until_ready(got)
            seconds = time.perf_counter() - begun
        assert float(got["params"]["w3"][0, 0]) == saves
    return {
        "save: peak / state": saving / size,
        "restore: peak / state": (peak.most - min(before, alone - size)) / size,
        "save: median stall, s": sorted(stalls[1:])[len(stalls[1:]) // 2],
        "restore, s": seconds,
    }


def main() -> None:
    """Prints the figures of both cases."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--saves", type=int, default=20)
    parser.add_argument("--case", choices=["shared", "local"])
    asked = parser.parse_args()
    if asked.case:
        print(json.dumps(measure(asked.case, asked.megabytes, asked.saves)))
        return
    for case in ("shared", "local"):
        flags = f"--xla_force_host_platform_device_count={DEVICES}"
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        sizes = [f"--megabytes={asked.megabytes}", f"--saves={asked.saves}", f"--case={case}"]
        command = [sys.executable, __file__, *sizes]
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
        figures = json.loads(done.stdout.splitlines()[-1])
        print(f"{case}: " + "; ".join(f"{name} {value:.2f}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
