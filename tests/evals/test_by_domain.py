"""Losses of a split by domain: what they are of, and what is refused."""

import dataclasses
import io
import json
import math
import re

import jax
import numpy as np
import pytest
from cases import few
from rich.console import Console
from tiny import NO_POOL, UNIFORM, dense_config, tiny_config

from emo_jax.batch import Batch
from emo_jax.config import MeshConfig, from_config_dict, presets
from emo_jax.data.store import TokenStore
from emo_jax.errors import UsageError
from emo_jax.evals import report
from emo_jax.evals.by_domain import (
    FULL,
    WITHIN,
    DomainLosses,
    EvalSettings,
    check_ways,
    domain_losses,
    eval_mesh,
    open_split,
)
from emo_jax.evals.heldout import evaluate, make_eval_step
from emo_jax.evals.keep import choose, losses_kept
from emo_jax.model.functions import ModelFunctions
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.parallel.mesh import make_mesh
from emo_jax.preparation.prepare import prepare
from emo_jax.tokenizer.load import load_tokenizer


def _config(**changes):
    return tiny_config(vocab_size=259, vocab_multiple=1, **changes)


def _measure(config, store, settings, *, mesh=None, **kwargs):
    chosen = open_split(str(store), config, settings.split, load_tokenizer("bytes"))
    params = ModelFunctions(config).init(0)
    mesh = mesh or make_mesh(MeshConfig(), jax.devices()[:1])
    return domain_losses(config, params, chosen, settings, mesh=mesh, **kwargs), chosen, params


def _losses_by_hand(config, params, windows):
    """Nats and bytes of each domain, token by token of each window."""
    logits_of = jax.jit(ModelFunctions(config).logits)
    nats, labels, size = np.zeros((3, 2))
    for i in range(len(windows)):
        window = windows[i]
        logits = np.asarray(logits_of(params, Batch(*(a[None] for a in window))))[0]
        for t in range(len(window.tokens) - 1):
            if window.segment_ids[t] == window.segment_ids[t + 1] >= 0:
                label, m = window.tokens[t + 1], window.domain_ids[t]
                nats[m] += np.logaddexp.reduce(logits[t]) - logits[t, label]
                labels[m] += 1
                size[m] += label >= 3  # a byte; below are the special tokens
    return nats, labels, size


@pytest.mark.parametrize("attention", few(["document", "window"]))
def test_losses_and_bits_of_every_domain(store, attention):
    config = _config(attention=attention)
    found, chosen, params = _measure(config, store, EvalSettings())
    nats, labels, size = _losses_by_hand(config, params, chosen.windows)
    assert found.windows == found.windows_there == len(chosen.windows) > 10
    np.testing.assert_array_equal(found.labels_M, labels)
    np.testing.assert_array_equal(found.bytes_M, size)
    np.testing.assert_allclose(found.loss_M(FULL), nats / labels, rtol=1e-5)
    np.testing.assert_allclose(found.bits_M(FULL), nats / size / math.log(2), rtol=1e-5)
    expected = nats.sum() / labels.sum(), nats.sum() / size.sum() / math.log(2)
    np.testing.assert_allclose(found.overall(FULL), expected, rtol=1e-5)
    np.testing.assert_allclose(found.mean(FULL)[0], (nats / labels).mean(), rtol=1e-5)
    assert list(found.ce_sum_CM) == [FULL] and found.select_windows == 0


def test_every_device_takes_part_and_changes_nothing(store):
    config = _config()
    settings = EvalSettings(pools=(3,), keeps=(4,), windows=11)
    one, _, _ = _measure(config, store, settings)
    mesh = eval_mesh(config)
    assert mesh.size == 8
    eight, _, _ = _measure(config, store, settings, mesh=mesh)
    np.testing.assert_array_equal(eight.labels_M, one.labels_M)
    np.testing.assert_array_equal(eight.bytes_M, one.bytes_M)
    assert one.windows == 11 and one.select_windows == 11
    for way, ce_sum in one.ce_sum_CM.items():
        np.testing.assert_allclose(eight.ce_sum_CM[way], ce_sum, rtol=1e-5)


def test_a_mesh_is_found_for_any_width():
    ones = dict.fromkeys(mesh_lib.AXES, 1)
    assert dict(eval_mesh(_config()).shape) == ones | {"fsdp": 8}
    odd = _config(embed_dim=12)
    assert dict(eval_mesh(odd).shape) == ones | {"replica": 8}
    large = dataclasses.replace(_config(batch_size=64), mesh=MeshConfig(fsdp=64))
    assert eval_mesh(large).size == 8


