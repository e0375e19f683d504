"""A store and a finished run, shared with tests/cli (see tests/runs.py)."""

from pathlib import Path

import pytest
import runs


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    return runs.shared_store(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    return runs.shared_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def env(tmp_path_factory) -> dict[str, str]:
    return runs.environment(runs.shared_cache(tmp_path_factory.getbasetemp()))
