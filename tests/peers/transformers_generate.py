"""Tokens a second of greedy generation from an exported folder in stock transformers.

In an environment of its own: pip install torch==2.13.0 transformers

python tests/peers/transformers_generate.py FOLDER [BATCH]
"""

import statistics
import sys
import time

import torch
import transformers

NEW = 200
folder, batch = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1
model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
prompt = torch.randint(2, 2000, (1, 24), generator=torch.Generator().manual_seed(0))
ids = prompt.repeat(batch, 1)


def seconds(new: int) -> float:
    start = time.perf_counter()
    mask = torch.ones_like(ids)
    out = model.generate(
        ids, attention_mask=mask, do_sample=False, eos_token_id=None, max_new_tokens=new
    )
    assert out.shape[1] == ids.shape[1] + new
    return time.perf_counter() - start


seconds(8)
median = statistics.median(seconds(NEW) for _ in range(3))
print(f"transformers {transformers.__version__}: {batch * NEW / median:,.0f} tokens/s")
