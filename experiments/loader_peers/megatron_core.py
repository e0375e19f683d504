"""Megatron-core's GPTDataset, with its C++ helpers, under torch's DataLoader.

A sample is S tokens of documents in shuffled order, with labels, a loss mask that masks nothing
here, and positions; no document numbers (`reset_attention_mask` gives a (S,S) mask instead), no
domains, no filter. The dataset shuffles, so the sampler counts.
"""

from functools import partial
from types import SimpleNamespace

import corpus
import measure
import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder


def prefix(job: measure.Job) -> str:
    return str(job.made("megatron") / "corpus")


def prepare(job: measure.Job) -> None:
    folder = job.made("megatron")
    if (folder / "corpus.idx").exists():
        return
    folder.mkdir(exist_ok=True)
    dtype = DType.optimal_dtype(corpus.VOCAB_SIZE)
    builder = IndexedDatasetBuilder(f"{prefix(job)}.bin", dtype=dtype)
    for document in corpus.documents(job.folder / "corpus"):
        builder.add_document(np.asarray(document), [document.size])
    builder.finalize(f"{prefix(job)}.idx")


def batches(job: measure.Job, *, workers: int):
    # Ids of its own: it uses no tokenizer, only these two numbers and a name for its cache.
    tokenizer = SimpleNamespace(
        vocab_size=corpus.VOCAB_SIZE,
        eod=corpus.EOS,
        pad=corpus.PAD,
        unique_identifiers={"class": "ids"},
    )
    config = GPTDatasetConfig(
        random_seed=measure.SEED,
        sequence_length=job.seq_len,
        blend=([prefix(job)], None),
        split="1,0,0",
        path_to_cache=str(job.made("megatron") / "cache"),
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    total = corpus.facts(job.folder / "corpus")["tokens"] // job.seq_len - 1
    built = BlendedMegatronDatasetBuilder(GPTDataset, [total, 0, 0], lambda: True, config)
    dataset = built.build()[0]
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=job.batch, drop_last=True, num_workers=workers
    )
    return measure.endless(lambda epoch: iter(loader))


if __name__ == "__main__":
    measure.main(
        "Megatron-core GPTDataset",
        ("megatron-core", "torch"),
        {
            f"workers {n}": measure.Way(
                partial(batches, workers=n),
                measure.WITH_LABELS,
                lambda job: [job.made("megatron")],
            )
            for n in (0, 1, 2)
        },
        prepare=prepare,
        whole_windows=False,  # its windows are of documents in its own order
    )
