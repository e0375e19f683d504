"""`emo prepare` on all that it can read, as typed, and one line for what it cannot."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import runs
from click.testing import CliRunner

from emo_jax.cli.app import cli
from emo_jax.data.store import TokenStore

FAILED, USAGE = 1, 2

TASKS = """
import seqio
import tensorflow as tf

VOCABULARY = seqio.PassThroughVocabulary(500)
seqio.TaskRegistry.add(
    "cli_wiki",
    seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(
            {"targets": [f"{split} {i}" for i in range(20)]}),
        splits=["train", "validation"]),
    preprocessors=[seqio.preprocessors.tokenize],
    output_features={"targets": seqio.Feature(seqio.ByteVocabulary())},
)
"""


# Takes from root, where the tests run as root, the right to write anywhere (CAP_DAC_OVERRIDE).
BOUND = """
import ctypes, os, sys
cap_bset_drop, cap_dac_override = 24, 1
ctypes.CDLL(None).prctl(cap_bset_drop, cap_dac_override, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-m", "emo_jax.cli", *sys.argv[1:]])
"""


@pytest.fixture
def records(corpus):
    found = [json.loads(line) for line in corpus.read_text().splitlines()]
    return [{**r, "meta": {"lang": ["en", "de"][i % 2]}} for i, r in enumerate(found)]


@pytest.fixture
def parquet(records, tmp_path):
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    return tmp_path / "a.parquet"


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    (tmp_path / "cli_tasks.py").write_text(TASKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "seqio:cli_tasks"
    sys.modules.pop("cli_tasks", None)
    seqio = sys.modules.get("seqio")
    if seqio and "cli_wiki" in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove("cli_wiki")


def _prepare(inputs, output, *more, tokenizer="bytes"):
    return ["prepare", inputs, "--output", output, "--tokenizer", tokenizer, *more]


def test_parquet_gives_the_store_of_the_jsonl(run, corpus, parquet, tmp_path):
    assert run(*_prepare(corpus, tmp_path / "a")) == 0
    assert run(*_prepare(parquet, tmp_path / "b")) == 0
    stores = [TokenStore.open(tmp_path / name) for name in "ab"]
    assert stores[0].fingerprint == stores[1].fingerprint
    files = [
        {
            str(p.relative_to(tmp_path / name)): p.read_bytes()
            for p in sorted(folder)
            if p.is_file() and p.name != "sources.json"  # names the inputs
        }
        for name, folder in ((name, (tmp_path / name).rglob("*")) for name in "ab")
    ]
    assert files[0] == files[1]


def test_filters_are_counted_and_recorded(run, parquet, tmp_path, capsys):
    more = ("--language-field", "meta.lang", "--language", "en", "--max-tokens", 100)
    assert run(*_prepare(parquet, tmp_path / "s", *more, "--min-chars", 10)) == 0
    shown = capsys.readouterr().out
    recorded = TokenStore.open(tmp_path / "s").manifest["filter"]
    assert recorded["dropped"]["--language en"] == 120
    for name, count in recorded["dropped"].items():
        assert f"{count} x dropped by {name}" in shown
    assert (recorded["max_tokens"], recorded["min_chars"]) == (100, 10)


def test_wrong_filters(refused, corpus, tmp_path):
    line = refused(USAGE, *_prepare(corpus, tmp_path / "s", "--min-chars", 9, "--max-chars", 8))
    assert "--min-chars 9: is above --max-chars 8" in line
    line = refused(FAILED, *_prepare(corpus, tmp_path / "s", "--language", "en"))
    assert "240 dropped by --language: no 'language'" in line
    assert not (tmp_path / "s").exists()


def test_parquet_that_cannot_be_used(refused, parquet, tmp_path):
    line = refused(FAILED, *_prepare(parquet, tmp_path / "s", "--text-field", "body"))
    assert "a.parquet: no column 'body'; it has text, id, domain, meta" in line
    parquet.write_bytes(parquet.read_bytes()[:-5])
    line = refused(FAILED, *_prepare(parquet, tmp_path / "s"))
    assert "a.parquet: cannot be read as Parquet" in line
    pq.write_table(pa.table({"text": ["a", None, "b"]}), parquet)
    line = refused(FAILED, *_prepare(parquet, tmp_path / "s", "--strict"))
    assert "a.parquet:2: field 'text' is not a string" in line
    assert not (tmp_path / "s").exists()


def test_tokenizer_trained_on_parquet(run, parquet, tmp_path, capsys):
    argv = ["tokenizer", "train", parquet, "--vocab-size", 270, "--output", tmp_path / "tok"]
    assert run(*argv) == 0
    assert "240 documents read" in capsys.readouterr().out


@pytest.mark.system
def test_seqio_tasks_and_vocabularies(run, refused, tasks, tmp_path):
    spec = f"{tasks}:cli_wiki"
    assert run(*_prepare(f"{spec}:validation", tmp_path / "a")) == 0
    store = TokenStore.open(tmp_path / "a")
    text = store.tokenizer().decode(store.documents("train", 0, 1)[0].tokens)
    assert text.startswith("validation ")
    line = refused(FAILED, *_prepare(f"{spec}:test", tmp_path / "b"))
    assert "no split 'test'" in line
    line = refused(USAGE, *_prepare(f"{tasks}:cli_wik", tmp_path / "b"))
    assert "did you mean 'cli_wiki'" in line
    line = refused(USAGE, *_prepare("seqio:cli_none:x", tmp_path / "b"))
    assert "module 'cli_none' cannot be imported" in line
    (tmp_path / "ids.jsonl").write_text('{"text": [1, 2, 3]}\n')
    ids = {"tokenizer": f"{tasks}:VOCABULARY"}
    line = refused(FAILED, *_prepare(tmp_path / "ids.jsonl", tmp_path / "b", **ids))
    assert "no end-of-document token; give --eos-id" in line
    assert run(*_prepare(tmp_path / "ids.jsonl", tmp_path / "b", "--eos-id", 7, **ids)) == 0
    made = TokenStore.open(tmp_path / "b")
    assert made.documents("train", 0, 1)[0].tokens.tolist() == [1, 2, 3, 7]


@pytest.mark.system
def test_a_model_trains_on_a_kept_vocabulary(run, corpus, tasks, tmp_path):
    """The whole way: a vocabulary without a tokenizer.json, a store, two steps, and a resume."""
    (tmp_path / "ids.jsonl").write_text(
        "".join(json.dumps({"text": [i % 90 for i in range(n, n + 200)]}) + "\n" for n in range(40))
    )
    argv = _prepare(tmp_path / "ids.jsonl", tmp_path / "s", tokenizer=f"{tasks}:VOCABULARY")
    assert run(*argv, "--eos-id", 99) == 0
    fields = {"train__batch_size": 8, "model__vocab_size": 500, "train__eval_windows": 0}
    for steps in (2, 2):
        train = runs.train_argv(
            tmp_path / "s",
            tmp_path / "run",
            train__steps=steps,
            optimizer__warmup_steps=1,
            **fields,
        )
        assert run(*train) == 0
    assert runs.steps_logged(tmp_path / "run") == 2
    assert (tmp_path / "run/tokenizer/vocabulary.json").exists()
    assert run("export", tmp_path / "run", "--output", tmp_path / "hf") == 0
    exported = json.loads((tmp_path / "hf/generation_config.json").read_text())
    assert exported["eos_token_id"] == 99 and not (tmp_path / "hf/tokenizer.json").exists()


def test_sentencepiece(run, refused, corpus, tmp_path):
    import sentencepiece

    with (tmp_path / "a.model").open("wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus.read_text().splitlines()),
            model_writer=stream,
            model_type="bpe",
            vocab_size=90,
            minloglevel=2,
        )
    assert run(*_prepare(corpus, tmp_path / "a", tokenizer=tmp_path / "a.model")) == 0
    assert (tmp_path / "a/tokenizer/tokenizer.json").exists()
    kept = f"sentencepiece:{tmp_path}/a.model"
    assert run(*_prepare(corpus, tmp_path / "b", tokenizer=kept)) == 0
    assert not (tmp_path / "b/tokenizer/tokenizer.json").exists()
    first, second = (TokenStore.open(tmp_path / name) for name in "ab")
    for a, b in zip(
        first.documents("train", 0, 300), second.documents("train", 0, 300), strict=True
    ):
        assert a.tokens.tolist() == b.tokens.tolist()
    line = refused(FAILED, *_prepare(corpus, tmp_path / "c", tokenizer=corpus))
    assert "corpus.jsonl: not a SentencePiece model" in line


def test_no_permission(env, corpus, tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    argv = [sys.executable, "-c", BOUND, *map(str, _prepare(corpus, folder / "store"))]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == FAILED
    assert done.stderr.startswith("emo: ") and done.stderr.count("\n") == 1, done.stderr
    assert f"{folder}/store: cannot be written" in done.stderr
    assert "Permission denied" in done.stderr


def test_the_example_is_in_the_help():
    shown = CliRunner().invoke(cli, ["prepare", "--help"]).output
    assert "emo prepare docs.jsonl.zst parquet_files/" in shown
