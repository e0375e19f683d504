"""Workdirs from Hugging Face folders and back: on disk, as the commands do it."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import runs
from cases import few
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from emo_jax.checkpoint.checkpointer import Checkpointer
from emo_jax.checkpoint.reading import restore_params
from emo_jax.checkpoint.slices import SliceReader
from emo_jax.config import DataConfig, TrackingConfig, from_config_dict, to_dict
from emo_jax.errors import CheckpointError, EmoError, HfFormatError, UsageError
from emo_jax.files.trees import flatten
from emo_jax.hf import export_model, import_model
from emo_jax.hf.sources import FolderSource
from emo_jax.model.functions import ModelFunctions
from emo_jax.run.workdir import claim_workdir, read_workdir_config
from emo_jax.saved.transfer import export, import_

TOKENIZER_SIZE, PADDED = 100_278, 100_352  # SPEC 1.1


@pytest.fixture
def run(make_model, tmp_path):
    """A workdir with the parameters of `make_model` as step 3 of a run, and those parameters."""

    def make(name="run", **shape):
        params, config = make_model(**shape)
        config = dataclasses.replace(
            config,
            data=DataConfig(seq_len=48, store=str(tmp_path / "secret" / "store")),
            tracking=TrackingConfig(mlflow_uri=f"sqlite:///{tmp_path}/secret.db"),
        )
        workdir = tmp_path / name
        claim_workdir(workdir, config)
        with Checkpointer(workdir, config.checkpoint) as checkpointer:
            extra = {"config": to_dict(config), "windows": 12, "store": "f" * 64}
            checkpointer.save(3, {"params": params, "step": np.int32(3)}, extra)
        records = [
            {"step": 2, "ce_loss": 8.25},
            {"step": 3, "ce_loss": 7.5, "grad_norm": 1.0},
            {"step": 3, "heldout_loss": 7.75, "heldout_loss (pool=4)": 7.25},
        ]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        return workdir, params

    return make


def weights(folder: Path) -> dict[str, np.ndarray]:
    held: dict[str, np.ndarray] = {}
    for file in folder.glob("*.safetensors"):
        held |= load_file(file)
    return held


def same(ours: dict, theirs: dict) -> bool:
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and ours[name].tobytes() == theirs[name].tobytes()
        for name in ours
    )


@pytest.mark.parametrize("layout", ["qwen2_moe", "emo", "llama"])
@pytest.mark.parametrize("shared", [0, 1, 3])
def test_a_folder_goes_through_a_workdir_bit_for_bit(run, tmp_path, layout, shared):
    """The streamed way and the one in memory write the same bytes."""
    workdir, params = run(shared=shared, fits=layout)
    hf, made = export(workdir, tmp_path / "hf", layout=layout)
    assert made == layout
    _, config = import_model(hf)
    in_memory = export_model(params, config, tmp_path / "memory", layout=layout)
    assert same(weights(hf), weights(in_memory))
    imported = import_(hf, tmp_path / "again")
    assert imported == config and imported.moe == config.moe
    export(tmp_path / "again", tmp_path / "hf2", layout=layout)
    assert same(weights(hf), weights(tmp_path / "hf2"))
    assert same(flatten(restore_params(tmp_path / "again")[0]), flatten(import_model(hf)[0]))


def test_an_import_holds_parameters_alone(run, tmp_path):
    workdir, _ = run()
    export(workdir, tmp_path / "hf")
    config = import_(tmp_path / "hf", tmp_path / "new")
    with Checkpointer(tmp_path / "new", config.checkpoint) as checkpointer:
        assert checkpointer.steps() == [0]
        assert checkpointer.items(0) == {"params"}
        assert checkpointer.read_extra(0)["windows"] == 0
    size = sum(p.stat().st_size for p in (tmp_path / "new").rglob("*") if p.is_file())
    assert size < 1.5 * sum(leaf.nbytes for leaf in weights(tmp_path / "hf").values())


@pytest.mark.parametrize("layout", ["qwen2_moe", "llama"])
@pytest.mark.parametrize("rows", [TOKENIZER_SIZE, PADDED])
@pytest.mark.parametrize("ours", [True, False])
def test_both_vocabulary_sizes_through_the_shapes_of_training(
    make_model, tmp_path, layout, rows, ours
):
    """100278 is written; 100278 and 100352 rows are read, and trained on a mesh."""
    params, config = make_model(vocab=TOKENIZER_SIZE, fits=layout)
    hf = export_model(params, config, tmp_path / "hf")
    names = ("model.embed_tokens.weight", "lm_head.weight")
    before = load_file(hf / "model.safetensors")
    assert {before[name].shape for name in names} == {(TOKENIZER_SIZE, 32)}
    if rows == PADDED:
        pad = np.random.default_rng(0).normal(size=(PADDED - TOKENIZER_SIZE, 32))
        padded = {n: np.concatenate([before[n], pad.astype(np.float32)]) for n in names}
        save_file(before | padded, hf / "model.safetensors")
    if not ours:
        said = json.loads((hf / "config.json").read_text())
        del said["emo_jax"]
        (hf / "config.json").write_text(json.dumps(said | {"vocab_size": rows}))
    imported = import_(hf, tmp_path / "run")
    size = rows if not ours else TOKENIZER_SIZE
    assert imported.model.vocab_size == size
    assert imported.model.padded_vocab_size == PADDED

    mesh = jax.make_mesh((8,), ("x",))
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape,
            leaf.dtype,
            sharding=NamedSharding(
                mesh, PartitionSpec("x") if leaf.shape[0] == PADDED else PartitionSpec()
            ),
        ),
        ModelFunctions(imported).abstract_params,
    )
    restored, _, _ = restore_params(tmp_path / "run", 0, abstract)
    assert restored["embed"]["embedding"].sharding.spec == PartitionSpec("x")
    export_model(restored, imported, tmp_path / "trained")
    export(tmp_path / "run", tmp_path / "again")
    stored = load_file(hf / "model.safetensors")
    expected = {n: v[:size] if n in names else v for n, v in stored.items()}
    assert same(weights(tmp_path / "again"), expected)
    assert same(weights(tmp_path / "trained"), expected)


def test_the_files_of_a_folder_tell_the_run_and_not_the_machine(run, tmp_path):
    workdir, _ = run()
    hf, _ = export(workdir, tmp_path / "hf")
    texts = {p.name: p.read_text() for p in hf.iterdir() if p.suffix in (".json", ".md")}
    assert set(texts) == {"config.json", "generation_config.json", "README.md"}
    for name, text in texts.items():
        for secret in (str(tmp_path), "secret", str(Path.home()), "sqlite"):
            assert secret not in text, name
    card = texts["README.md"]
    for fact in (
        "| step | 3 |",
        f"| tokens seen | {12 * 48} |",
        f"| data fingerprint | {'f' * 64} |",
        "| ce_loss | 7.5000 |",
        "| heldout_loss | 7.7500 |",
        "| heldout_loss (pool=4) | 7.2500 |",
        f"| jax | {jax.__version__} |",
        "| emo_jax | ",
        '"rope_theta": 30000.0',
    ):
        assert fact in card, fact
    assert "8.25" not in card and "grad_norm" not in card
    assert "chat_template" not in texts["config.json"]


def test_an_import_takes_no_place_for_data_and_metrics_over(make_model, tmp_path):
    """A folder of somebody else names where its run's metrics went, to which ours do not go."""
    params, config = make_model()
    hf = export_model(params, config, tmp_path / "hf")
    said = json.loads((hf / "config.json").read_text())
    section = said["emo_jax"]
    section["data"]["store"] = "/somewhere"
    section["tracking"] |= {"wandb_project": "theirs", "mlflow_uri": "https://203.0.113.1"}
    (hf / "config.json").write_text(json.dumps(said))
    assert import_(hf, tmp_path / "run") == config
    assert read_workdir_config(tmp_path / "run") == config
    assert import_model(hf)[1] == config
    named = from_config_dict(section)
    assert named != config
    again = export_model(params, named, tmp_path / "again")
    for name in ("config.json", "README.md"):
        assert "203.0.113.1" not in (again / name).read_text()


