"""`emo train` with bad batches: every window that a run gets is its own, whatever step reads it."""

import json
import sys
from pathlib import Path

_BAD = """
import json, os, signal, sys, time
from emo_jax.cli import main
from emo_jax.training.loop import Trainer

kind, bad, die, reads = (sys.argv.pop(1) for _ in range(4))
bad = json.loads(bad)
batches = Trainer._batches

def poisoned(self, window, *watched):
    size = self.config.train.batch_size
    for consumed, batch in batches(self, window, *watched):
        first = consumed - size
        if str(first) == die:
            saves = self.workdir / "checkpoints"
            while any(not (p / "manifest.json").exists() for p in saves.glob("[0-9]*")):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        with open(reads, "a") as file:
            file.write(f"{first}\\n")
        if first in bad and kind == "nan":
            batch = batch._replace(loss_mask=batch.loss_mask.at[1, 2].set(float("nan")))
        elif first in bad:
            batch = batch._replace(labels=batch.labels * 0 + 255, tokens=batch.tokens * 0 + 254)
        yield consumed, batch

Trainer._batches = poisoned
main()
"""


def command(
    argv: list, kind: str, bad: list[int], *, die: str | int = "-", reads: Path
) -> list[str]:
    """A command line.

    Args:
      argv: as of `emo`.
      kind: what is bad: "nan", or else a batch that the model has never seen the like of.
      bad: first windows of the bad batches.
      die: the process kills itself when it takes the batch that begins there, once what it saves
        by then is saved.
      reads: file that gets the first window of each batch.
    """
    return [
        *(sys.executable, "-c", _BAD, kind, json.dumps(bad), str(die), str(reads)),
        *map(str, argv),
    ]
