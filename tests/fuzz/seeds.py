"""Small valid files of every kind that emo_jax reads, made by emo_jax itself."""

import dataclasses
import gzip
import io
import json
import shutil
import socket
import tarfile
from pathlib import Path

import datasets
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from array_record.python.array_record_module import ArrayRecordWriter

from emo_jax.analysis.activations import model_facts, record
from emo_jax.analysis.sample import sample_documents
from emo_jax.config import Config
from emo_jax.data.found_ends import FoundEnds
from emo_jax.data.pairs import pack_pairs, read_pairs, write_pairs
from emo_jax.data.store import TokenStore
from emo_jax.data.windows import Windows
from emo_jax.files.trees import flatten
from emo_jax.hf import export_model
from emo_jax.hf.sources import TreeSource
from emo_jax.model.functions import ModelFunctions
from emo_jax.modules.folder import write_selected
from emo_jax.preparation.prepare import prepare
from emo_jax.run.run_info import append_run_info, describe_run
from emo_jax.saved.selection_file import Selection, fingerprint
from emo_jax.saved.transfer import import_
from emo_jax.tokenizer.load import byte_tokenizer, load_tokenizer, train_bpe

WORDS = {"cooking": "flour butter salt oven", "law": "court judge statute appeal"}


def records(number: int = 24) -> list[dict]:
    """Documents with every field that is read."""
    made = []
    for n in range(number):
        domain = list(WORDS)[n % 2]
        text = " ".join((WORDS[domain].split() * 5)[: 4 + n])
        made.append({"text": text, "id": f"doc-{n}", "domain": domain, "language": "en"})
    return made


def _lines(values: list) -> bytes:
    return "".join(json.dumps(v, ensure_ascii=False) + "\n" for v in values).encode()


def make_documents(folder: Path) -> None:
    """JSONL plain and packed, Parquet, texts, pairs, prompts, headerless tokens."""
    lines = _lines(records())
    for name, content in {
        "jsonl/a.jsonl": lines,
        "packed/a.jsonl.gz": gzip.compress(lines),
        "packed/b.jsonl.zst": zstandard.ZstdCompressor().compress(lines),
        "texts/law/a.txt": b"court judge\nstatute",
        "texts/cooking/b.md": "# flour\n\nbutter é".encode(),
        "pairs/pairs.jsonl": _lines([{"prompt": f"q{n} ", "answer": "a é"} for n in range(9)]),
        "prompts/a.jsonl": _lines([{"prompt": f"the court {n}"} for n in range(4)]),
        "prompts/b.txt": "the court\nflour é\n".encode(),
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "parquet").mkdir()
    pq.write_table(pa.Table.from_pylist(records()), folder / "parquet/a.parquet")
    make_tables(folder)
    make_archives(folder)
    (folder / "raw").mkdir()
    np.arange(300, dtype="<u2").tofile(folder / "raw/a.npy")
    make_token_files(folder)
    (folder / "npz").mkdir()
    tokenizer = byte_tokenizer()
    packed = pack_pairs(list(read_pairs(folder / "pairs/pairs.jsonl")), tokenizer, 16)
    write_pairs(folder / "npz/data.pairs.npz", packed, tokenizer)


def found_ends(folder: Path) -> FoundEnds:
    """Ends that are kept in a folder, or found: three pages of them."""
    return FoundEnds("a", 1, lambda: iter([np.arange(1, 10_001) * 3]), folder)


def make_caches(folder: Path) -> None:
    """What is kept between runs: where documents end, how they fill windows."""
    found_ends(folder / "ends")
    shutil.copytree(folder / "store", folder / "packing/store")
    source = TokenStore.open(folder / "packing/store")
    Windows(source, 16, packing="best_fit", cache=folder / "packing/index")
    (folder / "drop").mkdir()
    shutil.copy(folder / "jsonl/a.jsonl", folder / "drop")
    (folder / "drop/ids.txt").write_text("doc-1\ndoc-5\n\nnone\n")
    (folder / "message").mkdir()
    hello = {"hello": 1, "host": "a", "pid": 5, "alive": True}
    (folder / "message/message.json").write_bytes(_lines([hello, {"facts": {"a": [1, "b"]}}]))


