"""What a run shows: a bar on a terminal, plain lines in a log."""

import sys
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class TrainProgress:
    """Shows the steps done and the last losses."""

    def __init__(self, name: str, *, total: int, done: int, enabled: bool = True):
        self._name, self._total, self._enabled = name, total, enabled
        self._bar: Progress | None = None
        if enabled and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[values]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(name, total=total, completed=done, values="")
            self._bar.start()

    def step(self, step: int) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def record(self, record: dict[str, Any]) -> None:
        """Shows the losses of a logged step."""
        parts = [f"loss {record['ce_loss']:.4f}", f"grad norm {record['grad_norm']:.3f}"]
        if "ce_loss_per_label" in record:
            parts[0] += f" ({record['ce_loss_per_label']:.4f} a label)"
        if record["masked_labels"]:
            parts.append(f"{100 * record['masked_labels']:.1f} % of labels masked")
        if record.get("tokens_per_second"):
            parts.append(f"{record['tokens_per_second']:,.0f} tokens/s")
        if record.get("mfu") is not None:
            parts.append(f"MFU {100 * record['mfu']:.1f} %")
        text = ", ".join(parts)
        if self._bar is not None:
            self._bar.update(self._task, values=text)
        else:
            self.line(
                f"step {record['step']}/{self._total}: {text}, lr {record['learning_rate']:.2e}"
            )

    def line(self, text: str) -> None:
        """Shows a line of its own."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.console.print(f"{self._name}: {text}", highlight=False)
        else:
            print(f"{self._name}: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Restores the terminal."""
        if self._bar is not None:
            self._bar.stop()
