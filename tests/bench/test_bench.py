"""emo bench train: what is timed is a real step, and the interval is the textbook's."""

import dataclasses
import json

import numpy as np
import pytest
import runs
from jax.profiler import ProfileData

from emo_jax import bench
from emo_jax.bench import largest as largest_lib
from emo_jax.bench import memory
from emo_jax.config import from_config_dict, presets
from emo_jax.config.file import load_config
from emo_jax.errors import EmoError
from emo_jax.training import flops

SMALL = [
    f"--config.{name}={value}"
    for name, value in {
        "model.vocab_size": 256,
        "model.num_layers": 1,
        "model.embed_dim": 16,
        "model.num_heads": 2,
        "model.head_dim": 8,
        "moe.expert_dim": 8,
        "data.seq_len": 32,
        "train.batch_size": 8,
    }.items()
]


@pytest.mark.system
def test_two_configs_in_turns(tmp_path, capsys):
    files = [f"{runs.REPO}/experiments/bench_cpu.py{arg}" for arg in (":emo", ":standard")]
    target = tmp_path / "bench.json"
    argv = ["bench", "train", "--config", files[0], "--against", files[1], "--rounds", "6"]
    argv += ["--steps", "1", "--no-breakdown", *SMALL]
    assert runs.emo_here(*argv, "--json", target) == 0
    shown, result = capsys.readouterr().out, json.loads(target.read_text())
    for config in result["configs"]:
        rounds = config["tokens_per_second_rounds"]
        assert len(rounds) == 6 and min(rounds) > 0
        assert config["tokens_per_second_median"] == pytest.approx(np.median(rounds))
        assert f"{config['config']}: {np.median(rounds):,.0f} tokens/s" in shown
        assert config["state_bytes"]["optimizer"] == 2 * config["state_bytes"]["parameters"] + 4 * 2
        assert config["planned_bytes"] > sum(config["state_bytes"].values())
    by_hand = [
        b / a - 1  # time is the inverse of speed
        for a, b in zip(*(c["tokens_per_second_rounds"] for c in result["configs"]), strict=True)
    ]
    assert result["slowdown"]["median"] == pytest.approx(np.median(by_hand))
    slower = result["slowdown"]
    assert slower["low"] == min(by_hand) and slower["high"] == max(by_hand)
    assert slower["confidence"] == 1 - 2 / 2**6  # no pair of six on either side of the median
    assert "with 97% confidence" in shown
    assert runs.emo_here(*argv, "--json", target) == 2
    assert "is there already" in capsys.readouterr().err
    assert json.loads(target.read_text()) == result


def test_the_interval_holds_the_median_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for n in (6, 20):
        # A skewed distribution with median 1: of 2000 intervals at least 95 % hold it.
        draws = np.exp(rng.normal(size=(2000, n)) ** 3)
        held = [
            low <= 1.0 <= high for _, low, high, _ in map(bench.median_interval, draws.tolist())
        ]
        assert np.mean(held) > 0.94
    # The textbook's ranks for twenty values: the 6th and the 15th.
    twenty = bench.median_interval([float(v) for v in range(1, 21)])
    assert twenty[:3] == (10.5, 6.0, 15.0) and twenty.confidence == pytest.approx(0.9586, abs=1e-4)
    # Five have no interval of 95 %, and it is not called one.
    assert bench.median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) == (3.0, 1.0, 5.0, 0.9375)


def test_steps_of_different_sizes_are_compared_by_the_token():
    config = from_config_dict(presets.bench_cpu())
    half = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=8))
    ours, theirs = bench.Timing(config, 0.0, [2.2] * 6), bench.Timing(half, 0.0, [1.0] * 6)
    assert bench.slowdown(ours, theirs).median == pytest.approx(0.1)


def test_made_up_documents_are_those_of_the_config():
    config = from_config_dict(presets.bench_cpu())
    batch = bench.made_up_batch(config, 0)
    assert batch.tokens.shape == (16, 512)
    assert batch.tokens.min() >= 0 and 8000 < batch.tokens.max() < 8192
    documents = batch.segment_ids.max(axis=1) + 1
    assert 2 < documents.mean() < 8 and documents.max() > 4
    assert not np.array_equal(batch.tokens, bench.made_up_batch(config, 1).tokens)


# --- what is kept, a layer alone, memory ---------------------------------------------------------