def make_tables(folder: Path) -> None:
    """An Arrow stream, an Arrow file with lists, a folder of save_to_disk."""
    (folder / "arrow").mkdir()
    made = pa.Table.from_pylist(records())
    lists = made.set_column(0, "text", pa.array([[t, None] for t in made["text"].to_pylist()]))
    packed = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(folder / "arrow/a.arrow", made.schema) as writer:
        writer.write_table(made, 10)
    for name, options in (("b", None), ("c", packed)):
        with pa.ipc.new_file(folder / f"arrow/{name}.arrow", lists.schema, options=options) as file:
            file.write_table(lists, 10)
    datasets.Dataset.from_list(records()).save_to_disk(folder / "saved", num_shards=2)


def make_archives(folder: Path) -> None:
    """A tar archive with samples, long names and texts; the same packed."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for n, record in enumerate(records(12)):
            about = json.dumps({k: v for k, v in record.items() if k != "text"})
            name = f"{'long/' * 30 * (n == 5)}{n:04}"
            for suffix, held in ((".txt", record["text"]), (".json", about), (".jpg", "")):
                header = tarfile.TarInfo(name + suffix)
                header.size = len(held)
                tar.addfile(header, io.BytesIO(held.encode()))
    for name, packed in {
        "tar/a.tar": content.getvalue(),
        "packed_tar/a.tar.gz": gzip.compress(content.getvalue()),
        "packed_tar/b.tar.zst": zstandard.compress(content.getvalue()),
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(packed)


def make_token_files(folder: Path) -> None:
    """Token files of other tools: theirs, but for a mix file and ArrayRecord."""
    formats = Path(__file__).parents[1] / "data/formats"
    for name in ("megatron_several", "datatrove"):
        to = folder / name.partition("_")[0]
        to.mkdir()
        for file in formats.glob(f"{name}.*"):
            shutil.copy(file, to)
    shutil.copytree(formats / "mds_dynamic", folder / "mds")
    (folder / "mix/t").mkdir(parents=True)
    for name in ("a", "b"):
        np.arange(200, dtype="<u2").tofile(folder / f"mix/t/{name}.npy")
    (folder / "mix/mix.txt").write_text("# a mix\nweb,{TOKENIZER}/a.npy\n\ncode,t/b.npy\n")
    (folder / "array_record").mkdir()
    writer = ArrayRecordWriter(str(folder / "array_record/a.array_record"), "group_size:1")
    for line in (formats / "examples.hex").read_text().split():
        writer.write(bytes.fromhex(line))
    writer.close()


def make_tokenizers(folder: Path) -> None:
    """A tokenizer.json with its settings, a SentencePiece model, kept vocabularies."""
    from real_text import train_sentencepiece

    texts = [r["text"] for r in records()]
    train_bpe(texts, 300).save(folder / "tokenizer")
    (folder / "spm").mkdir()
    file = train_sentencepiece(folder / "spm/tokenizer.model", vocab_size=400)
    added = {"<extra>": 400}
    (folder / "spm/added_tokens.json").write_text(json.dumps(added))
    settings = {"eos_token": {"content": "</s>"}, "added_tokens_decoder": {}}
    (folder / "spm/tokenizer_config.json").write_text(json.dumps(settings))
    load_tokenizer(f"sentencepiece:{file}").save(folder / "vocabulary")


def make_store(folder: Path) -> None:
    """A token store of bytes."""
    source = folder / "jsonl/a.jsonl"
    prepare([source], folder / "store", byte_tokenizer(), fractions=(0.6, 0.2, 0.2))


def config_of_seeds() -> Config:
    """A model for the bytes of the store."""
    from tiny import NO_POOL, tiny_config

    config = tiny_config(pool=NO_POOL, vocab_size=259)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, seq_len=16))


def make_models(folder: Path) -> None:
    """A Hugging Face folder, a module of it, a run that began from it, activations."""
    config, store = config_of_seeds(), TokenStore.open(folder / "store")
    params = jax.tree.map(np.asarray, jax.jit(ModelFunctions(config).init, static_argnums=0)(3))
    source, tokenizer = TreeSource(flatten(params)), folder / "store/tokenizer"
    shards = {"max_shard_bytes": 50_000}
    export_model(params, config, folder / "hf", tokenizer_dir=tokenizer, **shards)
    pairs = load_tokenizer(folder / "tokenizer")
    model = dataclasses.replace(config.model, vocab_size=pairs.vocab_size)
    wider = dataclasses.replace(config, model=model)
    weights = jax.tree.map(np.asarray, jax.jit(ModelFunctions(wider).init, static_argnums=0)(3))
    export_model(weights, wider, folder / "gguf", tokenizer_dir=folder / "tokenizer")
    kept_LR = np.zeros((2, 7), bool)
    kept_LR[0, [0, 2, 4]] = kept_LR[1, [1, 5, 6]] = True
    selection = Selection(
        parent={"name": "tiny", "path": "hf", "step": None},
        parent_fingerprint=fingerprint(source, config),
        num_routed=7,
        top_k=config.moe.top_k,
        kept=((0, 2, 4), (1, 5, 6)),
        about={"method": "global"},
        scores=((0.5, 0.25, 0.125, 0.1, 0.1, 0.1, 0.1),) * 2,
    )
    write_selected(source, config, kept_LR, folder / "module", selection, tokenizer_dir=tokenizer)
    import_(folder / "hf", folder / "run")
    _log(folder / "run", config)
    model = ModelFunctions(config, _mesh())
    sample = sample_documents(store, "train", tokens=200, min_length=8, max_length=64)
    record(
        model,
        jax.device_put(params, model.param_shardings()),
        sample,
        folder / "activations",
        model_facts(config, "tiny", "hf", None),
    )


def _mesh():
    from emo_jax.config import MeshConfig
    from emo_jax.parallel.mesh import make_mesh

    return make_mesh(MeshConfig(), jax.devices()[:1])


def _log(run: Path, config: Config) -> None:
    """What training leaves in a workdir, beside checkpoints."""
    values = {
        "loss": 5.5,
        "ce_loss": 5.25,
        "lm_z_loss": 0.01,
        "grad_norm": 1.5,
        "learning_rate": 1e-3,
        "router_aux_loss": 1.0,
        "load_balance_loss_by_layer": [1.0, 1.1],
        "tokens_per_second": 100.0,
    }
    losses = {"heldout_loss": 5.0, "heldout_loss/law": 5.1, "heldout_loss/cooking (keep=4)": 6.0}
    logged = [{"step": n, **values, **(losses if n % 2 else {})} for n in range(1, 7)]
    (run / "metrics.jsonl").write_bytes(_lines(logged))
    for step in (0, 3):
        append_run_info(describe_run(run, config, step, fingerprint="0" * 64))
    seconds = {"startup": 2.0, "compile": 5.0, "steps": 30.0, "save_stall": 0.5}
    mark = {"start": 0, "first": 0, "step": 5, "time": 1.8e9, "seconds": seconds}
    again = {"start": 1, "first": 3, "time": 1.8e9 + 90}
    (run / "goodput.jsonl").write_bytes(_lines([mark | {"step": 3}, mark, mark | again]))
    beat = mark | again | {"step": 6, "outcome": "running", "cause": "steps", "since_step": 0.5}
    (run / "heartbeat.json").write_text(json.dumps(beat | {"seconds": seconds | {"other": 1.0}}))
    lock = {"host": socket.gethostname(), "pid": 1, "begun": 1}
    (run / ".lock").write_text(json.dumps(lock))
    began = {"workdir": "/runs/a", "name": "a", "step": 3, "mode": "weights"}
    began["config_sha256"] = "0" * 64
    (run / "init.json").write_text(json.dumps(began))
    (run / "finetune.json").write_text(json.dumps({"model": "0" * 64, "data": "1" * 64, "seed": 0}))
    place = {"wandb": {"place": "project", "run_id": "abc"}}
    (run / "tracking.json").write_text(json.dumps(place))


def make_seeds(folder: Path) -> Path:
    """All of them."""
    folder.mkdir(parents=True, exist_ok=True)
    make_documents(folder)
    make_tokenizers(folder)
    make_store(folder)
    make_caches(folder)
    make_models(folder)
    (folder / "overrides").mkdir()
    overrides = ["model.num_layers=3", "optimizer.peak_lr=0.001", "train.eval_keep=(16,8)"]
    overrides += ["moe.pool.kind=uniform", "data.store=store", "init.expected_changes=data"]
    text = "".join(f"--config.{line}\n" for line in overrides)
    (folder / "overrides/overrides.txt").write_text(text)
    return folder
