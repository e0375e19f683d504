"""`emo data`, as typed: what is shown is what is there, and one line for what is not."""

import json
import random
import string

import numpy as np
import pytest
import runs

from emo_jax.config.file import load_config
from emo_jax.data.loader import Loader
from emo_jax.data.run_windows import open_run_windows
from emo_jax.data.sources import open_data
from emo_jax.data.store import TokenStore

FAILED, USAGE = 1, 2


@pytest.fixture
def prepared(run, corpus, tmp_path):
    assert run("prepare", corpus, "--output", tmp_path / "s", "--tokenizer", "bytes") == 0
    return tmp_path / "s"


def overrides(store, **fields) -> list[str]:
    fields = {"data__store": store, "data__seq_len": 64, **fields}
    named = (f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items())
    return ["--config", str(runs.EXPERIMENT), *named]


# --- show ----------------------------------------------------------------------------------------


def test_a_window_of_a_store(run, prepared, capsys):
    capsys.readouterr()
    assert run("data", "show", prepared, "--window", 0, "--seq-len", 200, "--text") == 0
    shown = capsys.readouterr().out
    store = TokenStore.open(prepared)
    first, second = store.documents("train", 0, 2)
    assert "window 0 of" in shown and "S = 200, cut" in shown
    text = store.tokenizer().decode(first.tokens[:200], skip_special=False)
    assert f"\n{text}\n" in shown
    size = len(first.tokens)
    if size < 200:
        assert text.endswith("</s>") and f"0..{size - 1} of {size}" in shown
        assert f"--- segment 1, pool 1, columns {size}..199, document 1" in shown
        assert f"goes on for {len(second.tokens) - (200 - size)} more" in shown


def test_windows_of_a_run_are_in_its_order(run, prepared, capsys):
    given = overrides(prepared, data__packing="best_fit", train__batch_size=4)
    config = load_config(given[1], given[2:])
    with Loader(open_run_windows(config, open_data(config.data)), batch_size=1) as loader:
        batch = loader.batch(13)
    capsys.readouterr()
    assert run("data", "show", "--window", 13, "--text", *given) == 0
    shown = capsys.readouterr().out
    assert "window 13 of the run, in step 4" in shown and "best_fit" in shown
    tokenizer = TokenStore.open(prepared).tokenizer()
    for segment in range(batch.segment_ids.max() + 1):
        text = tokenizer.decode(batch.tokens[batch.segment_ids == segment], skip_special=False)
        assert f"\n{text}\n" in shown
    padding = int((batch.segment_ids < 0).sum())
    assert (f"--- padding, {padding} tokens" in shown) == (padding > 0)


def test_pools_of_the_reference_are_shown(run, prepared, capsys):
    for given, pools in (("False", ["0", "1"]), ("True", ["0, 1", "1"])):
        capsys.readouterr()
        more = overrides(prepared, data__eos_starts_next_pool=given, data__packing="document")
        for window in range(99):
            assert run("data", "show", "--window", window, "--text", *more) == 0
            shown = capsys.readouterr().out
            if "</s>" in shown:
                break
        assert f"segment 0, pool {pools[0]}, " in shown


def test_token_files_are_shown_as_ids(run, tmp_path, capsys):
    np.array([*range(2, 20), 1, *range(40, 90)], np.uint16).tofile(tmp_path / "a.npy")
    more = ("--config", runs.EXPERIMENT, "--config.data.raw_vocab_size=300")
    more += ("--config.data.raw_eos_id=1", "--config.data.order=grain", "--seq-len", 64)
    capsys.readouterr()
    assert run("data", "show", tmp_path / "a.npy", "--window", 0, "--text", *more) == 0
    shown = capsys.readouterr().out
    assert f"\n{' '.join(map(str, range(2, 20)))} 1\n" in shown
    assert "--- segment 1, pool 1, columns 19..63" in shown


