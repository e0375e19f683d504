"""emo upcycle: a dense model made into a mixture of experts."""

import click

from emo_jax.cli.app import TRUST, Number, command
from emo_jax.config.names import UPCYCLE_METHODS
from emo_jax.parallel import host_memory


@command("emo upcycle runs/dense --method split-random --experts 16 --top-k 4 --workdir runs/split")
@click.argument("model")
@click.option(
    "--method",
    required=True,
    type=click.Choice(UPCYCLE_METHODS),
    help="Split the neurons of each feed-forward into experts: by the seed, by their weights, by"
    " the tokens they are active for, or by the texts that need them. Or copy the whole"
    " feed-forward into every expert.",
)
@click.option("--experts", required=True, type=int, help="Of each layer, shared ones included.")
@click.option(
    "--top-k", required=True, type=int, help="Experts that a token uses, shared ones included."
)
@click.option(
    "--shared",
    type=int,
    default=0,
    show_default=True,
    help="Experts that every token uses; not for split-kmeans and copy.",
)
@click.option(
    "--scale",
    type=Number(min=0, min_open=True),
    default=None,
    show_default="routed experts that a token uses",
    help="Factor of the outputs of routed experts in a split.",
)
@click.option(
    "--data",
    default=None,
    metavar="STORE[:DOMAIN]|FILE",
    help="Texts for split-coactivation and split-importance: split select of a token store, or a"
    " file of documents.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=16_384,
    show_default=True,
    help="Of --data, at most.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--workdir", required=True, help="Folder to make.")
@TRUST
def upcycle(
    model: str,
    method: str,
    experts: int,
    top_k: int,
    shared: int,
    scale: float | None,
    data: str | None,
    max_tokens: int,
    seed: int,
    workdir: str,
    trust: bool,
) -> None:
    """Make a dense model into a mixture of experts, to be trained on.

    MODEL is a run's workdir, WORKDIR@STEP, or a Hugging Face folder (Llama, Mistral). Then emo
    train --init-from WORKDIR@0 --init weights with a config of that shape, like
    experiments/split_tiny.py.
    """
    host_memory.keep()
    from emo_jax.config import moe_of
    from emo_jax.model.params import count_parameters
    from emo_jax.modules.upcycle import upcycle as run

    config = run(
        model,
        workdir,
        method=method,
        experts=experts,
        top_k=top_k,
        shared=shared,
        scale=scale,
        data=data,
        max_tokens=max_tokens,
        seed=seed,
        trust=trust,
        quiet=False,
    )
    total, active = count_parameters(config)
    click.echo(
        f"{workdir}: {moe_of(config).num_experts} experts a layer of hidden size"
        f" {moe_of(config).expert_dim}, {total:,} parameters, {active:,} for one token"
    )
