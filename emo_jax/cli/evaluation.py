"""emo generate, emo eval."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

import emo_jax
from emo_jax.cli.app import TRUST, Items, Number, command, console, refuse_unwritable
from emo_jax.config import seeds
from emo_jax.config.names import METHODS, SPLIT_NAMES
from emo_jax.errors import UsageError
from emo_jax.files.atomic import whole_file
from emo_jax.files.json_files import dumps, is_text
from emo_jax.parallel import host_memory

if TYPE_CHECKING:
    from emo_jax.api.models import Evaluation, Model
    from emo_jax.evals.suite import Suite
    from emo_jax.generation.texts import Text, TextGenerator

_LEAST_TEMPERATURE = 1e-6


@command('emo generate runs/tiny --prompt "The court" --temperature 0.8 --top-p 0.9')
@click.argument("model")
@click.option("--prompt", "given", multiple=True, help="Text to continue; may be given again.")
@click.option(
    "--prompts",
    "file",
    default=None,
    help='File of lines: texts, or {"prompt": …}; also .gz, .zst.',
)
@click.option("--output", default=None, help="JSONL file to make; without it, standard output.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option(
    "--temperature",
    type=Number(min=0),
    default=0.0,
    show_default=True,
    help="0: always the likeliest token.",
)
@click.option(
    "--top-p",
    type=Number(min=0, max=1, min_open=True),
    default=1.0,
    show_default=True,
    help="Draw from the fewest likeliest tokens of this probability.",
)
@click.option(
    "--top-k", type=click.IntRange(min=1), default=None, help="Draw from this many likeliest."
)
@click.option(
    "--stop",
    multiple=True,
    help="End before this text; may be given again: then before the one that begins first.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is drawn.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Prompts at once, at most.",
)
@click.option(
    "--experts-from-prompt",
    "keep",
    default=None,
    metavar="KEEP",
    help="Read only so many experts of each layer, shared ones included, which the prompts choose:"
    " a count, or a share like 12.5%.",
)
@TRUST
def generate(
    model: str,
    given: tuple[str, ...],
    file: str | None,
    output: str | None,
    max_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int | None,
    stop: tuple[str, ...],
    seed: int,
    batch_size: int,
    keep: str | None,
    trust: bool,
) -> None:
    """Continue texts, without a pool.

    MODEL is a run's workdir, WORKDIR@STEP, or a Hugging Face folder. An empty prompt begins a
    document. One --prompt's text goes to standard output as it is; several, or a file of them, give
    one JSON line each.
    A text ends with its document, before a --stop string, after --max-tokens, or where the model's
    window is full.
    """
    for option, texts in (("--prompt", given), ("--stop", stop)):
        for number, typed in enumerate(texts, 1):
            if not is_text(typed):
                raise UsageError(f"{option} {number}: not UTF-8 text; write it in UTF-8")
    from emo_jax.documents.prompts import read_prompts

    prompts = list(given) + (read_prompts(Path(file)) if file else [])
    if not prompts:
        raise UsageError("no prompt; give --prompt TEXT or --prompts FILE")
    if temperature == 0 and (top_p < 1 or top_k is not None):
        raise UsageError(
            "--top-p and --top-k draw nothing at --temperature 0, the default; give a temperature"
        )
    if 0 < temperature < _LEAST_TEMPERATURE:  # logits over it are more than a float holds
        raise UsageError(
            f"--temperature {temperature}: must be 0, which takes the likeliest token, or at least"
            f" {_LEAST_TEMPERATURE}"
        )
    if not seeds.is_seed(seed):
        raise UsageError(f"--seed {seed}: must be {seeds.RANGE}")
    if output:
        refuse_unwritable("--output", Path(output))
    from emo_jax.generation.sampling import Sampling
    from emo_jax.generation.texts import TextSettings

    loaded = (
        emo_jax.load(model, trust=trust) if keep is None else _part(model, prompts, keep, trust)
    )
    settings = TextSettings(
        max_tokens=max_tokens,
        sampling=Sampling(temperature, top_k or 0, top_p),
        stop=stop,
        seed=seed,
        batch_size=batch_size,
    )
    generator = loaded.text_generator(settings)
    generator.encode(prompts)  # refuses before anything is made
    if output:
        with whole_file(Path(output)) as stream:
            _write_lines(generator, prompts, stream, max_tokens)
    elif file or len(prompts) > 1:
        _write_lines(generator, prompts, sys.stdout, max_tokens)
    else:
        live = sys.stdout.isatty()
        show = (lambda part: click.echo(part, nl=False)) if live else None
        (text,) = generator.texts(prompts, on_text=show)
        click.echo("" if live else text.text)
        if text.ended == "window":
            _say(_window_line([text], max_tokens))
    _say(_speed_line(generator))


def _part(path: str, prompts: list[str], keep: str, trust: bool) -> "Model":
    """The part of a model that the prompts choose."""
    from emo_jax.modules.from_prompt import module_for_prompts

    part = module_for_prompts(path, prompts, keep, trust=trust, quiet=False)
    whole, routed = part.kept_LR.shape[1], sorted(set(part.kept_LR.sum(axis=1).tolist()))
    _say(
        f"{'..'.join(map(str, routed))} of {whole} routed experts a layer, chosen by"
        f" {part.tokens:,} tokens; {part.read:,} of {part.whole:,} parameters read"
    )
    return part.model


def _write_lines(
    generator: "TextGenerator", prompts: list[str], stream: TextIO, max_tokens: int
) -> None:
    from emo_jax.files.progress import Progress

    cut = []
    with Progress("generate") as shown:
        for done, text in enumerate(generator.texts(prompts), 1):
            fields = {
                "prompt": text.prompt,
                "text": text.text,
                "ended": text.ended,
                "prompt_tokens": text.prompt_tokens,
                "new_tokens": text.new_tokens,
            }
            stream.write(dumps(fields, ensure_ascii=False) + "\n")
            if text.ended == "window":
                cut.append(text)
            shown.show(f"{done:,} of {len(prompts):,} texts")
    stream.flush()
    if cut:
        _say(_window_line(cut, max_tokens))


def _window_line(cut: "list[Text]", max_tokens: int) -> str:
    least = min(text.new_tokens for text in cut)
    what, many = ("the text", "") if len(cut) == 1 else (f"{len(cut)} texts", "at least ")
    return (
        f"{what} ended at the model's window: {many}{least} of --max-tokens {max_tokens} were made"
    )


def _speed_line(generator: "TextGenerator") -> str:
    speed = generator.speed
    parts = [
        f"{name} {tokens:,} tokens, {tokens / seconds:,.0f} tokens/s"
        for name, tokens, seconds in (
            ("prompts", speed.prompt_tokens, speed.prompt_seconds),
            ("new", speed.new_tokens, speed.new_seconds),
        )
        if tokens
    ]
    return "; ".join([*parts, f"compiled in {speed.compile_seconds:.1f} s"])


def _say(line: str) -> None:
    click.echo(f"generate: {line}", err=True)


@command("emo eval runs/tiny --data store --pool 16 --keep 50%,25%,12.5%", name="eval")
@click.argument("model")
@click.option(
    "--data",
    "stores",
    multiple=True,
    required=True,
    help="Token store, or .npy token files. Several stores are a suite: bits a byte of each, and"
    " their micro and macro means.",
)
@click.option(
    "--split",
    type=click.Choice(SPLIT_NAMES),
    default="test",
    show_default=True,
)
@click.option(
    "--windows",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Of a split, at most, spread evenly over it.",
)
@click.option(
    "--pool",
    "pools",
    type=int,
    multiple=True,
    help="Also with pools of this many routed experts; may be given again.",
)
@click.option(
    "--as-trained",
    is_flag=True,
    help="Also with the capacity of experts, and the pools by label, that acted in training.",
)
@click.option(
    "--keep",
    "keeps",
    type=Items("16,25%"),
    multiple=True,
    help="Also with only so many experts, shared ones included, chosen for each domain on the"
    " split select: counts, or shares; may be given again.",
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
    default="global",
    show_default=True,
    help="Of choosing them, see emo select.",
)
@click.option("--allow-fewer", is_flag=True, help="--keep also fewer experts than a token uses.")
@click.option(
    "--max-domains",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="By name, the largest of the store; all others are one.",
)
@click.option("--json", "json_file", default=None, help="Write all figures to this new file.")
@TRUST
def eval_(
    model: str,
    stores: tuple[str, ...],
    split: str,
    windows: int,
    pools: tuple[int, ...],
    as_trained: bool,
    keeps: tuple[tuple[str, ...], ...],
    keep_per_layer: tuple[str, ...],
    method: str,
    allow_fewer: bool,
    max_domains: int,
    json_file: str | None,
    trust: bool,
) -> None:
    """Loss and bits per byte of each domain of a store.

    MODEL is a run's workdir, WORKDIR@STEP, or a Hugging Face folder. Losses are in nats a token and
    without a pool: one with a pool looks at the whole document, its future too.
    """
    host_memory.keep()
    if json_file:
        refuse_unwritable("--json", Path(json_file))

    from emo_jax.files.atomic import write_atomic

    options: dict[str, Any] = {
        "split": split,
        "windows": windows,
        "pool": pools,
        "as_trained": as_trained,
        "keep": [text for given in keeps for text in given],
        "keep_per_layer": keep_per_layer,
        "method": method,
        "allow_fewer": allow_fewer,
        "max_domains": max_domains,
        "trust": trust,
        "quiet": False,
    }
    found: Evaluation | Suite
    if len(stores) == 1:
        found = emo_jax.evaluate(model, stores[0], **options)
    else:
        found = emo_jax.evaluate_suite(model, stores, **options)
    console().print(found.table())
    if json_file:
        write_atomic(Path(json_file), dumps(found.to_json(), indent=1) + "\n")
