"""emo bench train: what is timed is a real step, and the interval is the textbook's."""

import dataclasses
import json

import numpy as np
import pytest
import runs

from emo_jax import bench, presets
from emo_jax.config import from_config_dict

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


def test_two_configs_in_turns(tmp_path, capsys):
    files = [f"{runs.REPO}/experiments/bench_cpu.py{arg}" for arg in (":emo", ":standard")]
    target = tmp_path / "bench.json"
    argv = ["bench", "train", "--config", files[0], "--against", files[1], "--rounds", "6"]
    assert runs.emo_here(*argv, "--steps", "1", "--json", target, *SMALL) == 0
    shown, result = capsys.readouterr().out, json.loads(target.read_text())
    for config in result["configs"]:
        rounds = config["tokens_per_second_rounds"]
        assert len(rounds) == 6 and min(rounds) > 0
        assert config["tokens_per_second_median"] == pytest.approx(np.median(rounds))
        assert f"{config['config']}: {np.median(rounds):,.0f} tokens/s" in shown
    by_hand = [
        b / a - 1  # time is the inverse of speed
        for a, b in zip(*(c["tokens_per_second_rounds"] for c in result["configs"]), strict=True)
    ]
    assert result["slowdown"]["median"] == pytest.approx(np.median(by_hand))
    slower = result["slowdown"]
    assert slower["low"] == min(by_hand) and slower["high"] == max(by_hand)
    assert slower["confidence"] == 1 - 2 / 2**6  # no pair of six on either side of the median
    assert "with 97% confidence" in shown
    assert runs.emo_here(*argv, "--json", target, *SMALL) == 2
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
