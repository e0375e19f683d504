"""emo export, emo import: Hugging Face folders."""

import click

from emo_jax.cli.app import command


@command("emo export runs/tiny --output hf/tiny --layout qwen2_moe")
@click.argument("workdir")
@click.option("--output", required=True, help="Folder to make.")
@click.option(
    "--layout",
    type=click.Choice(["qwen2_moe", "emo"]),
    default="qwen2_moe",
    show_default=True,
    help="qwen2_moe loads in stock transformers; emo has the released checkpoints' names.",
)
@click.option(
    "--step", type=int, default=None, help="Checkpoint; the newest good one if not given."
)
@click.option("--tokenizer", default=None, help="Folder of the tokenizer; the run's if not given.")
def export(workdir: str, output: str, layout: str, step: int | None, tokenizer: str | None) -> None:
    """Write a Hugging Face folder."""
    from emo_jax.transfer import export_workdir
    from emo_jax.workdir import refuse_existing

    refuse_existing(output)  # before a large checkpoint is read
    made = export_workdir(workdir, output, layout=layout, step=step, tokenizer_dir=tokenizer)
    click.echo(f"{made}: layout {layout}")
    if not (made / "tokenizer.json").exists():
        click.echo(
            f"emo: no tokenizer found in {workdir} or its store, so {made} has none;"
            " give --tokenizer FOLDER",
            err=True,
        )


@command("emo import hf/tiny --workdir runs/imported", name="import")
@click.argument("hf_dir")
@click.option(
    "--workdir",
    required=True,
    help="Folder to make; emo export reads it (training on from it comes later).",
)
def import_(hf_dir: str, workdir: str) -> None:
    """Read a Hugging Face folder (qwen2_moe or emo) into a workdir."""
    from emo_jax.transfer import import_folder

    config = import_folder(hf_dir, workdir)
    click.echo(f"{workdir}: {config.name}, {config.model.num_layers} layers")
