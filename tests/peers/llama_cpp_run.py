"""What llama.cpp makes of GGUF files, by llama-cpp-python.

In an environment of its own: CMAKE_ARGS="-DGGML_NATIVE=OFF" pip install llama-cpp-python

python tests/peers/llama_cpp_run.py REQUEST ANSWER

REQUEST is {NAME: {"file": GGUF, "texts": [TEXT, …], "ids": [[ID, …], …], "new": N}}. ANSWER says
for each file the ids of each text, as a program gives a prompt (with the beginning that the file
asks for, names of special tokens as text), the text that those ids make again, the logits of each
row of ids, and the N tokens that greedy generation puts behind each row. Weights are as in the
file, the cache is float32.
"""

import ctypes
import itertools
import json
import sys
from pathlib import Path

import llama_cpp
from llama_cpp import Llama


def ids_of(model: Llama, text: str) -> list[int]:
    return model.tokenize(text.encode("utf-8"), add_bos=True, special=False)


def text_of(model: Llama, ids: list[int]) -> str:
    """llama.cpp's own detokenizer, not the pieces one by one."""
    vocabulary = llama_cpp.llama_model_get_vocab(model.model)
    size = 64 + 64 * len(ids)
    buffer = ctypes.create_string_buffer(size)
    row = (llama_cpp.llama_token * len(ids))(*ids)
    made = llama_cpp.llama_detokenize(vocabulary, row, len(ids), buffer, size, False, True)
    return buffer.raw[:made].decode("utf-8", errors="replace")


def greedy(model: Llama, ids: list[int], new: int) -> list[int]:
    model.reset()
    made = model.generate(ids, temp=0.0, repeat_penalty=1.0)
    return [int(token) for token in itertools.islice(made, new)]


def main(request: dict) -> dict:
    answer = {"version": llama_cpp.__version__}
    for name, asked in request.items():
        model = Llama(
            asked["file"],
            n_ctx=asked.get("context", 256),
            logits_all=True,
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
            n_threads=1,
            verbose=False,
        )
        ids = [ids_of(model, text) for text in asked.get("texts", [])]
        logits = []
        for row in asked.get("ids", []):
            model.reset()
            model.eval(row)
            logits.append(model.scores[: len(row)].tolist())
        answer[name] = {
            "ids": ids,
            "again": [text_of(model, row) for row in ids],
            "logits": logits,
            "new": [greedy(model, row, asked.get("new", 0)) for row in asked.get("ids", [])],
        }
    return answer


if __name__ == "__main__":
    read = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(main(read)), encoding="utf-8")
