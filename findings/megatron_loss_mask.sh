#!/usr/bin/env bash
# megatron-core 0.16.1: padding of the sample that is read first masks the loss of every later sample.
#
# Guess: the loss mask of a sample depends on its own tokens: 1 where the label is a token, 0 where it
# is padding. All the more with the plain settings (no reset of positions, no masking at EOD).
# Seen: with these GPTDataset keeps one mask for all samples, and writes the padding of the first one
# read into it; the copies come later. Where the short last sample of a validation split comes first
# (the shuffle decides), seven eighths of the tokens of all others drop out of the loss. Read in the
# other order, the same samples have the right masks. Prints them; exits non-zero where that changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 numpy==2.4.6 megatron-core==0.16.1
"$folder/venv/bin/python" -W ignore - "$folder" <<'PYTHON'
import sys
from types import SimpleNamespace

import numpy as np
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from megatron.core.datasets.utils import Split

DOCUMENTS, LENGTH, SAMPLE, PADDING = 3, 6, 8, 9
prefix = f"{sys.argv[1]}/documents"
builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)
for _ in range(DOCUMENTS):
    builder.add_document(torch.arange(1, LENGTH + 1), [LENGTH])
builder.finalize(f"{prefix}.idx")


def dataset(seed):
    """The validation split: 17 labels, so two whole samples and one with a single label."""
    config = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=SAMPLE,
        split="0,1,0",
        path_to_cache=f"{sys.argv[1]}/cache",
        tokenizer=SimpleNamespace(
            vocab_size=10, eod=0, pad=PADDING, special_tokens_dict={}, unique_identifiers={}
        ),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        drop_last_partial_validation_sequence=False,
    )
    tokens = GPTDataset.build_low_level_dataset(prefix, config)
    documents = np.arange(DOCUMENTS, dtype=np.int32)
    return GPTDataset(tokens, prefix, documents, None, Split.valid, config)


def masks(seed, order):
    """Labels in the loss of each sample, the samples read in this order."""
    samples = dataset(seed)
    found = {index: int(samples[index]["loss_mask"].sum()) for index in order}
    return [found[index] for index in sorted(found)]


short_first = 0
for seed in range(4):
    short = int(np.argmax(dataset(seed).shuffle_index))
    right = [1 if index == short else SAMPLE for index in range(3)]
    last = masks(seed, sorted(range(3), key=lambda index: index == short))
    in_order = masks(seed, range(3))
    print(f"seed {seed}: in order {in_order}, the short one last {last}")
    assert last == right
    assert in_order == ([1, 1, 1] if short == 0 else right)
    short_first += short == 0
assert short_first
PYTHON
