"""transformers: `python drive_transformers.py CASE RESULT`. Also saves to RESULT/saved."""

import numpy as np
import torch
import transformers
from case import NEW_TOKENS, Case, arguments, write_result
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline


class Engine:
    """The model of a case, loaded one way."""

    def __init__(self, case: Case, folder: str | None = None, **options):
        self.case = case
        self.model, self.report = AutoModelForCausalLM.from_pretrained(
            folder or case.model, output_loading_info=True, **options
        )
        self.model.eval()

    @torch.no_grad()
    def logits(self) -> list[np.ndarray]:
        """Logits (S,V) of each prompt."""
        return [self.model(torch.tensor([ids])).logits[0].float().numpy() for ids in self.case.ids]

    def tokens(self, inputs: dict[str, torch.Tensor], **options) -> list[list[int]]:
        """New tokens of each row."""
        made = self.model.generate(
            **inputs,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=self.case.eos_id,
            **options,
        )
        width = inputs["input_ids"].shape[1]
        return [self.case.up_to_eos(row[width:]) for row in made]

    def greedy(self, **options) -> list[list[int]]:
        """New tokens of each prompt, one prompt after another."""
        inputs = [torch.tensor([ids]) for ids in self.case.ids]
        return [
            self.tokens({"input_ids": x, "attention_mask": torch.ones_like(x)}, **options)[0]
            for x in inputs
        ]


def difference(found: list[np.ndarray], expected: list[np.ndarray]) -> dict[str, float]:
    worst = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
    return {"difference": worst}  # NaN stays NaN


def equal(found: list, expected: list) -> dict[str, str]:
    same = sum(a == b for a, b in zip(found, expected, strict=True))
    return {"equal": f"{same} of {len(expected)}"}


def ways(case: Case, engine: Engine, logits: list[np.ndarray], saved: str) -> dict[str, dict]:
    """Other ways to load and run the same folder."""
    tokenizer = AutoTokenizer.from_pretrained(case.model)
    held = {}

    def attempt(name: str, run) -> None:
        try:
            held[name] = run()
        except Exception as error:
            held[name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}

    def loaded(**options):
        return lambda: difference(Engine(case, **options).logits(), logits)

    def typed():
        rows = [tokenizer(text, return_tensors="pt") for text in case.texts]
        return equal([engine.tokens(inputs)[0] for inputs in rows], case.greedy)

    def padded():
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        inputs = tokenizer(case.texts, return_tensors="pt", padding=True)
        return equal(engine.tokens(inputs), case.greedy)

    def piped():
        pipe = pipeline("text-generation", model=engine.model, tokenizer=tokenizer)
        made = [
            pipe(text, max_new_tokens=NEW_TOKENS, do_sample=False, return_full_text=False)
            for text in case.texts
        ]
        return equal([one[0]["generated_text"] for one in made], case.continuations)

    def half():
        model = Engine(case, dtype=torch.bfloat16)
        return difference(model.logits(), logits) | equal(model.greedy(), case.greedy)

    def again():
        engine.model.save_pretrained(saved)
        tokenizer.save_pretrained(saved)
        return difference(Engine(case, folder=saved).logits(), logits)

    attempt("`generate(**tokenizer(text))`", typed)
    attempt("one batch, padded on the left", padded)
    attempt("without KV cache", lambda: equal(engine.greedy(use_cache=False), case.greedy))
    attempt('`pipeline("text-generation")`', piped)
    for name in ("eager", "sdpa"):
        attempt(f'`attn_implementation="{name}"`', loaded(attn_implementation=name))
    if hasattr(engine.model, "set_experts_implementation") and hasattr(
        engine.model.config, "num_experts"
    ):
        for name in ("eager", "batched_mm", "grouped_mm"):
            attempt(f'`experts_implementation="{name}"`', loaded(experts_implementation=name))
    attempt('`device_map="cpu"`', loaded(device_map="cpu"))
    attempt("bfloat16", half)
    attempt("`save_pretrained`, loaded again", again)
    return held


def main() -> None:
    case, result = arguments()
    engine = Engine(case)
    assert type(engine.model).__module__.startswith("transformers.models.")
    logits, tokenizer = engine.logits(), AutoTokenizer.from_pretrained(case.model)
    write_result(
        result,
        version=transformers.__version__,
        logits=logits,
        ids=[tokenizer(text)["input_ids"] for text in case.texts],
        greedy=engine.greedy(),
        missing=sorted(map(str, engine.report["missing_keys"])),
        unexpected=sorted(map(str, engine.report["unexpected_keys"])),
        held=ways(case, engine, logits, str(result / "saved")),
    )


if __name__ == "__main__":
    main()
