"""`emo finetune`: trains a model on pairs of prompts and answers, in its own run (SPEC 7.4)."""

import dataclasses
import hashlib
import math
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from emo_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
    from_config_dict,
    portable,
    to_dict,
)
from emo_jax.data.pairs import SUFFIX, Packed, pack_pairs, read_pairs, write_pairs
from emo_jax.errors import UsageError
from emo_jax.evals.by_domain import mesh_that_fits
from emo_jax.files.atomic import refuse_existing, write_atomic
from emo_jax.files.json_files import dumps, read_object
from emo_jax.files.progress import Progress
from emo_jax.files.trees import flatten
from emo_jax.hf.layouts import layout_for
from emo_jax.hf.sources import TreeSource
from emo_jax.run.workdir import CONFIG_FILE, TOKENIZER_FOLDER, read_workdir_config
from emo_jax.saved.load import LoadedModel, load_model
from emo_jax.saved.transfer import export, import_leaves, selection_for_run
from emo_jax.selection.variants import within_documents
from emo_jax.training.loop import Trainer
from emo_jax.training.stop import StopRequest

FINETUNE_FILE = "finetune.json"  # records what a run was made of
PAIRS_FILE = f"data{SUFFIX}"
MOST_EPOCHS = 10**6
FREEZE = {
    "none": (),
    "routed": ("routed",),
    "routed+shared": ("routed", "shared"),
    "all-but-router": ("embeddings", "attention", "norms", "routed", "shared"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """The recipe; defaults are the reference's (SPEC 7.4).

    Attributes:
      batch_size: approximate number of pairs per step: as many windows as contain this many.
      warmup: share of the steps.
      balance_weight: weight of the load-balancing loss, which counts label tokens.
      window: tokens per window; 0: as in the model.
    """

    prompt_field: str = "prompt"
    answer_field: str = "answer"
    freeze: str = "none"
    epochs: float = 1.0
    batch_size: int = 32
    micro_batches: int = 1
    peak_lr: float = 5e-5
    warmup: float = 0.1
    balance_weight: float = 0.01
    window: int = 0
    seed: int = 0
    skip_unusable: bool = False  # skip lines that are not pairs, or are longer than the window


def finetune(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    workdir: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    layout: str | None = None,
    prompt_field: str = "prompt",
    answer_field: str = "answer",
    freeze: str = "none",
    epochs: float = 1.0,
    batch_size: int = 32,
    micro_batches: int = 1,
    peak_lr: float = 5e-5,
    window: int = 0,
    seed: int = 0,
    skip_unusable: bool = False,
    stop: StopRequest | None = None,
    trust: bool = False,
    quiet: bool = True,
) -> str:
    """Trains a model or a module on answers to prompts, or continues the run in `workdir`.

    Parameters and optimizer are float32, there is no pool, and the loss covers only the answers.
    The workdir is a run like any other: `emo_jax.load(workdir)` loads the finetuned model.

    Args:
      model: `WORKDIR`, `WORKDIR@STEP`, or a Hugging Face folder, such as a module.
      data: JSONL file of prompts and answers.
      workdir: a new or empty folder, or that of a run to continue.
      output: Hugging Face folder to create at the end; None: none.
      layout: layout of `output`, see `export`; None: the one that stock transformers loads.
      prompt_field, answer_field: keys of a line.
      freeze: parameters that stay unchanged, to the last bit: "none", "routed" or "routed+shared"
        (experts), or "all-but-router".
      epochs: number of passes over the pairs, above 0; may be a fraction.
      batch_size: approximate number of pairs per step: as many windows as contain this many.
      micro_batches: number of parts of a batch that are processed one after the other, to save
        memory.
      peak_lr: peak learning rate, reached after a tenth of the steps; then it falls linearly to 0.
      window: tokens per window; 0: as in the model.
      seed: seed for the order of the windows.
      skip_unusable: skip lines that are not pairs, and pairs longer than the window, instead of
        failing.
      stop: a stop request that already handles signals; None: `finetune` handles them itself.
      trust: allow a tokenizer whose file names code to import, see `emo_jax.load`.
      quiet: show no progress.

    Returns:
      One line about the data: how many pairs are used, and what was skipped.

    Raises:
      UsageError: no such model or file; a setting is invalid; the model has no tokenizer that it
        can use; `output` already exists; or `workdir` has a run with another model, data or
        settings.
      CheckpointError, HfFormatError: the model cannot be read, see `emo_jax.load`.
      DataError: `data` cannot be read, or (without `skip_unusable`) has lines to skip.
      PreemptedError: a signal stopped the run; its state is saved, and the same call continues it.
      EmoError: the loss or the gradient norm is not finite.
    """
    if output is not None:
        refuse_existing(output)
        if Path(output).resolve() == Path(workdir).resolve():
            raise UsageError(f"--output {output}: is the --workdir; give another folder")
    settings = FinetuneSettings(
        prompt_field=prompt_field,
        answer_field=answer_field,
        freeze=freeze,
        epochs=epochs,
        batch_size=batch_size,
        micro_batches=micro_batches,
        peak_lr=peak_lr,
        window=window,
        seed=seed,
        skip_unusable=skip_unusable,
    )
    used = _train(
        *(os.fspath(model), os.fspath(data), workdir, settings),
        exports=output is not None,
        layout=layout,
        stop=stop,
        trust=trust,
        quiet=quiet,
    )
    if output is not None:
        made, name = export(workdir, output, layout=layout, quiet=quiet)
        if not quiet:
            print(f"{made}: layout {name}", flush=True)
    return used


def _train(
    model: str,
    data: str,
    workdir: str | os.PathLike[str],
    settings: "FinetuneSettings",
    *,
    exports: bool,
    layout: str | None,
    stop: StopRequest | None,
    trust: bool,
    quiet: bool,
) -> str:
    """Makes or continues the run; with `exports`, the layout must fit the model."""
    folder = Path(workdir).absolute()
    with Progress("finetune", enabled=not quiet) as shown:
        shown.show(f"reading {model}")
        loaded = load_model(model, trust=trust)
        tokenizer = loaded.need_tokenizer()
        shown.show(f"tokenising {data}")
        found = list(
            read_pairs(data, prompt_field=settings.prompt_field, answer_field=settings.answer_field)
        )
        window = settings.window or loaded.config.data.seq_len
        packed = pack_pairs(found, tokenizer, window)
        if not settings.skip_unusable:
            packed.refuse_unusable(data)
        config = recipe(loaded.config, packed, folder / PAIRS_FILE, settings)
        if exports:
            layout_for(config, layout)
        made_of = {
            "model": _digest(loaded),
            "data": packed.digest,
            **dataclasses.asdict(settings),
        }
        if (folder / CONFIG_FILE).exists():
            _check_same(folder, made_of)
            # As it was made, for any number of devices; but the folder may have moved.
            config = portable(read_workdir_config(folder))
            moved = dataclasses.replace(config.data, store=str(folder / PAIRS_FILE))
            config = dataclasses.replace(config, data=moved)
        else:
            _make_workdir(loaded, config, folder, packed, made_of, quiet=quiet)
        del loaded  # a whole model in host memory; the run reads its checkpoint
    if not quiet:
        pairs = packed.pairs * config.train.batch_size / len(packed.tokens_NS)
        print(
            f"{config.name}: {packed.summary()}; {config.train.steps} steps of"
            f" {config.train.batch_size} windows, about {pairs:.0f} pairs",
            flush=True,
        )
        if not 0.75 < pairs / settings.batch_size < 1.33:
            print(
                f"note: not {settings.batch_size} pairs a step: windows of {window} tokens hold"
                f" {packed.pairs / len(packed.tokens_NS):.1f} pairs each, and a step has whole"
                " windows on every device; --window sets their length",
                flush=True,
            )
    Trainer(config, folder, stop=stop, quiet=quiet).run()
    return packed.summary()


def recipe(config: Config, packed: Packed, pairs: Path, settings: FinetuneSettings) -> Config:
    """The config of a finetuning run: no pool, attention within a pair, AdamW in float32."""
    if not 0 < settings.epochs <= MOST_EPOCHS:  # NaN too
        raise UsageError(f"--epochs {settings.epochs}: must be above 0, at most {MOST_EPOCHS}")
    windows, S = packed.tokens_NS.shape
    wanted = settings.batch_size * windows / packed.pairs
    devices = jax.device_count() * settings.micro_batches
    batch_size = max(1, round(wanted / devices)) * devices
    steps = max(1, math.ceil(settings.epochs * windows / batch_size))
    warmup = min(math.ceil(settings.warmup * steps), steps - 1)
    moe = config.moe
    if moe is not None:
        moe = moe.without_pools(
            load_balance_weight=settings.balance_weight,
            shared_balance_weight=settings.balance_weight if moe.shared_balance_weight else 0.0,
            router_z_weight=0.0,
            balance_scope="micro",
            balance_tokens="labels",
        )
    frozen = FREEZE[settings.freeze]
    if moe is None and settings.freeze != "none":
        raise UsageError(f"--freeze {settings.freeze}: {config.name} is dense, it has no experts")
    if moe is not None and not moe.num_shared_experts:
        frozen = tuple(part for part in frozen if part != "shared")
    made = dataclasses.replace(
        portable(within_documents(config)),
        moe=moe,
        data=DataConfig(store=str(pairs), seq_len=S, seed=settings.seed, repetition_filter=False),
        optimizer=OptimizerConfig(
            peak_lr=settings.peak_lr,
            schedule="wsd" if steps > warmup else "cosine",
            warmup_steps=warmup,
            decay_steps=steps - warmup,
            # A straight line to 0 one step after the last, so that the last one is not wasted.
            final_lr_fraction=1.0 / (steps - warmup + 1),
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=0.0,
            clip_norm=1.0,
            frozen=frozen,
        ),
        train=TrainConfig(
            steps=steps,
            batch_size=batch_size,
            micro_batches=settings.micro_batches,
            z_loss_weight=0.0,
            loss_chunk=min(config.train.loss_chunk, S),
            log_every=max(1, min(10, steps // 10)),
            eval_windows=0,
        ),
        checkpoint=CheckpointConfig(save_every=max(1, min(100, steps))),
        mesh=MeshConfig(),
        seed=settings.seed,
    )
    made = dataclasses.replace(made, mesh=mesh_that_fits(made))
    # A config that no run could read again is refused before a workdir is created with it.
    return from_config_dict(to_dict(made))


def _digest(loaded: LoadedModel) -> str:
    """SHA-256 of all weights."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(loaded.params).items()):
        digest.update(path.encode() + np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def _check_same(folder: Path, made_of: dict[str, Any]) -> None:
    """Raises UsageError if the run in a folder was made of something else."""
    file = folder / FINETUNE_FILE
    if not file.exists():
        raise UsageError(
            f"{folder}: is no run of emo finetune (no {file.name}); give another workdir"
        )
    theirs = read_object(file, error=UsageError, advice="give another workdir")
    changed = [
        f"another {name}" if name in ("model", "data") else f"{name} {theirs.get(name)} -> {value}"
        for name, value in made_of.items()
        if theirs.get(name) != value
    ]
    if changed:
        raise UsageError(
            f"{folder}: is another run: {'; '.join(changed[:5])}; give the same model, data and"
            " options, or another workdir"
        )


def _make_workdir(
    loaded: LoadedModel,
    config: Config,
    folder: Path,
    packed: Packed,
    made_of: dict[str, Any],
    *,
    quiet: bool,
) -> None:
    tokenizer, source = loaded.need_tokenizer(), TreeSource(flatten(loaded.params))
    of_folder = source if loaded.step is None else None  # a run's file has no digest
    files = selection_for_run(loaded.folder, loaded.config, of_folder)

    def fill(unfinished: Path) -> None:
        tokenizer.save(unfinished / TOKENIZER_FOLDER)
        write_pairs(unfinished / PAIRS_FILE, packed, tokenizer)
        write_atomic(unfinished / FINETUNE_FILE, dumps(made_of, indent=1) + "\n")
        for name, text in files.items():
            write_atomic(unfinished / name, text)

    import_leaves(
        source,
        config,
        folder,
        fill,
        fills=(PAIRS_FILE, f".{PAIRS_FILE}.tmp.npz", FINETUNE_FILE),
        quiet=quiet,
    )
