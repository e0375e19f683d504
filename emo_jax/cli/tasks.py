"""emo tasks."""

from pathlib import Path

import click

import emo_jax
from emo_jax.cli.app import TRUST, Items, command, console, refuse_unwritable
from emo_jax.cli.joining import PROCESSES
from emo_jax.cli.modules import counts
from emo_jax.config.names import METHODS
from emo_jax.files.json_files import dumps
from emo_jax.parallel import host_memory


@command("emo tasks runs/tiny --tasks arc_easy,mine.yaml --keep 100%,25% --limit 200")
@click.argument("model")
@click.option(
    "--tasks",
    type=Items("arc_easy,mine.yaml"),
    multiple=True,
    help="Names of lm-evaluation-harness (tasks, groups, tags), and YAML files of its format.",
)
@click.option(
    "--suite",
    type=Items("mc9,gsm8k"),
    multiple=True,
    help="The paper's tasks: mc9, gen5, gsm8k, mmlu, mmlu_pro, or emo for all of them.",
)
@click.option(
    "--include-path",
    multiple=True,
    help="Folder with YAML files of tasks; a name that it has is taken from there.",
)
@click.option(
    "--few-shot",
    type=click.IntRange(min=0),
    default=None,
    help="Examples in a prompt; as each task says, if not given.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=None,
    help="Items of each task to measure on, at most.",
)
@click.option(
    "--keep",
    "keeps",
    type=Items("50%,16"),
    multiple=True,
    help="Measure with only so many experts, shared ones included, chosen for each task: counts,"
    " or shares; 100% is the whole model.",
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="layerwise",
    show_default=True,
    help="Of choosing them, see emo select.",
)
@click.option(
    "--choose-on",
    default="task",
    show_default=True,
    metavar="task|STORE[:DOMAIN]",
    help="What to choose them by: items of each task that are not measured on, or split select of"
    " a token store.",
)
@click.option(
    "--examples",
    type=Items("1,5,all"),
    default=("100",),
    show_default="100",
    help="Items or documents to choose by; several make a module each.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=1_000_000,
    show_default=True,
    help="Of all examples, at most.",
)
@click.option("--allow-fewer", is_flag=True, help="--keep also fewer experts than a token uses.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of which items are examples, and of --method random.",
)
@click.option("--json", "json_file", default=None, help="Write all figures to this new file.")
@PROCESSES
@TRUST
def tasks(
    model: str,
    tasks: tuple[tuple[str, ...], ...],
    suite: tuple[tuple[str, ...], ...],
    include_path: tuple[str, ...],
    few_shot: int | None,
    limit: int | None,
    keeps: tuple[tuple[str, ...], ...],
    method: str,
    choose_on: str,
    examples: tuple[str, ...],
    max_tokens: int,
    allow_fewer: bool,
    seed: int,
    json_file: str | None,
    processes: int | None,
    process_index: int | None,
    coordinator: str | None,
    join_timeout: float,
    silence_timeout: float,
    trust: bool,
) -> None:
    """Scores on tasks of lm-evaluation-harness, with all experts or a part of them.

    MODEL is a run's workdir, WORKDIR@STEP, or a Hugging Face folder. There is no pool. Needs
    pip install 'emo-jax[tasks]'.
    """
    host_memory.keep()
    if json_file:
        refuse_unwritable("--json", Path(json_file))
    numbers = tuple(None if n == "all" else counts("--examples", (n,))[0] for n in examples)
    from emo_jax.tasks.harness import require

    require()  # before anything that takes long
    from emo_jax.parallel.processes import joined
    from emo_jax.run.token import run_token
    from emo_jax.run.workdir import split_step

    facts = {"MODEL": model, "--tasks": str(tasks), "--suite": str(suite), "--keep": str(keeps)}
    with joined(
        processes,
        process_index,
        coordinator,
        facts=facts,
        join_timeout=join_timeout,
        silence_timeout=silence_timeout,
        token=lambda index: run_token(split_step(model)[0], make=False),
    ):
        import jax

        first = jax.process_index() == 0
        found = emo_jax.evaluate_tasks(
            model,
            [name for given in tasks for name in given],
            suite=[word for given in suite for word in given],
            include_path=include_path,
            few_shot=few_shot,
            limit=limit,
            keep=[text for given in keeps for text in given],
            method=method,
            choose_on=choose_on,
            examples=numbers,
            max_tokens=max_tokens,
            allow_fewer=allow_fewer,
            seed=seed,
            trust=trust,
            quiet=not first,
        )
    if not first:
        return
    from emo_jax.files.atomic import write_atomic

    console().print(found.table())
    if json_file:
        write_atomic(Path(json_file), dumps(found.to_json(), indent=1) + "\n")
