"""Tokens a second of a train step of `experiments/bench_cpu.py`'s shape in stock transformers.

Qwen2-MoE is the same function: 32 experts, 4 a token, one shared. Float32, all cores. In an
environment of its own: pip install torch==2.13.0 transformers

python tests/peers/transformers_train.py [STEPS]
"""

import statistics
import sys
import time

import torch
import transformers

BATCH, SEQ_LEN, VOCAB = 16, 512, 8192
steps = int(sys.argv[1]) if len(sys.argv) > 1 else 6

config = transformers.Qwen2MoeConfig(
    vocab_size=VOCAB,
    hidden_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    num_experts=32,
    num_experts_per_tok=4,
    moe_intermediate_size=128,
    shared_expert_intermediate_size=128,
    norm_topk_prob=False,
    output_router_logits=True,
    router_aux_loss_coef=0.1,
    max_position_embeddings=SEQ_LEN,
    tie_word_embeddings=False,
)
model = transformers.Qwen2MoeForCausalLM(config).float().train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
tokens = torch.randint(0, VOCAB, (BATCH, SEQ_LEN))


def one_step() -> float:
    start = time.perf_counter()
    model(input_ids=tokens, labels=tokens).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start


one_step()
seconds = statistics.median(one_step() for _ in range(steps - 1))
print(f"transformers {transformers.__version__}, torch {torch.__version__}:", end=" ")
print(f"{BATCH * SEQ_LEN / seconds:,.0f} tokens/s")
