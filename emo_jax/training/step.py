"""The pure train step: (state, batch) -> (state, metrics).

Legend: B windows of the step, m micro-batches, S tokens, G documents, L layers, E experts.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from emo_jax.batch import Batch
from emo_jax.config import Config, seeds
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import Params
from emo_jax.model.vocab_loss import vocab_loss
from emo_jax.moe import pools as pools_lib
from emo_jax.moe.pools import Pools
from emo_jax.moe.switch import draw_seeds
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.training.freeze import trained_only
from emo_jax.training.offload import keep_old
from emo_jax.training.optimizer import learning_rate, skipped_steps
from emo_jax.training.router_state import SUMS, next_router_state, sums_of
from emo_jax.training.state import TrainState, state_shardings

Metrics = dict[str, Any]
# Folded into the seed's key, so that what is drawn for one thing is independent of all others.
POOL_STREAM, JITTER_STREAM = 1, 2


def loss_tokens(batch: Batch) -> jax.Array:
    """Returns T of SPEC 3: label tokens, plus all tokens of windows without any label left."""
    valid_BS = batch.pool_ids >= 0
    filtered_B1 = valid_BS & (batch.loss_mask.sum(axis=1, keepdims=True) == 0)
    return jnp.maximum(batch.loss_mask.sum() + filtered_B1.sum(), 1.0)


def label_metrics(batch: Batch) -> Metrics:
    """Returns the shares of the step, 0..1, that are not in its loss.

    They are OLMo-core's "masked labels (%)" and "masked instances (%)". The last token of a window
    never has a label.
    """
    valid_BS = batch.pool_ids >= 0
    there_B = valid_BS.any(axis=1)
    labels_B = batch.loss_mask.sum(axis=1)
    possible, labels = valid_BS.sum() - there_B.sum(), labels_B.sum()
    masked = (there_B & (labels_B == 0)).sum(dtype=jnp.float32)
    masked_windows = masked / jnp.maximum(there_B.sum(), 1)
    return {
        "masked_labels": (possible - labels) / jnp.maximum(possible, 1),
        "masked_windows": masked_windows,
        "labels": labels,
        "loss_tokens": loss_tokens(batch),
    }


def draw_pools(config: Config, step: jax.Array, rows_B: jax.Array) -> Pools | None:
    """Draws the pools of a training step, sizes (L,B,G) with G = S; None without pools.

    Args:
      step: steps done before this one.
      rows_B: index of each window in the step's global batch.
    """
    if config.moe is None or config.moe.pool.kind == "none" or config.moe.pool.labelled:
        return None
    key = jax.random.fold_in(seeds.key(config.seed), POOL_STREAM)
    return pools_lib.draw_pools(
        jax.random.fold_in(key, step),
        config.moe.pool,
        rows=rows_B,
        num_layers=config.model.stacked_layers,
        num_documents=config.data.seq_len,
        num_routed=config.moe.num_routed_experts,
        step=step,
    )


def draw_jitter(config: Config, step: jax.Array, rows_B: jax.Array) -> jax.Array | None:
    """Draws the seeds (L,B) of a training step's jitter and random ghosts; None without them."""
    moe = config.moe
    if moe is None or (moe.input_jitter == 0 and moe.ghosts != "random"):
        return None
    key = jax.random.fold_in(seeds.key(config.seed), JITTER_STREAM)
    key = jax.random.fold_in(key, step)
    return draw_seeds(key, rows=rows_B, num_layers=config.model.stacked_layers)


