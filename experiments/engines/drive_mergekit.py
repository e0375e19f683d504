"""mergekit: `python drive_mergekit.py CASE RESULT`. Runs its command; merges into RESULT/made.

`linear`: the mean of the model and CASE/other, which has the same shape; `passthrough`: its layers
unchanged. The logits next to each are from transformers, in the same environment.
"""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from case import arguments, write_arrays, write_result
from transformers import AutoModelForCausalLM

LINEAR = """\
merge_method: linear
models:
  - model: {model}
    parameters: {{weight: 0.5}}
  - model: {other}
    parameters: {{weight: 0.5}}
dtype: float32
"""
PASSTHROUGH = """\
merge_method: passthrough
slices:
  - sources:
      - model: {model}
        layer_range: [0, {layers}]
dtype: float32
"""


@torch.no_grad()
def logits_of(folder: Path, ids: list[list[int]]) -> list[np.ndarray]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return [model(torch.tensor([one])).logits[0].float().numpy() for one in ids]


def main() -> None:
    case, result = arguments()
    model, other = Path(case.model), Path(sys.argv[1]).resolve() / "other"
    layers = AutoModelForCausalLM.from_pretrained(model).config.num_hidden_layers
    command = Path(sys.executable).with_name("mergekit-yaml")
    held, logits = {}, None
    for name, text in (("passthrough", PASSTHROUGH), ("linear", LINEAR)):
        if name == "linear" and not other.exists():
            continue
        file, folder = result / f"{name}.yaml", result / "made" / name
        file.write_text(text.format(model=model, other=other, layers=layers), encoding="utf-8")
        done = subprocess.run([command, file, folder], capture_output=True, text=True)
        if done.returncode:
            held[f"`{name}`"] = {"error": done.stderr.strip().splitlines()[-1][:200]}
            continue
        found = logits_of(folder, case.ids)
        write_arrays(folder.parent / f"{name}.npz", found)
        logits = found if name == "passthrough" else logits
    write_result(result, version=version("mergekit"), logits=logits, held=held)


if __name__ == "__main__":
    main()
