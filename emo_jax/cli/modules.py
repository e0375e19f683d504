"""emo select, emo compose, emo merge, emo finetune."""

from pathlib import Path

import click

import emo_jax
from emo_jax.cli.app import MOE_LAYOUT, TRUST, Items, Number, command
from emo_jax.config.names import FREEZES, METHODS, MOE_LAYOUT_NAMES, NEW_EXPERTS
from emo_jax.errors import UsageError
from emo_jax.parallel import host_memory

_MOST_DIGITS = 18  # of a number of experts or documents


def counts(option: str, items: tuple[str, ...]) -> tuple[int, ...]:
    """Items as whole numbers.

    Raises:
      UsageError: one of them is none.
    """
    for item in items:
        if not item.isdecimal() or len(item) > _MOST_DIGITS:
            raise UsageError(f"{option} {item}: must be whole numbers with commas between")
    return tuple(map(int, items))


@command("emo select runs/tiny --data store:law --keep 16 --output modules/law")
@click.argument("model")
@click.option(
    "--data",
    default=None,
    metavar="STORE[:DOMAIN]|FILE",
    help="What to choose by: split select of a token store, of one domain or all, or a file of"
    " documents.",
)
@click.option(
    "--without",
    type=Items("law,medicine"),
    default=(),
    help="Instead: all experts but those of these branches, in a model of emo mix.",
)
@click.option(
    "--keep",
    type=Items("8,25%"),
    default=(),
    help="Experts of each layer, shared ones included: counts, or shares. Several make several"
    " models.",
)
@click.option(
    "--keep-per-layer",
    type=Items("16,8,…|SCHEDULE"),
    default=(),
    help="A count for each layer instead; or, with --keep, how what it gives in all is spread over"
    " the layers: increasing, decreasing, mass, greedy.",
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="layerwise",
    show_default=True,
    help="layerwise: by router probability, in a model pruned up to there; global: in the whole"
    " model; easy_ep, reap: by what experts add; aimer: by their weights alone; random: by the"
    " seed.",
)
@click.option(
    "--examples",
    type=Items("1,10,all"),
    default=("all",),
    show_default="all",
    help="Documents to choose by. Of several, the most make the model, and how far fewer choose the"
    " same is shown.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=1_000_000,
    show_default=True,
    help="Of all examples, at most.",
)
@click.option(
    "--min-tokens",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Shorter documents are left out.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of which examples."
)
@click.option(
    "--prior",
    default=None,
    metavar="STORE",
    help="With --method global and few examples: how domains of this store are routed, which the"
    " examples are judged by.",
)
@click.option("--allow-fewer", is_flag=True, help="Also fewer experts than a token uses.")
@MOE_LAYOUT
@click.option("--output", required=True, help="Folder to make; below it, one for each of several.")
@TRUST
def select(
    model: str,
    data: str | None,
    without: tuple[str, ...],
    keep: tuple[str, ...],
    keep_per_layer: tuple[str, ...],
    method: str,
    examples: tuple[str, ...],
    max_tokens: int,
    min_tokens: int,
    seed: int,
    prior: str | None,
    allow_fewer: bool,
    layout: str | None,
    output: str,
    trust: bool,
) -> None:
    """Keep the experts that a domain uses, and write the smaller model.

    MODEL is a run's workdir, WORKDIR@STEP, or a Hugging Face folder. The folders made are Hugging
    Face folders with selection.json: what was kept, by which scores.
    """
    host_memory.keep()
    from emo_jax.files.atomic import refuse_existing
    from emo_jax.modules.select import stored_bytes

    refuse_existing(Path(output))
    if without:
        _opt_out(model, without, output, layout, others=bool(data or keep or keep_per_layer))
        return
    if data is None:
        raise UsageError("--data: missing; give what to choose experts by, or --without BRANCHES")
    numbers = tuple(None if n == "all" else counts("--examples", (n,))[0] for n in examples)
    made = emo_jax.select(
        model,
        data,
        output,
        keep=keep,
        keep_per_layer=keep_per_layer,
        method=method,
        examples=numbers,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        seed=seed,
        allow_fewer=allow_fewer,
        layout=layout,
        prior=prior,
        trust=trust,
        quiet=False,
    )
    for one in made:
        counted = sorted(set(one.keep_L))
        kept = f"{counted[0]}" if len(counted) == 1 else ", ".join(map(str, one.keep_L))
        click.echo(
            f"{one.folder}: {kept} experts a layer, {one.parameters:,} parameters,"
            f" {stored_bytes(one.parameters) / 1e6:,.1f} MB, {one.active:,} for one token"
        )
        by = f"by {one.examples:,} documents, {one.tokens:,} tokens"
        click.echo(f"  chosen {by if one.examples else f'without examples ({method})'}")
        for number, share in one.overlaps.items():
            click.echo(
                f"  {number} examples choose {share:.0%} of the same (Jaccard, mean of layers)"
            )
        for note in one.notes:
            click.echo(f"  {note}")


