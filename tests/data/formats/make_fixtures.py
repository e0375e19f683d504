"""Writes the small files of other tools beside this file, with the tools themselves.

By hand, where they are installed (megatron-core 0.16, mosaicml-streaming 0.13, datatrove 0.10,
TensorFlow 2.21):

    python tests/data/formats/make_fixtures.py [megatron datatrove mds examples]

`documents.json` holds what was written: lists of token ids.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
EOS, VOCAB = 7, 300


def documents() -> list[list[int]]:
    """Forty documents of 1 to 40 tokens, each with its end of document."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 40, 40)
    return [[*rng.integers(8, VOCAB, n).tolist(), EOS] for n in sizes]


def make_megatron() -> None:
    """One sequence a document in uint16; documents of several sequences, without EOS, in int32."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    for name, dtype, per_document, end in (
        ("one", np.uint16, 1, None),
        ("several", np.int32, 3, -1),
    ):
        builder = IndexedDatasetBuilder(str(HERE / f"megatron_{name}.bin"), dtype=dtype)
        for document in documents():
            ids = document[:end] or [9]
            for part in np.array_split(np.array(ids), per_document):
                builder.add_item(torch.tensor(part.astype(np.int64)))
            builder.end_document()
        builder.finalize(str(HERE / f"megatron_{name}.idx"))


def make_datatrove() -> None:
    """With an index and metadata."""
    from datatrove.pipeline.tokens.tokenizer import TokenizedFile

    file = TokenizedFile(
        str(HERE), "datatrove.ds", save_final_metadata=True, tokenizer_name_or_path="some/tokenizer"
    )
    for document in documents():
        file.write(document, None)
    file.close()


def make_mds() -> None:
    """Every encoding of token arrays; several shards; a compressed data set."""
    from streaming.base.format.mds.writer import MDSWriter

    cut = np.concatenate([np.array(d) for d in documents()])
    cut = cut[: len(cut) // 16 * 16].reshape(-1, 16)
    fixed = [{"tokens": c.astype(np.int32)} for c in cut]
    for name, columns, samples, options in (
        ("bytes", {"tokens": "bytes"}, [{"tokens": c.astype("<i8").tobytes()} for c in cut], {}),
        (
            "dynamic",
            {"id": "str", "input_ids": "ndarray:uint16", "n": "int"},
            [
                {"id": f"d{n}", "input_ids": np.array(d, np.uint16), "n": n}
                for n, d in enumerate(documents())
            ],
            {},
        ),
        (
            "fixed",
            {"tokens": "ndarray:int32:16"},
            fixed,
            {},
        ),
        ("any", {"tokens": "ndarray"}, [{"tokens": np.array(d)} for d in documents()], {}),
        (
            "zstd",
            {"tokens": "ndarray:uint16"},
            [{"tokens": np.array(d, np.uint16)} for d in documents()],
            {"compression": "zstd"},
        ),
    ):
        folder = HERE / f"mds_{name}"
        shutil.rmtree(folder, ignore_errors=True)
        with MDSWriter(out=str(folder), columns=columns, size_limit=1 << 11, **options) as out:
            for sample in samples:
                out.write(sample)


def make_examples() -> None:
    """Examples of TensorFlow in hexadecimal, with features besides the tokens."""
    import tensorflow as tf

    lines = []
    for n, document in enumerate(documents()):
        example = tf.train.Example()
        example.features.feature["input_ids"].int64_list.value.extend(document)
        example.features.feature["number"].int64_list.value.extend([n, -n, 1 << 40])
        example.features.feature["id"].bytes_list.value.append(b"a")
        example.features.feature["weight"].float_list.value.append(0.5)
        lines.append(example.SerializeToString().hex() + "\n")
    (HERE / "examples.hex").write_text("".join(lines))


if __name__ == "__main__":
    (HERE / "documents.json").write_text(json.dumps(documents()) + "\n")
    for make in (make_megatron, make_datatrove, make_mds, make_examples):
        if not sys.argv[1:] or make.__name__.removeprefix("make_") in sys.argv[1:]:
            make()
