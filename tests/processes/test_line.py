"""Messages between processes, of whoever reaches the port."""

import socket
import threading

import pytest

from emo_jax.parallel.processes.line import Line


@pytest.mark.parametrize(
    "sent", [b"[" * 200_000, b"5", b"\xff", b'{"a": ' * 90_000, b"9" * 5000, b"null"]
)
def test_what_no_process_of_ours_sends_ends_the_connection(sent):
    """A thread that dies of it would leave the line open."""
    ours, theirs = socket.socketpair()
    there = []
    with ours, theirs:
        line = Line(ours)
        writer = threading.Thread(target=theirs.sendall, args=(b'{"a": 1}\n' + sent + b"\n",))
        writer.start()
        line._read(there.append)
        writer.join()
    assert there == [{"a": 1}, None] and line.ended
