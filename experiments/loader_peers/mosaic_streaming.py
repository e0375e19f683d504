"""MosaicML streaming: a StreamingDataset over local MDS shards of token arrays, shuffled.

A sample is one window, stored as such (another S is another data set), as int32; tokens alone.
"""

from functools import partial

import corpus
import measure
import numpy as np
import streaming
import torch
from streaming.base.util import clean_stale_shared_memory


def folder(job: measure.Job):
    return job.made(f"mds{job.seq_len}")


def prepare(job: measure.Job) -> None:
    if (folder(job) / "index.json").exists():
        return
    flat, S = np.memmap(job.tokens, corpus.DTYPE, "r"), job.seq_len
    columns = {"tokens": f"ndarray:int32:{S}"}
    with streaming.MDSWriter(out=str(folder(job)), columns=columns) as out:
        for i in range(flat.size // S):
            out.write({"tokens": flat[i * S : (i + 1) * S].astype(np.int32)})


def batches(job: measure.Job, *, workers: int):
    clean_stale_shared_memory()  # of a run that was stopped
    dataset = streaming.StreamingDataset(
        local=str(folder(job)), shuffle=True, shuffle_seed=measure.SEED, batch_size=job.batch
    )
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=job.batch, drop_last=True, num_workers=workers
    )
    return measure.endless(lambda epoch: iter(loader))


if __name__ == "__main__":
    measure.main(
        "MosaicML StreamingDataset",
        ("mosaicml-streaming", "torch"),
        {
            f"workers {n}": measure.Way(
                partial(batches, workers=n), measure.TOKENS, lambda job: [folder(job)]
            )
            for n in (0, 1, 2)
        },
        prepare=prepare,
    )