def micro_batch_loss(
    params: Params,
    batch: Batch,
    pools: Pools | None,
    T: jax.Array,
    step_load_LE: jax.Array | None = None,
    jitter_LB: jax.Array | None = None,
    *,
    config: Config,
    model: ModelFunctions,
) -> tuple[jax.Array, Metrics]:
    """Returns one micro-batch's part of the step's loss, and sums for the metrics.

    Summed over the micro-batches of a step, the parts are the losses of SPEC 3. The load-balancing
    loss uses the counts of this micro-batch, or `step_load_LE`, those of the whole step per token.
    """
    hidden_BSD, stats = model.hidden(
        params,
        batch,
        pools=pools,
        loss_tokens=T,
        step_load_LE=step_load_LE,
        **_of_training(config, jitter_LB),
    )
    vocab_sum, vocab = vocab_loss(
        hidden_BSD,
        params["lm_head"]["kernel"],
        batch.labels,
        batch.loss_mask,
        config.model.vocab_size,
        config.train.z_loss_weight,
        config.train.loss_chunk,
        model.mesh,
    )
    loss = vocab_sum / T
    metrics = {
        "ce_loss": vocab.ce_sum / T,
        "lm_z_loss": config.train.z_loss_weight * vocab.z_sum / T,
    }
    if stats is not None:
        moe, L = config.moe, config.model.stacked_layers
        assert moe is not None
        aux = (
            moe.load_balance_weight * stats.load_balance_loss.sum()
            + moe.router_z_weight * stats.router_z_loss.sum()
        ) / L
        if stats.shared_balance_loss is not None:
            aux = aux + moe.shared_balance_weight * stats.shared_balance_loss.sum() / L
        loss = loss + aux
        metrics |= {
            "router_aux_loss": aux,
            "load_balance_loss": stats.load_balance_loss,
            "router_z_loss": stats.router_z_loss,
            "expert_counts": stats.counts_E,
            "token_entropy": stats.token_entropy,
            "document_entropy": stats.document_entropy,
            "pool_size": stats.pool_size_sum,
            "dispatch_rounds": stats.dispatch_rounds,
        } | sums_of(config, stats)
        for name in ("dropped", "shared_balance_loss"):
            if (values_L := getattr(stats, name)) is not None:
                metrics[name] = values_L
    return loss, jax.lax.stop_gradient(metrics | {"loss": loss})


def _of_training(config: Config, jitter_LB: jax.Array | None) -> dict[str, Any]:
    """What the model does in training only, as arguments of `ModelFunctions.hidden`."""
    labels = 0
    if config.moe is not None and config.moe.pool.kind == "label_learned":
        labels = max(len(config.moe.pool.labels), 1)
    return {"training": True, "jitter_LB": jitter_LB, "num_domains": labels}


def step_load(
    params: Params,
    micro_batches: Batch,
    pools_m: Pools | None,
    jitter_m: jax.Array | None = None,
    *,
    config: Config,
    model: ModelFunctions,
) -> jax.Array:
    """Returns each expert's picks per token in the step, (L,E), by a separate forward pass.

    The gradient of the load-balancing loss needs all counts first, so one pass is not enough
    (DESIGN 5).
    """
    moe = config.moe
    assert moe is not None

    def body(counts_LE: jax.Array, xs: tuple) -> tuple[jax.Array, None]:
        micro, pools, jitter_LB = xs
        options = _of_training(config, jitter_LB)
        _, stats = model.hidden(params, micro, pools=pools, loss_tokens=1.0, **options)
        return counts_LE + stats.counts_E, None

    zeros_LE = jnp.zeros((config.model.stacked_layers, moe.num_experts), jnp.float32)
    counts_LE, _ = jax.lax.scan(body, zeros_LE, (micro_batches, pools_m, jitter_m))
    num_tokens = jnp.maximum((micro_batches.pool_ids >= 0).sum(), 1)
    return jax.lax.stop_gradient(counts_LE / num_tokens)


def _split(a: jax.Array, m: int, *, axis: int) -> jax.Array:
    """Reshapes (…,B,…) to (m,…,B/m,…). Part j is rows j, j+m, …: devices keep their own windows."""
    parts = a.reshape(*a.shape[:axis], -1, m, *a.shape[axis + 1 :])
    return jnp.moveaxis(parts, axis + 1, 0)


