"""Processes that meet, compare and lose each other: real ones, without JAX."""

import re
import signal
import socket
import time

import pytest
from roster_members import FINISH, STAY, Member, free_port

pytestmark = pytest.mark.system


@pytest.fixture
def members():
    started: list[Member] = []

    def start(count, *, only=None, each=lambda index: {}, **kwargs):
        port = free_port()
        indices = range(count) if only is None else only
        started.extend(Member(i, count, port, **(kwargs | each(i))) for i in indices)
        return started

    yield start
    for member in started:
        member.stop()


def test_they_finish_together(members):
    there = members(3, then=FINISH)
    assert [m.end() for m in there] == [(0, "")] * 3


def test_who_did_not_come_is_named(members):
    there = members(4, only=[0, 2], join=6)
    begun = time.monotonic()
    ends = [m.end() for m in there]
    assert time.monotonic() - begun < 30
    assert {code for code, _ in ends} == {1}
    for _, line in ends:
        text = r"emo: process 1, process 3 of 4 did not join at 127.0.0.1:\d+ within 6 s"
        assert re.match(text, line)


def test_a_process_0_that_did_not_come(members):
    [(code, line)] = [m.end() for m in members(2, only=[1], join=2)]
    assert code == 1
    assert re.match(
        r"emo: process 1 does not reach process 0 at 127.0.0.1:\d+ within 2 s \(Connection refused",
        line,
    )


def test_differences_are_named_one_by_one_on_all(members):
    facts = ['{"jax": "1", "a": [1, 2], "b": 3}'] * 2 + ['{"jax": "2", "a": [1, 2], "c": 4}']
    ends = [m.end() for m in members(3, each=lambda i: {"facts": facts[i]})]
    text = (
        "emo: process 2 differs from process 0: b: 3 -> None; c: None -> 4; jax: '1' -> '2'; start"
        " all processes with the same"
    )
    assert ends == [(2, text)] * 3


def test_a_later_comparison_too(members):
    then = "roster.compare({}); roster.compare({'store': 'xy'[index == '1']}); time.sleep(60)"
    ends = [m.end() for m in members(2, then=then)]
    assert ends[0] == ends[1]
    assert ends[0][0] == 2 and "process 1 differs from process 0: store: 'x' -> 'y'" in ends[0][1]


def test_values_of_all_are_gathered_round_by_round(members):
    then = (
        "me = int(index); time.sleep(me / 4)\n"
        "assert roster.gather(me) == [0, 1, 2]\n"
        "for k in range(200): assert roster.gather(me * k) == [0, k, 2 * k]\n"
        "assert roster.gather(None if me else True) == [True, None, None]\n" + FINISH
    )
    assert [m.end() for m in members(3, then=then)] == [(0, "")] * 3


def test_one_that_dies_ends_a_wait_for_its_value(members):
    there = members(3, each=lambda i: {"then": STAY if i == 2 else "roster.gather(1)"})
    for m in there:
        m.joined()
    there[2].process.kill()
    for code, line in [m.end() for m in there[:2]]:
        assert code == 1 and line.startswith("emo: process 2 (") and "is gone" in line


def test_two_of_the_same_index(members):
    there = members(3, only=[0, 1, 1])
    ends = [m.end() for m in there]
    assert {code for code, _ in ends} == {2}
    assert all("have the same index" in line for _, line in ends)


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_one_that_dies_is_named_by_all_others_at_once(members, killed):
    there = members(3)
    for m in there:
        m.joined()
    there[killed].process.send_signal(signal.SIGKILL)
    begun = time.monotonic()
    ends = [m.end() for i, m in enumerate(there) if i != killed]
    assert time.monotonic() - begun < 20  # silence counts after 60
    for code, line in ends:
        assert code == 1
        assert re.match(rf"emo: process {killed} \(.+\) is gone; this run ends with it: run", line)


@pytest.mark.parametrize("silent", [0, 1])
def test_one_that_says_nothing_is_lost(members, silent):
    there = members(3, silence=5)
    for m in there:
        m.joined()
    there[silent].process.send_signal(signal.SIGSTOP)
    ends = [m.end() for i, m in enumerate(there) if i != silent]
    for code, line in ends:
        assert code == 1 and "has not been heard of for 5 s; this run ends with it" in line
        assert line.startswith(f"emo: process {silent} (")