@pytest.mark.system
def test_a_profile_is_kept_where_it_is_asked_for(tmp_path, capsys):
    argv = ["bench", "train", "--config", f"{runs.REPO}/experiments/bench_cpu.py", *SMALL]
    argv += ["--rounds", "1", "--steps", "1", "--profile"]
    folder = tmp_path / "profile"
    assert runs.emo_here(*argv, folder) == 0
    shown = capsys.readouterr().out
    assert f"profile: {folder}" in shown and "vocab_loss" in shown
    assert "peak memory: " in shown and "this process" in shown
    (trace,) = folder.glob("plugins/profile/*/*.xplane.pb")
    planes = {plane.name for plane in ProfileData.from_file(str(trace)).planes}
    assert "/host:CPU" in planes
    assert [p.name for p in tmp_path.iterdir()] == ["profile"]
    assert runs.emo_here(*argv, folder) == 2
    assert f"{folder}: is there already" in capsys.readouterr().err
    for more in (["--no-breakdown"], ["--per-layer"], ["--largest-batch"]):
        assert runs.emo_here(*argv, tmp_path / "other", *more) == 2
        assert "give one of them" in capsys.readouterr().err


def test_flops_of_the_spec():
    """SPEC 1.5: 1b14b at S = 4096."""
    config = from_config_dict(presets.emo_1b14b())
    assert flops.flops_per_token_and_layer(config) == 504_889_344
    assert flops.flops_per_token(config) == 9_311_367_168


@pytest.mark.system
def test_a_layer_alone(tmp_path, capsys):
    target = tmp_path / "layer.json"
    argv = ["bench", "train", "--config", f"{runs.REPO}/experiments/bench_cpu.py", *SMALL]
    argv += ["--config.model.embed_dim=128", "--per-layer", "--rounds", "3", "--json", target]
    assert runs.emo_here(*argv) == 0
    assert "gradients of 2 layers less those of 1" in capsys.readouterr().out
    found = json.loads(target.read_text())["layer"]
    assert found["seconds"] == pytest.approx(np.median(found["rounds"])) and found["seconds"] > 0
    config = load_config(argv[3], [x for x in argv if str(x).startswith("--config.")])
    tokens = config.train.batch_size * config.data.seq_len / 8  # devices
    work = flops.flops_per_token_and_layer(config) * tokens
    assert found["flops_per_second"] == pytest.approx(work / found["seconds"])
    assert found["mfu"] is None  # of a CPU nobody knows the peak


@pytest.mark.parametrize(
    ("begin", "limit", "expected", "tries"),
    [
        (1, 6, 6, [1, 2, 4, 8, 6]),
        (1, 5, 4, [1, 2, 4, 8, 6]),
        (4, 100, 96, [4, 8, 16, 32, 64, 128, 96]),
        (8, 3, 3, [8, 4, 2, 3]),
        (8, 1, 1, [8, 4, 2, 1]),
    ],
)
def test_the_largest_batch_is_found_by_doubling_and_one_size_between(
    monkeypatch, begin, limit, expected, tries
):
    """In units of 16: two micro-batches on each of eight devices."""
    config = from_config_dict(presets.bench_cpu())
    train = dataclasses.replace(config.train, batch_size=16 * begin, micro_batches=2)
    config = dataclasses.replace(config, train=train)
    seen = []

    def attempt(file, overrides, batch_size, memory_bytes, progress):
        seen.append(batch_size)
        return {"size": batch_size} if batch_size <= 16 * limit else None

    monkeypatch.setattr(largest_lib, "_try", attempt)
    assert largest_lib.smallest_batch(config) == 16
    monkeypatch.setattr(largest_lib, "_unit", lambda file, overrides: 16)
    found, figures = largest_lib.largest_batch(config, "file.py", [])
    assert (found, figures) == (16 * expected, {"size": 16 * expected})
    assert seen == [16 * n for n in tries]
    limit = 0
    with pytest.raises(EmoError, match="not even a batch of 16 fits"):
        largest_lib.largest_batch(config, "file.py", [])


@pytest.mark.system
def test_the_largest_batch_of_real_steps(tmp_path, capsys):
    """Two tries in processes of their own: eight windows fit, sixteen do not."""
    file = f"{runs.REPO}/experiments/bench_cpu.py"
    figures = tmp_path / "figures.json"
    argv = ["bench", "train", "--config", file, *SMALL]
    assert runs.emo_here(*argv, "--no-breakdown", "--rounds", "1", "--json", figures) == 0
    planned = json.loads(figures.read_text())["configs"][0]["planned_bytes"]
    capsys.readouterr()
    limit = 1.1 * planned / 1e9
    assert runs.emo_here(*argv, "--largest-batch", "--memory", limit) == 0
    shown = capsys.readouterr()
    assert shown.out == "8\n"
    assert "batch 8: fits" in shown.err and "batch 16: does not fit" in shown.err
    # A try that fails for another reason is no answer.
    assert runs.emo_here(*argv, "--largest-batch", "--config.mesh.fsdp=4") == 1
    assert "but there are 8 devices" in capsys.readouterr().err


def test_a_step_that_does_not_fit_says_by_how_much():
    with pytest.raises(
        EmoError, match=r"planned to take 3\.00 GB a device, and there are 2\.00 GB"
    ):
        memory.refuse_too_large(3 * 10**9, 2 * 10**9)
    memory.refuse_too_large(2 * 10**9, 3 * 10**9)
    memory.refuse_too_large(None, 1)
