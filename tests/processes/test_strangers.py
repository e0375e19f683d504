"""Who reaches the port of process 0 and is not of the run learns nothing, and ends nothing."""

import json
import re
import socket
import sys
import threading
import time

import group
import pytest
import runs
from roster_members import FINISH, Member, free_port

from emo_jax.parallel.processes import handshake, line
from emo_jax.parallel.processes.line import Listener, listening_address

HELLO = {"hello": 1, "count": 9, "host": "h", "pid": 1, "facts": {"--workdir": "x"}}


@pytest.fixture
def waiting():
    """Process 0 of two, which waits for the other one, and its port."""
    port = free_port()
    member = Member(0, 2, port, then=FINISH, token="secret", facts='{"--workdir": "/private"}')
    yield member, port
    member.stop()


def called(port: int) -> socket.socket:
    give_up = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=handshake.SECONDS + 20)
        except OSError:
            assert time.monotonic() < give_up
            time.sleep(0.05)


def everything(connection: socket.socket) -> bytes:
    """What the other end says until it hangs up."""
    found = b""
    try:
        while part := connection.recv(4096):
            found += part
    except ConnectionError:
        pass
    return found


@pytest.mark.system
def test_a_stranger_learns_a_random_number_and_ends_nothing(waiting):
    member, port = waiting
    hello = json.dumps(HELLO).encode() + b"\n"
    numbers = set()
    for words in (hello, b"GET / HTTP/1.1\r\nHost: " + b"a" * 64 + b"\r\n\r\n", bytes(64)):
        with called(port) as s:
            s.sendall(words)
            numbers.add(said := everything(s))
            assert len(said) == 32
    assert len(numbers) == 3
    with called(port) as s:  # as one that knows another secret
        assert not handshake.introduce(s, "other")
        s.close()
    other = Member(1, 2, port, then=FINISH, token="secret", facts='{"--workdir": "/private"}')
    assert [member.end(), other.end()] == [(0, "")] * 2


@pytest.mark.system
def test_one_that_knows_the_secret_is_heard(waiting):
    """The same hello, from one that may say it: it ends the run, and is told why."""
    member, port = waiting
    with called(port) as s:
        assert handshake.introduce(s, "secret")
        s.sendall(json.dumps(HELLO).encode() + b"\n")
        assert "process 1 (pid 1 on h) is of 9 processes" in json.loads(everything(s))["verdict"]
    code, said = member.end()
    assert code == 2 and "give all the same --processes" in said


@pytest.mark.system
def test_a_process_of_another_run_says_that_its_token_differs(waiting):
    _, port = waiting
    code, said = Member(1, 2, port, token="other", join=4).end()
    assert code == 1 and "within 4 s (what listens there has another token" in said


@pytest.mark.system
def test_one_that_has_no_token_yet_waits_for_it(waiting):
    member, port = waiting
    late = Member(1, 2, port, then=FINISH, facts='{"--workdir": "/private"}', token="None:2:secret")
    assert [member.end(), late.end()] == [(0, "")] * 2
    code, said = Member(1, 2, port, token="None:99:secret", join=2).end()
    assert code == 1 and "within 2 s (there is no token of this run yet)" in said


def test_a_false_process_0_is_told_nothing():
    """It does not know the secret: the caller says a number and a proof, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        found: list[bytes] = []

        def pretend() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(bytes(32))
                connection.settimeout(20)
                found.append(connection.recv(64, socket.MSG_WAITALL))
                connection.sendall(bytes(32))
                found.append(everything(connection))

        thread = threading.Thread(target=pretend)
        thread.start()
        with socket.create_connection(server.getsockname()) as s:
            assert not handshake.introduce(s, "secret")
        thread.join()
    assert len(found[0]) == 64 and found[1] == b""


def test_a_proof_cannot_be_used_again():
    """What one caller said does not admit another: the listener's number is new."""
    proofs = []

    def admit(connection: socket.socket, given: bytes | None) -> bool:
        ours, theirs = socket.socketpair()
        results: list[bool] = []
        thread = threading.Thread(target=lambda: results.append(handshake.admit(ours, "secret")))
        thread.start()
        if given is None:
            assert handshake.introduce(Recorded(theirs, proofs), "secret")
        else:
            theirs.recv(32)
            theirs.sendall(given)
        thread.join()
        return results[0]

    assert admit(None, None)
    assert not admit(None, proofs[0])


class Recorded:
    """A socket that keeps what is sent."""

    def __init__(self, inner, sent):
        self._inner, self._sent = inner, sent

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def sendall(self, data):
        self._sent.append(data)
        self._inner.sendall(data)


def test_a_silent_stranger_is_sent_away(monkeypatch):
    monkeypatch.setattr(handshake, "SECONDS", 0.5)
    ours, theirs = socket.socketpair()
    begun = time.monotonic()
    with ours, theirs:
        assert not handshake.admit(ours, "secret")
    assert time.monotonic() - begun < 10


# --- where process 0 listens ---------------------------------------------------------------------


def reaches(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


def test_it_listens_at_the_given_address_only():
    address = listening_address("127.0.0.2", free_port())
    listener = Listener(address, lambda connection: connection.close())
    try:
        assert reaches("127.0.0.2", listener.port)
        assert not reaches("127.0.0.1", listener.port)
    finally:
        listener.close()


def test_a_name_that_is_a_loopback_address_only_here(monkeypatch):
    """As Debian's /etc/hosts has a machine's own name: the others know it by another address."""
    names = {
        "node1": ["127.0.1.1"],
        "node2": ["127.0.1.1", "10.0.0.7"],  # is it of this machine?
        "localhost": ["127.0.0.1"],
        "router": ["192.0.2.1"],
    }
    own = {"127.0.1.1", "127.0.0.1", "10.0.0.7"}

    def look_up(host, port, **settings):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in names[host]]

    monkeypatch.setattr(line.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(line, "_is_own", lambda address: address in own)
    assert listening_address("node1", 8476) == ("", 8476)
    assert listening_address("node2", 8476) == ("10.0.0.7", 8476)
    assert listening_address("localhost", 8476) == ("127.0.0.1", 8476)
    assert listening_address("router", 8476) == ("", 8476)
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "10.9.9.9:8476")
    assert listening_address("node1", 8476) == ("10.9.9.9", 8476)
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "[::]:8476")
    assert listening_address("node1", 8476) == ("::", 8476)
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "10.9.9.9:1")
    with pytest.raises(OSError, match=r"JAX_COORDINATOR_BIND_ADDRESS=.* must be ADDRESS:8476"):
        listening_address("node1", 8476)


# JAX's service takes the port after the processes have met; it knows no token.
_JOINED = """
import os, socket
from emo_jax.parallel import processes

place = os.environ["EMO_PROCESSES"], os.environ["EMO_PROCESS_INDEX"]
port = os.environ["EMO_COORDINATOR"].rpartition(":")[2]
with processes.joined(*map(int, place), f"127.0.0.2:{port}", join_timeout=60):
    for host in ("127.0.0.1", "127.0.0.2"):
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            print(host, "answers", flush=True)
        except OSError:
            print(host, "does not", flush=True)
    processes.gather(0)
"""


@pytest.mark.system
def test_so_does_the_service_of_jax(tmp_path):
    done = group.launch([sys.executable, "-c", _JOINED], runs.environment(), 2, 1)
    assert done.returncode == 0, done.stderr
    for index in (0, 1):
        assert group.said(done.stdout, index) == ["127.0.0.1 does not", "127.0.0.2 answers"]
    assert not re.search("all of its addresses", done.stderr)
