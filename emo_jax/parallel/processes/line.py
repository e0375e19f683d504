"""TCP between processes: JSON messages, one per line, and ports that can be taken over."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

_LONGEST = 2**24  # bytes per message


class Line:
    """One connection: sends messages, and reads them in a thread that calls `receive` for each.

    After the last one, `receive` gets None. Heartbeats are not passed on.

    Attributes:
      heard: when something last arrived.
      ended: nothing more will arrive.
      index: index of the process at the other end, once known.
    """

    def __init__(self, connection: socket.socket):
        self.heard, self.ended = time.monotonic(), False
        self.index: int | None = None
        self._socket, self._lock = connection, threading.Lock()
        connection.settimeout(None)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, **message: Any) -> None:
        """Sends a message; does nothing if the other end is gone, which reading will detect."""
        with contextlib.suppress(OSError), self._lock:
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def read(self, receive: Callable[[Any], None]) -> None:
        """Starts the reading thread."""
        threading.Thread(target=self._read, args=(receive,), name="roster", daemon=True).start()

    def _read(self, receive: Callable[[Any], None]) -> None:
        wrong = (OSError, ValueError, RecursionError)  # the last: nested deeply, by a stranger
        with contextlib.suppress(*wrong), self._socket.makefile("rb") as stream:
            while line := stream.readline(_LONGEST):
                self.heard = time.monotonic()
                message = json.loads(line)
                if not isinstance(message, dict):
                    break
                if "alive" not in message:
                    receive(message)
        self.ended = True
        receive(None)

    def close(self) -> None:
        """Closes both directions."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Listener:
    """Accepts connections on a port until closed; they survive it, and the port can be reused.

    Args:
      address: host and port. Only local connections are accepted if the host is a loopback name.
      accepted: called with every connection, in a thread.

    Raises:
      OSError: the port is in use, or the address is not one of this machine.
    """

    def __init__(self, address: tuple[str, int], accepted: Callable[[socket.socket], None]):
        self._socket, self._accepted = _listen(*address), accepted
        self._closed = threading.Event()
        threading.Thread(target=self._accept, name="listener", daemon=True).start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._socket.getsockname()[1]

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed, or a client gave up while being accepted
                time.sleep(0.05)
                continue
            self._accepted(connection)

    def close(self) -> None:
        """Frees the port."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes `accept`; closing does not
        self._socket.close()


def connect(address: tuple[str, int], timeout: float) -> socket.socket:
    """Opens a connection.

    Raises:
      OSError: nobody answers.
    """
    found = socket.create_connection(address, timeout=timeout)
    if found.getsockname() == found.getpeername():  # on one machine a port can connect to itself
        found.close()
        raise ConnectionRefusedError("nobody answers")
    found.settimeout(None)
    return found


def is_loopback(host: str) -> bool:
    """Whether a host is a loopback name or address."""
    return host in ("localhost", "::1") or host.startswith("127.")


def _listen(host: str, port: int) -> socket.socket:
    if is_loopback(host):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
        )
    return socket.create_server(("", port), backlog=1024)
