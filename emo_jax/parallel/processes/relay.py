"""A local relay to JAX's coordination service that stays open when the service is gone.

JAX's client aborts its process with a C++ stack trace as soon as the connection to the service
breaks, as it does when process 0 dies. Behind this relay it does not notice, so the roster has time
to report in one line which process was lost, and to end the process.
"""

import contextlib
import socket
import threading
import time

from emo_jax.parallel.processes.line import Listener, connect


class Relay:
    """Listens on a free local port and forwards bytes to `address` and back."""

    def __init__(self, address: tuple[str, int], connect_timeout: float):
        self._address, self._timeout = address, connect_timeout
        self.port = Listener(("127.0.0.1", 0), self._start).port

    def _start(self, client: socket.socket) -> None:
        threading.Thread(target=self._serve, args=(client,), name="relay", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        service = self._connect()
        if service is None:
            client.close()
            return
        for end in (client, service):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(
            target=_pump, args=(service, client), name="relay", daemon=True
        ).start()  # the client does not see the service end
        _pump(client, service)
        client.close()
        with contextlib.suppress(OSError):
            service.shutdown(socket.SHUT_RDWR)
        service.close()

    def _connect(self) -> socket.socket | None:
        """Connects to the service as soon as it is up; None after the timeout."""
        give_up = time.monotonic() + self._timeout
        while time.monotonic() < give_up:
            with contextlib.suppress(OSError):
                return connect(self._address, 10)
            time.sleep(0.05)
        return None


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Passes on what comes until the source ends; if the sink is gone, what comes is dropped."""
    with contextlib.suppress(OSError):
        while data := source.recv(2**16):
            with contextlib.suppress(OSError):
                sink.sendall(data)
