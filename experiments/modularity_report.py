"""The tables and plots of docs/results.md, from the figures written by modularity.py.

    python experiments/modularity_report.py --results docs/results --output docs

Writes OUTPUT/results.md and, next to the figures, the plots. Nothing is run.

Arms, seeds and domains are called by their names; a rise is the loss with a part of the experts
minus the loss with all of them, in nats per token.
"""

import json
from pathlib import Path

import click
import numpy as np
from baselines_report import losses_by_tokens, more_tokens, systems, tasks_of_pair
from modularity_figures import NAMES, SHARES, Runs
from modularity_plots import plot_keep, plot_training
from report_tools import AIMS, markdown, paired, ratio, shown

METHODS = ("layerwise", "global", "easy_ep", "random")
SMALL_RISE = 0.01  # nats; smaller rises give no ratio


def over_allowed(one: np.ndarray, every: np.ndarray) -> float:
    """Nats by which a rise with one example exceeds 1.25 times (if a fall, once) that with all."""
    allowed = np.mean(every)
    return float(np.mean(one) - max(1.25 * allowed, allowed))


# --- tables --------------------------------------------------------------------------------------


def reached(runs: Runs) -> str:
    """The aims, the results, and whether the aims are met."""
    emo, standard = (runs.losses(arm, "full") for arm in ("emo", "standard"))
    rows = []

    def row(aim: str, found: tuple[float, ...], most: float, form: str = "{:+.2f}") -> None:
        mean, low, high = (form.format(x) for x in found)
        verdict = "met" if found[0] <= most else "**missed**"
        rows.append([aim, f"{mean} ({low} to {high})", verdict])

    def percent(a: np.ndarray, b: np.ndarray) -> float:
        return 100 * (ratio(a, b) - 1)

    row("EMO's loss over the standard MoE's, at most +1 %", paired(percent, emo, standard), 1)
    for store, what in (("trained", "trained"), ("held_out", "held-out")):
        for keep in (16, 8):
            rises = [runs.rises(arm, f"layerwise {keep}", store) for arm in ("emo", "standard")]
            aim = (
                f"EMO's rise as a fraction of the standard MoE's at {SHARES[keep]}, {what} domains"
            )
            if store == "trained":
                row(f"{aim}, at most 0.1", paired(ratio, *rises), 0.1)
            else:
                mean, low, high = paired(ratio, *rises)
                rows.append([f"{aim}, reported", f"{mean:+.2f} ({low:+.2f} to {high:+.2f})", ""])
    alone, kept = runs.losses("matched", "full"), runs.losses("emo", "layerwise 16")
    aim = "EMO at 25 % over a standard MoE of that size trained alone, at most +1 %"
    row(aim, paired(percent, kept, alone), 1)
    for keep in (16, 8):
        one, every = example_rises(runs, "emo", keep)
        aim = f"EMO's rise with one example at {SHARES[keep]}, at most 1.25 times that with all"
        if np.mean(every) > SMALL_RISE:
            row(aim, paired(ratio, one, every), 1.25)
        else:
            # A quarter more than nothing, or than a fall, means little: report the excess in nats.
            aim += f" ({np.mean(every):+.3f}: too small for a ratio; nats above what that allows)"
            row(aim, paired(over_allowed, one, every), 0, "{:+.3f}")
    own, both = composed_losses(runs, "emo")
    aim = "EMO's loss with two modules over its own module's, at most +1 %"
    row(aim, paired(percent, both.mean(axis=0), own), 1)
    return markdown(AIMS, rows)


def full_models(runs: Runs) -> str:
    rows = []
    standard = np.nanmean(runs.losses("standard", "full"))
    for arm in runs.arms:
        ways = {
            "full": NAMES[arm],
            "pool": f"{NAMES[arm]}, evaluated with its pool",
            "own attention": f"{NAMES[arm]}, evaluated so too",
        }
        for way, label in ways.items():
            if way not in runs.of(arm)[0]["trained"]["losses"]:
                continue
            mean = np.nanmean(runs.losses(arm, way))
            seeds = np.nanmean(runs.losses(arm, way), axis=1)
            held_out = np.nanmean(runs.losses(arm, way, "held_out"))
            spread = " ".join(f"{x:.3f}" for x in seeds)
            share = f"{100 * (mean / standard - 1):+.2f} %"
            rows.append([label, f"{mean:.3f}", spread, share, f"{held_out:.3f}"])
    head = ["model", "loss", "by seed", "against the standard MoE", "held-out domains"]
    return markdown(head, rows)


def rises_by_keep(runs: Runs, store: str) -> str:
    rows = []
    for arm in runs.arms:
        if "layerwise 8" not in runs.of(arm)[0]["trained"]["losses"]:
            continue
        cells = [shown(runs.rises(arm, f"layerwise {keep}", store)) for keep in SHARES]
        rows.append([NAMES[arm], *cells])
    return markdown(["model", *(f"{share} kept" for share in SHARES.values())], rows)