@pytest.mark.parametrize("attention", few(["document", "window"]))
def test_pools_and_kept_experts_are_those_of_a_model_that_has_them(store, attention):
    config = _config(pool=UNIFORM, attention=attention)
    settings = EvalSettings(pools=(3, 2, 3), keeps=(8, 4, 3))
    said = []
    found, _, params = _measure(config, store, settings, progress=said.append)
    within = ModelFunctions(_config(pool=UNIFORM, attention="document"))
    select, test = (
        [Batch(*(a[None] for a in w)) for w in open_split(str(store), config, split, None).windows]
        for split in ("select", "test")
    )
    step = make_eval_step(within.config, within, 2)
    full = evaluate(step, params, test)
    choice = choose(within, params, select, 2)
    kept = losses_kept(choice, [8, 4, 3], lambda k: evaluate(step, params, test, keep_LMR=k))
    crossing = attention == "window"
    assert list(found.ce_sum_CM) == [
        *(FULL, "pool=3", "pool=2"),
        *([WITHIN] if crossing else []),
        *("keep=8", "keep=4", "keep=3"),
    ]
    for keep, one in kept.items():
        np.testing.assert_allclose(found.loss_M(f"keep={keep}"), one.loss_M, rtol=1e-5)
    np.testing.assert_allclose(found.loss_M(WITHIN if crossing else FULL), full.loss_M, rtol=1e-5)
    np.testing.assert_allclose(found.loss_M("keep=8"), full.loss_M, rtol=1e-5)
    own = ModelFunctions(config)
    pooled = evaluate(make_eval_step(config, own, 2), params, test, pool_size=3)
    np.testing.assert_allclose(found.loss_M("pool=3"), pooled.loss_M, rtol=1e-5)
    if crossing:
        assert np.abs(found.loss_M(WITHIN) - found.loss_M(FULL)).max() > 1e-3
    assert any("select" in line for line in said) and any("3 experts kept" in line for line in said)


