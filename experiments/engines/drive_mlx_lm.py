"""mlx-lm: `python drive_mlx_lm.py CASE RESULT`. Loads strictly: all names must match."""

from importlib.metadata import version

import mlx.core as mx
import numpy as np
from case import NEW_TOKENS, arguments, write_result
from mlx_lm import load
from mlx_lm.generate import generate_step


def main() -> None:
    case, result = arguments()
    model, tokenizer = load(case.model)  # raises if a tensor is missing or unexpected
    logits = [np.array(model(mx.array([ids]))[0].astype(mx.float32)) for ids in case.ids]
    greedy = [
        case.up_to_eos(
            [token for token, _ in generate_step(mx.array(ids), model, max_tokens=NEW_TOKENS)]
        )
        for ids in case.ids
    ]
    write_result(
        result,
        version=version("mlx-lm"),
        logits=logits,
        ids=[tokenizer.encode(text) for text in case.texts],
        greedy=greedy,
        missing=[],
        unexpected=[],
    )


if __name__ == "__main__":
    main()
