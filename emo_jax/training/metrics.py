"""What is logged about a step.

Legend: L layers, E experts, R routed experts.
"""

from typing import Any

import numpy as np

from emo_jax.config import Config, routed_by_layer


def summarize(config: Config, metrics: dict[str, Any]) -> dict[str, Any]:
    """Converts a step's metrics to JSON: scalars, and lists over layers (`…_by_layer`).

    Units: losses in nats, entropies in nats per token, pool sizes in routed experts; load imbalance
    is the busiest routed expert's tokens over the mean; masked labels and windows, and picks
    dropped for want of capacity, are shares 0..1.
    If windows are masked, `ce_loss` is averaged over their tokens too (SPEC 5.5), and
    `ce_loss_per_label` is not.
    """
    record: dict[str, Any] = {
        name: float(metrics[name])
        for name in ("loss", "ce_loss", "lm_z_loss", "grad_norm", "learning_rate")
    }
    record |= {n: round(float(metrics[n]), 6) for n in ("masked_labels", "masked_windows")}
    if record["masked_windows"] and (labels := float(metrics["labels"])):
        record["ce_loss_per_label"] = record["ce_loss"] * float(metrics["loss_tokens"]) / labels
    record |= {n: int(metrics[n]) for n in ("skipped", "skipped_steps") if n in metrics}
    if "expert_counts" not in metrics:
        return record
    moe = config.moe
    assert moe is not None
    counts_LR = np.asarray(metrics["expert_counts"])[:, : moe.num_routed_experts]
    there_L = np.array(routed_by_layer(config))
    imbalance_L = counts_LR.max(axis=1) / np.maximum(counts_LR.sum(axis=1) / there_L, 1e-9)
    record["router_aux_loss"] = float(metrics["router_aux_loss"])
    if config.mesh.expert > 1:
        most = float(np.asarray(metrics["dispatch_rounds"]).max())  # of any layer
        record["dispatch_rounds"] = most / config.train.micro_batches
    by_layer = {
        "load_balance_loss": metrics["load_balance_loss"],
        "router_z_loss": metrics["router_z_loss"],
        "load_imbalance": imbalance_L,
        "experts_used": (counts_LR > 0).sum(axis=1),
        "token_entropy": metrics["token_entropy"],
        "token_entropy_no_pool": metrics["document_entropy"],
        "pool_size": metrics["pool_size"],
    }
    by_layer |= {n: metrics[n] for n in ("dropped", "shared_balance_loss") if n in metrics}
    for name, values_L in by_layer.items():
        record[f"{name}_by_layer"] = [round(float(v), 6) for v in np.asarray(values_L)]
    return record
