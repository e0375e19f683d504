"""Never a wrong batch: stores, weights, packings, hosts and kills drawn by chance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lists import ListSource, random_documents

from emo_jax.batch import Batch
from emo_jax.config import DataConfig, SourceConfig, from_config_dict, presets, to_dict
from emo_jax.data.loader import Loader
from emo_jax.data.mixture import Mixture, planned
from emo_jax.data.run_windows import RunWindows, in_order, open_run_windows
from emo_jax.data.sources import MixedSource
from emo_jax.data.windows import Windows
from emo_jax.errors import ConfigError, DataError, UsageError

S = 8


def tiny(**data):
    """A config with these fields of `data`."""
    values = to_dict(from_config_dict(presets.emo_tiny()))
    steps, batch_size = data.pop("steps", 20), data.pop("batch_size", 4)
    values["train"] |= {"steps": steps, "batch_size": batch_size, "micro_batches": 1}
    values["optimizer"] |= {"warmup_steps": 0}
    values["data"] |= {"seq_len": S, **data}
    return from_config_dict(values)


@st.composite
def runs(draw):
    """Sources with disjoint tokens, and a config of a run that reads them."""
    count = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    entries, sources, first = [], [], 2
    for k in range(count):
        documents = random_documents(rng, draw(st.integers(5, 60)), draw(st.integers(2, 25)), first)
        first = (
            max(t for d in documents for t in d) + 1
            if any(len(d) > 1 for d in documents)
            else first
        )
        documents.append([*range(first, first + S), 1])  # one window at least
        first += S
        sources.append(ListSource(documents, f"source {k}", vocab_size=10**6))
        entries.append({"store": f"s{k}", "weight": draw(st.floats(0.05, 1))})
        if draw(st.booleans()):
            later = {"store": f"s{k}", "weight": draw(st.floats(0.05, 1))}
            entries.append(later | {"from_step": draw(st.integers(1, 19))})
    data = {
        "seed": draw(st.integers(0, 2**40)),
        "packing": draw(st.sampled_from(["cut", "best_fit", "document"])),
    }
    if count > 1:
        data["sources"] = entries
        source = MixedSource([f"s{k}" for k in range(count)], sources, [""] * count)
    else:
        data["store"], source = "s0", sources[0]
    return tiny(batch_size=draw(st.sampled_from([1, 3, 4, 8])), **data), source


@given(runs(), st.data())
@settings(max_examples=50, deadline=None)
def test_any_hosts_and_any_kills_give_the_batches_of_one_host(run, data):
    config, source = run
    batch_size, steps = config.train.batch_size, config.train.steps
    windows = open_run_windows(config, source)
    whole = windows.read(
        np.arange(steps * batch_size)
    )  # the run, as one host would read it at once
    consumed = 0
    while consumed < steps * batch_size:  # a start of the run
        hosts = data.draw(st.sampled_from([h for h in (1, 2, 4, 8) if batch_size % h == 0]))
        killed_after = data.draw(st.integers(1, steps))
        rows = np.array_split(np.arange(batch_size), hosts)
        again = open_run_windows(config, source)  # nothing is carried over but `consumed`
        readers = [Loader(again, batch_size=batch_size, rows=r.tolist()) for r in rows]
        iterators = [reader.iterate(consumed) for reader in readers]
        for _ in range(min(killed_after, steps - consumed // batch_size)):
            parts = [next(iterator) for iterator in iterators]
            for (after, part), of_host in zip(parts, rows, strict=True):
                assert after == consumed + batch_size
                for ours, theirs in zip(part, whole, strict=True):
                    np.testing.assert_array_equal(ours, theirs[consumed + of_host])
            consumed += batch_size
        for iterator, reader in zip(iterators, readers, strict=True):
            iterator.close()
            reader.close()


@given(runs())
@settings(max_examples=40, deadline=None)
def test_places_are_those_of_the_mixture_and_of_each_order(run):
    """Against a walk that counts: each source in its own order, each window once an epoch."""
    config, source = run
    windows = open_run_windows(config, source)
    places = config.train.steps * config.train.batch_size
    of, numbers = windows.locate(np.arange(places))
    reads: dict[int, list[int]] = {}
    for k, number in zip(of.tolist(), numbers.tolist(), strict=True):
        reads.setdefault(k, []).append(number)
    for k, found in reads.items():
        length = len(windows.parts[k])
        for epoch in range(0, len(found), length):
            part = found[epoch : epoch + length]
            assert len(set(part)) == len(part) and max(part) < length
    if windows.mixture is not None:
        counts = windows.mixture.counts(places)
        assert counts.tolist() == [len(reads.get(k, [])) for k in range(len(windows.parts))]
        shares = windows.shares(places)
        assert sum(shares.values()) == pytest.approx(1)
    batch = windows.read(np.arange(places))
    for place in np.random.default_rng(0).integers(0, places, 5).tolist():
        alone = windows.parts[of[place]][numbers[place]]
        for ours, theirs in zip(batch, alone, strict=True):
            np.testing.assert_array_equal(ours[place], theirs)


def documents(first, count=12):
    return [[*range(first + 8 * i, first + 8 * i + 7), 1] for i in range(count)]


def mixed(*entries, steps=20, **kwargs):
    config = tiny(sources=list(entries), steps=steps)
    names = config.data.stores
    sources = [
        ListSource(documents(1000 * k + 2), n, vocab_size=10**6, **kwargs.get(n, {}))
        for k, n in enumerate(names)
    ]
    labels = {e["store"]: e.get("domain", "") for e in entries}
    return config, MixedSource(names, sources, [labels[n] for n in names])


def test_domains_are_those_of_all_sources_or_the_label():
    config, source = mixed(
        {"store": "x", "weight": 1, "domain": "zoo"},
        {"store": "y", "weight": 1},
        y={"domains": ("b", "c")},
    )
    assert source.domains == ("b", "c", "zoo")
    windows = open_run_windows(config, source)
    batch = windows.read(np.arange(40))
    names = np.array(source.domains)[batch.domain_ids]
    is_x = batch.tokens.max(axis=1) < 1000
    assert (names[is_x] == "zoo").all() and set(names[~is_x].flat) == {"b", "c"}


def test_what_a_run_will_read_is_said():
    config, source = mixed(
        {"store": "x", "weight": 3}, {"store": "y", "weight": 1, "epochs": 0.5}, steps=20
    )
    windows = open_run_windows(config, source)
    x, y = windows.notes(config.train.batch_size)
    assert x == "x: 74 of 80 windows, 6.17 passes over it"
    assert y.startswith("y: 6 of 80 windows, 0.50 passes over it; ends at step ")
    assert windows.shares(80) == {"x": 74 / 80, "y": 6 / 80}


def test_a_weight_that_begins_after_the_end_of_the_run_is_said():
    parts = [{"store": store, "weight": 1} for store in "xy"]
    parts.append({"store": "y", "weight": 5, "from_step": 20})
    config, source = mixed(*parts, steps=20)
    *_, last = open_run_windows(config, source).notes(config.train.batch_size)
    assert last == "y: its weight from step 20 on has no effect, since the run ends with step 20"
    config, source = mixed(*parts, steps=21)
    notes = open_run_windows(config, source).notes(config.train.batch_size)
    assert len(notes) == 2 and "effect" not in "".join(notes)


def test_a_mixture_that_ends_before_the_run():
    config, source = mixed(
        {"store": "x", "weight": 1, "epochs": 2}, {"store": "y", "weight": 1, "epochs": 1}
    )
    with pytest.raises(ConfigError, match=r"end after 9 of train.steps = 20 steps.*raise a cap"):
        open_run_windows(config, source)


def test_no_window_beyond_the_end_of_a_mixture():
    config, source = mixed({"store": "x", "weight": 1}, {"store": "y", "weight": 1})
    windows = open_run_windows(config, source)
    assert len(windows.read(np.array([79])).tokens) == 1
    for places in ([79, 80], [-1], [2**62]):
        with pytest.raises(IndexError, match="of 80"):
            windows.read(np.array(places))


def test_a_source_without_a_window_is_named():
    config = tiny(sources=[{"store": "x", "weight": 1}, {"store": "y", "weight": 1}])
    sources = [ListSource(documents(2), "x"), ListSource([[2, 1]], "y")]
    with pytest.raises(DataError, match=r"^y: split 'train' has 2 tokens, less than one window of"):
        open_run_windows(config, MixedSource(["x", "y"], sources, ["", ""]))


def test_one_store_under_two_names():
    sources = [ListSource(documents(2), "web"), ListSource(documents(2), "web")]
    with pytest.raises(UsageError, match=r"^\./web: holds the same tokens as web; name one"):
        MixedSource(["web", "./web"], sources, ["", ""])


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            {"tokenizer_fingerprint": "b" * 64},
            r"y: its tokenizer \(bbbbbbbbbbbb\) is not that of x",
        ),
        ({"eos_id": 3}, "y: its eos_id is 3, that of x is 1"),
        ({"vocab_size": 500}, "y: its vocab_size is 500, that of x is 1000"),
    ],
)
def test_sources_of_different_tokens(other, said):
    fields = {"tokenizer_fingerprint": "a" * 64}
    one, two = (
        ListSource(documents(2), "x", **fields),
        ListSource(documents(2), "y", **fields | other),
    )
    with pytest.raises(DataError, match=said):
        MixedSource(["x", "y"], [one, two], ["", ""])


def test_fifty_thousand_domains_and_a_thousand_sources_start_fast():
    import time

    names = [f"site-{i:05}.example" for i in range(50_000)]
    sources = [
        ListSource([[2, 3, 4, 5, 6, 7, 8, 1]], f"s{k}", domains=tuple(names[50 * k : 50 * k + 50]))
        for k in range(1000)
    ]
    begin = time.process_time()
    source = MixedSource([s.name for s in sources], sources, [""] * 1000)
    entries = [SourceConfig(store=s.name, weight=1 + k % 7) for k, s in enumerate(sources)]
    windows = open_run_windows(tiny(sources=[vars(e) for e in entries], steps=10_000), source)
    windows.read(np.arange(64))
    assert time.process_time() - begin < 5
    assert source.domains == tuple(names)


def test_one_source_in_a_mixture_reads_what_it_would_alone():
    source = ListSource(documents(2, 40), vocab_size=10**6)
    alone = in_order(Windows(source, S), 3)
    data = DataConfig(sources=(SourceConfig(store="list", weight=2.0),), seq_len=S, seed=3)
    plan = Mixture(planned(data.sources, {"list": 40}), batch_size=4, steps=50)
    both = RunWindows([Windows(source, S)], [alone._orders[0]], mixture=plan)
    assert isinstance(both.read(np.arange(8)), Batch)
    np.testing.assert_array_equal(both.locate(np.arange(200))[1], alone.locate(np.arange(200))[1])
