"""Commands run in this process (see tests/runs.py)."""

from commands import refused  # noqa: F401
