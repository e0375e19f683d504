#!/usr/bin/env bash
# grain 0.2.18: ConcatThenSplitIterDataset repeats the tokens of one feature when the other is cut twice.
#
# Guess: with two features (inputs and targets) of other lengths, each token of each comes once; what
# does not fit is padding.
# Seen: where an element spans three rows because its targets are long, its inputs, packed whole with
# the first part, come again with the third: the cut of a feature that fits is taken from the start of
# the element, not of the part. In two rows all is well. Prints the rows; exits non-zero where that
# changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grain==0.2.18
"$folder/venv/bin/python" - <<'PYTHON'
import grain
import numpy as np
from grain.experimental import ConcatThenSplitIterDataset

FEATURES, ROW = ("inputs", "targets"), 4


def packed(*lengths):
    """Tokens given and packed, by feature: 10, 11, … of the first element, 20, … of the second."""
    elements = [
        {name: 10 * number + np.arange(length) for name, length in zip(FEATURES, pair, strict=True)}
        for number, pair in enumerate(lengths, 1)
    ]
    source = grain.MapDataset.source(elements).to_iter_dataset()
    rows = list(ConcatThenSplitIterDataset(source, length_struct=dict.fromkeys(FEATURES, ROW)))
    for row in rows:
        print("  ", {name: row[name].tolist() for name in FEATURES})
    given = {name: np.concatenate([e[name] for e in elements]).tolist() for name in FEATURES}
    return given, {name: [int(t) for row in rows for t in row[name] if t] for name in FEATURES}


print("the second element in two rows:")
given, found = packed((1, 2), (2, 5))
assert found == given

print("the second element in three rows:")
given, found = packed((1, 2), (2, 7))
assert found["targets"] == given["targets"]
assert given["inputs"] == [10, 20, 21] and found["inputs"] == [10, 20, 21, 20, 21]
PYTHON