def test_a_domain_without_select_tokens_is_left_out_and_named(tmp_path):
    """Documents of `rare` are few: the select split has none of them."""
    corpus, rare = tmp_path / "corpus.jsonl", 0
    lines = [
        {"text": "some words " * (i % 5 + 1), "id": f"d{i}", "domain": "often"} for i in range(90)
    ]
    for seed in range(50):
        lines_of = [*lines, {"text": "seldom " * 9, "id": f"r{seed}", "domain": "rare"}]
        corpus.write_text("".join(json.dumps(line) + "\n" for line in lines_of))
        store = prepare([str(corpus)], tmp_path / f"store{seed}", load_tokenizer("bytes")).store
        rare = store.count("test", domain="rare")
        if rare:
            break
    assert rare and not store.count("select", domain="rare")
    config = _config(pool=NO_POOL)
    found, _, _ = _measure(config, store.path, EvalSettings(keeps=(4,)))
    m = found.domains.index("rare")
    assert np.isnan(found.loss_M("keep=4")[m]) and np.isfinite(found.loss_M(FULL)[m])
    assert found.overall(FULL)[0] == pytest.approx(found.loss_M(FULL)[1 - m])
    written = json.loads(json.dumps(report.to_json(found), allow_nan=False))
    assert written["domains_left_out_of_overall_and_mean"] == ["rare"]
    assert written["domains"]["rare"]["keep"]["4"]["loss_nats_per_token"] is None
    table = report.to_table(found, config, "title")
    assert "rare" in str(table.caption)


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A store of which only `zed` has the byte Z; every document fills a window of 32 tokens."""
    folder = tmp_path_factory.mktemp("broken")
    lines = [
        {"text": f"{i:03d} {'Z' if i % 2 else 'z'} court and law in words".ljust(31), "id": f"z{i}"}
        | {"domain": "zed" if i % 2 else "law"}
        for i in range(160)
    ]
    (folder / "z.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return prepare([str(folder / "z.jsonl")], folder / "store", load_tokenizer("bytes")).store


def _without_a_row(config):
    """Parameters of which the embedding of Z is no number."""
    params = ModelFunctions(config).init(0)
    table = params["embed"]["embedding"]
    return {**params, "embed": {"embedding": table.at[3 + ord("Z")].set(np.nan)}}


@pytest.mark.parametrize("keeps", [(), (4,)])
def test_a_loss_that_is_not_finite_is_seen_in_the_means(broken, keeps):
    """And is not called one that was not measured."""
    config = _config(pool=NO_POOL, attention="document")
    chosen = open_split(broken.path, config, "test", load_tokenizer("bytes"))
    found = domain_losses(
        config, _without_a_row(config), chosen, EvalSettings(keeps=keeps), mesh=eval_mesh(config)
    )
    law, zed = (found.domains.index(name) for name in ("law", "zed"))
    assert found.labels_M.min() > 0
    for way in found.ce_sum_CM:
        assert np.isnan(found.loss_M(way)[zed]) and np.isfinite(found.loss_M(way)[law])
        assert math.isnan(found.overall(way)[0]) and math.isnan(found.mean(way)[0])
    written = json.loads(json.dumps(report.to_json(found), allow_nan=False))
    assert written["domains_not_finite"] == ["zed"]
    assert written["domains_left_out_of_overall_and_mean"] == []
    assert written["overall"]["loss_nats_per_token"] is None
    assert written["overall"]["tokens"] == int(found.labels_M.sum())
    assert written["mean_of_domains"]["loss_nats_per_token"] is None
    table = report.to_table(found, config, "title")
    assert str(table.caption) == "the loss is not finite, the model breaks there: zed"
    cells = list(table.columns[3].cells)
    assert cells[zed] == cells[-1] == cells[-2] == "nan" and cells[law] != "nan"


def test_all_losses_not_finite(broken):
    config = _config(pool=NO_POOL)
    params = jax.tree.map(lambda a: a * np.nan, ModelFunctions(config).init(0))
    chosen = open_split(broken.path, config, "test", load_tokenizer("bytes"))
    found = domain_losses(config, params, chosen, EvalSettings(), mesh=eval_mesh(config))
    table = report.to_table(found, config, "title")
    tokens, losses = (list(table.columns[n].cells) for n in (1, 3))
    assert losses == ["nan"] * 4
    assert tokens[-1] == f"{int(found.labels_M.sum()):,}"


def test_training_windows_are_measured_without_the_filter(store):
    config = _config()
    found, chosen, _ = _measure(config, store, EvalSettings(split="train", windows=5))
    assert (found.windows, found.windows_there) == (5, len(chosen.windows))
    assert chosen.windows.split == "train"


def test_token_files_without_domains_are_one_domain(store, tmp_path):
    tokens = TokenStore.open(store).streams("train")[0].read(0, 3000).tokens
    tokens.astype("<u4").tofile(tmp_path / "part.npy")
    config = tiny_config(vocab_size=100_278, embed_dim=8, num_layers=1)
    chosen = open_split(str(tmp_path / "part.npy"), config, "train", None)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    found = domain_losses(
        config, ModelFunctions(config).init(0), chosen, EvalSettings(split="train"), mesh=mesh
    )
    assert found.domains == ("all",) and found.bytes_M is None
    assert found.labels_M[0] > 2000 and np.isnan(found.bits_M(FULL)).all()
    assert report.to_json(found)["overall"]["bits_per_byte"] is None
    with pytest.raises(UsageError, match="no split 'test'; it has train"):
        open_split(str(tmp_path / "part.npy"), config, "test", None)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (EvalSettings(pools=(1,)), "--pool 1: must be 2..8"),
        (EvalSettings(pools=(3, 9)), "--pool 9: must be 2..8"),
        (EvalSettings(keeps=(2,)), "--keep 2: must be 3..8"),
        (EvalSettings(keeps=(9,)), "--keep 9: must be 3..8"),
    ],
)
def test_sizes_out_of_range(settings, named):
    with pytest.raises(UsageError, match=named):
        check_ways(tiny_config(), settings)
    with pytest.raises(UsageError, match="is dense, it has no experts"):
        check_ways(dense_config(), settings)


def test_a_store_of_another_tokenizer_or_too_many_ids(store, tmp_path):
    from emo_jax.tokenizer.load import train_bpe

    other = train_bpe(["some text, some more text"], 300)
    with pytest.raises(UsageError, match="the tokenizer is not the store's"):
        open_split(str(store), _config(), "test", other)
    with pytest.raises(UsageError, match="259 ids, the model 50"):
        open_split(str(store), tiny_config(), "test", None)
    with pytest.raises(UsageError, match="no such token store"):
        open_split(str(tmp_path / "none"), tiny_config(), "test", None)


def test_a_table_of_many_domains_shows_the_largest(store):
    found, _, _ = _measure(_config(), store, EvalSettings(keeps=(4,)))
    many = dataclasses.replace(
        found,
        domains=tuple(f"d{m}" for m in range(100)),
        labels_M=np.arange(100.0),
        bytes_M=np.arange(100),
        ce_sum_CM={way: np.arange(100.0) for way in found.ce_sum_CM},
        unseen_M=np.zeros(100, bool),
    )
    table = report.to_table(many, _config(), "title")
    assert table.row_count == report.MOST_ROWS + 2
    assert next(iter(table.columns[0].cells)) == "d60"
    assert "40 largest of 100" in str(table.caption)
    assert len(report.to_json(many)["domains"]) == 100


# --- the table -----------------------------------------------------------------------------------


def _table_of(domains, full, kept, *, labels, unseen, **console):
    """The losses of some domains, each label of which is a nat of its own, and their table."""
    labels_M = np.asarray(labels, float)
    losses = DomainLosses(
        domains=tuple(domains),
        labels_M=labels_M,
        bytes_M=None,
        ce_sum_CM={
            FULL: np.asarray(full) * labels_M,
            **{f"keep={keep}": np.asarray(loss_M) * labels_M for keep, loss_M in kept.items()},
        },
        windows=1,
        windows_there=1,
        select_windows=1,
        unseen_M=np.asarray(unseen),
    )
    out = Console(width=140, file=io.StringIO(), **console)
    out.print(report.to_table(losses, from_config_dict(presets.stdmoe_tiny()), "title"))
    text = out.file.getvalue()
    plain = [re.sub(r"\x1b\[[\d;]*m", "", line).split() for line in text.splitlines()]
    return losses, text, {words[0]: words[1:] for words in plain if words}


def test_a_loss_that_was_not_measured_is_a_dash():
    nan = np.nan
    kept = {keep: [1.2, nan, nan] for keep in (32, 16, 8)}
    losses, coloured, rows = _table_of(
        ["a", "unselected", "untested"],
        [1.0, 2.0, nan],
        kept,
        labels=[5, 5, 0],
        unseen=[False, True, False],
        force_terminal=True,
        color_system="standard",
    )
    assert rows["a"] == ["5", "–", "1.000", *(["1.200", "(+0.20)"] * 3)]
    assert rows["unselected"] == ["5", "–", "2.000", "–", "–", "–"]
    assert rows["untested"] == ["0", "–", *["–"] * 4]
    assert rows["mean"] == ["of", "domains", *rows["a"][1:]]  # the only one with every loss
    (line,) = (line for line in coloured.splitlines() if "unselected" in line and "–" in line)
    assert "\x1b[3" not in line  # no colour
    written = json.loads(json.dumps(report.to_json(losses), allow_nan=False))
    of = {name: d["keep"]["8"]["loss_nats_per_token"] for name, d in written["domains"].items()}
    assert of == {"a": pytest.approx(1.2), "unselected": None, "untested": None}
    assert written["domains_left_out_of_overall_and_mean"] == ["unselected"]


def test_a_loss_that_is_not_finite_is_no_dash():
    nan = np.nan
    kept = {32: [1.2, nan], 16: [nan, nan], 8: [1.3, nan]}
    _, _, rows = _table_of(["a", "broken"], [1.0, nan], kept, labels=[5, 5], unseen=[False, False])
    assert rows["a"] == ["5", "–", "1.000", "1.200", "(+0.20)", "nan", "1.300", "(+0.30)"]
    assert rows["broken"] == ["5", "–", *["nan"] * 4]
    assert rows["mean"] == ["of", "domains", "–", *["nan"] * 4]


def test_a_table_without_any_loss():
    nothing = [np.nan] * 2
    losses, _, rows = _table_of(
        ["a", "b"], [1.0, 1.0], {8: nothing}, labels=[5, 5], unseen=[True] * 2
    )
    assert rows["mean"][2:] == ["–"] * 3 and np.isnan(losses.mean("keep=8")[0])
    assert report.to_json(losses)["mean_of_domains"]["keep"]["8"]["loss_nats_per_token"] is None
