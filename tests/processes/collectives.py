"""Every collective of the step, again and again on the same numbers, against NumPy.

As a program it is one of the processes (`launch/local.py` starts several); it fails where one
result is wrong, and says which:

  python tests/processes/collectives.py --mesh fsdp=2,expert=2 --rounds 50
"""

import argparse
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from emo_jax.config import MeshConfig
from emo_jax.parallel import processes
from emo_jax.parallel.island import Island
from emo_jax.parallel.mesh import AXES, make_mesh

# Of a device's piece: small, one that fills a socket's buffer, one that is no power of two.
SIZES = [(8, 3), (256, 512), (1032, 77)]
UNDER_WAY = 4  # at once; many more, and JAX's CPU client waits for itself for ever
SIGNS = (1, -1, 2, -2)  # one after the other in one program, whose buffers are used again
DTYPES = ["float32", "bfloat16", "int32"]


def collectives(island: Island, axes: tuple[str, ...]):
    """Name → what a device calls, and what all devices of a group have then, from their pieces."""
    n = island.size(*axes)
    pieces = lambda a: np.split(a, n)  # noqa: E731
    return {
        "psum": (lambda x: island.sum(x, axes), lambda gxs: [sum(gxs)] * n),
        "all_gather": (lambda x: island.gather(x, axes, 0), lambda gxs: [np.concatenate(gxs)] * n),
        "sum_scatter": (lambda x: island.sum_scatter(x, axes, 0), lambda gxs: pieces(sum(gxs))),
        "all_to_all": (
            lambda x: island.all_to_all(x, axes, 0, 0),
            lambda gxs: [np.concatenate(to) for to in zip(*map(pieces, gxs), strict=True)],
        ),
    }


def wrong(mesh, axes: tuple[str, ...], shape: tuple[int, int], dtype: str, rounds: int, seed: int):
    """Name → how many rounds gave a device of this process a wrong number."""
    island = Island(mesh)
    every = NamedSharding(mesh, PartitionSpec(AXES))
    # Small integers: sums are exact in any order, in bfloat16 too, and so is their double.
    pieces_N = np.random.default_rng(seed).integers(-8, 8, (mesh.size, *shape)).astype(dtype)
    # Devices of a group differ along `axes` only; the last axis of the mesh counts least.
    places = np.arange(mesh.size).reshape(list(mesh.shape.values()))
    at = [AXES.index(axis) for axis in axes]
    groups = np.moveaxis(places, at, range(-len(at), 0)).reshape(-1, island.size(*axes))
    inputs = jax.make_array_from_callback(
        pieces_N.shape, every, lambda index: pieces_N[index]
    ).reshape(-1, shape[1])
    found = {}
    for name, (call, expected) in collectives(island, axes).items():
        right = {d: r for g in groups for d, r in zip(g, expected(list(pieces_N[g])), strict=True)}
        spec = PartitionSpec(AXES)
        signed = lambda x, call=call: jnp.stack([call(s * x) for s in SIGNS], 1)  # noqa: E731
        step = jax.jit(island.run(signed, (spec,), spec)).lower(inputs).compile()
        processes.gather(None)  # none waits in a collective for one that still compiles
        number = {device: i for i, device in enumerate(mesh.devices.flat)}
        found[name] = 0
        for _ in range(rounds // UNDER_WAY):
            for out in [step(inputs) for _ in range(UNDER_WAY)]:
                found[name] += any(
                    not np.array_equal(
                        shard.data, np.stack([s * right[number[shard.device]] for s in SIGNS], 1)
                    )
                    for shard in out.addressable_shards
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mesh", default="")
    parser.add_argument("--rounds", type=int, default=50)
    args = parser.parse_args()
    sizes = {k: int(v) for k, v in (x.split("=") for x in args.mesh.split(",") if x)}
    given = (int(os.environ.get("EMO_PROCESSES", 1)), int(os.environ.get("EMO_PROCESS_INDEX", 0)))
    with processes.joined(*given, os.environ.get("EMO_COORDINATOR"), join_timeout=120):
        mesh = make_mesh(MeshConfig(**sizes))
        used = Island(mesh).used(AXES)
        bad = {}
        for axes in sorted({(axis,) for axis in used} | {used}):
            for seed, shape in enumerate(SIZES):
                shape = (shape[0] * mesh.size, shape[1])
                for dtype in DTYPES:
                    for name, count in wrong(mesh, axes, shape, dtype, args.rounds, seed).items():
                        bad |= {(name, axes, shape, dtype): count} if count else {}
        for (name, axes, shape, dtype), count in bad.items():
            print(f"{name} over {axes} of {shape} {dtype}: {count} of {args.rounds} wrong")
        print(f"process {jax.process_index()}: {len(bad)} kinds wrong")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
