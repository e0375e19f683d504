"""A run whose token store is in a bucket, which fails or goes away."""

import signal
import threading
import time

import pytest
import runs
from s3_proxy import FAULTS, Plan

from emo_jax.checkpoint.reading import restore_params

pytestmark = pytest.mark.system
OUTAGE = Plan(share=1, faults=("busy", "reset"))


@pytest.fixture
def url(bucket, store):
    return bucket.upload(store, "store")


def _same_as(reference, workdir, but=None):
    found, expected = (
        [r for r in runs.log_as_written(w) if but is None or not any(but in key for key in r)]
        for w in (workdir, reference)
    )
    assert found == expected
    params, extra, step = restore_params(workdir)
    expected, expected_extra, expected_step = restore_params(reference)
    assert (step, extra["windows"]) == (expected_step, expected_extra["windows"])
    assert runs.equal_trees(params, expected)


def test_losses_are_those_of_the_local_store(bucket, url, finished_run, tmp_path, env):
    bucket.proxy.plan = Plan(5, 0.3, FAULTS)
    done = runs.emo(runs.train_argv(url, tmp_path / "run"), env | bucket.env)
    assert done.returncode == 0, done.stderr
    assert bucket.proxy.met.total() > 0
    _same_as(finished_run, tmp_path / "run")


def test_away_for_a_while(bucket, url, finished_run, tmp_path, env):
    workdir, log = tmp_path / "run", tmp_path / "log"
    process = runs.start(runs.train_argv(url, workdir), env | bucket.env, log)
    runs.wait_until(lambda: "step 3/" in log.read_text(), process, log)
    bucket.proxy.plan = OUTAGE
    threading.Timer(8, setattr, (bucket.proxy, "plan", Plan())).start()
    assert process.wait(timeout=120) == 0, log.read_text()
    assert log.read_text().count("waiting up to 60 s for it") == 1
    assert log.read_text().count("can be read again, after") == 1
    _same_as(finished_run, workdir)


def test_away_for_good_and_back(bucket, url, finished_run, tmp_path, env):
    """One line, with the state saved; the same command goes on later."""
    workdir, log = tmp_path / "run", tmp_path / "log"
    argv, settings = runs.train_argv(url, workdir), env | bucket.env | {"EMO_READ_WAIT": "1"}
    process = runs.start(argv, settings, log)
    runs.wait_until(lambda: "step 3/" in log.read_text(), process, log)
    bucket.proxy.plan = OUTAGE
    assert process.wait(timeout=60) == 1, log.read_text()
    last = log.read_text().splitlines()[-1]
    assert last.startswith(f"emo: {url}/") and "Traceback" not in log.read_text()
    assert "; bring the store back and run the same command again; step " in last, last
    bucket.proxy.plan = Plan()
    done = runs.emo(argv, settings)
    assert done.returncode == 0, done.stderr
    _same_as(finished_run, workdir, but="heldout")  # it may have been away while measuring


@pytest.mark.slow
def test_told_to_stop_in_an_outage(bucket, url, tmp_path, env):
    """Whether the server refuses or says nothing."""
    for fault in ("busy", "hang"):
        workdir, log = tmp_path / fault, tmp_path / f"{fault}.log"
        process = runs.start(runs.train_argv(url, workdir), env | bucket.env, log)
        runs.wait_until(lambda log=log: "step 3/" in log.read_text(), process, log)
        bucket.proxy.plan = Plan(share=1, faults=(fault,))
        runs.wait_until(lambda log=log: _stands_still(log), process, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 75, log.read_text()
        assert f"saved in {workdir}" in log.read_text()
        bucket.proxy.plan = Plan()


def _stands_still(log, seconds=2.0):
    before = log.read_text()
    time.sleep(seconds)
    return log.read_text() == before and "step" in before
