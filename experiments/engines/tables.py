"""The tables of docs/huggingface.md, from docs/results/engines.json; nothing is run.

python experiments/engines/tables.py
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from engines import ENGINES, MODELS

from emo_jax.files.atomic import write_atomic

RESULTS_FILE = "results/engines.json"
PAGE = "huggingface.md"
BEGIN, END = "<!-- engines: written by experiments/engines/tables.py -->", "<!-- /engines -->"
SGLANG = ("SGLang 0.5.23", "read, not run: see below", *["—"] * 6)
HEADS = {"full": "full, 64 experts", "law": "`law`, 16", "dense": "dense", "127": "127 + 1"}


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def figure(value: float | None) -> str:
    """A difference as `3e-6`; null stands for NaN, which JSON lacks."""
    if value is None:
        return "**NaN**"
    return "0" if value == 0 else f"{value:.0e}".replace("e-0", "e-")


def cell(found: dict[str, Any] | None) -> str:
    """Cell for an engine and a model: largest difference of logits, count of equal greedy texts."""
    if found is None:
        return "—"
    if "failed" in found:
        return f"**fails**: {found['failed']}"
    parts = [figure(found[name]) for name in ("difference", "scores") if name in found]
    parts += [found["greedy"]] if "greedy" in found else []
    return ", ".join(parts)


def total(models: dict[str, Any], *names: str) -> str:
    """The total over all models; a dash if the engine does not report it."""
    said = [one[name] for one in models.values() for name in names if one.get(name) is not None]
    return str(sum(x if isinstance(x, int) else len(x) for x in said)) if said else "—"


def engines_table(results: dict[str, Any]) -> str:
    rows = []
    for engine in ENGINES:
        models = results.get(engine.name) or {}
        if not models:
            continue
        version = next((m["version"] for m in models.values() if "version" in m), "")
        name = f"{engine.name.split(' ')[0]} {version}".strip()
        counts = total(models, "nan"), total(models, "missing", "unexpected")
        rows.append([name, engine.command, *(cell(models.get(m)) for m in MODELS), *counts])
    rows.append(list(SGLANG))
    head = ["engine", "as", *(HEADS[m] for m in MODELS), "NaN", "keys missing or left over"]
    return markdown(head, rows)


def _both(values: list[dict[str, Any]]) -> str:
    """The result of one way, over all models."""
    if errors := [value["error"] for value in values if "error" in value]:
        return errors[0]
    parts = []
    if differences := [value["difference"] for value in values if "difference" in value]:
        parts.append(figure(None if None in differences else max(differences)))
    if equal := [value["equal"].split(" of ") for value in values if "equal" in value]:
        parts.append(f"{sum(int(a) for a, _ in equal)} of {sum(int(b) for _, b in equal)}")
    return ", ".join(parts)


def ways_table(results: dict[str, Any]) -> str:
    """Other ways to run the folder in transformers; the worst result over all models."""
    names = ("transformers 4", "transformers 5")
    columns = []
    for name in names:
        held: dict[str, list] = {}
        for found in results.get(name, {}).values():
            for way, value in found.get("held", {}).items():
                held.setdefault(way, []).append(value)
        columns.append({way: _both(values) for way, values in held.items()})
    ways = list(dict.fromkeys(way for column in columns for way in column))
    rows = [[way, *(column.get(way, "—") for column in columns)] for way in ways]
    return markdown(["in transformers", "4.57.6", "5.24.0"], rows)


def imports_table(results: dict[str, Any]) -> str:
    """Results of importing what engines made from an export."""
    rows = []
    for engine in ENGINES:
        made: dict[str, list[dict]] = {}
        for found in results.get(engine.name, {}).values():
            for what, value in found.get("imports", {}).items():
                made.setdefault(what, []).append(value)
        for what, values in made.items():
            refused = sorted({value["refused"] for value in values if "refused" in value})
            fine = [value["difference"] for value in values if "difference" in value]
            says = (
                [f"{len(fine)} model{'s' * (len(fine) > 1)}, {figure(max(fine))}"] if fine else []
            )
            rows.append([engine.name, what, *["; ".join([*says, *(f"`{r}`" for r in refused)])]])
    return markdown(["made by", "what", "`emo import`"], rows)


def section(results: dict[str, Any]) -> str:
    """Everything between the marks."""
    parts = [engines_table(results), ways_table(results), imports_table(results)]
    return "\n".join(parts)


def write_page(docs: Path) -> None:
    """Puts the tables between the marks of the page."""
    results = json.loads((docs / RESULTS_FILE).read_text(encoding="utf-8"))
    before, _, rest = (docs / PAGE).read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    write_atomic(docs / PAGE, f"{before}{BEGIN}\n\n{section(results)}\n{END}{after}")


if __name__ == "__main__":
    write_page(Path(__file__).parents[2] / "docs")
