"""Every reader of files: what it reads, how that is made malformed, and reading it to the end."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import socket
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mutate
import numpy as np

Mutator = Callable[[random.Random, bytes], bytes]
TEXTS = ["the court, 12 é 🎉 </s>", "", "a\0b\n\n  c"]


class Reader(NamedTuple):
    """A reader.

    Attributes:
      folder: of the seeds, copied for every input.
      files: patterns of the files in it that are changed, and how.
      use: reads the copy, and uses all of what it gives; the second folder is for what it writes.
      seal: writes the checksums anew after a file was changed, so that what lies behind is reached.
    """

    folder: str
    files: dict[str, Mutator]
    use: Callable[[Path, Path], Any]
    seal: Callable[[Path, Path], None] | None = None


# --- data -----------------------------------------------------------------------------------------


def _documents(folder: Path, out: Path) -> None:
    from emo_jax.preparation.prepare import prepare
    from emo_jax.tokenizer.load import byte_tokenizer

    prepare([folder], out / "store", byte_tokenizer())


def _pairs(folder: Path, out: Path) -> None:
    from emo_jax.data.pairs import pack_pairs, read_pairs, write_pairs
    from emo_jax.tokenizer.load import byte_tokenizer

    packed = pack_pairs(list(read_pairs(folder / "pairs.jsonl")), byte_tokenizer(), 16)
    write_pairs(out / "data.pairs.npz", packed, byte_tokenizer())
    packed.refuse_unusable("pairs.jsonl")


def _prompts(folder: Path, out: Path) -> None:
    from emo_jax.documents.prompts import read_prompts
    from emo_jax.tokenizer.load import byte_tokenizer

    for file in sorted(folder.iterdir()):
        byte_tokenizer().encode_batch(read_prompts(file))


def _use_tokenizer(tokenizer: Any, out: Path) -> None:
    from emo_jax.evals.text_bytes import token_bytes
    from emo_jax.tokenizer.load import load_tokenizer

    tokenizer.ready()
    for ids in tokenizer.encode_batch(TEXTS):
        tokenizer.decode(ids)
    tokenizer.decode([0, 1, 5, tokenizer.eos_id, tokenizer.pad_id], skip_special=False)
    token_bytes(tokenizer)
    tokenizer.save(out / "saved")
    assert load_tokenizer(out / "saved").fingerprint == tokenizer.fingerprint


def _tokenizer(folder: Path, out: Path) -> None:
    from emo_jax.tokenizer.load import load_tokenizer

    _use_tokenizer(load_tokenizer(folder), out)


def _windows(source: Any) -> None:
    from emo_jax.data.windows import Windows

    windows = Windows(source, 16)
    for n in (0, len(windows) // 2, len(windows) - 1):
        batch = windows[n]
        assert batch.tokens.shape == (16,) and batch.tokens.min() >= 0
        # What is an index into something must be inside of it.
        assert batch.tokens.max() < source.vocab_size
        assert -1 <= batch.domain_ids.min() <= batch.domain_ids.max() < max(1, len(source.domains))


def _store(folder: Path, out: Path) -> None:
    from emo_jax.data.store import TokenStore

    store = TokenStore.open(folder)
    _use_tokenizer(store.tokenizer(), out)
    for split in store.splits:
        for name in store.named_domains:
            store.count(split, "tokens", name)
        for document in store.documents(split, 0, 50):
            assert 0 <= document.domain_id < len(store.domains)
    _windows(store)


def _open_source(folder: Path, out: Path) -> None:
    from emo_jax.config import DataConfig
    from emo_jax.data.windows import open_source

    config = DataConfig(raw_vocab_size=300, raw_eos_id=7, raw_pad_id=7)
    for file in sorted(folder.iterdir()):
        source = open_source(file, config)
        source.streams("train")
        _windows(source)


def _token_files(name: str) -> Callable[[Path, Path], None]:
    """Opens the token files that `name` stands for in a folder, and asks for their documents."""

    def use(folder: Path, out: Path) -> None:
        from emo_jax.config import DataConfig
        from emo_jax.data.windows import open_source

        config = DataConfig(raw_vocab_size=300, raw_eos_id=7, raw_tokenizer="t")
        source = open_source(f"{folder}{name}", config, cache=out / "index")
        _windows(source)
        for stream in source.streams("train"):
            ends = stream.document_ends(0, stream.num_documents)
            assert (np.diff(ends) >= 0).all() and ends[-1] == stream.num_tokens
            assert 0 <= stream.document_at(stream.num_tokens - 1) < stream.num_documents

    return use


def _dropped(folder: Path, out: Path) -> None:
    from emo_jax.preparation.prepare import prepare
    from emo_jax.tokenizer.load import byte_tokenizer

    ids = folder / "ids.txt"
    prepare([folder / "a.jsonl"], out / "store", byte_tokenizer(), drop_ids=ids)


def _ends(folder: Path, out: Path) -> None:
    from seeds import found_ends

    found = found_ends(folder)
    ends = found.read(0, found.num)
    assert (np.diff(ends) >= 0).all() and ends[-1] == found.last
    assert 0 <= found.at(found.last // 2) < found.num


def _packed(folder: Path, out: Path) -> None:
    from emo_jax.data.store import TokenStore
    from emo_jax.data.windows import Windows

    source = TokenStore.open(folder / "store")
    windows = Windows(source, 16, packing="best_fit", cache=folder / "index")
    assert len(windows) <= source.streams("train")[0].num_tokens
    read = windows.read(np.unique(np.linspace(0, len(windows) - 1, 8).astype(int)))
    assert (read.segment_ids.max(axis=1) >= 0).all()  # no window is padding alone


# --- models and runs ------------------------------------------------------------------------------


def _leaves(tree: Any) -> None:
    import jax

    for leaf in jax.tree.leaves(tree):
        assert np.asarray(leaf).size >= 0


def _run(folder: Path, out: Path) -> None:
    from emo_jax.checkpoint.checkpointer import Checkpointer
    from emo_jax.saved.load import load_model, open_model
    from emo_jax.saved.transfer import export

    found = load_model(str(folder))
    _leaves(found.params)
    opened = open_model(str(folder))
    opened.source.read("embed/embedding", (slice(0, 4), slice(0, 4)))
    with Checkpointer(folder, found.config.checkpoint) as checkpointer:
        for step in checkpointer.steps():
            checkpointer.read_extra(step)
            checkpointer.items(step)
    export(folder, out / "hf")


def _log(folder: Path, out: Path) -> None:
    from emo_jax.report.page import write_report
    from emo_jax.report.run import read_run
    from emo_jax.run.goodput import keep_heartbeat
    from emo_jax.run.metrics_file import MetricsFile
    from emo_jax.run.run_info import read_run_info
    from emo_jax.run.status import read_status

    read_run_info(folder)
    read_status(folder).to_json()
    write_report(read_run(folder), out / "report.html")
    keep_heartbeat(folder)
    MetricsFile(folder, resume_step=3).close()


def _lock(folder: Path, out: Path) -> None:
    from emo_jax.run.lock import RunLock

    lock = RunLock(folder)
    lock.check()
    lock.acquire()
    lock.release()


def _records(folder: Path, out: Path) -> None:
    from emo_jax.errors import EmoError
    from emo_jax.modules.finetune import _check_same
    from emo_jax.run.run_info import RunInfo
    from emo_jax.training import init_from, trackers

    problems = []
    asked = init_from.InitFrom.parse("/runs/a@3", "weights")
    run = RunInfo(workdir=folder, config=None, start=0, facts={})  # type: ignore[arg-type]
    for look in (
        lambda: init_from.check_same_source(asked, init_from.read_record(folder), folder),
        lambda: _check_same(folder, {"model": "0" * 64, "data": "1" * 64, "seed": 0}),
        lambda: trackers._remembered(run, "wandb", "project"),
        lambda: trackers._remember(run, "mlflow", "place", "id"),
    ):
        try:
            look()
        except EmoError as error:
            problems.append(error)
    if problems:
        raise problems[0]


def _module(folder: Path, out: Path) -> None:
    from emo_jax.modules.union import open_module, union
    from emo_jax.saved.transfer import import_

    module = open_module(folder)
    made = union([module, module])
    made.source.read("layers/mlp/experts/gate", tuple(slice(0, 1) for _ in range(4)))
    import_(folder, out / "run")


def _hf(folder: Path, out: Path) -> None:
    from emo_jax.saved.load import load_model
    from emo_jax.saved.transfer import import_

    found = load_model(str(folder))
    _leaves(found.params)
    if found.tokenizer is not None:
        found.tokenizer.encode_batch(TEXTS)
    import_(folder, out / "run")


def _gguf(folder: Path, out: Path) -> None:
    from emo_jax.saved.gguf import convert_to_gguf

    convert_to_gguf(str(folder), out / "model.gguf")


def _message(folder: Path, out: Path) -> None:
    """What a stranger sends to a port of a run: read, or the connection ends."""
    from emo_jax.parallel.processes.line import Line

    file, there = folder / "message.json", []
    content = file.read_bytes() if file.is_file() else b""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        line = Line(ours)
        sending = threading.Thread(target=_send, args=(theirs, content), daemon=True)
        sending.start()
        line._read(there.append)
        line.close()
        sending.join()
    assert there[-1] is None and all(isinstance(m, dict) for m in there[:-1]) and line.ended


def _send(to: socket.socket, content: bytes) -> None:
    with contextlib.suppress(OSError):
        to.sendall(content)
        to.shutdown(socket.SHUT_WR)


def _activations(folder: Path, out: Path) -> None:
    from emo_jax.analysis import cluster
    from emo_jax.analysis.activations import Activations

    found = Activations.open(folder)
    for _, probs in found.pieces():
        assert probs.ndim == 3
    found.picks(slice(0, 10))
    means_DLR = cluster.document_means(found)
    made, _ = cluster.group_documents(found, means_DLR, 2)
    cluster.groups_of(found, made, True)


def _overrides(folder: Path, out: Path) -> None:
    from runs import EXPERIMENT

    from emo_jax.config.file import load_config

    file = folder / "overrides.txt"  # stands for the command line: something else under it is none
    text = file.read_bytes().decode("utf-8", "surrogateescape") if file.is_file() else ""
    load_config(str(EXPERIMENT), text.split("\n")[:-1])


# --- checksums written anew -----------------------------------------------------------------------


def _sum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _seal(folder: Path, changed: Path, manifest: Path, data: str, own: str, size: str) -> None:
    """The manifest with the changed file's size and digest, and its own checksum."""
    try:
        held = json.loads(manifest.read_bytes())
        if changed != manifest:
            name = changed.relative_to(folder / data).as_posix()
            content = changed.read_bytes()
            held["files"][name] = {size: len(content)}
            held["files"][name]["sha256"] = hashlib.sha256(content).hexdigest()
        held[own] = _sum({k: v for k, v in held.items() if k != own})
        manifest.write_text(json.dumps(held))
    except (ValueError, OSError, KeyError, TypeError, AttributeError, RecursionError):
        return  # it is broken in another way


