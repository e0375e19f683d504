"""torch's DataLoader over a memory-mapped file of tokens: the usual few lines.

A batch is the tokens alone, as int32; with "documents", also labels, loss mask, positions and
document numbers, made in NumPy window by window. No domains, no filter. "gathered" fetches the
windows of a batch at once (`__getitems__`), which few scripts do.
"""

from functools import partial

import corpus
import measure
import numpy as np
import torch


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


class Documents(Windows):
    """Windows with what a model of packed documents needs."""

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        tokens = self.flat[i * self.S : (i + 1) * self.S].astype(np.int32)
        labels = np.append(tokens[1:], np.int32(0))
        mask = np.ones(self.S, np.float32)
        mask[-1] = 0
        segments = np.zeros(self.S, np.int32)
        np.cumsum(tokens[:-1] == corpus.EOS, dtype=np.int32, out=segments[1:])
        fields = {
            "tokens": tokens,
            "labels": labels,
            "loss_mask": mask,
            "segment_ids": segments,
            "positions": np.arange(self.S, dtype=np.int32),
        }
        return {name: torch.from_numpy(values) for name, values in fields.items()}


KINDS = {"by window": Windows, "gathered": Gathered, "documents": Documents}


def same(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return batch


def batches(job: measure.Job, *, workers: int, kind: str):
    torch.manual_seed(measure.SEED)
    loader = torch.utils.data.DataLoader(
        KINDS[kind](job),
        batch_size=job.batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        collate_fn=same if kind == "gathered" else None,
    )
    return measure.endless(lambda epoch: iter(loader))


if __name__ == "__main__":
    measure.main(
        "torch DataLoader over a memmap",
        ("torch",),
        {
            f"{kind}, workers {n}": measure.Way(
                partial(batches, workers=n, kind=kind),
                measure.WITH_DOCUMENTS if kind == "documents" else measure.TOKENS,
                lambda job: [job.tokens],
            )
            for kind in KINDS
            for n in (0, 1, 2)
        },
    )