def test_what_cannot_be_shown(refused, prepared, tmp_path):
    line = refused(USAGE, "data", "show", prepared, "--window", 10**6, "--seq-len", 64)
    assert "--window 1000000: split train has windows 0.." in line
    assert "no data" in refused(USAGE, "data", "show", "--window", 0)
    line = refused(USAGE, "data", "show", prepared, "--window", 0, "--config.data.seq_len=4")
    assert "--config.data.seq_len=4: no such option; a field of a config takes" in line
    line = refused(USAGE, "data", "show", prepared, prepared, "--window", 0)
    assert "only one DATA" in line
    line = refused(USAGE, "data", "show", "--window", 0, "--config", runs.EXPERIMENT)
    assert "names no data" in line
    line = refused(USAGE, "data", "show", tmp_path / "none", "--window", 0)
    assert "no such token store" in line and "config.data.sources" not in line
    line = refused(USAGE, "data", "stats", f"{tmp_path}/a,{tmp_path}/b")
    assert "several are a mixture: config.data.sources" in line


# --- stats, check --------------------------------------------------------------------------------


def test_stats(run, prepared, tmp_path, capsys):
    png, svg, figures = tmp_path / "a.png", tmp_path / "a.svg", tmp_path / "a.json"
    capsys.readouterr()
    assert run("data", "stats", prepared, "--plot", png, "--json", figures) == 0
    shown = capsys.readouterr().out
    store = TokenStore.open(prepared)
    total = sum(store.count(split) for split in store.splits)
    assert f"{total:,}   100.0%" in shown and "documents by length" in shown
    (found,) = json.loads(figures.read_text())["sources"]
    assert found["total"] == {"documents": 240, "tokens": total, "mean": round(total / 240, 2)}
    assert set(found["domains"]) == {"cooking", "law"}
    assert sum(one["documents"] for one in found["lengths"]["bins"]) == 240
    assert png.read_bytes()[:4] == b"\x89PNG"
    assert run("data", "stats", *overrides(prepared), "--plot", svg) == 0
    assert "<svg" in svg.read_text()


def test_stats_that_cannot_be_written(refused, prepared, tmp_path):
    line = refused(USAGE, "data", "stats", prepared, "--plot", tmp_path / "a.pdf")
    assert "must end in .png or .svg" in line
    (tmp_path / "a.json").write_text("mine")
    line = refused(USAGE, "data", "stats", prepared, "--json", tmp_path / "a.json")
    assert "is there already" in line and (tmp_path / "a.json").read_text() == "mine"


def test_check(run, refused, prepared, corpus, tmp_path, capsys):
    capsys.readouterr()
    assert run("data", "check", prepared) == 0
    assert f"{prepared}: no fault (" in capsys.readouterr().out
    assert run("prepare", corpus, "--output", tmp_path / "t", "--tokenizer", "bytes") == 0
    runs.flip_byte(tmp_path / "t/train/tokens/c/0")
    runs.flip_byte(tmp_path / "t/test/tokens/c/0")
    capsys.readouterr()
    assert run("data", "check", prepared, tmp_path / "t") == FAILED
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        str(prepared),
        f"{tmp_path}/t/test/tokens/c/0",
        f"{tmp_path}/t/train/tokens/c/0",
        "note",
    ]
    assert (
        shown.err == f"emo: 2 faults in {tmp_path}/t; copy or prepare again what is named above\n"
    )
    assert "no such token store" in refused(USAGE, "data", "check", tmp_path / "none")


# --- trace ---------------------------------------------------------------------------------------


@pytest.mark.system
def test_trace_of_a_run(run, refused, finished_run, tmp_path, capsys):
    """Every document of the last steps, with its id, as the store and the corpus have it."""
    read = tmp_path / "read.jsonl"
    capsys.readouterr()
    assert run("data", "trace", finished_run, "--last", 2, "--json", read) == 0
    shown = capsys.readouterr().out
    records = [json.loads(line) for line in read.read_text().splitlines()]
    assert {one["step"] for one in records} == {39, 40}
    assert {one["row"] for one in records} == set(range(4))
    assert f"2 steps, {len(records)} documents, 512 tokens" in shown
    one = records[-1]
    store = TokenStore.open(one["source"])
    (tokens,) = (d.tokens for d in store.documents("train", one["document"], one["document"] + 1))
    assert one["length"] == len(tokens)
    stream = store.streams("train")[0]
    assert [one["id"]] == stream.document_ids(one["document"], one["document"] + 1)
    assert run("data", "trace", finished_run, "--steps", "39:40", "--row", 3) == 0
    mine = sum(one["row"] == 3 for one in records)
    assert f"2 steps, {mine} documents, 128 tokens" in capsys.readouterr().out
    line = refused(USAGE, "data", "trace", finished_run, "--step", 41)
    assert "step 41: the run has 40 steps" in line
    assert "is there already" in refused(
        USAGE, "data", "trace", finished_run, "--step", 1, "--json", read
    )
    assert "give one of --step" in refused(USAGE, "data", "trace", finished_run)
    assert "as in 100:120" in refused(USAGE, "data", "trace", finished_run, "--steps", "7")
    assert "no such workdir" in refused(USAGE, "data", "trace", tmp_path / "none", "--step", 1)


