"""A corpus, and commands run in this process (see tests/runs.py)."""

from commands import corpus, refused, run  # noqa: F401
