"""`emo train` on mixtures, packings and token files of other tools."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import runs

from emo_jax.config.file import load_config
from emo_jax.data.run_windows import open_run_windows
from emo_jax.data.sources import open_data

FORMATS = Path(__file__).parents[1] / "data/formats"
WORDS = {"web": "news blog shop page", "math": "prime proof lemma sum", "code": "def for if return"}


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    """A folder with the stores web, math and code."""
    folder = tmp_path_factory.mktemp("stores")
    rng = np.random.default_rng(0)
    for name, words in WORDS.items():
        with (folder / f"{name}.jsonl").open("w") as file:
            for i in range(90):
                text = " ".join(rng.choice(words.split(), rng.integers(5, 80)))
                file.write(json.dumps({"text": text, "id": f"{name}-{i}", "domain": name}) + "\n")
        argv = ["prepare", folder / f"{name}.jsonl", "--output", folder / name]
        assert runs.emo_here(*argv, "--tokenizer", "bytes") == 0
    return folder


def argv_of(workdir, steps=8, **fields):
    defaults = {
        "train__batch_size": 8,
        "optimizer__warmup_steps": 1,
        "train__eval_every": 0,
        "checkpoint__save_every": 4,
        "checkpoint__keep_every": 0,
    }
    argv = runs.train_argv("", workdir, train__steps=steps, **defaults | fields)
    return [word for word in argv if word != "--config.data.store="]


def logged(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if "loss" in r]


def mix(stores, *entries):
    return ",".join(f"{stores / name}={rest}" for name, rest in entries)


@pytest.mark.system
def test_a_mixture_with_an_anneal_and_a_change_of_its_future(stores, tmp_path, capsys):
    workdir = tmp_path / "run"
    begun = mix(stores, ("web", "0.7"), ("math", "0.2"), ("code", "0.1"))
    annealed = f"{begun},{mix(stores, ('web', '0.2@4'), ('math', '0.7@4'))}"
    whole = tmp_path / "whole"
    assert runs.emo_here(*argv_of(whole, data__sources=annealed)) == 0
    said = capsys.readouterr().err
    assert "/math: " in said and "passes over it" in said
    shares = {n: logged(whole)[-1][f"source_share/{stores / n}"] for n in WORDS}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["math"] == pytest.approx((0.2 * 4 + 0.7 * 4) / 8, abs=0.07)
    held_out = [json.loads(x) for x in (whole / "metrics.jsonl").read_text().splitlines()][-1]
    assert {f"heldout_loss/{name}" for name in WORDS} <= set(held_out)
    # The anneal is decided later, at step 4: the past is the same, so the run goes on from there,
    # and ends with the same bits.
    assert runs.emo_here(*argv_of(workdir, data__sources=begun)) == 0
    shutil.rmtree(workdir / "checkpoints/8")
    other = mix(stores, ("web", "0.6"), ("math", "0.3"), ("code", "0.1"))
    capsys.readouterr()
    assert runs.emo_here(*argv_of(workdir, data__sources=other)) == 2
    said = capsys.readouterr().err
    assert "its 32 windows so far are not those of this config.data.sources" in said
    assert runs.emo_here(*argv_of(workdir, data__sources=annealed)) == 0
    ours, theirs = runs.state_of(workdir, 8), runs.state_of(whole, 8)
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_bad_mixtures_are_one_line(stores, tmp_path, capsys):
    web = stores / "web"
    for sources, said in {
        f"{web}=-1": "data.sources.weight = -1.0: must be at least 0",
        f"{web}=0": "above 0 for a source from step 0 on",
        f"{web}=much": "must be STORE=WEIGHT or STORE=WEIGHT@STEP",
        f"{web}=1,{stores / 'nothing'}=1": "nothing: no such token store",
        f"{web}=1,{stores}/*.npy=1": "*.npy: no file fits this pattern",
    }.items():
        assert runs.emo_here(*argv_of(tmp_path / "run", data__sources=sources)) == 2, sources
        err = capsys.readouterr().err.strip()
        assert said in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / "run").exists()
    entries = argv_of(tmp_path / "run", data__sources=f"{web}=1", data__store=web)
    assert runs.emo_here(*entries) == 2
    assert "empty where data.sources is given" in capsys.readouterr().err


@pytest.mark.parametrize(
    "packing", ["best_fit", pytest.param("document", marks=pytest.mark.system)]
)
def test_a_packing_is_said_and_kept(stores, tmp_path, capsys, packing):
    argv = argv_of(tmp_path / "run", steps=2, data__store=stores / "web", data__packing=packing)
    assert runs.emo_here(*argv) == 0
    assert f"packing {packing}: " in capsys.readouterr().err
    assert [p.suffix for p in (tmp_path / "run/data_index").iterdir()] == [".npz"]
    assert all(np.isfinite(r["loss"]) for r in logged(tmp_path / "run"))


def test_a_mix_file_in_the_references_order(tmp_path):
    """Dolma's files by a mix file: each window is where the reference has it."""
    rng = np.random.default_rng(1)
    (tmp_path / "data/tok").mkdir(parents=True)
    files = {"a": 3 * 8192 + 500, "b": 5 * 8192 + 8191}
    for name, size in files.items():
        tokens = rng.integers(2, 250, size).astype("<u2")
        tokens[rng.integers(0, size, size // 300)] = 1
        tokens.tofile(tmp_path / f"data/tok/{name}.npy")
    (tmp_path / "mix.txt").write_text("web,{TOKENIZER}/a.npy\ncode,{TOKENIZER}/b.npy\n")
    argv = argv_of(
        tmp_path / "run",
        steps=2,
        data__store=tmp_path / "mix.txt",
        data__raw_base=tmp_path / "data",
        data__raw_tokenizer="tok",
        data__raw_vocab_size=259,
        data__raw_eos_id=1,
        data__order="olmo",
        data__seq_len=256,
    )
    assert runs.emo_here(*argv) == 0
    config = load_config(str(runs.EXPERIMENT), argv[5:])
    windows = open_run_windows(config, open_data(config.data))
    # SPEC 5.2, 5.3: files cut to 8192 tokens, in the order of the mix; what makes up 8192 stays
    # together; epochs count from 1.
    raw = [np.fromfile(tmp_path / f"data/tok/{n}.npy", "<u2") for n in files]
    instances = np.concatenate([t[: len(t) // 8192 * 8192].reshape(-1, 256) for t in raw])
    units = np.arange(len(instances) * 256 // 8192, dtype=np.uint32)
    np.random.Generator(np.random.PCG64(seed=config.data.seed + 1)).shuffle(units)
    order = (units[:, None] * 32 + np.arange(32)).reshape(-1)
    places = np.arange(len(order) // 8 * 8)
    np.testing.assert_array_equal(windows.read(places).tokens, instances[order[: len(places)]])


@pytest.mark.system
def test_a_megatron_dataset_trains_in_place(tmp_path):
    for suffix in (".bin", ".idx"):
        shutil.copy(FORMATS / f"megatron_one{suffix}", tmp_path / f"corpus{suffix}")
    argv = argv_of(
        tmp_path / "run",
        steps=2,
        data__store=tmp_path / "corpus.bin",
        data__raw_vocab_size=300,
        data__raw_eos_id=7,
        data__seq_len=16,
        model__vocab_size=300,
        train__loss_chunk=16,
    )
    assert runs.emo_here(*argv) == 0
    assert all(np.isfinite(r["loss"]) for r in logged(tmp_path / "run"))


@pytest.mark.system
def test_runs_of_before_data_order_keep_theirs(stores, tmp_path, capsys):
    """Their config names no order: it was grain's."""
    argv = argv_of(tmp_path / "run", steps=4, data__store=stores / "web", data__order="grain")
    assert runs.emo_here(*argv) == 0
    file = tmp_path / "run/config.json"
    config = json.loads(file.read_text())
    del config["data"]["order"]
    file.write_text(json.dumps(config))
    now = argv_of(tmp_path / "run", steps=8, data__store=stores / "web")
    assert runs.emo_here(*now) == 2
    said = capsys.readouterr().err
    assert "data.order: 'grain' -> 'shuffled'" in said and "--config.data.order=grain: the" in said
