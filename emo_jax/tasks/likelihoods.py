"""Log-likelihoods of continuations, without a pool, on any mesh and any number of processes.

Legend: B rows, T tokens of prompts, N tokens of branches, K predicted tokens, L layers, M domains,
R routed experts, D width, V vocabulary rows.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from emo_jax.batch import Batch
from emo_jax.model.attention import Further
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import Params
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.tasks.rows import Arrays, Request, packed

_LOGITS_AT_ONCE = 2048  # predicted tokens whose logits exist at once


class Likelihood(NamedTuple):
    """What a model gives a continuation.

    Attributes:
      nats: log-likelihood, the sum over its tokens.
      greedy: every token is the likeliest.
    """

    nats: float
    greedy: bool


class Likelihoods:
    """Measures log-likelihoods with one model; compiled programs are kept between calls.

    Every process calls it with the same requests, and gets all results.

    Args:
      model: a model on a mesh, with a `within_documents` config.
      pad_id: id of padding tokens.
      compiled: called with a program and its arguments before it first runs, see
        `emo_jax.parallel.processes.compile_together`.
    """

    def __init__(
        self,
        model: ModelFunctions,
        pad_id: int = 0,
        *,
        compiled: Callable[..., Any] = lambda *_: None,
    ):
        assert model.mesh is not None and model.config.model.attention == "document"
        self._model, self._mesh, self._pad_id = model, model.mesh, pad_id
        self._compiled, self._shapes = compiled, set[tuple[int, ...]]()
        self._score = jax.jit(self._scores)
        self.window: int = model.config.data.seq_len

    def of(
        self,
        params: Params,
        requests: Sequence[Request],
        *,
        keep_LMR: np.ndarray | None = None,
        progress: Callable[[int], None] = lambda _: None,
    ) -> list[Likelihood]:
        """The likelihood of each continuation after its prompt.

        Args:
          params: on the devices, sharded by `ModelFunctions.param_shardings`.
          requests: each of at most window + 1 tokens, see `rows.cut_left`.
          keep_LMR: bool, the routed experts that each domain's tokens may use; None: all.
          progress: called with the number of tokens done so far.
        """
        mesh = self._mesh
        ways = mesh.shape["context"] * mesh.shape["tensor"]
        nats = np.zeros(len(requests))
        greedy = np.ones(len(requests), bool)
        keep = None if keep_LMR is None else replicate(keep_LMR, mesh)
        done, running = 0, None

        def add(found: tuple[np.ndarray, Any] | None) -> None:
            if found is None:
                return
            requests_BK, (nats_BK, hits_BK) = found
            there = requests_BK >= 0
            np.add.at(nats, requests_BK[there], np.asarray(nats_BK, np.float64)[there])
            np.logical_and.at(greedy, requests_BK[there], np.asarray(hits_BK)[there])

        for rows in packed(
            requests, self.window, devices=mesh.size, ways=ways, pad_id=self._pad_id
        ):
            arrays = Arrays(*(_shard(a, mesh) for a in rows.arrays))
            shape = (*rows.arrays.tokens_BT.shape, *rows.arrays.sources_BK.shape)
            shape = (*shape, rows.arrays.tokens_BN.shape[1])
            if shape not in self._shapes:
                self._compiled(self._score, params, arrays, keep)
                self._shapes.add(shape)
            # The results of the batch before are fetched while this one runs.
            found = (rows.requests_BK, self._score(params, arrays, keep))
            add(running)
            running, done = found, done + rows.tokens
            progress(done)
        add(running)
        return [Likelihood(*both) for both in zip(nats.tolist(), greedy.tolist(), strict=True)]

    @property
    def programs(self) -> int:
        """Number of shapes that were compiled."""
        return len(self._shapes)

    def _scores(
        self, params: Params, rows: Arrays, keep_LMR: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Log-probability of each predicted token (B,K), and whether it is the likeliest."""
        model = self._model.bind(params)
        nothing_BT = jnp.zeros_like(rows.tokens_BT)
        batch = Batch(
            tokens=rows.tokens_BT,
            labels=nothing_BT,
            loss_mask=nothing_BT.astype(jnp.float32),
            segment_ids=rows.documents_BT,
            pool_ids=rows.documents_BT,
            positions=rows.positions_BT,
            domain_ids=rows.domains_BT,
        )
        if rows.tokens_BN.shape[1]:
            hidden_BTD, cached = model.prefill(batch, keep_LMR=keep_LMR)
            assert cached is not None
            further = Further(
                rows.branches_BN, rows.documents_BN, rows.positions_BN, rows.documents_BT
            )
            hidden_BND = model.extend(
                rows.tokens_BN, rows.domains_BN, further, cached, keep_LMR=keep_LMR
            )
            hidden_BUD = jnp.concatenate([hidden_BTD, hidden_BND], axis=1)
        else:
            hidden_BUD, _ = model.prefill(batch, keep_LMR=keep_LMR, cached=False)
        B, K = rows.sources_BK.shape
        hidden_BKD = jnp.take_along_axis(hidden_BUD, rows.sources_BK[..., None], axis=1)
        parts = next(n for n in range(-(-B * K // _LOGITS_AT_ONCE), K + 1) if K % n == 0)

        def one_part(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            hidden_BkD, labels_Bk = part
            logits_BkV = self._model.head(params, hidden_BkD)
            label_Bk = jnp.take_along_axis(logits_BkV, labels_Bk[..., None], axis=-1)[..., 0]
            nats_Bk = label_Bk - jax.nn.logsumexp(logits_BkV, axis=-1)
            return nats_Bk, jnp.argmax(logits_BkV, axis=-1) == labels_Bk

        split = lambda a: jnp.moveaxis(a.reshape(B, parts, K // parts, *a.shape[2:]), 1, 0)  # noqa: E731
        found = jax.lax.map(one_part, (split(hidden_BKD), split(rows.labels_BK)))
        whole = [jnp.moveaxis(a_nBk, 0, 1).reshape(B, K) for a_nBk in found]
        nats_BK, hits_BK = (mesh_lib.constrain(self._mesh, a_BK, PartitionSpec()) for a_BK in whole)
        return nats_BK, hits_BK


def place(arrays: Any, shardings: Any) -> Any:
    """Arrays that every process holds, on the devices of all of them."""

    def put(array: Any, where: NamedSharding) -> jax.Array:
        if where.is_fully_addressable:
            return jax.device_put(array, where)
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, where, lambda index: host[index])

    return jax.tree.map(put, arrays, shardings)


def _shard(array_Bx: np.ndarray, mesh: Mesh) -> jax.Array:
    """An array that every process holds, spread over the devices by rows, and by T and N too."""
    ways = mesh.shape["context"] * mesh.shape["tensor"]
    along = mesh_lib.windows_spec()
    spec = along if array_Bx.shape[1] % ways == 0 else PartitionSpec(along[0])
    return place(array_Bx, NamedSharding(mesh, spec))


def replicate(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """An array that every process holds, whole on every device."""
    return place(array, mesh_lib.replicated(mesh))
