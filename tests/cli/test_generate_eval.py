"""emo generate and emo eval on a real run and on its Hugging Face folder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import runs

from emo_jax.errors import UsageError
from emo_jax.generation.sampling import Sampling
from emo_jax.generation.texts import TextGenerator, TextSettings
from emo_jax.saved.load import load_model
from emo_jax.tokenizer.load import load_tokenizer, train_bpe

FAILED, USAGE = 1, 2
INPUTS = Path(__file__).parents[1] / "documents/inputs"


@pytest.fixture(scope="module")
def folder(finished_run, tmp_path_factory):
    """The run as a Hugging Face folder."""
    path = tmp_path_factory.mktemp("hf") / "tiny"
    assert runs.emo_here("export", finished_run, "--output", path) == 0
    return path


# --- loading -------------------------------------------------------------------------------------


def test_a_workdir_a_step_of_it_and_its_folder(finished_run, folder):
    newest, earlier = load_model(str(finished_run)), load_model(f"{finished_run}@20")
    exported = load_model(str(folder))
    assert (newest.step, earlier.step, exported.step) == (40, 20, None)
    assert runs.equal_trees(
        newest.params["layers"]["attention"], exported.params["layers"]["attention"]
    )
    assert not runs.equal_trees(newest.params["embed"], earlier.params["embed"])
    for loaded in (newest, earlier, exported):
        assert loaded.need_tokenizer().fingerprint == load_tokenizer("bytes").fingerprint


@pytest.mark.parametrize("command", ["generate", "eval"])
def test_what_is_no_model(refused, finished_run, folder, store, tmp_path, command):
    more = ["--prompt", "x"] if command == "generate" else ["--data", store]
    assert "no such folder" in refused(USAGE, command, tmp_path / "none", *more)
    line = refused(USAGE, command, tmp_path, *more)
    assert "neither a workdir nor a Hugging Face folder" in line
    assert "no such folder" in refused(USAGE, command, f"{tmp_path}/none@3", *more)
    assert "leave out @3" in refused(USAGE, command, f"{folder}@3", *more)
    assert "7" in refused(FAILED, command, f"{finished_run}@7", *more)
    (tmp_path / "config.json").write_text("{")
    assert "config.json: broken JSON" in refused(USAGE, command, tmp_path, *more)


@pytest.mark.parametrize("at", ["", "@20"])
def test_a_relative_path(run, finished_run, store, capsys, monkeypatch, at):
    """As the examples have it."""
    monkeypatch.chdir(finished_run.parent)
    model = f"{finished_run.name}{at}"
    assert run("generate", model, "--prompt", "x", "--max-tokens", 2) == 0, capsys.readouterr()
    relative = store.relative_to(finished_run.parent)
    assert run("eval", model, "--data", relative, "--windows", 2) == 0, capsys.readouterr()
    assert "not used" not in capsys.readouterr().err


def test_no_tokenizer(refused, folder, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=lambda _, names: [n for n in names if "tokenizer" in n])
    line = refused(USAGE, "generate", bare, "--prompt", "x")
    assert "no tokenizer.json" in line and str(bare) in line
    large = train_bpe(["many words that are said many times, many words"] * 3, 280)
    large.save(bare)
    line = refused(USAGE, "generate", bare, "--prompt", "x")
    assert f"its tokenizer has {large.vocab_size} ids, the model 259" in line


# --- emo generate --------------------------------------------------------------------------------


def test_one_prompt_gives_its_text(run, finished_run, capsys):
    assert run("generate", finished_run, "--prompt", "flour ", "--max-tokens", 30) == 0
    out, err = capsys.readouterr()
    assert len(out.encode()) >= 30 and out.endswith("\n")
    assert "prompts 6 tokens" in err and "tokens/s" in err and "compiled in" in err
    loaded = load_model(str(finished_run))
    made = _texts(loaded, ["flour "], max_tokens=30)
    assert made[0].text + "\n" == out and made[0].new_tokens == 30


def _texts(loaded, prompts, *, on_text=None, **settings):
    generator = TextGenerator(
        loaded.config, loaded.params, loaded.need_tokenizer(), TextSettings(**settings)
    )
    return list(generator.texts(prompts, on_text=on_text))


DRAWN = {"max_tokens": 24, "sampling": Sampling(1.0, 0, 0.95), "seed": 3}


@pytest.mark.system
def test_the_same_text_in_every_batch_and_from_the_folder(run, finished_run, folder, tmp_path):
    prompts = ["court ", "", "butter and ", "x", "oven salt flour oven"]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, "other": 1}) + "\n" for p in prompts))
    flags = ["--max-tokens", 24, "--temperature", 1, "--top-p", 0.95, "--seed", 3]
    written = []
    for model, size in ((finished_run, 2), (finished_run, 16), (folder, 4)):
        output = tmp_path / f"{size}.jsonl"
        argv = ["generate", model, "--prompts", file, "--output", output, "--batch-size", size]
        assert run(*argv, *flags) == 0
        written.append([json.loads(line) for line in output.read_text().splitlines()])
    assert written[0] == written[1] == written[2]
    assert [line["prompt"] for line in written[0]] == prompts
    assert [line["prompt_tokens"] for line in written[0]] == [len(p) for p in prompts]
    assert len({line["text"] for line in written[0]}) == len(prompts)
    alone = _texts(load_model(str(finished_run)), prompts[2:3], **DRAWN)
    assert alone[0].text == written[0][2]["text"] and alone[0].ended == written[0][2]["ended"]
    other = _texts(load_model(str(finished_run)), prompts[2:3], **{**DRAWN, "seed": 4})
    assert other[0].text != alone[0].text


def test_a_prompt_given_twice_is_drawn_twice(finished_run):
    """In one batch and in two; each draw is the same again."""
    loaded = load_model(str(finished_run))
    one, two, other = _texts(loaded, ["court ", "court ", "judge "], **DRAWN)
    assert one.text != two.text
    apart = _texts(loaded, ["court ", "judge ", "court "], batch_size=1, **DRAWN)
    assert [text.text for text in apart] == [one.text, other.text, two.text]


def test_prompts_begin_as_the_documents_did(finished_run):
    """Where `emo prepare --add-bos` began them with a token."""
    loaded = load_model(str(finished_run))
    tokenizer = loaded.need_tokenizer()
    settings = TextSettings(max_tokens=8)
    encode = TextGenerator(loaded.config, loaded.params, tokenizer, settings).encode
    plain = encode(["ab", ""])
    tokenizer.bos_id, tokenizer.adds_bos = 2, True
    assert encode(["ab", ""]) == [[2, *plain[0]], [2]]
    (begun,) = _texts(loaded, ["a" * 62], max_tokens=8)
    assert (begun.prompt_tokens, begun.new_tokens, begun.ended) == (63, 1, "window")
    with pytest.raises(UsageError, match="64 tokens, the model's window of 64 allows 63"):
        encode(["a" * 63])


def test_prompts_are_lines_of_text_or_of_json(run, finished_run, capsys, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("one line\n\n{ two\r\n")
    assert (
        run("generate", finished_run, "--prompts", file, "--prompt", "first", "--max-tokens", 1)
        == 0
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == ["first", "one line", "{ two"]
    assert all(line["new_tokens"] <= 1 for line in lines)


def test_a_file_of_one_prompt_gives_a_line_of_json(run, finished_run, capsys, tmp_path):
    """So that a script reads what comes, however many lines its file has."""
    argv = ["generate", finished_run, "--max-tokens", 1]
    assert run(*argv, "--prompts", INPUTS / "one.jsonl") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["prompt"] == "The court"
    assert run(*argv, "--prompt", "The court") == 0
    assert not capsys.readouterr().out.startswith("{")


def test_prompts_that_are_no_text(refused, finished_run):
    argv = ["generate", finished_run]
    line = refused(FAILED, *argv, "--prompts", INPUTS / "prompts.jsonl")
    assert "prompts.jsonl:2: half of a surrogate pair; mend that line" in line
    line = refused(USAGE, *argv, "--prompt", "fine", "--prompt", "caf\udce9")
    assert "--prompt 2: not UTF-8 text" in line
    assert "--stop 1: not UTF-8" in refused(USAGE, *argv, "--prompt", "a", "--stop", "\udce9")


@pytest.mark.system
def test_a_text_ends_before_a_stop_string_that_spans_tokens(finished_run):
    """Every byte is a token here, so each of these strings is of several."""
    loaded = load_model(str(finished_run))
    drawn = {"max_tokens": 24, "sampling": Sampling(0.6, 0, 0.95)}
    prompts = [f"{word} " for word in " ".join(runs.WORDS.values()).split()]
    made = {text.prompt: text.text for text in _texts(loaded, prompts, **drawn)}
    # One without half characters or the end of a document.
    prompt, whole = next(
        (p, t) for p, t in made.items() if len(t) == 24 and t.isascii() and len(set(t)) > 5
    )
    parts = []
    for stop in (whole[3:6], whole[9:20], whole[:2]):
        before = whole[: whole.index(stop)]
        parts.clear()
        for on_text in (None, parts.append):
            (text,) = _texts(loaded, [prompt], stop=(stop, "never"), on_text=on_text, **drawn)
            assert (text.text, text.ended) == (before, "stop")
            assert text.new_tokens == len((before + stop).encode())
        assert "".join(parts) == before
    (text,) = _texts(loaded, [prompt], stop=(whole[5:9], whole[2:4]), **drawn)
    assert text.text == whole[: whole.index(whole[2:4])]
    parts.clear()
    (text,) = _texts(loaded, [prompt], stop=("never",), on_text=parts.append, **drawn)
    assert "".join(parts) == text.text == whole and len(parts) > 1


def test_the_window_is_the_end(run, refused, finished_run, capsys, tmp_path):
    flags = ["--max-tokens", 100, "--temperature", 1, "--seed", 1]
    assert run("generate", finished_run, "--prompt", "a" * 60, *flags) == 0
    assert "ended at the model's window: 4 of --max-tokens 100" in capsys.readouterr().err
    line = refused(USAGE, "generate", finished_run, "--prompt", "fine", "--prompt", "a" * 64)
    assert "prompt 2: 64 tokens, the model's window of 64 allows 63" in line


def test_bad_usage_of_generate(refused, finished_run, tmp_path):
    argv = ["generate", finished_run]
    assert "no prompt" in refused(USAGE, *argv)
    assert "none.txt" in refused(USAGE, *argv, "--prompts", tmp_path / "none.txt")
    empty, broken = tmp_path / "empty.txt", tmp_path / "broken.jsonl"
    empty.write_text("\n \n")
    assert "has no prompt" in refused(USAGE, *argv, "--prompts", empty)
    broken.write_text('{"prompt": "fine"}\n{"prompt": 3}\n')
    assert "broken.jsonl:2" in refused(FAILED, *argv, "--prompts", broken)
    argv += ["--prompt", "x"]
    assert "--temperature 0" in refused(USAGE, *argv, "--top-p", 0.5)
    assert "empty string" in refused(USAGE, *argv, "--stop", "")
    assert "at least 1e-06" in refused(USAGE, *argv, "--temperature", 1e-39)
    assert "of 64 bits" in refused(USAGE, *argv, "--seed", 2**70)
    for flag, value in (("--top-p", 0), ("--top-p", 1.5), ("--temperature", -1), ("--top-k", 0)):
        assert flag in refused(USAGE, *argv, flag, value)
    taken = tmp_path / "taken.jsonl"
    taken.write_text("mine")
    assert "is there already" in refused(USAGE, *argv, "--output", taken)
    assert taken.read_text() == "mine"
    assert "no such folder" in refused(USAGE, *argv, "--output", tmp_path / "none" / "x")


# --- emo eval ------------------------------------------------------------------------------------


def _evaluated(run, capsys, model, store, *more):
    capsys.readouterr()
    assert run("eval", model, "--data", store, *more) == 0
    return capsys.readouterr().out


@pytest.mark.system
def test_a_workdir_and_its_folder_have_the_same_table(
    run, finished_run, folder, store, capsys, tmp_path
):
    flags = ["--pool", 4, "--pool", 7, "--keep", 4, "--keep", 3]
    of_run, of_folder = tmp_path / "run.json", tmp_path / "folder.json"
    first = _evaluated(run, capsys, finished_run, store, *flags, "--json", of_run)
    second = _evaluated(run, capsys, folder, store, *flags, "--json", of_folder)
    # The title names the step, which a folder does not know.
    assert first.splitlines()[1:] == second.splitlines()[1:]
    for word in ("cooking", "law", "bits/byte", "all 8", "pool=4", "50 % (4)", "all tokens"):
        assert word in first
    ours, theirs = json.loads(of_run.read_text()), json.loads(of_folder.read_text())
    assert ours["domains"] == theirs["domains"] and ours["overall"] == theirs["overall"]
    assert ours["model"] == {"name": "emo_tiny", "path": str(finished_run), "step": 40}
    assert theirs["model"]["step"] is None
    assert ours["split"] == "test" and ours["windows"] == ours["windows_in_split"]
    assert len(ours["data"]["fingerprint"]) == 64 and ours["versions"]["jax"]
    law = ours["domains"]["law"]
    assert set(law) == {"tokens", "bytes", "loss_nats_per_token", "bits_per_byte", "pool", "keep"}
    # Bytes are the tokens here, but for the end of a document.
    assert 0.95 * law["tokens"] < law["bytes"] < law["tokens"]
    bits = law["loss_nats_per_token"] * law["tokens"] / law["bytes"] / np.log(2)
    assert law["bits_per_byte"] == pytest.approx(bits)
    assert set(law["pool"]) == {"4", "7"} and set(law["keep"]) == {"4", "3"}
    # Pools of all seven routed experts restrict nothing.
    assert law["pool"]["7"]["loss_nats_per_token"] == pytest.approx(law["loss_nats_per_token"])


def test_the_loss_is_the_one_that_training_logged(run, finished_run, store, capsys, tmp_path):
    """The last held-out loss, on the split select."""
    file = tmp_path / "eval.json"
    _evaluated(
        run, capsys, finished_run, store, "--split", "select", "--windows", 8, "--json", file
    )
    logged = [r for r in runs.log_as_written(finished_run) if "heldout_loss" in r][-1]
    found = json.loads(file.read_text())
    assert found["windows"] == 8
    loss = found["overall"]["loss_nats_per_token"]
    assert loss == pytest.approx(float(logged["heldout_loss"]), rel=1e-5)


def test_eval_of_more_domains_than_asked_for(run, capsys, finished_run, tmp_path):
    """The smaller ones are one; nothing is lost of the sums."""
    written, store = [], runs.store_of_domains(tmp_path, finished_run, 5)
    for most in (2, 1000):
        file = tmp_path / f"{most}.json"
        _evaluated(
            *(run, capsys, finished_run, store, "--windows", 4, "--max-domains", most),
            *("--json", file),
        )
        written.append(json.loads(file.read_text()))
    few, all_ = (each["domains"] for each in written)
    assert list(few)[2] == f"other ({len(all_) - 2} domains)" and len(few) == 3 < len(all_)
    for name in list(few)[:2]:
        assert few[name] == pytest.approx(all_[name], rel=1e-6)  # float32 sums of other shapes
    assert few[list(few)[2]]["tokens"] == sum(
        each["tokens"] for name, each in all_.items() if name not in few
    )
    assert written[0]["overall"] == pytest.approx(written[1]["overall"], rel=1e-6)


def test_bad_usage_of_eval(refused, finished_run, store, tmp_path):
    argv = ["eval", finished_run, "--data"]
    assert "no such token store" in refused(USAGE, *argv, tmp_path / "none")
    argv.append(store)
    assert "--pool 1: must be 2..8" in refused(USAGE, *argv, "--pool", 1)
    assert "--keep 2: must be 3..8" in refused(USAGE, *argv, "--keep", 4, "--keep", 2)
    assert "--windows" in refused(USAGE, *argv, "--windows", 0)
    taken = tmp_path / "taken.json"
    taken.write_text("mine")
    assert "is there already" in refused(USAGE, *argv, "--json", taken)
    corpus, tok = runs.write_corpus(tmp_path / "corpus.jsonl"), tmp_path / "tok"
    assert runs.emo_here("tokenizer", "train", corpus, "--vocab-size", 259, "--output", tok) == 0
    other = tmp_path / "other"
    assert runs.emo_here("prepare", corpus, "--output", other, "--tokenizer", tok) == 0
    line = refused(USAGE, "eval", finished_run, "--data", other)
    assert "the tokenizer is not the store's" in line


@pytest.mark.system
def test_eval_of_a_real_process(finished_run, store, env):
    done = runs.emo(["eval", finished_run, "--data", store, "--windows", 4, "--keep", 4], env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("all tokens") == 1
    assert max(map(len, done.stdout.splitlines())) <= 100
