"""emo branch, emo mix, emo grow: experts of domains from a dense model, more experts in a run."""

import click

import emo_jax
from emo_jax.cli.app import Items, Number, command
from emo_jax.config.names import BRANCH_METHODS, MOMENTS, NEW_EXPERTS
from emo_jax.errors import UsageError
from emo_jax.parallel import host_memory


@command("emo branch runs/dense --data store --domains law,medicine --output branches")
@click.argument("model")
@click.option(
    "--data", required=True, metavar="STORE", help="Token store of the model's tokenizer."
)
@click.option(
    "--domains", type=Items("law,medicine"), required=True, help="One branch for each of these."
)
@click.option("--output", required=True, help="Folder for the branches; further ones may follow.")
@click.option(
    "--method",
    type=click.Choice(BRANCH_METHODS),
    default="btx",
    show_default=True,
    help="btx: dense branches (Branch-Train-MiX); flexolmo: an expert to be trained beside the"
    " model's feed-forward, which stays as it is, like all else.",
)
@click.option(
    "--steps", type=click.IntRange(min=1), default=None, help="Of each; the model's if not given."
)
@click.option(
    "--examples",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="flexolmo: documents that a column of the router is made from, at most.",
)
@click.option(
    "--expert-bias",
    type=Number(max=0),
    default=0.0,
    show_default=True,
    help="flexolmo: added to the router's logits of all experts but the first; at most 0. No"
    " Hugging Face layout has it.",
)
def branch(
    model: str,
    data: str,
    domains: tuple[str, ...],
    output: str,
    method: str,
    steps: int | None,
    examples: int,
    expert_bias: float,
) -> None:
    """Prepare one run per domain from a dense model, each to be trained on its own, anywhere.

    MODEL is a run's workdir, WORKDIR@STEP, or a Hugging Face folder. For each domain, OUTPUT gets
    an experiment file and a workdir that begins with the model; what is printed trains them. emo
    mix makes one model of them.
    """
    host_memory.keep()
    if method != "flexolmo" and expert_bias:
        raise UsageError("--expert-bias: is of --method flexolmo")
    made = emo_jax.branch(
        model,
        data,
        domains,
        output,
        method=method,
        steps=steps or 0,
        examples=examples,
        expert_bias=expert_bias,
        quiet=False,
    )
    for one in made:
        click.echo(f"emo train --config {one.experiment} --workdir {one.workdir}")


@command("emo mix branches/law branches/medicine --output runs/mixed")
@click.argument("branches", nargs=-1)
@click.option("--output", required=True, help="Workdir to make, with the parameters as step 0.")
@click.option(
    "--with-seed",
    metavar="MODEL",
    default=None,
    help="Dense branches: what they began from is one more expert, and averaged too.",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    default=None,
    help="Experts that a token uses. If not given: 2 of dense branches, 4 of flexolmo's (or as many"
    " as there are), else as before.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="For the new router of dense branches.",
)
def mix(
    branches: tuple[str, ...], output: str, with_seed: str | None, top_k: int | None, seed: int
) -> None:
    """Make one mixture of experts of a model's branches.

    BRANCHES are workdirs or WORKDIR@STEP. Of dense ones, each feed-forward is an expert, all else
    is averaged and the router is new: go on with emo train --init-from OUTPUT@0 --init weights. Of
    those with experts of their own (--method flexolmo, emo extend), these are put side by side; all
    else must be the same.
    """
    made = emo_jax.mix(
        branches, output, with_seed=with_seed, top_k=top_k or 0, seed=seed, quiet=False
    )
    moe = made.config.moe
    assert moe is not None
    click.echo(
        f"{made.workdir}: {moe.num_experts} experts, {moe.top_k} for a token:"
        f" {', '.join(made.experts)}"
    )


@command("emo grow runs/tiny --experts 128 --output runs/grown")
@click.argument("run")
@click.option("--experts", type=int, required=True, help="Of each layer, shared ones included.")
@click.option(
    "--top-k", type=click.IntRange(min=1), default=None, help="Experts of a token; as before."
)
@click.option(
    "--init",
    type=click.Choice(NEW_EXPERTS),
    default="copy",
    show_default=True,
    help="Copies of all old experts in turn, copies with 2 % noise, fresh ones, or means of all.",
)
@click.option(
    "--moments",
    type=click.Choice(MOMENTS),
    default="copy",
    show_default=True,
    help="Adam's of the new experts: those of what they are copies of, or zeros.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--output", required=True, help="Workdir to make, at the same step.")
def grow(
    run: str, experts: int, top_k: int | None, init: str, moments: str, seed: int, output: str
) -> None:
    """Add routed experts to a run in the middle of its training.

    RUN is a workdir or WORKDIR@STEP. Step, place in the data and Adam's moments are kept: go on
    with emo train --init-from OUTPUT --init all and a config of as many experts.
    """
    from emo_jax.modules.grow import grow as write

    config = write(
        run,
        output,
        num_experts=experts,
        top_k=top_k or 0,
        init=init,
        moments=moments,
        seed=seed,
        quiet=False,
    )
    assert config.moe is not None
    click.echo(f"{output}: {config.moe.num_experts} experts a layer, {config.moe.top_k} of a token")
