"""What removing a domain's experts costs it and the others, and what unlearning by training costs.

    python experiments/removal.py runs/emo --data store --windows 128 --json removal.json
    python experiments/removal.py runs/emo --data store --ascent law --ascent medicine

For each domain, `emo remove`'s experts are masked, which gives the loss of the model without them:
chosen on the split select, judged on test. With `--ascent`, all weights are trained instead to
lower the loss of the others and to raise that of the domain (on the split train, without pools)
until it is as high, on select, as removal made it; then both are judged on test.
"""

import json
from pathlib import Path

import click
import jax
import jax.numpy as jnp
import numpy as np
import optax

from emo_jax.data.loader import heldout_batches
from emo_jax.data.store import TokenStore
from emo_jax.data.windows import Windows
from emo_jax.evals.heldout import evaluate, make_eval_step
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.vocab_loss import vocab_loss
from emo_jax.saved.load import load_model
from emo_jax.selection.budgets import choose_best, experts_there
from emo_jax.selection.removal import removal_scores
from emo_jax.selection.variants import within_documents

BATCH = 16  # windows
MOST_STEPS, EVERY = 60, 4  # of ascent, and between two looks at the loss


@click.command()
@click.argument("model")
@click.option("--data", required=True)
@click.option("--drop", default=8, show_default=True, help="Routed experts a layer.")
@click.option("--method", default="contrast", show_default=True)
@click.option("--windows", default=128, show_default=True, help="Of a split.")
@click.option("--ascent", multiple=True, help="A domain to compare with training.")
@click.option("--lr", default=1e-4, show_default=True, help="Of the ascent.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), default=None)
def main(model, data, drop, method, windows, ascent, lr, json_file) -> None:
    """See the module."""
    loaded = load_model(model)
    config, store = within_documents(loaded.config), TokenStore.open(data)
    domains, functions = tuple(store.domains), ModelFunctions(config)
    M, there_LR = len(domains), experts_there(config)
    params = jax.device_put(loaded.params)
    step = make_eval_step(config, functions, M)

    def batches(split: str, most: int):
        found = Windows(store, config.data.seq_len, split=split)
        return [
            jax.device_put(b) for b in heldout_batches(found, batch_size=BATCH, max_windows=most)
        ]

    select, test = batches("select", windows), batches("test", windows)
    mass_LMR = evaluate(step, params, select).router_probs_LMR
    before_M = evaluate(step, params, test).loss_M
    found = {}
    for number, name in enumerate(domains):
        scores_LR = removal_scores(mass_LMR, number, method)
        out_LMR = choose_best(scores_LR[:, None], there_LR, [drop] * len(there_LR))
        keep_LMR = np.repeat(there_LR[:, None] & ~out_LMR, M, axis=1)
        after_M = evaluate(step, params, test, keep_LMR=keep_LMR).loss_M
        found[name] = _rises(number, after_M - before_M)
        print(f"{name}: {found[name]}", flush=True)
        if name in ascent:
            on_select = [
                evaluate(step, params, select, keep_LMR=keep).loss_M for keep in (None, keep_LMR)
            ]
            aim = on_select[1][number]
            trained, steps = _ascend(
                *(functions, params, batches("train", BATCH * MOST_STEPS), number, lr),
                lambda p, n=number, aim=aim: evaluate(step, p, select).loss_M[n] >= aim,
            )
            rise_M = evaluate(step, trained, test).loss_M - before_M
            found[name] |= {"ascent": _rises(number, rise_M), "ascent_steps": steps}
            print(f"  by training, {steps} steps: {found[name]['ascent']}", flush=True)
    own, others = (np.mean([one[k] for one in found.values()]) for k in ("own", "others"))
    print(f"mean: own {own:+.4f}, others {others:+.4f}, {own / others:.1f} times")
    if json_file:
        about = {"model": loaded.name, "drop": drop, "method": method, "windows": windows}
        json_file.write_text(json.dumps(about | {"domains": found}, indent=1) + "\n")


def _rises(number: int, rise_M: np.ndarray) -> dict[str, float]:
    others_M = np.delete(rise_M, number)
    return {
        "own": round(float(rise_M[number]), 4),
        "others": round(float(np.nanmean(others_M)), 4),
        "most_of_others": round(float(np.nanmax(others_M)), 4),
    }


def _ascend(functions, params, batches, number, lr, reached):
    """Trains until the domain's loss is high enough; returns the parameters and the steps."""
    optimizer = optax.adam(lr)

    @jax.jit
    def update(params, state, batch):
        own_BS = batch.loss_mask * (batch.domain_ids == number)
        masks = (batch.loss_mask - own_BS, own_BS)

        def loss(params):
            hidden_BSD, _ = functions.hidden(params, batch)
            config, head_DV = functions.config, params["lm_head"]["kernel"]
            size = (config.model.vocab_size, 0.0, config.train.loss_chunk)
            sums = [vocab_loss(hidden_BSD, head_DV, batch.labels, m, *size)[0] for m in masks]
            others, own = (s / jnp.maximum(m.sum(), 1) for s, m in zip(sums, masks, strict=True))
            return others - own

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for n, batch in enumerate(batches, 1):
        params, state = update(params, state, batch)
        if n % EVERY == 0 and reached(params):
            return params, n
    return params, len(batches)


if __name__ == "__main__":
    main()
