"""Fields and values that configs of earlier versions hold: of runs, checkpoints and folders.

Whoever reads them gets a config of today. On a command line they are unknown.
"""

from collections.abc import Mapping
from typing import Any


def _moe(moe: dict[str, Any]) -> dict[str, Any]:
    """Tokens once travelled to experts in `token_parts`, or all tokens were gathered."""
    moe.pop("token_parts", None)
    if moe.get("dispatch") == "all_gather":
        moe["dispatch"] = "auto"
    return moe


_SECTIONS = {"moe": _moe}


def of_today(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config without what there is no more; none of it changed what a run computes."""
    found = dict(values)
    for name, change in _SECTIONS.items():
        if isinstance(found.get(name), Mapping):
            found[name] = change(dict(found[name]))
    return found