def test_an_error_of_one_ends_the_others_with_its_text(members):
    fails = "roster.leave(1, 'the disk is full', agreed=True); time.sleep(20); os._exit(7)"
    there = members(3, each=lambda i: {"then": fails if i == 2 else STAY})
    ends = [m.end() for m in there[:2]]
    for code, line in ends:
        assert code == 1
        assert re.match(r"emo: process 2 \(.+\) failed \(exit code 1\): the disk is full; ", line)


@pytest.mark.parametrize(("failing", "code"), [(0, 1), (0, 2), (1, 75)])
def test_one_that_fails_and_is_gone_at_once(members, failing, code):
    """The others get its exit code and its reason, from itself or from process 0."""
    fails = f"roster.leave({code}, 'no room', agreed=True); os._exit({code})"
    there = members(3, each=lambda i: {"then": fails if i == failing else STAY})
    assert there[failing].end() == (code, "")
    begun = time.monotonic()
    for said in [m.end() for i, m in enumerate(there) if i != failing]:
        text = rf"emo: process {failing} \(.+\) failed \(exit code {code}\): no room"
        again = "" if code == 2 else "; this run ends with it: run the same command again to go on"
        assert said[0] == code and re.fullmatch(text + again, said[1])
    assert time.monotonic() - begun < 15


def test_an_error_of_all_is_left_to_each(members):
    fails = "roster.leave(75, 'saved', agreed=True); time.sleep(1 + 7 * (index == '0'))\n"
    there = members(3, then=fails + "os._exit(75)")
    assert [m.end() for m in there] == [(75, "")] * 3


def test_one_that_is_started_again_before_all_are_there(members):
    """A scheduler replaces a process that fails early; the ones that wait take the new one."""
    there = members(3, only=[0, 1], then=FINISH)
    port = int(there[0].process.args[5])
    time.sleep(2)  # process 1 has said who it is
    there[1].process.kill()
    there[1].process.wait()
    time.sleep(1)
    there += [Member(1, 3, port, then=FINISH), Member(2, 3, port, then=FINISH)]
    assert [m.end() for m in there] == [(0, ""), (-9, ""), (0, ""), (0, "")]


def test_a_long_wait_for_the_last_one_is_not_silence(members):
    late = dict(join=60, silence=3, then=FINISH)
    there = members(3, only=[0, 1], **late)
    port = int(there[0].process.args[5])
    time.sleep(7)  # two silences; behind ten seconds process 0 says whom it waits for
    there.append(Member(2, 3, port, **late))
    assert [m.end() for m in there] == [(0, "")] * 3


def test_one_that_falls_silent_before_all_are_there_may_be_replaced(members):
    """Its machine is lost: nothing closes the connection."""
    late = dict(join=60, silence=3, then=FINISH)
    there = members(3, only=[0, 1], **late)
    port = int(there[0].process.args[5])
    time.sleep(3)  # process 1 has said who it is
    there[1].process.send_signal(signal.SIGSTOP)
    time.sleep(5)
    there += [Member(1, 3, port, **late), Member(2, 3, port, **late)]
    assert [there[i].end() for i in (0, 2, 3)] == [(0, "")] * 3


@pytest.mark.parametrize("told", [0, 1])
def test_a_request_to_stop_while_waiting(members, told):
    """Process 1 waits for process 0, and process 0 for one that does not come."""
    there = members(3, only=[0, 1], each=lambda i: {"stop": 6 * (i == told)})
    code, line = there[told].end()
    assert code == 75 and line.startswith("emo: stopped before the first step; run the same")
    if told == 0:
        assert there[1].end() == (75, line)  # it was told why
    else:
        assert there[0].process.poll() is None  # the scheduler may start it again


def test_strangers_on_the_port_are_no_members(members):
    there = members(2, only=[0], then=FINISH)
    port = int(there[0].process.args[5])
    give_up = time.monotonic() + 20
    for words in (b"GET / HTTP/1.1\r\n\r\n", b'{"hello": [1]}\n', b"[]\n", b"\xff\n"):
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port)) as s:
                    s.sendall(words)
                break
            except OSError:
                assert time.monotonic() < give_up
                time.sleep(0.05)
    there.append(Member(1, 2, port, then=FINISH))
    assert [m.end() for m in there] == [(0, "")] * 2


def test_a_port_that_is_taken(members):
    with socket.create_server(("127.0.0.1", 0)) as s:
        member = Member(0, 2, s.getsockname()[1])
        code, line = member.end()
    assert code == 1 and "process 0 cannot listen at 127.0.0.1:" in line
    assert "Address already in use" in line
