"""Do groups of experts follow domains? Clusters of tokens and documents for every seed.

    python experiments/modularity_clusters.py --output runs/modularity --results docs/results

Uses the EMO and standard runs of modularity.py in OUTPUT: router probabilities of the same
documents in the test split, clustered by all layers together and by each. Activations go to
OUTPUT/activations; existing ones are reused. Writes RESULTS/clusters.json.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import click

from emo_jax.analysis.activations import Activations
from emo_jax.analysis.cluster_table import cluster_table
from emo_jax.analysis.record import write_activations
from emo_jax.analysis.sample import SampleSettings
from emo_jax.data.store import TokenStore
from emo_jax.files.atomic import write_atomic

ARMS, SEEDS = ("emo", "standard"), (0, 1, 2)
TOKENS = 200_000
LENGTHS = (512, 32)  # first tokens of each document to use; 32 reveal less about its domain
MANY = 32  # clusters, as in the paper; the other count is the number of domains


def look(arm: str, seed: int, length: int, output: Path) -> list[dict[str, Any]]:
    """Scores for one run's clusters."""
    store = output / "store"
    folder = output / "activations" / f"{arm}-{seed}-{length}"
    if not folder.exists():
        settings = SampleSettings(tokens=TOKENS, max_length=length)
        write_activations(str(output / f"{arm}-{seed}"), str(store), folder, settings, quiet=False)
    found = Activations.open(folder)
    sizes = {"tokens": found.num_tokens, "documents": len(found.doc_ends_D)}
    rows = []
    for count in (len(TokenStore.open(store).domains), MANY):
        per_layer = count == MANY and length == max(LENGTHS)
        made = [row.to_json() for row in cluster_table([str(folder)], count, per_layer=per_layer)]
        for row in made:
            del row["folder"]  # a path on this machine
        more = {"arm": arm, "seed": seed, "length": length}
        rows += [row | more | {"rows": sizes[row["of"]]} for row in made]
    return rows


@click.command()
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Of modularity.py.")
@click.option("--results", required=True, type=click.Path(path_type=Path), help="For the figures.")
def main(output: Path, results: Path) -> None:
    """Writes clusters.json."""
    every = itertools.product(SEEDS, ARMS, LENGTHS)
    rows = [row for seed, arm, length in every for row in look(arm, seed, length, output)]
    write_atomic(results / "clusters.json", json.dumps(rows, indent=1) + "\n")
    click.echo(f"{results / 'clusters.json'}: {len(rows)} rows")


if __name__ == "__main__":
    main()
