"""Gradients of one step of the tiny model, before Adam, on any mesh and number of processes.

As a program it is one of the processes (`launch/local.py` starts several), and process 0 writes:

  python tests/gradients.py --mesh fsdp=2,expert=4 --out gradients.npz [--imbalance | --wide]
"""

import argparse
import dataclasses
import io
import os
import re
from pathlib import Path

import jax
import numpy as np
from tiny import tiny_batch, tiny_config

from emo_jax.aot.collectives import KINDS
from emo_jax.batch import Batch
from emo_jax.config import Config, MeshConfig
from emo_jax.model.functions import ModelFunctions
from emo_jax.parallel import processes
from emo_jax.parallel.mesh import make_mesh, windows_sharding
from emo_jax.parallel.rows import global_batch, own_rows
from emo_jax.training.step import draw_pools, loss_and_grads

MESHES = {
    "fsdp 8": dict(fsdp=8),
    "fsdp 2, expert 4": dict(fsdp=2, expert=4),
    "fsdp 2, expert 2, tensor 2": dict(fsdp=2, expert=2, tensor=2),
    "fsdp 2, context 4": dict(fsdp=2, context=4),
}


def wide_config() -> Config:
    """Gradients of 512 KiB: what devices send each other does not fit into a socket at once."""
    return tiny_config(vocab_size=2048, embed_dim=64, num_heads=4, init_std=0.05)


def one_step(config: Config, *, imbalance: bool = False) -> dict[str, np.ndarray]:
    """Gradients (`grad/…`) and metrics (`metric/…`) of a step with drawn pools, by name.

    With the names of the program's collectives, `collectives`. Every process calls it; every
    process reads its own rows only, and gets all numbers.
    """
    mesh = make_mesh(config.mesh)
    model = ModelFunctions(config, mesh)
    make = jax.jit(lambda: model.init(3), out_shardings=model.param_shardings())
    params, batch = make(), tiny_batch(config)
    if imbalance:  # every token of every layer wants the same few experts
        params["layers"]["mlp"]["router"]["kernel"] *= 0.0
    where, size = windows_sharding(mesh), config.train.batch_size
    rows = own_rows(where, size, config.data.seq_len)
    own = Batch(*(field[rows] for field in batch))

    @jax.jit
    def step(params, batch):
        pools = draw_pools(config, 5, jax.numpy.arange(batch.tokens.shape[0]))
        return loss_and_grads(params, batch, pools, config=config, model=model)

    args = (params, global_batch(own, rows, where, size))
    compiled = step.lower(*args).compile()
    processes.gather(None)  # none waits in a collective for one that still compiles
    grads, metrics = compiled(*args)
    whole = jax.jit(lambda x: x, out_shardings=jax.sharding.NamedSharding(mesh, jax.P()))
    named = {}
    for kind, tree in (("grad", grads), ("metric", metrics)):
        for path, leaf in jax.tree.leaves_with_path(tree):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            named[f"{kind}/{name}"] = np.asarray(whole(leaf).addressable_data(0))
    named["collectives"] = np.array(made_of(compiled.as_text()))
    return named


def made_of(text: str) -> list[str]:
    """The kinds of collectives in a compiled program."""
    return sorted(kind for kind in KINDS if re.search(rf" {kind}(-start)?\(", text))


def differences(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """The largest difference of each array, over the largest number in it."""
    assert set(ours) == set(theirs)
    return {
        name: float(np.abs(ours[name] - right).max() / (np.abs(right).max() or 1.0))
        for name, right in theirs.items()
        if name != "collectives"
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mesh", default="")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--imbalance", action="store_true")
    parser.add_argument("--wide", action="store_true")
    args = parser.parse_args()
    sizes = {k: int(v) for k, v in (x.split("=") for x in args.mesh.split(",") if x)}
    config = wide_config() if args.wide else tiny_config()
    config = dataclasses.replace(config, mesh=MeshConfig(**sizes))
    given = (int(os.environ.get("EMO_PROCESSES", 1)), int(os.environ.get("EMO_PROCESS_INDEX", 0)))
    with (
        processes.joined(*given, os.environ.get("EMO_COORDINATOR"), join_timeout=120),
        jax.default_matmul_precision("highest"),
    ):
        found = one_step(config, imbalance=args.imbalance)
        if jax.process_index() == 0:
            buffer = io.BytesIO()
            np.savez(buffer, **found)
            args.out.write_bytes(buffer.getvalue())


if __name__ == "__main__":
    main()
