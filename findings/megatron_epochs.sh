#!/usr/bin/env bash
# megatron-core 0.16.1: a GPTDataset of several epochs does not read every document once an epoch.
#
# Guess: a training set asked for more samples than it holds is read whole, in a new order, again and
# again: after the first epoch's worth of samples each document has been seen once.
# Seen: documents of all epochs are shuffled as one list, and cut into samples. Of two epochs the first
# half reads three quarters of the documents, a quarter twice and a quarter not yet; of eight, an eighth
# reads about 1 - 1/e. Only a last epoch of which less than 80 % is used stays apart: asked for 1.5
# epochs, the first holds every document. So the number of training steps decides which documents come
# early. Prints the counts; exits non-zero where that changes.
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

DOCUMENTS, LENGTH = 1000, 8
prefix = f"{sys.argv[1]}/documents"
builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)
for number in range(DOCUMENTS):
    builder.add_document(torch.full((LENGTH,), 1 + number), [LENGTH])
builder.finalize(f"{prefix}.idx")


def seen(samples):
    """Documents among the first 999 samples (an epoch less one), of so many samples in all."""
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=LENGTH,
        split="1,0,0",
        path_to_cache=f"{sys.argv[1]}/cache",
        tokenizer=SimpleNamespace(
            vocab_size=2000, eod=0, pad=1999, special_tokens_dict={}, unique_identifiers={}
        ),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
    )
    tokens = GPTDataset.build_low_level_dataset(prefix, config)
    documents = np.arange(DOCUMENTS, dtype=np.int32)
    dataset = GPTDataset(tokens, prefix, documents, samples, Split.train, config)
    first = [dataset[index]["tokens"] for index in range(DOCUMENTS - 1)]
    return len(torch.unique(torch.cat(first)))


for epochs, least, most in ((1, 999, 1000), (1.5, 999, 1000), (2, 720, 780), (8, 620, 690)):
    found = seen(int(epochs * DOCUMENTS) - 1)
    print(f"{epochs} epochs: {DOCUMENTS - 1} samples read {found} of {DOCUMENTS} documents")
    assert least <= found <= most, found
PYTHON
