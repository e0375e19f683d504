"""TCP between processes: JSON messages, one per line, and ports that can be taken over."""

import contextlib
import json
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

NOTABLE = 3.0  # seconds of silence; heartbeats come every second
BIND_VARIABLE = "JAX_COORDINATOR_BIND_ADDRESS"  # JAX's own
_LONGEST = 2**24  # bytes per message


class Line:
    """One connection: sends messages, and reads them in a thread that calls `receive` for each.

    After the last one, `receive` gets None. Heartbeats (`alive`) are not passed on.

    Attributes:
      heard: when something last arrived.
      alive: what the last heartbeat said; None: there was none.
      ended: nothing more will arrive.
      index: index of the process at the other end, once known.
    """

    def __init__(self, connection: socket.socket):
        self.heard, self.ended = time.monotonic(), False
        self.alive: Any = None
        self.index: int | None = None
        self._silences: deque[tuple[float, float]] = deque()
        self._socket, self._lock = connection, threading.Lock()
        connection.settimeout(None)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def silences(self) -> list[tuple[float, float]]:
        """When nothing arrived for at least `NOTABLE` seconds, from when to when; each one once."""
        return [self._silences.popleft() for _ in range(len(self._silences))]

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
                before, self.heard = self.heard, time.monotonic()
                if self.heard - before >= NOTABLE:
                    self._silences.append((before, self.heard))
                message = json.loads(line)
                if not isinstance(message, dict):
                    break
                if "alive" in message:
                    self.alive = message["alive"]
                else:
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
      address: IP address and port to listen at; an empty one: at all addresses.
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


def listening_address(host: str, port: int) -> tuple[str, int]:
    """The IP address and port at which process 0 listens: that of `host`, on this machine.

    The address is empty, which stands for all of them, if `host` is no address of this machine (but
    of a router in front of it), or if it is a name that only this machine takes for itself, as
    Debian's /etc/hosts has it (127.0.1.1). `JAX_COORDINATOR_BIND_ADDRESS` goes before `host`.

    Raises:
      OSError: the name is not known.
    """
    if chosen := os.environ.get(BIND_VARIABLE, ""):
        given, _, digits = chosen.rpartition(":")
        if not digits.isdecimal() or int(digits) != port:
            raise OSError(f"{BIND_VARIABLE}={chosen} must be ADDRESS:{port}")
        return given.strip("[]"), port
    for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        found = str(address[0])
        if (is_loopback(host) or not is_loopback(found)) and _is_own(found):
            return found, port
    return "", port


def _is_own(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as s:
            s.bind((address, 0))
    except OSError:
        return False
    return True


def _listen(address: str, port: int) -> socket.socket:
    if address and address != "::":
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, port), family=family, backlog=1024)
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
        )
    return socket.create_server(("", port), backlog=1024)
