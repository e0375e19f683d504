"""torch's DataLoader over a memory-mapped file of tokens: the usual few lines.

A batch is the tokens alone, as int32; no labels, no documents, no filter. "gathered" fetches the
windows of a batch at once (`__getitems__`), which few scripts do.
"""

from functools import partial

import numpy as np
import torch

import corpus
import measure


class Windows(torch.utils.data.Dataset):
    """Window i covers tokens [i·S, (i+1)·S)."""

    def __init__(self, job: measure.Job):
        flat = np.memmap(job.tokens, corpus.DTYPE, "r")
        self.S = job.seq_len
        self.flat, self.count = flat, flat.size // self.S

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        window = self.flat[i * self.S : (i + 1) * self.S]
        return {"tokens": torch.from_numpy(window.astype(np.int32))}


class Gathered(Windows):
    """The same, a batch at a time."""

    def __init__(self, job: measure.Job):
        super().__init__(job)
        self.windows = self.flat[: self.count * self.S].reshape(-1, self.S)

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        return {"tokens": torch.from_numpy(self.windows[indices].astype(np.int32))}


def same(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return batch


def batches(job: measure.Job, *, workers: int, gathered: bool):
    torch.manual_seed(measure.SEED)
    loader = torch.utils.data.DataLoader(
        Gathered(job) if gathered else Windows(job),
        batch_size=job.batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        collate_fn=same if gathered else None,
    )
    return measure.endless(lambda epoch: iter(loader))


if __name__ == "__main__":
    measure.main(
        "torch DataLoader over a memmap",
        ("torch",),
        {
            f"{kind}, workers {n}": measure.Way(
                partial(batches, workers=n, gathered=kind == "gathered"),
                "tokens",
                lambda job: [job.tokens],
            )
            for kind in ("by window", "gathered")
            for n in (0, 1, 2)
        },
    )
