"""The documentation says what the program does: its pages, its examples, its links."""

import dataclasses
import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
import typing
import urllib.parse
from pathlib import Path

import click
import pytest

from emo_jax.cli import cli
from emo_jax.config import Config, flatten, from_config_dict, may_change, presets
from emo_jax.config.file import load_config
from emo_jax.config.parse import section_of

REPO = Path(__file__).parent.parent
DOCS = REPO / "docs"
PAGES = [REPO / "README.md", *sorted(DOCS.rglob("*.md"))]
# Of what is written for people who use it; the two others quote the reference and its files.
GUIDES = [p for p in PAGES if p.name not in ("spec.md", "design.md")]

sys.path.insert(0, str(DOCS))
import generate_reference  # noqa: E402


def _fences(page: Path, language: str = "") -> list[str]:
    """The content of a page's fenced blocks of a language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [content for found, content in blocks if found == language]


# --- the reference -------------------------------------------------------------------------------


@functools.cache
def _table(page: str) -> dict[str, str]:
    """Rows of a generated page by their first code span, under the heading before them."""
    rows, heading = {}, ""
    for line in getattr(generate_reference, page)().splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ").partition(" {")[0]
        elif match := re.match(r"\| (?:<span[^>]*></span>)?`([^`]+)`", line):
            rows[f"{heading} {match[1]}"] = line
    return rows


def _commands(command: click.Command = cli, name: str = "emo") -> dict[str, click.Command]:
    found = {name: command}
    for sub, inner in getattr(command, "commands", {}).items():
        found |= _commands(inner, f"{name} {sub}")
    return found


def test_every_option_of_every_command_is_in_the_reference():
    rows, page = _table("commands_page"), generate_reference.commands_page()
    assert len(_commands()) >= 9
    for name, command in _commands().items():
        assert f"\n## {name}\n" in page
        if command.epilog:
            assert f"\n{command.epilog}\n" in page
        for parameter in command.params:
            row = rows[f"{name} {_shown(parameter)}"]
            assert ("required" in row) == bool(parameter.required)
            assert (" ".join((getattr(parameter, "help", None) or "").split())[:40]) in row


def test_an_option_shows_what_it_takes():
    rows = _table("commands_page")
    assert "| WORKDIR[@STEP] |" in rows["emo train --init-from"]
    assert "| ORG/NAME |" in rows["emo export --push"]
    assert "| weights weights+optimizer all |" in rows["emo train --init"]


def _shown(parameter: click.Parameter) -> str:
    is_option = isinstance(parameter, click.Option)
    return parameter.opts[0] if is_option else (parameter.name or "").upper()


def test_every_config_field_is_in_the_reference_with_its_default():
    rows = _table("config_page")
    expected = set()

    def walk(cls: type, path: str) -> None:
        for f in dataclasses.fields(cls):
            name = f"{path}.{f.name}" if path else f.name
            section = section_of(typing.get_type_hints(cls)[f.name])
            row = rows[f"{path or 'the config itself'} {name}"]
            expected.add(name)
            if section:
                walk(section, name)
            elif f.default is not dataclasses.MISSING:
                assert f"`{f.default!r}`" in row or f"`{f.default}`" in row, name
            else:
                assert "required" in row, name

    walk(Config, "")
    assert len(rows) == len(expected) > 60


def test_the_page_names_every_field_that_may_change_on_resume():
    text = (DOCS / "configs.md").read_text()
    named = set(re.findall(r"`([a-z_.]+)`", text[text.index("## What a run may change") :]))
    config = from_config_dict(presets.emo_tiny())
    for name in flatten(config):
        free = may_change(name) == "resume"
        assert free == bool({name, name.partition(".")[0]} & named), name


def test_what_a_field_is_comes_from_the_source():
    rows = _table("config_page")
    assert (
        "| Weights & Biases project; empty: not used |" in rows["tracking tracking.wandb_project"]
    )
    assert "`online` `offline` `disabled`" in rows["tracking tracking.wandb_mode"]
    # From lines above a field, and only those of this field.
    assert "Counts used by the load-balancing loss" in rows["moe moe.balance_scope"]
    assert "Whose counts" not in rows["moe moe.backend"] + rows["moe moe.router_z_weight"]
    assert "([SPEC](../spec.md) 2.1)" in rows["data data.eos_starts_next_pool"]


# --- examples ------------------------------------------------------------------------------------


def _examples() -> list[tuple[str, str]]:
    """(page, line) of every `emo …` in a fenced block."""
    found = []
    for page in GUIDES:
        for block in _fences(page):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("emo ") and not line.endswith("…"):
                    found.append((page.name, line))
    return found


@pytest.mark.parametrize(("page", "line"), _examples(), ids=lambda text: text[:60])
def test_an_example_is_a_command(page, line):
    words = shlex.split(line, comments=True)[1:]
    command, name = cli, "emo"
    context = click.Context(cli, info_name="emo")
    while isinstance(command, click.Group):
        command, name = command.commands[words[0]], f"{name} {words[0]}"
        words = words[1:]
    overrides = [w for w in words if w.startswith("--config.")]
    command.make_context(name, list(words), parent=context)
    if "--config" in words:
        file = REPO / words[words.index("--config") + 1]
        load_config(str(file), overrides)  # refuses unknown fields and wrong values
    else:
        assert not overrides


def test_there_are_examples_of_every_command():
    lines = [line for _, line in _examples()]
    for name, command in _commands().items():
        if not isinstance(command, click.Group):
            assert any(line.startswith(name) for line in lines), name


def test_every_extra_that_is_named_can_be_installed():
    defined = set(re.findall(r'^        "(\w+)": ', (REPO / "setup.py").read_text(), re.MULTILINE))
    sources = [*PAGES, *(REPO / "emo_jax").rglob("*.py")]
    named = {
        extra
        for file in sources
        for extras in re.findall(r"(?:emo-jax|'\.)\[([\w,]+)\]", file.read_text())
        for extra in extras.split(",")
    }
    assert {"wandb", "mlflow", "tensorboard", "test"} <= named <= defined


def test_every_config_field_and_option_that_a_guide_names_is_there():
    """`section.field` and `--option` in code spans."""
    sections = list(generate_reference.sections())
    names = {path for path, _ in sections if path}
    fields = {f"{path}.{f.name}" for path, cls in sections for f in dataclasses.fields(cls)}
    parameters = [p for command in _commands().values() for p in command.params]
    options = {"--help", *(o for p in parameters for o in (*p.opts, *p.secondary_opts))}
    for script in (*(REPO / "launch").glob("*.py"), *(REPO / "experiments").glob("*.py")):
        options |= set(re.findall(r'"(--[a-z-]+)"', script.read_text()))
    seen = 0
    for page in GUIDES:
        for span in re.findall(r"`([^`\n]+)`", page.read_text()):
            if re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)+", span) and span.partition(".")[0] in names:
                is_file = span.endswith((".json", ".py", ".jsonl", ".safetensors"))
                assert is_file or span in fields, f"{page.name}: {span}"
                seen += not is_file
            if re.match(r"--[a-z-]+( |$)", span):
                assert span.split()[0] in options, f"{page.name}: {span}"
                seen += 1
    assert seen > 40


# --- the worked example --------------------------------------------------------------------------


@pytest.mark.system
def test_the_router_variant_can_be_added_as_it_says(tmp_path):
    """The page's diffs apply to a copy, and their tests pass there."""
    for name in ("emo_jax", "tests"):
        shutil.copytree(REPO / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    diff = "".join(_fences(DOCS / "router_variant.md", "diff"))
    command = ["git", "apply", "--verbose", "-"]
    done = subprocess.run(command, cwd=tmp_path, input=diff, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    tests = ["tests/moe/test_routed_scale.py", "tests/moe/test_router_golden.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests],
        cwd=tmp_path,
        env=_without_our_path(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout[-2000:]


def _without_our_path() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": "."}


# --- the site ------------------------------------------------------------------------------------


def test_the_site_builds_without_a_warning(tmp_path):
    """Internal links and their anchors are checked by mkdocs."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=REPO, env=_without_our_path(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("index.html")}
    assert {"reference/commands", "reference/config", "spec", "design", "router_variant"} <= made
    assert not list(tmp_path.rglob("*.py")) and not (DOCS / "reference").exists()
    shown = (tmp_path / "reference/config/index.html").read_text()
    assert 'id="moe.pool"' in shown and 'id="moe.pool.kind"' in shown
    for page in tmp_path.rglob("*.html"):
        fetched = re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', page.read_text()
        )
        assert not fetched, f"{page}: fetches {fetched}"


def test_external_links_are_addresses():
    """CI has no internet: their form only."""
    found = [
        (page.name, url)
        for page in PAGES
        for url in re.findall(r"(?<![\w`])(https?://[^\s)>`\"'|]+)", page.read_text())
    ]
    assert found
    for page, url in found:
        if "…" in url or url.endswith("HOST"):
            continue
        parts = urllib.parse.urlsplit(url)
        assert parts.scheme == "https" and "." in parts.netloc, f"{page}: {url}"
        assert not url.endswith((".", ",", ";")), f"{page}: {url}"


def test_the_picture_is_read_on_black_and_on_white():
    """No background of its own, and no colour that is near to either."""
    svg = (DOCS / "pools.svg").read_text()
    colours = set(re.findall(r'fill="#(\w{6})"', svg))
    assert len(colours) == 3
    for colour in colours:
        red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4))
        assert 0.25 < 0.299 * red + 0.587 * green + 0.114 * blue < 0.65, colour
    assert "background" not in svg
