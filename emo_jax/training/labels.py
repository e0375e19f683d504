"""Checks that a run has anything to learn from: labels that count in its loss.

The repetition filter masks whole windows (SPEC 5.5), which stay in the batch; on a corpus that it
masks entirely, only the router's losses would be trained. Labels are counted on the host, where
batches are made.
"""

import numpy as np

from emo_jax.batch import Batch
from emo_jax.config import Config
from emo_jax.errors import EmoError
from emo_jax.parallel import processes


class LabelWatch:
    """Looks at every batch of this process; with several processes, all call the same methods.

    Args:
      epoch: windows of the corpus.
      window: windows consumed when the run starts or resumes.
      resumes: the run has earlier steps.
    """

    def __init__(self, config: Config, *, epoch: int, window: int, resumes: bool):
        self._config, self._epoch, self._resumes = config, epoch, resumes
        self._window = self._since = window  # consumed; and from where no label was seen
        self._labels = False

    def see(self, batch: Batch) -> None:
        """Takes a batch on the host, in training order."""
        self._labels = self._labels or bool(np.any(batch.loss_mask))

    def check(self, window: int, *, last: bool) -> None:
        """Checks, at the end of an epoch and of the run, whether there was a label.

        Args:
          window: windows consumed so far.

        Raises:
          EmoError: a whole epoch, or the whole run, had none.
        """
        before, self._window = self._window, window
        if not last and before // self._epoch == window // self._epoch:
            return
        if any(processes.gather(self._labels)):
            self._labels, self._since, self._resumes = False, window, True
            return
        whole_epochs = window // self._epoch - -(-self._since // self._epoch)
        if whole_epochs < 1 and (self._resumes or not last):
            return
        data = self._config.data
        why = "all of them are masked"
        if data.repetition_filter:
            why = (
                "the repetition filter masks every window (a pattern of 1 to 13 tokens, 32 times in"
                " a row); give other documents, or --config.data.repetition_filter=False"
            )
        raise EmoError(
            f"{', '.join(data.stores[:3])}: not one label in {window - self._since} windows,"
            f" so there is nothing to learn: {why}"
        )
