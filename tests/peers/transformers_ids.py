"""Ids that stock transformers gives texts, by the tokenizers of some folders.

python tests/peers/transformers_ids.py REQUEST ANSWER

REQUEST is {"folders": {NAME: FOLDER}, "texts": [TEXT, …], "generate": [NAME, …]}; ANSWER says for
each folder the ids of each text, one by one and as a batch, what a call returns, and the tokens
that `model.generate(**tokenizer(text, return_tensors="pt"))` made of "The court" (needs torch).
With "save": FOLDER the tokenizers are saved again below it.
"""

import json
import sys
from pathlib import Path

import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
answer = {"version": transformers.__version__, "folders": {}}
for name, folder in request["folders"].items():
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = request["texts"]
    batch = tokenizer(texts, padding=True)
    found = {
        "class": type(tokenizer).__name__,
        "one": [tokenizer(text).input_ids for text in texts],
        "encode": [tokenizer.encode(text) for text in texts],
        "batch": [
            [i for i, seen in zip(ids, mask, strict=True) if seen]
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ],
        "keys": sorted(batch),
        "ids": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        "decoded": [tokenizer.decode(ids) for ids in map(tokenizer.encode, texts)],
        "size": len(tokenizer),
    }
    if name in request["generate"]:
        model = AutoModelForCausalLM.from_pretrained(folder)
        prompt = tokenizer("The court", return_tensors="pt")
        made = model.generate(**prompt, max_new_tokens=3, eos_token_id=None, do_sample=False)
        found["new"] = made[0, prompt["input_ids"].shape[1] :].tolist()
    answer["folders"][name] = found
    if "save" in request:
        tokenizer.save_pretrained(f"{request['save']}/{name}")
Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")
