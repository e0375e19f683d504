"""MaxText's grain loader of OLMo's token files (`dataset_type=olmo_grain`), without the devices.

A batch is inputs, targets, positions and two segmentations, int32, with or without the repetition
filter; its segmentations are one segment a window: documents are not told apart, no domains.
"""

from functools import partial

from maxtext.input_pipeline import olmo_data, olmo_data_grain

import corpus
import measure


def batches(job: measure.Job, *, workers: int, filtered: bool):
    index = olmo_data.build_index(
        [(str(job.tokens), "corpus")],
        job.seq_len,
        tokenizer="ids",
        header_reader=partial(
            olmo_data.read_raw_metadata_from_path, dtype=corpus.DTYPE.newbyteorder("=").name
        ),
    )
    return iter(
        olmo_data_grain.make_olmo_grain_data_loader(
            index,
            seed=measure.SEED,
            batch_size=job.batch,
            shard_index=0,
            shard_count=1,
            apply_ngram_filter=filtered,
            grain_worker_count=workers,
        )
    )


if __name__ == "__main__":
    from absl import flags

    flags.FLAGS(["maxtext"])  # grain's workers ask for them
    measure.main(
        "MaxText olmo_grain",
        ("maxtext", "grain"),
        {
            f"{kind}, workers {n}": measure.Way(
                partial(batches, workers=n, filtered=kind == "filter"),
                "tokens, labels, mask, positions" + (", filter" if kind == "filter" else ""),
                lambda job: [job.tokens],
            )
            for kind in ("plain", "filter")
            for n in (0, 1, 2)
        },
        field="inputs",
    )