def _seal_store(folder: Path, changed: Path) -> None:
    _seal(folder, changed, folder / "store.json", "", "checksum", "bytes")


def _seal_checkpoint(folder: Path, changed: Path) -> None:
    step = folder / "checkpoints/0"
    _seal(step, changed, step / "manifest.json", "data", "sha256", "size")


def _seal_ends(folder: Path, changed: Path) -> None:
    from emo_jax.data import found_ends

    content, size = bytearray(changed.read_bytes()), found_ends._PAGE_BYTES
    pages = range(found_ends._HEAD, len(content), size)
    for start, stop in ((0, found_ends._HEAD), *((at, at + size) for at in pages)):
        stop = min(stop, len(content))
        if stop - start > 8:
            sum_ = zlib.crc32(bytes(content[start : stop - 8]))
            content[stop - 8 : stop] = sum_.to_bytes(8, "little")
    changed.write_bytes(content)


def _seal_vocabulary(folder: Path, changed: Path) -> None:
    if changed.name != "tokenizer.model":
        return
    file = folder / "vocabulary.json"
    digest = hashlib.sha256(changed.read_bytes()).hexdigest()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fingerprint": digest}))


JSON, LINES, BYTES = mutate.json_of, mutate.lines_of, mutate.bytes_of
READERS = {
    "documents": Reader("jsonl", {"*.jsonl": LINES}, _documents),
    "packed": Reader("packed", {"*": mutate.packed_of(LINES)}, _documents),
    "parquet": Reader("parquet", {"*": BYTES}, _documents),
    "arrow": Reader("arrow", {"*.arrow": BYTES}, _documents),
    "save_to_disk": Reader("saved", {"*.arrow": BYTES, "*.json": JSON}, _documents),
    "tar": Reader("tar", {"*": mutate.tar_of}, _documents),
    "packed tar": Reader("packed_tar", {"*": mutate.packed_of(mutate.tar_of)}, _documents),
    "texts": Reader("texts", {"*/*": mutate.text_of}, _documents),
    "pairs": Reader("pairs", {"*": LINES}, _pairs),
    "prompts": Reader("prompts", {"*": LINES}, _prompts),
    "tokenizer.json": Reader("tokenizer", {"tokenizer.json": JSON}, _tokenizer),
    "tokenizer settings": Reader(
        "tokenizer", {"tokenizer_config.json": JSON, "special_tokens_map.json": JSON}, _tokenizer
    ),
    "sentencepiece": Reader("spm", {"*.model": BYTES, "*.json": JSON}, _tokenizer),
    "vocabulary": Reader(
        "vocabulary", {"vocabulary.json": JSON, "*.model": BYTES}, _tokenizer, _seal_vocabulary
    ),
    "store manifest": Reader("store", {"store.json": JSON}, _store, _seal_store),
    "store arrays": Reader(
        "store", {"*/*/zarr.json": JSON, "*/*/c/*": BYTES, "tokenizer/*": JSON}, _store, _seal_store
    ),
    "raw tokens": Reader("raw", {"*": mutate.npy_of}, _open_source),
    "mix": Reader("mix", {"mix.txt": mutate.text_of}, _token_files("/mix.txt")),
    "megatron": Reader("megatron", {"*": BYTES}, _token_files("/megatron_several.bin")),
    "datatrove": Reader("datatrove", {"*": BYTES}, _token_files("/datatrove.ds")),
    "mds": Reader("mds", {"index.json": JSON, "*.mds": BYTES}, _token_files("/index.json")),
    "array_record": Reader("array_record", {"*": BYTES}, _token_files("/a.array_record")),
    "ends": Reader("ends", {"*": BYTES}, _ends, _seal_ends),
    "pack index": Reader("packing", {"index/*": mutate.zip_of}, _packed),
    "drop ids": Reader("drop", {"ids.txt": mutate.text_of}, _dropped),
    "pair windows": Reader("npz", {"*": mutate.zip_of}, _open_source),
    "run config": Reader("run", {"config.json": JSON}, _run),
    "checkpoint manifest": Reader(
        "run", {"checkpoints/0/manifest.json": JSON}, _run, _seal_checkpoint
    ),
    "checkpoint arrays": Reader("run", {"checkpoints/0/data/**/*": JSON}, _run, _seal_checkpoint),
    "run log": Reader(
        "run",
        {
            **{f"{name}.jsonl": LINES for name in ("metrics", "run_info", "goodput")},
            "heartbeat.json": JSON,
        },
        _log,
    ),
    "lock": Reader("run", {".lock": JSON}, _lock),
    "run records": Reader(
        "run", {"init.json": JSON, "finetune.json": JSON, "tracking.json": JSON}, _records
    ),
    "selection": Reader("module", {"selection.json": JSON}, _module),
    "hf config": Reader("hf", {"config.json": JSON, "generation_config.json": JSON}, _hf),
    "hf weights": Reader("hf", {"*.safetensors": mutate.safetensors_of, "*index*": JSON}, _hf),
    "gguf": Reader("gguf", {"*.json": JSON}, _gguf),
    "message": Reader("message", {"*": LINES}, _message),
    "activations": Reader(
        "activations", {"*.json": JSON, "*/zarr.json": JSON, "*/c/**/*": BYTES}, _activations
    ),
    "overrides": Reader("overrides", {"overrides.txt": mutate.text_of}, _overrides),
}


