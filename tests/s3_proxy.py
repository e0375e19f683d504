"""A proxy of an S3 server that is slow, cuts answers, drops connections, says 503 or nothing."""

import contextlib
import hashlib
import http.client
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote

FAULTS = ("delay", "cut", "torn", "reset", "busy")
_BUSY = (
    b"<?xml version='1.0' encoding='UTF-8'?>\n"
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass(frozen=True)
class Plan:
    """Which fault meets a request: a function of the seed, the request and how often it came.

    The bucket, whose name a test may draw, does not matter.

    Args:
      share: of the requests that meet a fault.
      faults: some of `FAULTS`: late; half of the answer and the end of the connection, or a reset;
        a reset instead of an answer; 503. And "hang": no answer while this plan holds.
      where: text in the path of the requests that it is about.
      most: faults that one request (path and range) meets, at most.
    """

    seed: int = 0
    share: float = 0.0
    faults: tuple[str, ...] = FAULTS
    where: str = ""
    most: int = 1 << 30

    def fault(self, method: str, path: str, part: str, count: int) -> str | None:
        """The fault of the `count`-th such request, counted from 0."""
        if method not in ("GET", "HEAD") or self.where not in path or count >= self.most:
            return None
        inside = path.lstrip("/").partition("/")[2]
        text = f"{self.seed} {method} {inside} {part} {count}".encode()
        draw = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64
        if draw >= self.share:
            return None
        return self.faults[int(draw / self.share * len(self.faults))]


@dataclass
class Proxy:
    """Passes HTTP/1.1 requests on to 127.0.0.1:`upstream`; start it with `running`.

    Attributes:
      plan: may be replaced at any time; an outage is `Plan(share=1, faults=("busy",))`.
      requests: (method, path without query, range) of every request, in order of arrival.
      met: how often each fault was met.
    """

    upstream: int
    plan: Plan = field(default_factory=Plan)
    delay_seconds: float = 0.2
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    met: Counter = field(default_factory=Counter)

    def __post_init__(self):
        self._counts: Counter = Counter()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stops listening, and ends what hangs."""
        self._closed.set()
        self._listener.close()

    def forget(self) -> None:
        """Counts from 0 again."""
        with self._lock:
            self.requests.clear()
            self.met.clear()
            self._counts.clear()

    def counted(self, text: str = "", method: str = "GET") -> int:
        """Number of requests so far with `text` in the path."""
        with self._lock:
            return sum(m == method and text in path for m, path, _ in self.requests)

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream, contextlib.suppress(OSError):
            while self._one(connection, stream):
                pass

    def _one(self, connection: socket.socket, stream) -> bool:
        """Answers one request; False: the connection is of no more use."""
        start = stream.readline().decode("latin-1").split()
        if len(start) != 3:
            return False
        method, target, _ = start
        headers = http.client.parse_headers(stream)
        if headers.get("Expect", "").lower() == "100-continue":
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = stream.read(int(headers.get("Content-Length", 0)))
        fault = self._note(method, target, headers.get("Range", ""))
        if fault == "delay":
            self._closed.wait(self.delay_seconds)
        elif fault == "hang":
            self._hang(connection)
            return False
        elif fault == "reset":
            _reset(connection)
            return False
        if fault == "busy":
            self._send(connection, method, 503, [("Content-Type", "application/xml")], _BUSY)
            return True
        status, fields, content = self._ask(method, target, headers, body)
        cut = len(content) // 2 if fault in ("cut", "torn") else None
        self._send(connection, method, status, fields, content, cut)
        if fault == "torn":
            _reset(connection)
        return cut is None

    def _note(self, method: str, target: str, part: str) -> str | None:
        path = unquote(target.split("?")[0])
        with self._lock:
            self.requests.append((method, path, part))
            count = self._counts[method, target, part]
            self._counts[method, target, part] += 1
            fault = self.plan.fault(method, target, part, count)
            if fault is not None:
                self.met[fault] += 1
            return fault

    def _hang(self, connection: socket.socket) -> None:
        connection.settimeout(0.1)
        while not self._closed.is_set() and self.plan.share:
            with contextlib.suppress(TimeoutError):
                if not connection.recv(1):
                    return

    def _ask(self, method, target, headers, body) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=60)
        try:
            upstream.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if name.lower() not in ("connection", "expect"):
                    upstream.putheader(name, value)
            upstream.endheaders(body or None)
            answer = upstream.getresponse()
            fields = answer.getheaders()
            content = answer.read()
        finally:
            upstream.close()
        if method == "HEAD":  # the length is that of what a GET returns
            return answer.status, fields, b""
        return answer.status, [f for f in fields if f[0].lower() not in _HOP], content

    def _send(self, connection, method, status, fields, content, cut=None) -> None:
        lines = [f"HTTP/1.1 {status} {http.client.responses.get(status, '')}"]
        lines += [f"{name}: {value}" for name, value in fields if name.lower() != "connection"]
        if not any(name.lower() == "content-length" for name, _ in fields) and status != 204:
            lines.append(f"Content-Length: {len(content)}")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        connection.sendall(head + (b"" if method == "HEAD" else content[:cut]))


def _reset(connection: socket.socket) -> None:
    """Ends a connection with RST, as a machine does that goes away."""
    time.sleep(0.01)  # what was sent before arrives
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextlib.contextmanager
def running(upstream: int) -> Iterator[Proxy]:
    """A proxy in threads of this process."""
    proxy = Proxy(upstream)
    try:
        yield proxy
    finally:
        proxy.close()
