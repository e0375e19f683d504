"""One of the processes that go on with several runs in turn; for test_meshes_of_processes.py.

python trainer.py WORKDIR[,WORKDIR…] --config FILE [--config.field=value …]
"""

import sys

from emo_jax.config.file import load_config
from emo_jax.parallel.processes import joined
from emo_jax.training import loop

if __name__ == "__main__":
    import os

    # One program for all runs: they have one config, and compiling takes longer than training.
    step = None
    jit = loop.jit_train_step

    def jit_once(*args):
        global step
        step = step or jit(*args)
        return step

    loop.jit_train_step = jit_once
    workdirs, _, file, *overrides = sys.argv[1:]
    config = load_config(file, overrides)
    with joined(
        int(os.environ["EMO_PROCESSES"]),
        int(os.environ["EMO_PROCESS_INDEX"]),
        os.environ["EMO_COORDINATOR"],
    ):
        for workdir in workdirs.split(","):
            loop.Trainer(config, workdir, quiet=True).run()
