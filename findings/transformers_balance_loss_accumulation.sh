#!/usr/bin/env bash
# transformers 5.24.0: gradient accumulation multiplies the load-balancing loss of a mixture of experts.
#
# Guess: 8 micro-batches of one sequence have the gradient of a batch of 8. Here all sequences are the same, so
# that even a loss which is not linear in the batch, as load balance is, has the same gradient.
# Seen: with `Trainer`, the cross-entropy is divided by the tokens of all micro-batches, and the load-balancing
# loss is added to each whole: its gradient is 8 times as large with 8 micro-batches, and so, in effect, is
# `router_aux_loss_coef`. Without it the gradients are equal. Prints norms; exits non-zero where they are others.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 transformers==5.24.0 accelerate==1.15.0
cd "$folder"
"$folder/venv/bin/python" - 2>"$folder/err" <<'PYTHON' || { cat "$folder/err" >&2; exit 1; }
import sys

import torch
from transformers import AutoModelForCausalLM, MixtralConfig, Trainer, TrainerCallback, TrainingArguments

SEQUENCES = 8
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
ids = list(range(32))
data = [{"input_ids": ids, "labels": ids}] * SEQUENCES


class Keep(TrainerCallback):
    """Keeps the gradients of the only step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **others):
        self.found = {name: p.grad.norm().item() for name, p in model.named_parameters()}


def norms(coefficient: float, accumulated: int) -> tuple[float, float]:
    """Of the gradients of the router and of the head."""
    torch.manual_seed(0)
    config = MixtralConfig(**SHAPE, output_router_logits=True, router_aux_loss_coef=coefficient)
    keep = Keep()
    arguments = TrainingArguments(
        "out",
        per_device_train_batch_size=SEQUENCES // accumulated,
        gradient_accumulation_steps=accumulated,
        max_steps=1,
        max_grad_norm=0,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    model = AutoModelForCausalLM.from_config(config)
    Trainer(model, arguments, train_dataset=data, callbacks=[keep]).train()
    return keep.found["model.layers.0.mlp.gate.weight"], keep.found["lm_head.weight"]


ratios = {}
for coefficient in (0.0, 1.0):
    whole, parts = norms(coefficient, 1), norms(coefficient, SEQUENCES)
    ratios[coefficient] = tuple(b / a for a, b in zip(whole, parts, strict=True))
    router, head = ratios[coefficient]
    print(f"coefficient {coefficient}: router's gradient times {router:.3f}, head's times {head:.3f}")
same = (
    all(abs(ratio - 1) < 1e-3 for ratio in (*ratios[0.0], ratios[1.0][1]))
    and abs(ratios[1.0][0] / SEQUENCES - 1) < 0.01
)
sys.exit(0 if same else "the behaviour has changed")
PYTHON
