"""Four small trained models as exported folders, and emo_jax's own results for each."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from case import NEW_TOKENS, Case, write_arrays

from emo_jax.batch import PADDING_ID, from_documents
from emo_jax.generation.decode import Generator
from emo_jax.generation.texts import TextGenerator, TextSettings
from emo_jax.model.functions import ModelFunctions
from emo_jax.quickstart.sample import sample_corpus
from emo_jax.saved.load import load_model

EXPERIMENTS = Path(__file__).parents[1]
DOMAINS = ("cooking", "lang_fr", "law")
CAP_MB = 0.06  # of text per domain
STEPS = 30
SHAPE = {  # for every model: windows of 256 tokens
    # Large initial weights and little training: experts differ, and texts do not repeat.
    "model.init_std": 0.15,
    "optimizer.peak_lr": 1e-3,
    "train.steps": STEPS,
    "train.batch_size": 4,
    "train.eval_every": STEPS,
    "train.eval_windows": 8,
    "checkpoint.save_every": STEPS // 2,
    "checkpoint.keep_every": 0,
    "checkpoint.keep_last": 2,
    "optimizer.warmup_steps": 10,
}
TRAINED = {
    # 63 routed experts and one shared, top-k 4.
    "full": ("emo_tiny.py", {}),
    # The expert counts of the 1b14b: 127 routed experts and one shared, top-k 8.
    "127": (
        "emo_tiny.py",
        {"moe.num_experts": 128, "moe.top_k": 8, "moe.pool.min_size": 8, "moe.pool.max_size": 128},
    ),
    "dense": (
        "dense_1b.py",
        {
            "model.vocab_size": 2048,
            "model.num_layers": 3,
            "model.embed_dim": 128,
            "model.num_heads": 4,
            "model.head_dim": 32,
            "model.mlp_dim": 256,
            "model.compute_dtype": "float32",
            "model.remat": "none",
            "data.seq_len": 256,
            "optimizer.skip_window": 0,
            "train.micro_batches": 1,
            "train.loss_chunk": 256,
        },
    ),
}
NAMES = {
    "full": "full model, 63 routed experts and 1 shared",
    "law": "module `law`, 15 routed experts and 1 shared",
    "dense": "dense",
    "127": "127 routed experts and 1 shared",
}
PROMPTS = (
    "The licensee shall",
    "THE SOFTWARE IS PROVIDED",
    "Preheat the oven to 180",
    "In 1984 the city of",
    "La ville est située",
    "Mutations in this gene cause",
    "Mr. President, my fellow citizens,\n\n",
    "  two spaces, a tab\tand 12345 — ‘quotes’ ½ 漢字 🙂",
)


def emo(*arguments: object) -> None:
    """Runs an `emo` command."""
    subprocess.run([sys.executable, "-m", "emo_jax.cli", *map(str, arguments)], check=True)


def make_models(folder: Path) -> dict[str, Path]:
    """Trains and exports what does not exist yet; returns the folder of each case by name."""
    folder.mkdir(parents=True, exist_ok=True)
    store, tokenizer = folder / "store", folder / "tokenizer"
    if not store.exists():
        corpus = sample_corpus(domains=DOMAINS, cap_mb=CAP_MB).path
        if not tokenizer.exists():
            emo("tokenizer", "train", corpus, "--vocab-size", 2048, "--output", tokenizer)
        emo("prepare", corpus, "--output", store, "--tokenizer", tokenizer)
    cases = {name: folder / "cases" / name for name in NAMES}
    for name, (file, fields) in TRAINED.items():
        workdir = folder / "runs" / name
        values = SHAPE | fields | {"data.store": store}
        overrides = [f"--config.{field}={value}" for field, value in values.items()]
        if not (cases[name] / "model").exists():
            emo("train", "--config", EXPERIMENTS / file, "--workdir", workdir, *overrides)
            emo("export", workdir, "--output", cases[name] / "model")
    if not (cases["full"] / "other").exists():  # an earlier checkpoint, to be merged with it
        other = ("--step", STEPS // 2, "--output", cases["full"] / "other")
        emo("export", folder / "runs/full", *other)
    if not (cases["law"] / "model").exists():
        chosen = ("--data", f"{store}:law", "--keep", "25%", "--output", cases["law"] / "model")
        emo("select", folder / "runs/full", *chosen)
    for case in cases.values():
        if not (case / "case.json").exists():
            write_case(case)
    return cases


def logits_of(folder: Path, prompts: list[list[int]]) -> list[np.ndarray]:
    """Float32 logits (S,V) of each prompt: no pool, one document per row, padded at the end."""
    model = load_model(str(folder))
    functions, vocab_size = ModelFunctions(model.config), model.config.model.vocab_size
    tokens = np.zeros((len(prompts), max(map(len, prompts))), np.int32)
    segments = np.full_like(tokens, PADDING_ID)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)], segments[row, : len(prompt)] = prompt, 0
    logits = np.asarray(jax.jit(functions.logits)(model.params, from_documents(tokens, segments)))
    return [logits[row, : len(prompt), :vocab_size] for row, prompt in enumerate(prompts)]


def log_likelihood(logits: np.ndarray, tokens: list[int]) -> float:
    """Log-likelihood in nats of tokens, given their logits (S,V)."""
    high = logits.astype(np.float64)
    normalised = high - np.logaddexp.reduce(high, axis=1, keepdims=True)
    return float(normalised[np.arange(len(tokens)), tokens].sum())


def write_case(folder: Path) -> None:
    """Writes emo_jax's own results for the folder that engines get."""
    model = load_model(str(folder / "model"))
    tokenizer, functions = model.need_tokenizer(), ModelFunctions(model.config)
    settings = TextSettings(max_tokens=NEW_TOKENS)
    texts = TextGenerator(model.config, model.params, tokenizer, settings)
    ids, eos_id = texts.encode(PROMPTS), tokenizer.eos_id
    rows = Generator(functions, model.params, eos_id).generate(ids, NEW_TOKENS)
    behind_eos = logits_of(folder / "model", [[eos_id, *one] for one in ids])
    case = Case(
        model=str((folder / "model").resolve()),
        texts=list(PROMPTS),
        ids=ids,
        eos_id=eos_id,
        greedy=[row.tokens for row in rows],
        continuations=[text.text for text in texts.texts(PROMPTS)],
        scores=[log_likelihood(x[:-1], one) for x, one in zip(behind_eos, ids, strict=True)],
    )
    write_arrays(folder / "logits.npz", logits_of(folder / "model", ids))
    (folder / "case.json").write_text(json.dumps(vars(case), indent=1) + "\n", encoding="utf-8")
