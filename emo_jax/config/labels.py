"""Labels of pools: `DOMAIN`, or `DOMAIN=FIRST-LAST` with the domain's routed experts."""

import re

_WITH_EXPERTS = re.compile(r"(.+)=(\d{1,6})-(\d{1,6})")


def parse_label(label: str) -> tuple[str, range | None]:
    """The domain of a label, and its experts if they are given."""
    found = _WITH_EXPERTS.fullmatch(label)
    if found is None:
        return label, None
    return found[1], range(int(found[2]), int(found[3]) + 1)
