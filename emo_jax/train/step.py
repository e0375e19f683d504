"""The pure train step: (state, batch) -> (state, metrics).

Legend: B windows of the step, m micro-batches, S tokens, G documents, L layers, E experts.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from emo_jax.batch import Batch
from emo_jax.config import Config
from emo_jax.model.transformer import ModelFunctions, Params
from emo_jax.model.vocab_loss import vocab_loss
from emo_jax.moe import pools
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.train.optimizer import learning_rate
from emo_jax.train.state import TrainState, state_shardings

Metrics = dict[str, Any]
POOL_STREAM = 1  # folded into the seed's key, so that pool draws share nothing with others


def loss_tokens(batch: Batch) -> jax.Array:
    """T of SPEC 3: label tokens, plus every token of a window whose labels were all filtered."""
    valid_BS = batch.pool_ids >= 0
    filtered_B1 = valid_BS & (batch.loss_mask.sum(axis=1, keepdims=True) == 0)
    return jnp.maximum(batch.loss_mask.sum() + filtered_B1.sum(), 1.0)


def draw_pools(config: Config, step: jax.Array, rows_B: jax.Array) -> jax.Array | None:
    """Pool sizes (L,B,G) of a training step, G = S; None without pools.

    Args:
      step: steps done before this one.
      rows_B: index of each window in the step's global batch.
    """
    if config.moe is None or config.moe.pool.kind == "none":
        return None
    key = jax.random.fold_in(jax.random.key(config.seed), POOL_STREAM)
    return pools.draw_pool_sizes(
        jax.random.fold_in(key, step),
        config.moe.pool,
        rows=rows_B,
        num_layers=config.model.num_layers,
        num_documents=config.data.seq_len,
    )


def micro_batch_loss(
    params: Params,
    batch: Batch,
    pool_size_LBG: jax.Array | None,
    T: jax.Array,
    *,
    config: Config,
    model: ModelFunctions,
) -> tuple[jax.Array, Metrics]:
    """One micro-batch's part of the step's loss, and sums for the metrics.

    Summed over the micro-batches of a step the parts are the losses of SPEC 3.
    """
    hidden_BSD, stats = model.hidden(
        params,
        batch,
        pool_size_LBG=pool_size_LBG,
        top_p=config.moe.pool.top_p if config.moe else 0.0,
        loss_tokens=T,
    )
    vocab_sum, vocab = vocab_loss(
        hidden_BSD,
        params["lm_head"]["kernel"].astype(hidden_BSD.dtype),
        batch.labels,
        batch.loss_mask,
        config.model.vocab_size,
        config.train.z_loss_weight,
        config.train.loss_chunk,
    )
    loss = vocab_sum / T
    metrics = {
        "ce_loss": vocab.ce_sum / T,
        "lm_z_loss": config.train.z_loss_weight * vocab.z_sum / T,
    }
    if stats is not None:
        moe, L = config.moe, config.model.num_layers
        assert moe is not None
        aux = (
            moe.load_balance_weight * stats.load_balance_loss.sum()
            + moe.router_z_weight * stats.router_z_loss.sum()
        ) / L
        loss = loss + aux
        metrics |= {
            "router_aux_loss": aux,
            "load_balance_loss": stats.load_balance_loss,
            "router_z_loss": stats.router_z_loss,
            "expert_counts": stats.counts_E,
            "token_entropy": stats.token_entropy,
            "document_entropy": stats.document_entropy,
            "pool_size": stats.pool_size_sum,
        }
    return loss, jax.lax.stop_gradient(metrics | {"loss": loss})


def _split(batch: Batch, rows_B: jax.Array, m: int) -> tuple[Batch, jax.Array]:
    """Micro-batch j is rows j, j+m, …: each device keeps its own windows."""
    split = lambda a: jnp.moveaxis(a.reshape(-1, m, *a.shape[1:]), 1, 0)  # noqa: E731
    return jax.tree.map(split, batch), split(rows_B)


def loss_and_grads(
    params: Params,
    batch: Batch,
    pool_size_LBG: jax.Array | None,
    *,
    config: Config,
    model: ModelFunctions,
) -> tuple[Params, Metrics]:
    """Gradients of the whole step's loss and its metrics, over `train.micro_batches` parts."""
    T, m = loss_tokens(batch), config.train.micro_batches
    grad_fn = jax.grad(micro_batch_loss, has_aux=True)

    def one(batch: Batch, pool_size: jax.Array | None) -> tuple[Params, Metrics]:
        return grad_fn(params, batch, pool_size, T, config=config, model=model)

    if m == 1:
        grads, metrics = one(batch, pool_size_LBG)
    else:
        rows_mB = _split(batch, jnp.arange(batch.tokens.shape[0]), m)
        micro_batches, index_mB = rows_mB

        def body(total, xs):
            micro, index_B = xs
            sizes = None if pool_size_LBG is None else pool_size_LBG[:, index_B]
            return jax.tree.map(jnp.add, total, one(micro, sizes)), None

        shapes = jax.eval_shape(
            one,
            jax.tree.map(lambda a: a[0], micro_batches),
            None if pool_size_LBG is None else pool_size_LBG[:, index_mB[0]],
        )
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (grads, metrics), _ = jax.lax.scan(body, zeros, (micro_batches, index_mB))

    if "pool_size" in metrics:  # sums over tokens -> means
        num_tokens = jnp.maximum((batch.pool_ids >= 0).sum(), 1)
        for name in ("token_entropy", "document_entropy", "pool_size"):
            metrics[name] = metrics[name] / num_tokens
    return grads, metrics


def make_train_step(
    config: Config, model: ModelFunctions, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step as a pure function of arrays; `jit_train_step` compiles it."""
    schedule = learning_rate(config.optimizer, config.train.steps)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        pool_size_LBG = draw_pools(config, state.step, jnp.arange(batch.tokens.shape[0]))
        grads, metrics = loss_and_grads(
            state.params, batch, pool_size_LBG, config=config, model=model
        )
        metrics["grad_norm"] = optax.tree.norm(grads)
        metrics["learning_rate"] = schedule(state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def jit_train_step(
    config: Config, model: ModelFunctions, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The compiled step. The state is donated, and comes out where it went in.

    Without the shardings the compiler chooses those of the new state, and the second call would
    compile again.
    """
    shardings = None
    if model.mesh is not None:
        shardings = (state_shardings(model, optimizer), mesh_lib.replicated(model.mesh))
    step = make_train_step(config, model, optimizer)
    return jax.jit(step, donate_argnums=0, out_shardings=shardings)
