"""vLLM on a CPU: `python drive_vllm.py CASE RESULT`."""

import numpy as np
import vllm
from case import NEW_TOKENS, arguments, write_result
from vllm import LLM, SamplingParams


def row(logits: dict, vocab_size: int) -> np.ndarray:
    """Logits (V,) from what vLLM returns by token."""
    found = np.full(vocab_size, np.nan, np.float32)
    for token, entry in logits.items():
        found[token] = entry.logprob
    return found


def main() -> None:
    case, result = arguments()
    llm = LLM(
        model=case.model,
        dtype="float32",
        max_model_len=256,
        max_logprobs=-1,
        logprobs_mode="raw_logits",
        enforce_eager=True,
        enable_prefix_caching=False,
    )
    vocab_size = llm.llm_engine.model_config.get_vocab_size()
    prompts = [{"prompt_token_ids": ids} for ids in case.ids]
    every = SamplingParams(temperature=0, max_tokens=1, logprobs=-1, prompt_logprobs=-1)
    logits = []
    for out in llm.generate(prompts, every, use_tqdm=False):
        # For prompts, vLLM returns the logits that precede each token but the first.
        rows = [*out.prompt_logprobs[1:], out.outputs[0].logprobs[0]]
        logits.append(np.stack([row(one, vocab_size) for one in rows]))
    texts = llm.generate(
        case.texts, SamplingParams(temperature=0, max_tokens=NEW_TOKENS), use_tqdm=False
    )
    write_result(
        result,
        version=vllm.__version__,
        logits=logits,
        ids=[list(out.prompt_token_ids) for out in texts],
        greedy=[case.up_to_eos(out.outputs[0].token_ids) for out in texts],
    )


if __name__ == "__main__":
    main()
