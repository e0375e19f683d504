"""MaxText's two grain loaders of token files, up to where arrays go to the devices.

"plain" and "filter" are `dataset_type=olmo_grain`, over OLMo's headerless files: inputs, targets,
positions and two segmentations that say nothing but what counts. "documents" is `dataset_type=grain
grain_file_type=mmap`, over a Megatron data set (`megatron_core.py` makes it) with MaxText's default
settings: segmentations and positions by document. No domains; the second has no filter.
"""

from functools import partial
from types import SimpleNamespace

import corpus
import measure
from maxtext.input_pipeline import grain_data_processing, olmo_data, olmo_data_grain
from maxtext.input_pipeline._mmap_datasource import MMapDatasetConfig

THREADS, BUFFER = 16, 500  # MaxText's defaults


def olmo(job: measure.Job, *, workers: int, filtered: bool):
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


def documents(job: measure.Job, *, workers: int):
    settings = SimpleNamespace(
        grain_file_type="mmap",
        mmap_eod_id=corpus.EOS,
        reset_attention_mask=True,
        eod_mask_loss=False,
        max_target_length=job.seq_len,
        packing_max_segments_per_sample=-1,
        global_batch_size_to_load=job.batch,
        elastic_enabled=False,
        expansion_factor_real_data=-1,
    )
    windows = grain_data_processing.get_datasets(
        str(job.made("megatron") / "corpus"),
        "mmap",
        shuffle=True,
        shuffle_seed=measure.SEED,
        shuffle_buffer_size=0,
        num_epoch=None,
        dataloading_host_index=0,
        dataloading_host_count=1,
        grain_worker_count=workers,
        grain_num_threads=THREADS,
        grain_prefetch_buffer_size=BUFFER,
        grain_data_source_max_workers=1,
        dataset_config=MMapDatasetConfig(job.seq_len, corpus.EOS, mmap_split_sentences=False),
    )
    return iter(
        grain_data_processing.pretrain_preprocessing_pipeline(
            windows, settings, ("text",), False, workers, 1
        )
    )


if __name__ == "__main__":
    from absl import flags

    flags.FLAGS(["maxtext"])  # grain's workers ask for them
    ways = {
        f"{kind}, workers {n}": measure.Way(
            partial(olmo, workers=n, filtered=kind == "filter"),
            measure.WITH_LABELS + (measure.FILTER if kind == "filter" else ""),
            lambda job: [job.tokens],
        )
        for kind in ("plain", "filter")
        for n in (0, 1, 2)
    }
    for n in (0, 1, 2):
        ways[f"documents, workers {n}"] = measure.Way(
            partial(documents, workers=n),
            measure.WITH_DOCUMENTS,
            lambda job: [job.made("megatron")],
        )
    measure.main("MaxText", ("maxtext", "grain"), ways, field="inputs")
