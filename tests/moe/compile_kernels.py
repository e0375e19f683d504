"""Compiles experts or attention at the 1b14b shape for a TPU topology; prints what came out.

Run as `python compile_kernels.py v5e:2x2 4 experts tokamax`: for 4 chips, which needs libtpu alone.
"""

import json
import re
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from held import held
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from emo_jax.model import attention_kernels
from emo_jax.moe import dispatch, grouped

N, K, R, E, D, F = 4096, 7, 127, 128, 2048, 1024
S, H, HEAD = 4096, 16, 128


def experts(backend: str, kind: str, x, weights, indices, gate, up, down, cotangent):
    """All gradients."""
    perm = dispatch.sort_by_expert(indices, R)

    def scalar(x, weights, gate, up, down):
        out = grouped.routed_swiglu(
            x, weights, perm, *held(gate, up, down), how=grouped.How(backend, "tpu", kind)
        )
        return (out.astype(jnp.float32) * cotangent).sum()

    return jax.grad(scalar, argnums=range(5))(x, weights, gate, up, down)


def attention(axis: str | None, q, k, v, ids, cotangent):
    """All gradients; along an axis the keys of all devices."""

    def scalar(q, k, v):
        key_ids, first = ids, None
        if axis is not None:
            gather = partial(jax.lax.all_gather, axis_name=axis, axis=1, tiled=True)
            k, v, key_ids = gather(k), gather(v), gather(ids)
            first = jax.lax.axis_index(axis) * q.shape[1]
        out = attention_kernels.attend(
            *(q, k, v, ids, key_ids), within_document=True, first_query=first, backend="splash"
        )
        return (out.astype(jnp.float32) * cotangent).sum()

    return jax.grad(scalar, argnums=range(3))(q, k, v)


def report(compiled, wanted_flops: float) -> dict:
    """What the program is made of."""
    text = compiled.as_text()
    return {
        "kernels": text.count('custom_call_target="tpu_custom_call"'),
        "other_dots": len(re.findall(r" (?:dot|convolution)\(", text)),
        "flops": compiled.cost_analysis()["flops"],
        "wanted_flops": wanted_flops,
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
    }


def main(topology: str, chips: str, part: str, *backends: str) -> None:
    devices = topologies.get_topology_desc(topology, "tpu").devices[: int(chips)]
    mesh = Mesh(np.array(devices), "d")
    axis = "d" if len(devices) > 1 else None

    def array(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def on_mesh(function, arguments, out_specs):
        if axis is not None:
            specs = tuple(a.sharding.spec for a in arguments)
            function = jax.shard_map(
                function, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False
            )
        return jax.jit(function).lower(*arguments).compile()

    whole, half = PartitionSpec(), jnp.bfloat16
    if part == "attention":
        split = PartitionSpec(None, "d")
        tokens = array((1, S, H, HEAD), half, split)
        arguments = (tokens, tokens, tokens, array((1, S), jnp.int32, split), tokens)
        done = on_mesh(partial(attention, axis), arguments, (split,) * 3)
        reports = {"splash": report(done, 0)}  # its kernels do not say what they cost
    else:
        split = PartitionSpec("d")
        rows = N * len(devices)
        arguments = (
            array((rows, D), half, split),
            array((rows, K), jnp.float32, split),
            array((rows, K), jnp.int32, split),
            array((E, D, F), half, whole),
            array((E, D, F), half, whole),
            array((E, F, D), half, whole),
            array((rows, D), half, split),
        )
        wanted = 8 * 2 * N * K * D * F  # of nine products the output's own is not asked for
        kind = devices[0].device_kind
        reports = {
            backend: report(
                on_mesh(partial(experts, backend, kind), arguments, (split,) * 5), wanted
            )
            for backend in backends
        }
    print(json.dumps(reports))


if __name__ == "__main__":
    main(*sys.argv[1:])
