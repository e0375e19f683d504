"""PEFT: `python drive_peft.py CASE RESULT`. Adapters, trained two steps, merged and saved.

Leaves each merged model in RESULT/made/NAME, with its logits next to it.
"""

from pathlib import Path

import numpy as np
import peft
import torch
from case import NEW_TOKENS, Case, arguments, write_arrays, write_result
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
WAYS = {
    "attention": {"target_modules": ATTENTION},
    "attention and all experts": {
        "target_modules": [*ATTENTION, "gate_proj", "up_proj", "down_proj"],
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    },
    "all-linear": {"target_modules": "all-linear"},
}


@torch.no_grad()
def logits_of(model, case: Case) -> list[np.ndarray]:
    return [model(torch.tensor([ids])).logits[0].float().numpy() for ids in case.ids]


def train(model, case: Case) -> None:
    """Trains two steps on the prompts, so that both matrices of each adapter change."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    for _ in range(2):
        for ids in case.ids:
            tokens = torch.tensor([ids])
            model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def adapted(case: Case, **targets):
    model = AutoModelForCausalLM.from_pretrained(case.model)
    experts = hasattr(model.config, "num_experts")
    if not experts:
        targets.pop("target_parameters", None)
    return get_peft_model(model, LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, **targets))


def make(case: Case, folder: Path, **targets) -> None:
    """Makes one merged model."""
    torch.manual_seed(0)
    model = adapted(case, **targets)
    train(model, case)
    merged = model.merge_and_unload().eval()
    merged.save_pretrained(folder)
    AutoTokenizer.from_pretrained(case.model).save_pretrained(folder)
    write_arrays(folder.parent / f"{folder.name}.npz", logits_of(merged, case))


def main() -> None:
    case, result = arguments()
    fresh = adapted(case, **WAYS["attention"]).eval()  # changes nothing yet
    greedy = []
    for ids in case.ids:
        tokens = torch.tensor([ids])
        mask = torch.ones_like(tokens)
        made = fresh.generate(
            input_ids=tokens,
            attention_mask=mask,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=case.eos_id,
        )
        greedy.append(case.up_to_eos(made[0, len(ids) :]))
    held = {}
    for name, targets in WAYS.items():
        try:
            make(case, result / "made" / name, **targets)
        except Exception as error:
            held[f"LoRA on {name}"] = {"error": f"{type(error).__name__}: {error}"[:200]}
    write_result(
        result, version=peft.__version__, logits=logits_of(fresh, case), greedy=greedy, held=held
    )


if __name__ == "__main__":
    main()
