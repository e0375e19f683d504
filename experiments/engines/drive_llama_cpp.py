"""llama.cpp: `python drive_llama_cpp.py CASE RESULT`. Reads CASE/model.gguf, caches in float32."""

import sys
from pathlib import Path

import llama_cpp
import numpy as np
from case import NEW_TOKENS, arguments, write_result


def main() -> None:
    case, result = arguments()
    llm = llama_cpp.Llama(
        str(Path(sys.argv[1]) / "model.gguf"),
        n_ctx=256,
        logits_all=True,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    logits, greedy = [], []
    for ids in case.ids:
        llm.reset()
        llm.eval(ids)
        logits.append(np.array(llm.scores[: len(ids)], np.float32))
        made: list[int] = []
        while len(made) < NEW_TOKENS:
            made.append(int(np.argmax(llm.scores[llm.n_tokens - 1])))
            llm.eval(made[-1:])
        greedy.append(case.up_to_eos(made))
    write_result(
        result,
        version=llama_cpp.__version__,
        logits=logits,
        ids=[llm.tokenize(text.encode(), special=False) for text in case.texts],
        greedy=greedy,
    )


if __name__ == "__main__":
    main()