def test_names_of_the_shards_are_those_of_the_libraries(make_model, tmp_path):
    params, config = make_model()
    hf = export_model(params, config, tmp_path / "hf", max_shard_bytes=50_000)
    files = sorted(p.name for p in hf.glob("*.safetensors"))
    n = len(files)
    assert n > 2
    assert files == [f"model-{i:05d}-of-{n:05d}.safetensors" for i in range(1, n + 1)]
    import_(hf, tmp_path / "again")
    export(tmp_path / "again", tmp_path / "hf2")
    assert same(weights(hf), weights(tmp_path / "hf2"))


def test_a_wrong_layout_is_refused_before_the_checkpoint_is_read(run, tmp_path):
    for dense, layout in ((True, "emo"), (False, "llama")):
        workdir, _ = run(f"run{dense}", dense=dense)
        (workdir / "checkpoints/3/manifest.json").unlink()
        with pytest.raises(UsageError, match="is for"):
            export(workdir, tmp_path / "hf", layout=layout)
        with pytest.raises(CheckpointError):
            export(workdir, tmp_path / "hf")


# --- what goes wrong -----------------------------------------------------------------------------


@pytest.fixture
def no_large_files():
    """A disk that takes no file above 60 kB: writes fail with EFBIG, as they do with ENOSPC."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


def one_line(error, *said):
    text = str(error.value)
    assert "\n" not in text
    for part in said:
        assert str(part) in text, text


def test_a_full_disk_while_exporting(run, tmp_path, request):
    workdir, _ = run(vocab=2000)
    before = sorted(tmp_path.iterdir())
    request.getfixturevalue("no_large_files")
    with pytest.raises(EmoError) as error:
        export(workdir, tmp_path / "hf")
    one_line(error, tmp_path / "hf", "cannot be written", "File too large", "export again")
    assert sorted(tmp_path.iterdir()) == before


def test_a_full_disk_while_importing(run, tmp_path, request):
    hf, _ = export(run(vocab=2000)[0], tmp_path / "hf")
    before = sorted(tmp_path.iterdir())
    request.getfixturevalue("no_large_files")
    with pytest.raises(EmoError) as error:
        import_(hf, tmp_path / "new")
    one_line(error, "File too large")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("block", few([2, 1, 16]))
def test_an_interrupted_import_stops_and_leaves_nothing(run, tmp_path, monkeypatch, block):
    """At any of its 16 slices: the first comes while the writer is still starting."""
    hf, _ = export(run()[0], tmp_path / "hf")
    before, read, blocks = sorted(tmp_path.iterdir()), FolderSource.read, []
    handler = signal.getsignal(signal.SIGINT)

    def interrupted(self, path, part):
        blocks.append(path)
        if len(blocks) == block:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)  # for the main thread to take the signal
        return read(self, path, part)

    monkeypatch.setattr(FolderSource, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_(hf, tmp_path / "new")
    assert len(blocks) < block + 6  # those that were under way
    assert sorted(tmp_path.iterdir()) == before
    assert signal.getsignal(signal.SIGINT) is handler


def test_outputs_that_cannot_be_made(run, tmp_path):
    workdir, _ = run()
    hf, _ = export(workdir, tmp_path / "hf")
    below_a_file = tmp_path / "file" / "below"
    below_a_file.parent.write_text("mine")
    with pytest.raises(EmoError) as error:
        export(workdir, below_a_file)
    one_line(error, below_a_file, "cannot be written")
    with pytest.raises(UsageError) as error:
        import_(hf, below_a_file)
    one_line(error, below_a_file, "cannot be made a workdir")
    assert below_a_file.parent.read_text() == "mine"


def test_a_shard_cut_short_after_its_header_was_read(run, tmp_path, monkeypatch):
    """By somebody who copies over it, say: nothing half imported is left."""
    monkeypatch.setenv("EMO_READ_WAIT", "0.2")
    hf, _ = export(run()[0], tmp_path / "hf")
    before = sorted(tmp_path.iterdir())
    file, claim = hf / "model.safetensors", claim_workdir

    def cut(*args):
        file.write_bytes(file.read_bytes()[:-100_000])
        return claim(*args)

    monkeypatch.setattr("emo_jax.saved.transfer.claim_workdir", cut)
    with pytest.raises(EmoError) as error:
        import_(hf, tmp_path / "new")
    size = file.stat().st_size
    said = f"has {size} bytes, had {size + 100_000} when it was opened; bring the folder back"
    one_line(error, file, said)
    assert sorted(tmp_path.iterdir()) == before


def test_a_dense_folder_with_experts_in_our_section(run, tmp_path):
    hf, _ = export(run(dense=True)[0], tmp_path / "hf")
    experts, _ = export(run("other")[0], tmp_path / "experts")
    said = json.loads((hf / "config.json").read_text())
    theirs = json.loads((experts / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps(said | {"emo_jax": theirs["emo_jax"]}))
    with pytest.raises(HfFormatError) as error:
        import_(hf, tmp_path / "new")
    one_line(error, hf / "config.json", "no model for layout llama")
    assert not (tmp_path / "new").exists()


def test_a_workdir_is_no_folder_of_transformers_nor_the_other_way_round(run, tmp_path, capsys):
    workdir, _ = run()
    hf, _ = export(workdir, tmp_path / "hf")
    with pytest.raises(UsageError) as error:
        import_(workdir, tmp_path / "new")
    one_line(error, f"{workdir}: a run's workdir", f"emo export {workdir} --output")
    assert runs.emo_here("export", hf, "--output", tmp_path / "new") == 2
    line = capsys.readouterr().err
    assert f"{hf}: a Hugging Face folder" in line and f"emo import {hf} --workdir" in line
    assert not (tmp_path / "new").exists()


def test_what_a_killed_export_left_is_removed_by_the_next(run, tmp_path, caplog):
    workdir, _ = run()
    left, other = (tmp_path / f".hf.{digit * 16}.partial" for digit in "01")
    for folder in (left, other):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    (other / "notes.txt").write_text("mine")
    export(workdir, tmp_path / "hf")
    assert not left.exists() and str(left) in caplog.text
    assert (other / "notes.txt").read_text() == "mine"


def test_what_a_killed_import_left_is_removed_by_the_next(run, tmp_path, caplog):
    workdir, _ = run()
    hf, _ = export(workdir, tmp_path / "hf")
    left = tmp_path / f".new.{'0' * 16}.partial"
    (left / "checkpoints/0").mkdir(parents=True)
    import_(hf, tmp_path / "new")
    assert not left.exists() and str(left) in caplog.text


def test_an_output_that_is_a_link(run, tmp_path):
    workdir, _ = run()
    (tmp_path / "disk").mkdir()
    (tmp_path / "hf").symlink_to(tmp_path / "disk")
    export(workdir, tmp_path / "hf")
    assert (tmp_path / "hf").is_symlink() and (tmp_path / "disk/config.json").exists()


def test_a_checkpoint_that_its_run_retires_meanwhile(run, tmp_path, monkeypatch):
    workdir, _ = run()
    read = SliceReader._read

    def retired(self, path, block):
        shutil.rmtree(workdir / "checkpoints/3", ignore_errors=True)
        return read(self, path, block)

    monkeypatch.setattr(SliceReader, "_read", retired)
    with pytest.raises(CheckpointError) as error:
        export(workdir, tmp_path / "hf")
    one_line(error, workdir, "was removed while it was read", "try again")
    assert sorted(tmp_path.iterdir()) == [workdir]
