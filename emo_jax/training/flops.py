"""FLOPs per token and the share of the hardware's peak that a run reaches (SPEC 1.5)."""

import jax

from emo_jax.config import Config, moe_of

# Dense bfloat16 peak of one device, FLOP/s, from the vendors' data sheets. The reference reports
# against 989.5 TFLOP/s for an H100 (SPEC 1.5).
PEAK_FLOPS = {
    "H100": 989.5e12,
    "H200": 989.5e12,
    "A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12 / 2,  # a device is half of a chip
}


def flops_per_token(config: Config) -> int:
    """Returns forward and backward FLOPs per token: 6 per parameter used, plus attention.

    Attention counts every key of the window (neither halved for causality nor cut at documents),
    and the input embedding counts nothing: this is the reference's formula, so MFU is comparable.
    """
    model, D = config.model, config.model.embed_dim
    head = 6 * (model.padded_vocab_size * D + D)
    first = model.dense_layers * _per_layer(config, dense=True)
    return first + model.stacked_layers * flops_per_token_and_layer(config) + head


def flops_per_token_and_layer(config: Config) -> int:
    """Returns forward and backward FLOPs per token of one decoder layer after `dense_layers`."""
    return _per_layer(config, dense=config.moe is None)


def _per_layer(config: Config, *, dense: bool) -> int:
    model, S = config.model, config.data.seq_len
    D, width = model.embed_dim, model.num_heads * model.head_dim
    kv_width = model.kv_heads * model.head_dim
    layer = 6 * 2 * D * (width + kv_width) + 12 * width * S
    if dense:
        return layer + 6 * 3 * D * model.mlp_dim
    moe = moe_of(config)
    return layer + 6 * moe.num_experts * D + 6 * moe.top_k * 3 * D * moe.expert_dim


def peak_flops(device: jax.Device) -> float | None:
    """Returns the peak of one device; None if it is unknown (a CPU)."""
    # The longest match: "TPU v5" is part of "TPU v5e".
    names = [name for name in PEAK_FLOPS if name in device.device_kind]
    return PEAK_FLOPS[max(names, key=len)] if names else None


def mfu(config: Config, tokens_per_second: float, devices: list[jax.Device]) -> float | None:
    """Returns the share of the devices' peak, 0..1; None if the peak is unknown."""
    peak = peak_flops(devices[0])
    if peak is None:
        return None
    return flops_per_token(config) * tokens_per_second / (peak * len(devices))
