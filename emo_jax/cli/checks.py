"""emo verify."""

import json
from pathlib import Path

import click

from emo_jax.cli.app import command, refuse_unwritable
from emo_jax.errors import EmoError


@command("emo verify --json verify.json")
@click.argument("case_dir", required=False)
@click.option("--json", "json_file", default=None, help="Write the errors and limits here.")
def verify(case_dir: str | None, json_file: str | None) -> None:
    """Hold this machine's numerics against golden numbers of the PyTorch reference."""
    if json_file:
        refuse_unwritable("--json", Path(json_file))  # before minutes of work
    from emo_jax.verify import verify_cases

    results, failed = verify_cases(Path(case_dir) if case_dir else None, show=click.echo)
    if json_file:
        Path(json_file).write_text(json.dumps(results, indent=2) + "\n")
    if failed:
        raise EmoError(f"{failed} quantities are beyond their limits")
