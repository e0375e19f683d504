"""OLMo-core's NumpyFSLDataset and its data loader, over the headerless file.

A batch is the tokens as int64; with "filter", also whether each row passes the repetition filter
and the lengths of its documents, as OLMo's own runs ask for. No labels, masks or domains of tokens.
"""

import logging
import shutil
from functools import partial

import corpus
import measure
from olmo_core.data import (
    NumpyDataLoaderConfig,
    NumpyDatasetDType,
    NumpyFSLDatasetConfig,
    TokenizerConfig,
)
from olmo_core.data.numpy_dataset import InstanceFilterConfig

LENGTHS = f"{measure.TOKENS}, document lengths{measure.FILTER}"


def batches(job: measure.Job, *, workers: int, threads: int | None, filtered: bool):
    work = job.made("olmo_core")
    shutil.rmtree(work, ignore_errors=True)  # orders of earlier runs
    dataset = NumpyFSLDatasetConfig(
        paths=[str(job.tokens)],
        sequence_length=job.seq_len,
        tokenizer=TokenizerConfig(
            vocab_size=corpus.VOCAB_SIZE, eos_token_id=corpus.EOS, pad_token_id=corpus.PAD
        ),
        dtype=NumpyDatasetDType.uint32,
        generate_doc_lengths=filtered,
        include_instance_metadata=False,
        instance_filter_config=InstanceFilterConfig() if filtered else None,
        work_dir=str(work),
    ).build()
    loader = NumpyDataLoaderConfig(
        global_batch_size=job.batch * job.seq_len,
        seed=measure.SEED,
        num_workers=workers,
        num_threads=threads,
        target_device_type="cpu",
        work_dir=str(work),
    ).build(dataset)

    def epoch(number: int):
        loader.reshuffle(epoch=number + 1)
        yield from loader
        loader.reset()

    return measure.endless(epoch)


if __name__ == "__main__":
    logging.disable(logging.INFO)
    measure.main(
        "OLMo-core NumpyFSLDataset",
        ("ai2-olmo-core", "torch"),
        {
            f"{kind}, {how}": measure.Way(
                partial(batches, workers=workers, threads=threads, filtered=kind == "filter"),
                measure.TOKENS
                + (", document lengths" + measure.FILTER if kind == "filter" else ""),
                lambda job: [job.tokens],
            )
            for kind in ("plain", "filter")
            for how, workers, threads in (
                ("its own threads", 0, None),
                ("no threads", 0, 0),
                ("workers 1", 1, None),
                ("workers 2", 2, None),
            )
        },
        field="input_ids",
    )
