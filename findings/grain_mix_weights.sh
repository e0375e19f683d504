#!/usr/bin/env bash
# grain 0.2.18: the weights of `mix` are cut to whole hundredths of the smallest one.
#
# Guess: in the long run the share of a source is its weight over their sum, to floating point.
# Seen: each weight is divided by the smallest, times 100, and its fraction cut off. The smallest source
# gets too much, always that way and by up to 1 %: 1 : 1.0099 is an even mixture, 0.3 : 0.7 is 100 : 233,
# and 0.07 : 0.21 is 100 : 299, for what binary makes of 0.21. MapDataset and IterDataset alike, without
# a warning. Prints the shares; exits non-zero where that changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grain==0.2.18
"$folder/venv/bin/python" - <<'PYTHON'
import itertools

import grain

PERIODS = 100
cases = {
    (1, 3): (100, 300),
    (1, 1.0099): (100, 100),
    (0.3, 0.7): (100, 233),
    (0.07, 0.21): (100, 299),
}
for weights, whole in cases.items():
    period = sum(whole)
    sources = [grain.MapDataset.source([number]).repeat() for number in range(2)]
    streams = [source.to_iter_dataset() for source in sources]
    random_access = grain.MapDataset.mix(sources, weights=weights)
    numbers = {
        "MapDataset": [random_access[index] for index in range(PERIODS * period)],
        "IterDataset": list(
            itertools.islice(grain.IterDataset.mix(streams, weights=weights), PERIODS * period)
        ),
    }
    asked = weights[0] / sum(weights)
    for kind, found in numbers.items():
        first = found.count(0)
        print(f"{kind} {weights}: {first / len(found):.5f} of the first, asked for {asked:.5f}")
        assert first == PERIODS * whole[0], first
PYTHON
