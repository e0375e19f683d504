"""emo export, emo import: Hugging Face folders."""

from pathlib import Path
from typing import Any

import click

import emo_jax
from emo_jax.cli.app import command
from emo_jax.config.names import GGUF_TYPES, LAYOUT_NAMES


@command("emo export runs/tiny --output hf/tiny --layout qwen2_moe")
@click.argument("workdir")
@click.option(
    "--output",
    default=None,
    help="Folder to make. Without it, WORKDIR is a folder exported before, to be pushed.",
)
@click.option(
    "--layout",
    type=click.Choice(LAYOUT_NAMES),
    default=None,
    help="qwen2_moe, mixtral (experts), glm4_moe (experts behind sigmoids) and llama (dense) load"
    " in stock transformers, and the one that fits is taken if not given; emo has the released"
    " checkpoints' names.",
)
@click.option(
    "--step", type=int, default=None, help="Checkpoint; the newest good one if not given."
)
@click.option("--tokenizer", default=None, help="Folder of the tokenizer; the run's if not given.")
@click.option(
    "--gguf",
    default=None,
    metavar="FILE",
    help="Write a GGUF file, for llama.cpp, also out of a Hugging Face folder (extra gguf).",
)
@click.option(
    "--gguf-type",
    type=click.Choice(GGUF_TYPES),
    default=None,
    show_default="float32",
    help="Of the matrices of --gguf.",
)
@click.option(
    "--gguf-ids", is_flag=True, help="Leave the tokenizer out of --gguf: it takes token ids."
)
@click.option(
    "--push",
    default=None,
    metavar="ORG/NAME",
    help="Upload the folder to this repository on the Hugging Face hub, in one commit; weights"
    " there that are not of this model are removed. Log in before with hf auth login.",
)
@click.option(
    "--private/--public",
    default=True,
    show_default=True,
    help="Of a repository that is made; one that is there stays as it is.",
)
def export(
    workdir: str,
    output: str | None,
    layout: str | None,
    step: int | None,
    tokenizer: str | None,
    gguf: str | None,
    gguf_type: str | None,
    gguf_ids: bool,
    push: str | None,
    private: bool,
) -> None:
    """Write a Hugging Face folder, a file for llama.cpp, or both, and push where asked."""
    from emo_jax.errors import UsageError
    from emo_jax.files.atomic import refuse_existing
    from emo_jax.hf.fields import is_hugging_face
    from emo_jax.hf.push import check_repo, push_folder
    from emo_jax.run.workdir import CONFIG_FILE

    at_step = workdir if step is None else f"{workdir}@{step}"
    convert: dict[str, Any] = {"ids_alone": gguf_ids, "tokenizer_dir": tokenizer}
    if push:
        check_repo(push)
    if gguf is not None:
        from emo_jax.hf.gguf_export import check_gguf

        check_gguf(gguf)
        if output is not None and Path(output).resolve() == Path(gguf).resolve():
            raise UsageError(f"--gguf {gguf}: is --output too; give a file of its own")
    elif gguf_ids or gguf_type is not None:
        given = "--gguf-ids" if gguf_ids else "--gguf-type"
        raise UsageError(f"{given}: is of --gguf; give --gguf FILE too, or leave it out")
    if output is not None:
        refuse_existing(output)  # before a large checkpoint is read
        if (Path(workdir) / CONFIG_FILE).is_file() and is_hugging_face(Path(workdir)):
            raise UsageError(
                f"{workdir}: a Hugging Face folder already, not a run's workdir; make one of it"
                f" with emo import {workdir} --workdir FOLDER"
            )
        if gguf is not None:  # before the folder is made
            from emo_jax.saved.gguf import check_convertible

            check_convertible(at_step, **convert)
        made, layout = emo_jax.export(
            workdir, output, layout=layout, step=step, tokenizer_dir=tokenizer, quiet=False
        )
        click.echo(f"{made}: layout {layout}")
        if not (made / "tokenizer.json").exists():
            click.echo(
                f"emo: no tokenizer.json found in {workdir}, so {made} has none; give --tokenizer"
                " FOLDER, as the folder tokenizer/ of the store that it was trained on",
                err=True,
            )
    elif push is None and gguf is None:
        raise UsageError("--output: missing; give the folder to make, or --gguf FILE")
    elif layout and push is None:
        raise UsageError("--layout: is of --output; leave it out, or give --output FOLDER")
    elif push is not None and (layout or tokenizer or step is not None):
        raise UsageError(
            f"--push without --output uploads {workdir} as it is; leave out --layout, --step and"
            " --tokenizer, or give --output FOLDER to export anew"
        )
    if gguf is not None:
        from emo_jax.saved.gguf import convert_to_gguf

        made_file = convert_to_gguf(
            at_step, gguf, type_name=gguf_type or "float32", quiet=False, **convert
        )
        size = made_file.stat().st_size / 1e9
        click.echo(f"{made_file}: {gguf_type or 'float32'}, {size:.2f} GB")
    if push:
        click.echo(push_folder(output or workdir, push, private=private))


@command("emo import hf/tiny --workdir runs/imported", name="import")
@click.argument("hf_dir")
@click.option(
    "--workdir",
    required=True,
    help="Folder to make; emo export reads it, and emo train goes on from it.",
)
def import_(hf_dir: str, workdir: str) -> None:
    """Read a Hugging Face folder (qwen2_moe, mixtral, glm4_moe, llama or emo) into a workdir."""
    config = emo_jax.import_(hf_dir, workdir, quiet=False)
    click.echo(f"{workdir}: {config.name}, {config.model.num_layers} layers")