def loss_and_grads(
    params: Params,
    batch: Batch,
    pools: Pools | None,
    *,
    config: Config,
    model: ModelFunctions,
    jitter_LB: jax.Array | None = None,
) -> tuple[Params, Metrics]:
    """Returns gradients and metrics of the whole step's loss, over `train.micro_batches` parts."""
    T, m = loss_tokens(batch), config.train.micro_batches
    by_window = jax.P(None, mesh_lib.WINDOW_AXES, None)  # drawn where the windows are
    pools = jax.tree.map(lambda a: mesh_lib.constrain(model.mesh, a, by_window), pools)
    grad_fn = jax.grad(micro_batch_loss, has_aux=True)

    def one(
        batch: Batch,
        pools: Pools | None,
        jitter_LB: jax.Array | None,
        load_LE: jax.Array | None = None,
    ) -> tuple[Params, Metrics]:
        return grad_fn(params, batch, pools, T, load_LE, jitter_LB, config=config, model=model)

    if m == 1:
        grads, metrics = one(batch, pools, jitter_LB)
    else:
        micro_batches = jax.tree.map(lambda a: _split(a, m, axis=0), batch)
        pools_m, jitter_m = jax.tree.map(lambda a: _split(a, m, axis=1), (pools, jitter_LB))
        load_LE, xs = None, (micro_batches, pools_m, jitter_m)
        if config.moe is not None and config.moe.balance_scope == "step":
            load_LE = step_load(params, *xs, config=config, model=model)

        def body(total, xs):
            batch, pools, jitter_LB = xs
            return jax.tree.map(jnp.add, total, one(batch, pools, jitter_LB, load_LE)), None

        first = jax.tree.map(lambda a: a[0], xs)
        shapes = jax.eval_shape(one, *first, load_LE)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (grads, metrics), _ = jax.lax.scan(body, zeros, xs)

    if "pool_size" in metrics:  # sums over tokens -> means
        num_tokens = jnp.maximum((batch.pool_ids >= 0).sum(), 1)
        for name in ("token_entropy", "document_entropy", "pool_size"):
            metrics[name] = metrics[name] / num_tokens
        if "dropped" in metrics:  # of all picks
            assert config.moe is not None
            metrics["dropped"] /= num_tokens * config.moe.num_routed_picks
    return grads, metrics


def make_train_step(
    config: Config, model: ModelFunctions, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns the step as a pure function of arrays; `jit_train_step` compiles it."""
    optimizer = optax.with_extra_args_support(optimizer)
    schedule = learning_rate(config.optimizer, config.train.steps)

    def update(state: TrainState, grads: Params, metrics: Metrics) -> tuple[TrainState, Metrics]:
        """Returns the state after the step, or the one before if something is not finite."""
        grads = trained_only(grads, config)
        grad_norm = optax.tree.norm(grads)
        # A single non-finite number would spread to all others: the state stays as it is, for good.
        ok = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm) & ~state.halted
        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.params, loss=metrics["ce_loss"], hold=~ok
        )
        params = optax.apply_updates(state.params, updates)
        skipped = jnp.zeros((), bool)
        if config.optimizer.skip_window:
            skipped = skipped_steps(opt_state) > skipped_steps(state.opt_state)
        params = next_router_state(config, params, metrics, skipped)
        metrics = {name: value for name, value in metrics.items() if name not in SUMS}
        new = TrainState(state.step + 1, params, opt_state, state.halted)
        new = keep_old(~ok, state, new)
        metrics |= {
            "grad_norm": grad_norm,
            "learning_rate": schedule(state.step),
            "halted": ~ok,
        }
        if config.optimizer.skip_window:
            skips = skipped_steps(opt_state)
            metrics |= {
                "skipped_steps": skips,
                "skipped": skips - skipped_steps(state.opt_state),
            }
        return new._replace(halted=~ok), metrics

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rows_B = jnp.arange(batch.tokens.shape[0])
        with jax.named_scope("routing"):
            pools = draw_pools(config, state.step, rows_B)
            jitter_LB = draw_jitter(config, state.step, rows_B)
        grads, metrics = loss_and_grads(
            state.params, batch, pools, config=config, model=model, jitter_LB=jitter_LB
        )
        metrics |= label_metrics(batch)
        with jax.named_scope("optimizer"):
            return update(state, grads, metrics)

    return train_step


def jit_train_step(
    config: Config, model: ModelFunctions, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns the compiled step. The state is donated, and is returned with the same placement.

    Without the shardings, the compiler would choose those of the new state, and the second call
    would recompile.
    """
    shardings = None
    if model.mesh is not None:
        shardings = (state_shardings(model, optimizer), mesh_lib.replicated(model.mesh))
    step = make_train_step(config, model, optimizer)
    options = mesh_lib.compiler_options(model.mesh)
    return jax.jit(
        step, donate_argnums=0, out_shardings=shardings, compiler_options=options or None
    )
