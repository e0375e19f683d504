"""Converts between nested dicts and flat ones whose keys are paths through them."""

from collections.abc import Mapping
from typing import Any


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens a nested dict to `{"embed/embedding": leaf, …}`."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            out.update({f"{key}/{name}": leaf for name, leaf in flatten(value).items()})
        else:
            out[key] = value
    return out


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Inverts `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = leaf
    return tree