def by_method(runs: Runs) -> str:
    rows = []
    for arm in ("emo", "standard"):
        for method in METHODS:
            cells = [shown(runs.rises(arm, f"{method} {keep}")) for keep in (16, 8)]
            rows.append([NAMES[arm], method, *cells])
    return markdown(["model", "chosen by", "25 % kept", "12.5 % kept"], rows)


def by_domain(runs: Runs) -> str:
    rows = []
    for store, note in (("trained", ""), ("held_out", " (held out)")):
        for i, name in enumerate(runs.of("emo")[0][store]["domains"]):
            cells = []
            for arm in ("emo", "standard"):
                cells.append(f"{np.nanmean(runs.losses(arm, 'full', store)[:, i]):.3f}")
                cells += [
                    f"{np.nanmean(runs.rises(arm, f'layerwise {keep}', store)[:, i]):+.3f}"
                    for keep in (16, 8)
                ]
            rows.append([name + note, *cells])
    head = ["domain"]
    for arm in ("EMO", "standard"):
        head += [f"{arm}: all", "25 %", "12.5 %"]
    return markdown(head, rows)


def example_rises(runs: Runs, arm: str, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """Rises with one example (mean over draws) and with all, for the domains with examples."""
    have = np.array(examples_there(runs)) > 0
    rises = [
        runs.rises(arm, f"one example {draw} {keep}")[:, have]
        for draw in range(max(examples_there(runs)))
    ]
    return np.nanmean(rises, axis=0), runs.rises(arm, f"layerwise {keep}")[:, have]


def examples_there(runs: Runs) -> list[int]:
    """Number of long documents drawn from each domain."""
    return runs.of("emo")[0]["trained"]["long_documents"]


def gap(runs: Runs, way: str) -> str:
    """By how much EMO's mean loss exceeds the standard MoE's with all experts, as `1.23 %`."""
    emo, standard = runs.losses("emo", way), runs.losses("standard", "full")
    return f"{100 * (ratio(emo, standard) - 1):.2f} %"


def composed_losses(runs: Runs, arm: str) -> tuple[np.ndarray, np.ndarray]:
    """Losses (seeds, domains) with a domain's own module, and (partners, …) with another added."""
    both = np.stack([runs.losses(arm, f"composed with {p} later 16") for p in (1, 2, 3)])
    return runs.losses(arm, "layerwise 16"), both


def one_example(runs: Runs) -> tuple[str, str]:
    """A table, and a list of the domains that have examples, with how many."""
    rows = []
    there = dict(zip(runs.of("emo")[0]["trained"]["domains"], examples_there(runs), strict=True))
    used = ", ".join(f"{name} {n}" for name, n in there.items() if n)
    for arm in ("emo", "standard"):
        for keep in (16, 8):
            one, every = example_rises(runs, arm, keep)
            ratio = np.mean(one) / np.mean(every)
            rows.append(
                [
                    NAMES[arm],
                    SHARES[keep],
                    shown(every),
                    shown(one),
                    f"{ratio:.2f}" if np.mean(every) > SMALL_RISE else "–",
                    f"{np.mean(one - every):+.3f}",
                ]
            )
    head = ["model", "kept", "all examples", "one example", "ratio", "difference"]
    return markdown(head, rows), used


def composed(runs: Runs) -> str:
    rows = []
    for arm in ("emo", "standard"):
        own, both = composed_losses(runs, arm)
        change = 100 * (both / own - 1)
        rows.append(
            [
                NAMES[arm],
                f"{np.nanmean(own):.3f}",
                f"{np.nanmean(both):.3f}",
                f"{np.nanmean(change):+.2f} %",
                f"{np.nanmax(change):+.2f} %",
            ]
        )
    head = ["model", "own module", "union with another's", "mean change", "largest"]
    return markdown(head, rows)


def matched(runs: Runs) -> str:
    alone = runs.losses("matched", "full")
    rows = [[NAMES["matched"], f"{np.nanmean(alone):.3f}", ""]]
    for arm in ("emo", "standard"):
        kept = runs.losses(arm, "layerwise 16")
        share = 100 * (np.nanmean(kept) / np.nanmean(alone) - 1)
        rows.append([f"{NAMES[arm]}, 16 of 64 kept", f"{np.nanmean(kept):.3f}", f"{share:+.2f} %"])
    return markdown(["model", "loss", "against the one trained alone"], rows)


def costs(runs: Runs, folder: Path) -> str:
    """The cost of storing and running a module."""
    file = folder / "costs.json"
    if not file.exists():
        return "Not measured yet.\n"
    rows = []
    for row in json.loads(file.read_text(encoding="utf-8")):
        losses = ["–"] * 3
        if row["loss"] is not None:
            way = f"layerwise {row['kept']}" if row["kept"] < row["of"] else "full"
            means = [np.nanmean(runs.losses(arm, way)) for arm in ("emo", "standard")]
            losses = [f"{loss:.3f}" for loss in (row["loss"], *means)]
        rows.append(
            [
                row["model"],
                f"{row['kept']} of {row['of']}",
                f"{row['disk_bytes'] / 1e6:,.1f}",
                f"{row['weight_bytes'] / 1e6:,.1f}",
                f"{row['resident_bytes'] / 1e6:,.0f}",
                f"{row['tokens_per_second']:,.0f}",
                *losses,
            ]
        )
    head = ["model", "experts", "MB on disk", "MB of weights", "MB resident", "tokens/s"]
    head += ["its loss", "mean loss of EMO's domains", "of the standard MoE's"]
    return markdown(head, rows)


def clusters(folder: Path) -> str:
    """Whether clusters of tokens and documents follow domains, for both models."""
    file = folder / "clusters.json"
    if not file.exists():
        return "Not measured yet.\n"
    found = [r for r in json.loads(file.read_text(encoding="utf-8")) if r["layer"] is None]
    kinds = dict.fromkeys((r["of"], r["length"], r["clusters"], r["rows"]) for r in found)
    rows = []
    for of, length, count, number in kinds:
        for arm in ("emo", "standard"):
            mine = [
                row["scores"]
                for row in sorted(found, key=lambda r: r["seed"])
                if (row["of"], row["length"], row["clusters"]) == (of, length, count)
                and row["arm"] == arm
            ]
            nmi = [score["nmi"] for score in mine]
            cells = [f"{of}, first {length} tokens", f"{number:,}", str(count), NAMES[arm]]
            cells += [f"**{np.mean(nmi):.3f}**", " ".join(f"{value:.3f}" for value in nmi)]
            for name in ("purity", "silhouette", "token_entropy", "token_nmi"):
                values = [score[name] for score in mine]
                cells.append("–" if None in values else f"{np.mean(values):.3f}")
            rows.append(cells)
    head = ["of", "rows", "groups", "model", "NMI domains", "by seed", "purity", "silhouette"]
    return markdown([*head, "type bits", "NMI types"], rows)


def page(runs: Runs, results: Path) -> str:
    """The page."""
    template = (Path(__file__).parent / "modularity_report.md").read_text(encoding="utf-8")
    examples, example_domains = one_example(runs)
    first = runs.of("emo")[0]
    rates = {
        arm: float(np.median([run["tokens_per_second"] for run in runs.of(arm)]))
        for arm in runs.arms
    }
    hours = sum(run["tokens"] / run["tokens_per_second"] for run in runs.all) / 3600
    measuring = sum(run["measuring_seconds"] for run in runs.all) / 3600
    return template.format(
        seeds=", ".join(str(run["seed"]) for run in runs.of("emo")),
        tokens=f"{first['tokens'] / 1e6:.1f}",
        domains=", ".join(first["trained"]["domains"]),
        held_out=", ".join(first["held_out"]["domains"]),
        reached=reached(runs),
        full_models=full_models(runs),
        rises=rises_by_keep(runs, "trained"),
        rises_held_out=rises_by_keep(runs, "held_out"),
        full_gap=gap(runs, "full"),
        pool_gap=gap(runs, "pool"),
        matched=matched(runs),
        by_domain=by_domain(runs),
        by_method=by_method(runs),
        one_example=examples,
        example_domains=example_domains,
        composed=composed(runs),
        costs=costs(runs, results),
        more_tokens=more_tokens(results / "baselines"),
        losses_by_tokens=losses_by_tokens(results / "baselines"),
        systems=systems(results / "baselines"),
        tasks=tasks_of_pair(results / "baselines"),
        clusters=clusters(results),
        rates="; ".join(f"{NAMES[arm]} {rate:,.0f}" for arm, rate in rates.items()),
        hours=f"{hours:.1f}",
        measuring=f"{measuring:.1f}",
        windows=first["measured"]["windows"],
        runs=len(runs.all),
        versions=", ".join(f"{name} {version}" for name, version in first["versions"].items()),
    )


@click.command()
@click.option("--results", required=True, type=click.Path(path_type=Path))
@click.option("--output", required=True, type=click.Path(path_type=Path))
def main(results: Path, output: Path) -> None:
    """Writes results.md and the plots."""
    runs = Runs(results)
    plot_keep(runs, results / "keep_k.svg")
    plot_training(runs, results / "keep_k_while_training.svg")
    (output / "results.md").write_text(page(runs, results), encoding="utf-8")
    click.echo(f"{output / 'results.md'}: {len(runs.all)} runs")


if __name__ == "__main__":
    main()