def _opt_out(
    model: str, without: tuple[str, ...], output: str, layout: str | None, *, others: bool
) -> None:
    from emo_jax.config import moe_of
    from emo_jax.model.params import count_parameters
    from emo_jax.modules.opt_out import opt_out
    from emo_jax.modules.select import stored_bytes

    if others:
        raise UsageError("--without names what to leave out: leave out --data and --keep")
    folder, config = opt_out(model, without, output, layout=layout, quiet=False)
    moe, (parameters, active) = moe_of(config), count_parameters(config)
    click.echo(
        f"{folder}: {moe.num_experts} experts a layer, {parameters:,} parameters,"
        f" {stored_bytes(parameters) / 1e6:,.1f} MB, {active:,} for one token"
    )


@command(
    "emo compose modules/law modules/medicine --fill-from runs/tiny --output modules/both",
)
@click.argument("modules", nargs=-1)
@click.option("--output", required=True, help="Folder to make.")
@click.option(
    "--average",
    is_flag=True,
    help="Take the mean of weights that differ, as after finetuning, instead of refusing.",
)
@click.option(
    "--fill-from",
    default=None,
    metavar="PARENT",
    help="The model they were selected from: its next best experts fill smaller layers up to the"
    " largest, which layout qwen2_moe needs.",
)
@MOE_LAYOUT
def compose(
    modules: tuple[str, ...], output: str, average: bool, fill_from: str | None, layout: str | None
) -> None:
    """Put modules of one parent together: in each layer, all experts that any of them has.

    MODULES are folders of emo select or emo compose.
    """
    from emo_jax.config import moe_of
    from emo_jax.model.params import count_parameters

    folder, config = emo_jax.compose(
        modules, output, layout=layout, average=average, fill_from=fill_from, quiet=False
    )
    counts = [moe_of(config).experts_in(n) for n in range(config.model.stacked_layers)]
    click.echo(
        f"{folder}: {', '.join(map(str, counts))} experts in the layers,"
        f" {count_parameters(config)[0]:,} parameters"
    )


@command("emo merge modules/law-finetuned --into runs/tiny --output hf/merged")
@click.argument("module")
@click.option(
    "--into", required=True, metavar="FULL", help="The model that the module was selected from."
)
@click.option("--output", required=True, help="Folder to make.")
@click.option(
    "--average",
    type=Number(min=0, max=1),
    default=1.0,
    show_default=True,
    metavar="SHARE",
    help="Share of the module's weights; the rest is FULL's.",
)
@click.option("--router", is_flag=True, help="Also the module's part of the router.")
@click.option(
    "--rest", is_flag=True, help="Also all else: attention, norms, embeddings, shared experts."
)
@MOE_LAYOUT
def merge(
    module: str,
    into: str,
    output: str,
    average: float,
    router: bool,
    rest: bool,
    layout: str | None,
) -> None:
    """Put the routed experts of a (finetuned) module back into the whole model."""
    from emo_jax.modules.merge import merge as run

    folder = run(
        module,
        into,
        output,
        share=average,
        router=router,
        rest=rest,
        layout=layout,
        quiet=False,
    )
    click.echo(f"{folder}: {into} with the experts of {module}")


