"""Nested dicts, and flat ones whose keys are paths through them."""

from collections.abc import Mapping
from typing import Any

# Parts of paths: leaves below them have a leading axis of layers.
STACKS = ("dense_layers", "layers")


def flatten(tree: Mapping[str, Any], separator: str = "/") -> dict[str, Any]:
    """Flattens a nested dict to `{"embed/embedding": leaf, …}`; empty dicts disappear."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            inner = flatten(value, separator)
            out |= {f"{key}{separator}{name}": leaf for name, leaf in inner.items()}
        else:
            out[str(key)] = value
    return out


def nest(leaves: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Nests `{("embed", "embedding"): leaf, …}`."""
    tree: dict[str, Any] = {}
    for (*parents, last), leaf in leaves.items():
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = leaf
    return tree


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Inverts `flatten`."""
    return nest({tuple(path.split("/")): leaf for path, leaf in leaves.items()})
