"""Writes the pages of every command and of every config field, when the site is built.

    python docs/generate_reference.py        # shows them

mkdocs calls `on_files`. Nothing is kept in git: the pages say what `emo_jax/cli` and
`emo_jax/config/` say. What a field is comes from the comment behind it, or from the comment lines
above it.
"""

import dataclasses
import inspect
import io
import re
import sys
import tokenize
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from emo_jax.cli import cli
from emo_jax.config import Config
from emo_jax.config.parse import section_of

PAGES = {"reference/commands.md": "commands_page", "reference/config.md": "config_page"}


def on_files(files: Any, *, config: Any) -> Any:
    """Adds the pages to the site (a hook of mkdocs)."""
    from mkdocs.structure.files import File

    for path, function in PAGES.items():
        files.append(File.generated(config, path, content=globals()[function]()))
    return files


# --- commands ------------------------------------------------------------------------------------


def commands(
    command: click.Command = cli, name: str = "emo"
) -> Iterator[tuple[str, click.Command]]:
    """Every command by its full name; a group comes before what is in it."""
    yield name, command
    for sub_name, sub in sorted(getattr(command, "commands", {}).items()):
        yield from commands(sub, f"{name} {sub_name}")


def commands_page() -> str:
    """Every command with its example, arguments and options."""
    parts = [
        "# Commands\n\nWritten from the program itself, when this site was built. Every command"
        " has `--help`. Exit codes are [here](../training.md#exit-codes)."
    ]
    parts += [_command(name, command) for name, command in commands()]
    return "\n\n".join(parts) + "\n"


def _command(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=name)
    parts = [f"## {name}", inspect.cleandoc(command.help or "")]
    if command.epilog:
        parts.append(f"```\n{command.epilog}\n```")
    if subs := getattr(command, "commands", {}):
        links = [f"[`{name} {sub}`](#{_slug(f'{name} {sub}')})" for sub in sorted(subs)]
        parts.append(f"Commands: {', '.join(links)}.")
    rows = [_parameter(p) for p in command.get_params(context) if not getattr(p, "hidden", False)]
    table = ["| option | value | default | what it is |", "|---|---|---|---|", *rows]
    return "\n\n".join([*parts, "\n".join(table)])


def _parameter(parameter: click.Parameter) -> str:
    is_option = isinstance(parameter, click.Option)
    opts = [*parameter.opts, *parameter.secondary_opts]
    head = ", ".join(f"`{o}`" for o in opts) if is_option else f"`{(parameter.name or '').upper()}`"
    flag = is_option and parameter.is_flag
    kind = parameter.type
    choices = " ".join(kind.choices) if isinstance(kind, click.Choice) else ""
    value = "" if flag else parameter.metavar or choices or kind.name
    bounds = [getattr(kind, "min", None), getattr(kind, "max", None)]
    if any(bound is not None for bound in bounds):
        value += (
            f" {'' if bounds[0] is None else bounds[0]}..{'' if bounds[1] is None else bounds[1]}"
        )
    if (parameter.multiple if is_option else parameter.nargs == -1) and not flag:
        value += ", repeated"
    default = parameter.default
    shown = "required" if parameter.required else ""
    if is_option and parameter.secondary_opts:
        shown = f"`{(parameter.opts if default else parameter.secondary_opts)[0]}`"
    # What "no default" is inside of click differs between its versions.
    if not parameter.required and not flag and isinstance(default, str | int | float):
        shown = f"`{default}`"
    about = getattr(parameter, "help", None) or ""
    return f"| {head} | {_cell(value)} | {shown} | {_cell(' '.join(about.split()))} |"


# --- config --------------------------------------------------------------------------------------


def sections(cls: type = Config, path: str = "") -> Iterator[tuple[str, type]]:
    """Every section by its dotted name, "" for the whole, in the order of the fields."""
    yield path, cls
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        section = section_of(hints[f.name])
        if section is not None:
            yield from sections(section, f"{path}.{f.name}" if path else f.name)


def config_page() -> str:
    """Every field of every section: name, type, default, what it is."""
    parts = [
        "# Config fields\n\nWritten from `emo_jax/config/`, when this site was built."
        " An experiment file sets them; `--config.SECTION.FIELD=VALUE` overrides one."
        " How they are read and checked: [Configs](../configs.md)."
    ]
    for path, cls in sections():
        title = f"## {path} {{ #{path} }}" if path else "## the config itself"
        rows = [_field(cls, path, f) for f in dataclasses.fields(cls)]
        table = ["| field | type | default | what it is |", "|---|---|---|---|", *rows]
        parts += [title, _links(inspect.cleandoc(cls.__doc__ or "")), "\n".join(table)]
    return "\n\n".join(parts) + "\n"


def _field(cls: type, path: str, f: dataclasses.Field) -> str:
    name = f"{path}.{f.name}" if path else f.name
    kind = typing.get_type_hints(cls)[f.name]
    about = comments(cls).get(f.name, "")
    anchor = f'<span id="{name}"></span>'
    if section_of(kind) is not None:
        optional = type(None) in typing.get_args(kind)
        shown, value = f"[section](#{name})", "`None`" if optional else ""
        anchor = ""  # the section's heading has it
    elif typing.get_origin(kind) is Literal:
        shown = " ".join(f"`{choice}`" for choice in typing.get_args(kind))
        value = f"`{f.default}`"
    else:
        shown = f"`{getattr(kind, '__name__', kind) if isinstance(kind, type) else kind}`"
        value = "required" if f.default is dataclasses.MISSING else f"`{f.default!r}`"
    if value == "" and f.default_factory is dataclasses.MISSING:
        value = "required"
    return f"| {anchor}`{name}` | {shown} | {value} | {_links(_cell(about))} |"


def comments(cls: type) -> dict[str, str]:
    """What the source says of each field: the comment behind it, or the lines right above it."""
    source = inspect.getsource(cls)
    found: dict[str, str] = {}
    above: list[str] = []
    behind: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            behind[token.start[0]] = token.string.lstrip("# ")
    for number, line in enumerate(source.splitlines(), 1):
        match = re.match(r"    (\w+): ", line)
        if match:
            found[match[1]] = " ".join([*above, behind.get(number, "")]).strip()
            above = []
        elif re.match(r"    #", line):
            above.append(behind[number])
        elif "def " in line:
            break
        else:
            above = []
    return found


# --- text ----------------------------------------------------------------------------------------


def _slug(title: str) -> str:
    """The anchor that Markdown gives a heading."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _links(text: str) -> str:
    """SPEC and DESIGN in comments are pages here."""
    text = re.sub(r"\bSPEC\b", "[SPEC](../spec.md)", text)
    return re.sub(r"\bDESIGN\b", "[DESIGN](../design.md)", text)


if __name__ == "__main__":
    print(commands_page(), config_page(), sep="\n")
