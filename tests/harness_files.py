"""Tasks of the harness in files, and a small model that was exported, for tests of both."""

import json
import random
from pathlib import Path

import numpy as np

from emo_jax.hf import export_model
from emo_jax.tokenizer.load import train_bpe

_WORDS = "the court judge oven flour salt river appeal statute butter law bakes finds of and"
WORDS = _WORDS.split()


def write_tokenizer(folder: Path, *, size: int = 300) -> Path:
    """Byte-level BPE with merges across words of these texts."""
    draw = random.Random(1)
    texts = [" ".join(draw.choices(WORDS, k=12)) + "." for _ in range(400)]
    train_bpe(texts, size).save(folder)
    return folder


def export(make_model, folder: Path, *, vocab: int = 300, **shape) -> Path:
    """A Hugging Face folder of random parameters, with a tokenizer."""
    params, config = make_model(vocab=vocab, **shape)
    if config.moe is not None:
        params["layers"]["mlp"]["experts"]["down"] *= 3  # so that a wrong expert shows
    tokenizer = write_tokenizer(folder.parent / f"{folder.name}_tokenizer")
    return export_model(params, config, folder, tokenizer_dir=tokenizer)


def _lines(path: Path, records: list[dict]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def write_tasks(folder: Path, items: int = 40) -> dict[str, Path]:
    """YAML files by kind: choices of words and of letters, rolling perplexity, generation."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(2)

    def words(most: int, least: int = 1) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))

    def records(count: int) -> list[dict]:
        return [
            {
                "question": words(14),
                "options": [words(4) for _ in range(4)],
                "answer": draw.randrange(3),
                "text": words(60) + (" " + words(3)) * (n % 2),
            }
            for n in range(count)
        ]

    files = {"train": _lines(folder / "train.jsonl", records(20))}
    files["test"] = _lines(folder / "test.jsonl", records(items))
    common = (
        "dataset_path: json\ndataset_kwargs:\n  data_files:\n"
        + "".join(f"    {split}: {path}\n" for split, path in files.items())
        + "training_split: train\ntest_split: test\n"
    )
    choice = "output_type: multiple_choice\ndoc_to_target: answer\nmetric_list:\n  - metric: acc\n"
    texts = {
        "words": f"{common}{choice}  - metric: acc_norm\nnum_fewshot: 1\n"
        'doc_to_text: "Q: {{question}}\\nA:"\ndoc_to_choice: "{{options}}"\n',
        "letters": f'{common}{choice}doc_to_text: "{{{{text}}}}\\nAnswer: "\n'
        'doc_to_choice: ["a", "b", "c", "the court"]\n',
        "merged": f'{common}{choice}doc_to_text: "{{{{text}}}} th"\ntarget_delimiter: ""\n'
        'doc_to_choice: ["e court of the river", "e oven and flour", "at the law of"]\n',
        "rolling": f"{common}output_type: loglikelihood_rolling\ndoc_to_text: ''\n"
        'doc_to_target: "{{text}}"\nmetric_list:\n  - metric: bits_per_byte\n'
        "  - metric: word_perplexity\n",
        "writing": f'{common}output_type: generate_until\ndoc_to_text: "{{{{text}}}}"\n'
        'doc_to_target: "{{options[answer]}}"\nmetric_list:\n  - metric: exact_match\n'
        "    aggregation: mean\n    higher_is_better: true\n"
        'generation_kwargs:\n  until: ["e ", "."]\n  max_gen_toks: 12\n  do_sample: false\n',
    }
    made = {}
    for name, text in texts.items():
        made[name] = folder / f"{name}.yaml"
        made[name].write_text(f"task: emo_test_{name}\n{text}")
    return made


def answers(results: dict) -> list:
    """What a model said to every request of every task, in order."""
    return [
        resp
        for name in sorted(results["samples"])
        for sample in sorted(results["samples"][name], key=lambda s: s["doc_id"])
        for resp in np.ravel(np.array(sample["resps"], dtype=object)).tolist()
    ]
