"""The command line and the experiment configs do not change by accident."""

import click
import pytest
import regenerate

from emo_jax.cli import cli

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
    words = ALL[path].epilog.split()
    assert tuple(words[1 : 1 + len(path)]) == path
    ALL[path].make_context(" ".join(path), words[1 + len(path) :])