# --- ids: kept by emo prepare, named by all -------------------------------------------------------


@pytest.fixture
def doubled(run, tmp_path):
    """A store where documents of the corpus are there twice, nearly or exactly, and their ids."""
    draw = random.Random(0)
    words = ["".join(draw.choices(string.ascii_lowercase, k=6)) for _ in range(2000)]
    texts = [
        {"text": " ".join(draw.choices(words, k=60)), "id": f"doc-{n}", "domain": f"d{n % 3}"}
        for n in range(900)
    ]
    again = [{**one, "id": f"again-{one['id']}"} for one in texts[:300]]
    nearly = [
        {**one, "id": f"nearly-{one['id']}", "text": f"{one['text']} and more"}
        for one in texts[300:600]
    ]
    lines = [json.dumps(one) + "\n" for one in [*texts, *again, *nearly]]
    (tmp_path / "doubled.jsonl").write_text("".join(lines))
    argv = ("prepare", tmp_path / "doubled.jsonl", "--tokenizer", "bytes", "--output")
    assert run(*argv, tmp_path / "d") == 0
    return tmp_path / "d", argv


def test_duplicates_are_named_and_can_be_left_out(run, doubled, tmp_path, capsys):
    store, prepare = doubled
    listed, figures = tmp_path / "ids.txt", tmp_path / "d.json"
    argv = ("data", "dedup", store, "--output", listed, "--json", figures)
    assert run(*argv) == 0
    found = json.loads(figures.read_text())
    ids = listed.read_text().splitlines()
    assert len(ids) == sum(found["exact"].values()) + sum(found["nearly"].values()) > 20
    assert sum(found["nearly"].values()) > 5
    one = found["examples"][0]
    names = {
        name.removeprefix("again-").removeprefix("nearly-") for name in (one["id"], one["of_id"])
    }
    assert len(names) == 1 and one["id"] in ids
    opened = TokenStore.open(store)
    stream = opened.streams("train")[0]
    assert set(ids) <= set(stream.document_ids(0, stream.num_documents))
    capsys.readouterr()
    assert run(*prepare, tmp_path / "clean", "--drop-ids", listed) == 0
    clean = TokenStore.open(tmp_path / "clean")
    assert clean.count("train", "documents") == opened.count("train", "documents") - len(ids)
    for split in ("select", "test"):
        assert clean.count(split, "documents") == opened.count(split, "documents")
    capsys.readouterr()
    assert run("data", "dedup", tmp_path / "clean") == 0
    assert "0 exact and 0 near duplicates" in capsys.readouterr().out


def test_ids_are_shown_and_compared(run, corpus, tmp_path, capsys):
    texts = [json.loads(line) for line in corpus.read_text().splitlines()]
    texts[7]["id"] = texts[200]["id"] = "twice"
    corpus.write_text("".join(json.dumps(one) + "\n" for one in texts))
    assert run("prepare", corpus, "--output", tmp_path / "s", "--tokenizer", "bytes") == 0
    capsys.readouterr()
    assert run("data", "check", tmp_path / "s") == 0
    note, line = capsys.readouterr().out.splitlines()
    assert note.startswith(f"note: {tmp_path}/s: id 'twice' is that of document ")
    assert line.startswith(f"{tmp_path}/s: no fault") and line.endswith("; 240 ids)")
    assert run("data", "show", tmp_path / "s", "--window", 0, "--seq-len", 64) == 0
    (first,) = TokenStore.open(tmp_path / "s").streams("train")[0].document_ids(0, 1)
    assert f" {first} " in capsys.readouterr().out
