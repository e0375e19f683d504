"""No file makes a reader raise anything but its own errors, hang, or take more than 2 GB.

Twenty inputs for each reader here; 300 with `-m slow`, in processes of their own. One input
again: `python tests/fuzz/driver.py SEED SEED READER`.
"""

import os
import signal

import pytest
from driver import confirmed, fuzz, report
from readers import READERS
from seeds import make_seeds
from worker import HangError, attempt

FEW, MANY = 20, 300


@pytest.fixture(scope="session")
def seeds(tmp_path_factory):
    return make_seeds(tmp_path_factory.mktemp("fuzz") / "seeds")


@pytest.fixture
def not_for_ever():
    def on_alarm(number, frame):
        raise HangError

    old = signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


@pytest.mark.parametrize("name", READERS)
def test_a_few_malformed_files(name, seeds, tmp_path, not_for_ever, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in range(FEW + 1):
        work = tmp_path / str(seed)
        work.mkdir()
        found = attempt(name, seed, seeds, work)
        assert "fault" not in found, found
        if seed == 0:  # the files as they are
            assert found["ok"] == "accepted", found


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_malformed_files(name, seeds):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    outcomes = fuzz(name, 1, MANY, seeds)
    faults = confirmed(name, outcomes, seeds)
    print(said := report(name, outcomes, faults))
    assert len(outcomes) == MANY and not faults, said