@command("emo finetune modules/law --data pairs.jsonl --workdir runs/law --output hf/law")
@click.argument("model")
@click.option("--data", required=True, metavar="FILE", help='JSONL of {"prompt": …, "answer": …}.')
@click.option("--prompt-field", default="prompt", show_default=True)
@click.option("--answer-field", default="answer", show_default=True)
@click.option("--workdir", required=True, help="Folder of the run; a run that is there goes on.")
@click.option("--output", default=None, help="Also write a Hugging Face folder at the end.")
@click.option(
    "--layout",
    type=click.Choice([*MOE_LAYOUT_NAMES, "llama"]),
    default=None,
    help="Of --output; if not given, what stock transformers loads.",
)
@click.option(
    "--skip-unusable",
    is_flag=True,
    help="Leave out lines without prompt or answer and pairs longer than a window; they are"
    " counted and named.",
)
@click.option(
    "--freeze",
    type=click.Choice(FREEZES),
    default="none",
    show_default=True,
    help="What stays as it is, to the last bit.",
)
@click.option("--epochs", type=Number(min=0, min_open=True), default=1, show_default=True)
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Pairs, about."
)
@click.option(
    "--micro-batches",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Parts of a batch, one after the other, to save memory.",
)
@click.option(
    "--lr",
    type=Number(min=0, min_open=True),
    default=5e-5,
    show_default=True,
    help="At its peak, after a tenth of the steps; then it falls to 0.",
)
@click.option(
    "--window", type=click.IntRange(min=2), default=None, help="Tokens; the model's if not given."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@TRUST
def finetune(
    model: str,
    data: str,
    prompt_field: str,
    answer_field: str,
    workdir: str,
    output: str | None,
    layout: str | None,
    skip_unusable: bool,
    freeze: str,
    epochs: float,
    batch_size: int,
    micro_batches: int,
    lr: float,
    window: int | None,
    seed: int,
    trust: bool,
) -> None:
    """Train on answers to prompts: a whole model, or one of emo select.

    MODEL is a run's workdir, WORKDIR@STEP, or a Hugging Face folder. Parameters and optimizer are
    float32, there is no pool, and the loss is of the answers only. The workdir is a run like any
    other: the same command goes on where it stopped. Prompt and answer are tokenised apart, with
    nothing between them.
    """
    host_memory.keep()
    from emo_jax.training.stop import StopRequest

    with StopRequest() as stop:  # before the slow imports
        emo_jax.finetune(
            model,
            data,
            workdir,
            output=output,
            layout=layout,
            prompt_field=prompt_field,
            answer_field=answer_field,
            freeze=freeze,
            epochs=epochs,
            batch_size=batch_size,
            micro_batches=micro_batches,
            peak_lr=lr,
            window=window or 0,
            seed=seed,
            skip_unusable=skip_unusable,
            stop=stop,
            trust=trust,
            quiet=False,
        )


@command("emo extend runs/tiny --add 8 --output hf/extended")
@click.argument("model")
@click.option("--add", type=int, required=True, help="Routed experts to add to each layer.")
@click.option(
    "--init",
    type=click.Choice(NEW_EXPERTS),
    default="jitter",
    show_default=True,
    help="Copies of experts that the seed draws, copies with 2 % noise, fresh ones, or means of"
    " all.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--output", required=True, help="Folder to make.")
@MOE_LAYOUT
def extend(model: str, add: int, init: str, seed: int, output: str, layout: str | None) -> None:
    """Add routed experts, in every pool, to be trained alone on something new.

    Then emo import OUTPUT --workdir DIR, and emo train --init-from DIR@0 --init weights with a
    config like experiments/extension_tiny.py: all but the new experts stays as it is, bit for bit.
    """
    from emo_jax.modules.extend import extend as run

    folder, config = run(model, output, add=add, init=init, seed=seed, layout=layout, quiet=False)
    assert config.moe is not None
    click.echo(
        f"{folder}: {config.moe.num_experts} experts a layer, the last {add} routed ones new"
    )
