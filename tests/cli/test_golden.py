"""The command line and the experiment configs do not change by accident."""

import shlex

import click
import pytest
import regenerate

from emo_jax.checks import numerics as verify
from emo_jax.cli import cli
from emo_jax.files import progress

HOW = "if this is wanted: python tests/cli/regenerate.py"


def test_the_command_line_is_the_one_that_was_decided():
    assert regenerate.command_line() == regenerate.COMMANDS.read_text(), HOW


def test_every_experiment_has_a_golden_config():
    names = set(regenerate.experiment_configs())
    assert names == {p.stem for p in regenerate.CONFIGS.glob("*.json")}, HOW


@pytest.mark.parametrize("name", [p.stem for p in sorted(regenerate.CONFIGS.glob("*.json"))])
def test_an_experiment_is_the_one_that_was_decided(name):
    config = regenerate.experiment_configs()[name]
    assert regenerate.as_text(config) == (regenerate.CONFIGS / f"{name}.json").read_text(), HOW


def _commands(command: click.Command, path: tuple[str, ...] = ()):
    yield path, command
    for name, sub in getattr(command, "commands", {}).items():
        yield from _commands(sub, (*path, name))


ALL = dict(_commands(cli))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_says_what_every_option_is_and_shows_an_example(path, run, capsys):
    assert run(*path, "--help") == 0
    shown = capsys.readouterr()
    assert not shown.err
    assert shown.out.startswith(f"Usage: {' '.join(('emo', *path))} ")
    for parameter in ALL[path].params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[0] in shown.out
    if not isinstance(ALL[path], click.Group):
        assert f"Example:\n  emo {' '.join(path)}" in shown.out


@pytest.mark.parametrize("path", [p for p, c in ALL.items() if not isinstance(c, click.Group)])
def test_the_example_in_help_is_a_possible_command(path):
    """Parsed, not run: every option that it names exists."""
    for example in ALL[path].epilog.splitlines():
        words = shlex.split(example)
        assert tuple(words[1 : 1 + len(path)]) == path
        ALL[path].make_context(" ".join(path), words[1 + len(path) :])


def test_help_of_import_does_not_promise_training(run, capsys):
    assert run("import", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "emo export reads it" in shown and "emo train read" not in shown


# --- names that a config has not -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("experiment", "override", "named", "not_named"),
    [
        (
            "emo_tiny",
            "model.num_layer=3",
            ["did you mean 'model.num_layers'?", "(allowed in model: attention, "],
            [],
        ),
        ("emo_tiny", "train.step=3", ["did you mean 'train.steps'?", "batch_size"], []),
        ("emo_tiny", "moe.pool.eval=4", ["'moe.pool.eval_size'?", "allowed in moe.pool: "], []),
        # The nearest of the same section, though another section has one that is nearer.
        ("emo_tiny", "checkpoint.save=4", ["did you mean 'checkpoint.save_every'?"], []),
        ("emo_tiny", "moe.dense_layers=1", ["did you mean 'model.dense_layers'?"], []),
        ("emo_tiny", "optimizer.train.step=4", ["no section optimizer.train in"], []),
        ("emo_tiny", "modle.num_layers=3", ["no section modle in", "'model'?", "sections: "], []),
        ("emo_tiny", "num_layers=3", ["did you mean 'model.num_layers'?"], []),
        ("emo_tiny", "nmae=x", ["did you mean 'name'?", "(allowed in config: checkpoint, "], []),
        ("emo_tiny", "moe=3", ["moe is a section", "top_k)"], ["did you mean"]),
        ("dense_1b", "moe=3", ["no section moe in dense_1b.py"], ["NoneType"]),
        ("dense_1b", "moe.top_k=3", ["no section moe in dense_1b.py"], ["did you mean", "theta"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_name_that_is_not_known(refused, tmp_path, experiment, override, named, not_named):
    file = regenerate.EXPERIMENTS / f"{experiment}.py"
    override = f"--config.{override}"
    line = refused(2, "train", "--config", file, "--workdir", tmp_path / "run", override)
    assert line.startswith(f"emo: {override}: ") and f"{experiment}.py" in line
    assert all(text in line for text in named), line
    assert not any(text in line for text in not_named), line


# --- before and while long work is done ----------------------------------------------------------


@pytest.mark.parametrize("target", ["none/verify.json", "file/verify.json", "folder"])
def test_verify_refuses_a_report_that_cannot_be_written(refused, tmp_path, monkeypatch, target):
    monkeypatch.setattr(verify, "verify_cases", lambda *_, **__: pytest.fail("ran first"))
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    line = refused(2, "verify", "--json", tmp_path / target)
    assert line.startswith(f"emo: --json {tmp_path / target}: ")


def test_tokenizer_train_shows_that_it_works(run, corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", -1)
    argv = ["tokenizer", "train", corpus, "--vocab-size", 300, "--output"]
    assert run(*argv, tmp_path / "tokenizer") == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "tokenizer: 100 documents, 0 MB read"
    assert lines[-1].startswith("tokenizer: merging")