def make_input(reader: Reader, name: str, seed: int, seeds: Path, work: Path) -> Path:
    """A malformed copy of a reader's files in `work`; returns the file that was changed.

    Seed 0 changes nothing.
    """
    rng = random.Random(f"{name} {seed}")
    folder = work / "in"
    shutil.copytree(seeds / reader.folder, folder, symlinks=True)
    (work / "out").mkdir()
    there = {
        pattern: sorted(p for p in folder.glob(pattern) if p.is_file()) for pattern in reader.files
    }
    assert all(there.values()), f"no seed for {there}"
    pattern = rng.choice(sorted(there))
    file = rng.choice(there[pattern])
    if not seed:
        return file
    if rng.random() < 0.06:
        _no_file(rng, file, work)
        return file
    file.write_bytes(reader.files[pattern](rng, file.read_bytes()))
    if reader.seal is not None and rng.random() < 0.75:
        reader.seal(folder, file)
    return file


def _no_file(rng: random.Random, file: Path, work: Path) -> None:
    """Something else under the name of a file."""
    file.unlink()
    way = rng.randrange(6)
    if way == 0:
        file.mkdir()
    elif way == 1:
        os.mkfifo(file)
    elif way == 2:
        file.symlink_to(file.name)
    elif way == 3:
        file.symlink_to("/dev/zero")
    elif way == 4:
        file.symlink_to(work / "nothing")
