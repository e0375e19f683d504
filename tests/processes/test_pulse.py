"""What processes say of what they do, and who waits for whom."""

import time

import pytest

from emo_jax.parallel.processes.pulse import Pulse, does, who_waits

NAMES = {i: f"process {i} (pid {i} on host{i})" for i in range(4)}


def sign(phase, step):
    return {"phase": phase, "step": step}


@pytest.mark.parametrize(
    ("signs", "said"),
    [
        (
            {0: sign("step", 13), 1: sign("data", 13), 2: sign("step", 13), 3: sign("data", 14)},
            "processes 0, 2, 3 (is in step 13 or waits for the data of step 14) wait for process 1"
            " (pid 1 on host1), which waits for the data of step 13",
        ),
        (
            {i: sign("step", 7) for i in range(4)},
            "none of them is behind: each is in step 7",
        ),
        (
            {0: sign("save", 8), 1: sign("save", 8), 2: sign("agree", 8), 3: sign("save", 8)},
            "process 2 (agrees with the others after step 8) waits for process 0 (pid 0 on host0),"
            " process 1 (pid 1 on host1), process 3 (pid 3 on host3), which saves step 8",
        ),
        (
            {0: sign("step", 7), 1: sign("step", 7), 3: sign("step", 7)},
            "processes 0, 1, 3 (is in step 7) wait for process 2 (pid 2 on host2), which has not"
            " said what it does",
        ),
    ],
)
def test_who_waits(signs, said):
    assert who_waits(NAMES, signs) == said


def test_what_a_heartbeat_says():
    pulse = Pulse()
    assert pulse.sign()["phase"] == "start" and pulse.sign()["steps"] == 0
    for step in (1, 2, 3):
        pulse.at("data", step)
        time.sleep(0.05)
        pulse.at("step", step)
    found = pulse.sign()
    assert (found["phase"], found["step"], found["steps"]) == ("step", 3, 2)
    assert 0.15 <= found["data"] < 5 and found["for"] < 5
    assert does(found) == "is in step 3" and pulse.phase == "step"
    pulse.at("data", 4)
    time.sleep(0.05)
    assert pulse.sign()["data"] >= found["data"] + 0.05  # counts while it lasts
    assert pulse.beats == 7
