#!/usr/bin/env bash
# seqio 0.0.20: packing cuts one token off the end of a document for every token 0 in it, its EOS first.
#
# Guess: 0 is padding between and after documents; inside one it is a token like others (GPT-2's "!" has
# it), at worst masked. Packing keeps every token of a document that fits.
# Seen: the packer takes as length of a document the count of tokens that are not 0, and keeps as many
# from its start. A document with one 0 loses its EOS and runs into the next one, with three 0s the last
# words too; the 0 that stays has segment 0, as if padding. Prints the rows; exits non-zero where that
# changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  seqio==0.0.20 tensorflow==2.21.0 tensorflow-text==2.21.1 tensorflow-datasets==4.9.10 \
  sentencepiece==0.2.1 protobuf==6.33.6
TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" - 2>"$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import numpy as np
import seqio
import tensorflow as tf

EOS = 1


def packed(*documents):
    """Tokens and segments of one row of 16."""
    dataset = tf.data.Dataset.from_generator(
        lambda: ({"targets": np.array(document, np.int32)} for document in documents),
        output_signature={"targets": tf.TensorSpec([None], tf.int32)},
    )
    (row,) = seqio.trim_and_pack_dataset(dataset, {"targets": 16}).as_numpy_iterator()
    tokens, segments = row["targets"].tolist(), row["targets_segment_ids"].tolist()
    print(f"{documents}\n  tokens   {tokens}\n  segments {segments}")
    return tokens, segments


def padded(values):
    """A row of 16."""
    return values + [0] * (16 - len(values))


tokens, segments = packed([5, 6, 7, EOS], [8, 9, EOS])
assert tokens == padded([5, 6, 7, EOS, 8, 9, EOS])
assert segments == padded([1, 1, 1, 1, 2, 2, 2])

tokens, segments = packed([5, 0, 7, EOS], [8, 9, EOS])
assert tokens == padded([5, 0, 7, 8, 9, EOS])
assert segments == padded([1, 0, 1, 2, 2, 2])

tokens, segments = packed([5, 0, 0, 0, 6, 7, EOS], [8, 9, EOS])
assert tokens == padded([5, 0, 0, 0, 8, 9, EOS])
assert segments == padded([1, 0, 0, 0, 2, 2, 2])
PYTHON
