"""emo status."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from emo_jax.cli.app import command, refuse_unwritable
from emo_jax.errors import EXIT_USAGE, UsageError, clipped

if TYPE_CHECKING:
    from emo_jax.run.status import Status

_MOST_CAUSES = 3  # of badput, in a line


@command("emo status runs/tiny\nemo status runs/*")
@click.argument("workdirs", nargs=-1, required=True)
@click.option(
    "--json",
    "json_file",
    default=None,
    help="Write all figures to this new file, or to - (standard output).",
)
@click.pass_context
def status(ctx: click.Context, workdirs: tuple[str, ...], json_file: str | None) -> None:
    """How runs are doing: step, loss, speed, goodput, last save, time left; and what to do.

    WORKDIRS are folders of runs, on this machine or shared with others, live or not. They are only
    read. Exit codes: 0 new, starting, running or finished; 75 stopped or dead: the same emo train
    goes on; 1 stalled, halted or failed: somebody has to look; 2 not a workdir. Of several, the
    first that some run has of 2, 1 and 75.
    """
    if json_file not in (None, "-"):
        refuse_unwritable("--json", Path(str(json_file)))
    from emo_jax.run.status import read_status

    found, bad = [], []
    for workdir in workdirs:
        try:
            found.append(read_status(workdir))
        except UsageError as error:
            if len(workdirs) == 1:
                raise
            bad.append(str(error))
    if json_file != "-":
        _show(found)
    for line in bad:
        click.echo(f"emo: {line}", err=True)
    if json_file is not None:
        _write(found, json_file)
    codes = {one.exit_code for one in found} | ({EXIT_USAGE} if bad else set())
    ctx.exit(next((code for code in (EXIT_USAGE, 1, 75) if code in codes), 0))


def _write(found: "list[Status]", json_file: str) -> None:
    from emo_jax.files.json_files import dumps

    text = dumps({"runs": [one.to_json() for one in found]}, indent=1) + "\n"
    if json_file == "-":
        click.echo(text, nl=False)
        return
    from etils import epath

    from emo_jax.files.atomic import write_atomic

    write_atomic(epath.Path(json_file), text)


def _show(found: "list[Status]") -> None:
    if len(found) == 1:
        for name, value in _lines(found[0]).items():
            click.echo(f"{name:<10} {clipped(value, 2000)}")
    elif found:
        from emo_jax.cli.app import console

        console().print(_table(found))
        for one in found:
            if one.note:
                click.echo(f"{one.workdir}: {clipped(one.note, 2000)}")


def _lines(one: "Status") -> dict[str, str]:
    from emo_jax.run.status import spoken

    doing = f", {one.doing.replace('_', ' ')}" if one.doing and one.state == "running" else ""
    lines = {"run": f"{one.name}: {one.state}{doing}"}
    if one.note:
        lines["note"] = one.note
    share = f", {100 * one.step / one.steps:.1f} %" if one.steps else ""
    left = "" if one.seconds_left is None else f", {spoken(one.seconds_left)} left"
    lines["step"] = f"{one.step:,} of {one.steps:,}{share}{left}"
    if one.loss is not None:
        held = "" if one.heldout_loss is None else f", held out {one.heldout_loss:.4f}"
        lines["loss"] = f"{one.loss:.4f}{held}"
    if one.tokens_per_second is not None:
        share = "" if one.mfu is None else f", MFU {100 * one.mfu:.1f} %"
        lines["speed"] = f"{one.tokens_per_second:,.0f} tokens/s{share}"
    if one.goodput is not None:
        lines["goodput"] = f"{100 * one.goodput:.1f} % of {spoken(one.wall_seconds)}{_badput(one)}"
    if one.saved_step is not None and one.saved_seconds_ago is not None:
        lines["last save"] = f"step {one.saved_step:,}, {spoken(one.saved_seconds_ago)} ago"
    if one.devices is not None:
        many = "es" if one.processes != 1 else ""
        lines["machines"] = f"{one.processes} process{many}, {one.devices} × {one.device_kind}"
        lines["machines"] += f", start {one.starts}" if one.starts > 1 else ""
        lines["machines"] += f"; process 0 is {one.pid} on {one.host}" if one.host else ""
    if one.sign_seconds_ago is not None:
        lines["last sign"] = f"{spoken(one.sign_seconds_ago)} ago"
    return lines


def _badput(one: "Status") -> str:
    """The largest causes of badput."""
    from emo_jax.run.goodput import BADPUT

    causes = sorted(BADPUT, key=lambda name: -one.seconds.get(name, 0.0))[:_MOST_CAUSES]
    shown = [
        f"{name.replace('_', ' ')} {100 * share:.1f} %"
        for name in causes
        if (share := one.seconds.get(name, 0.0) / one.wall_seconds) >= 0.0005
    ]
    return f"; {', '.join(shown)}" if shown else ""


def _table(found: "list[Status]"):
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from emo_jax.run.status import spoken

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("run", overflow="fold")
    table.add_column("state")
    for name in ("step", "of", "loss", "tokens/s", "goodput", "last save", "left", "last sign"):
        table.add_column(name, justify="right")
    for one in found:
        saved = one.saved_step, one.saved_seconds_ago
        cells = (
            *(one.workdir, one.state, f"{one.step:,}", f"{one.steps:,}"),
            "" if one.loss is None else f"{one.loss:.4f}",
            "" if one.tokens_per_second is None else f"{one.tokens_per_second:,.0f}",
            "" if one.goodput is None else f"{100 * one.goodput:.1f} %",
            "" if None in saved else f"{saved[0]:,}, {spoken(saved[1] or 0)} ago",
            "" if one.seconds_left is None else spoken(one.seconds_left),
            "" if one.sign_seconds_ago is None else f"{spoken(one.sign_seconds_ago)} ago",
        )
        table.add_row(*(escape(clipped(cell, 400)) for cell in cells))
    return table
