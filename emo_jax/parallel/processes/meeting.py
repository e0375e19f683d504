"""How the processes of a run find each other: process 0 listens, and the others call.

Only who proves to know the run's secret (`handshake.py`) is listened to, or told anything.
"""

import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from emo_jax.errors import EmoError, PreemptedError, UsageError
from emo_jax.parallel.processes import handshake
from emo_jax.parallel.processes import place as place_lib
from emo_jax.parallel.processes.line import Line, Listener, connect
from emo_jax.parallel.processes.place import Place
from emo_jax.parallel.processes.words import Facts, name_of, say, some

_SAY_WAITING = 30.0  # seconds between messages of process 0 while it waits
_STRANGERS = 256  # connections that have not proved themselves, at once
_NO_SECRET = "there is no token of this run yet"

Secret = Callable[[], str | None]
Inbox = queue.Queue  # of (index, line, message)


class Met(NamedTuple):
    """The other processes; on those, process 0 alone.

    Attributes:
      lines: to each of them.
      names: of each of them.
      facts: of each of them; process 0 only.
    """

    lines: dict[int, Line]
    names: dict[int, str]
    facts: dict[int, Facts]


class Stopped:
    """Whether to give up, as an error."""

    TEXT = "stopped before the first step; run the same command again"

    def __init__(self, asked: Callable[[], bool]):
        self.asked = asked

    def check(self) -> None:
        """Raises PreemptedError if so."""
        if self.asked():
            raise PreemptedError(self.TEXT)


def refuse(error: EmoError, lines: Iterable[Line]) -> EmoError:
    """Tells the others that the run ends with this error before it begins; returns it."""
    for line in lines:
        line.send(verdict=str(error), code=error.exit_code)
    return error


class Host:
    """Process 0: waits for all others.

    Args:
      place: the place of process 0.
      bound: IP address and port to listen at.
      secret: gives the run's secret.
      inbox: gets what the others say afterwards.
      join_timeout: seconds to wait.
      silence: seconds after which a silent process counts as lost.
      stopped: whether to give up waiting.
    """

    def __init__(
        self,
        place: Place,
        bound: tuple[str, int],
        *,
        secret: Secret,
        inbox: Inbox,
        join_timeout: float,
        silence: float,
        stopped: Stopped,
    ):
        self._place, self._bound, self._inbox = place, bound, inbox
        self._join_timeout, self._silence, self._stopped = join_timeout, silence, stopped
        self._secret = secret() or ""
        self._met = Met({}, {}, {})
        self._mine = name_of(place.index, socket.gethostname(), os.getpid())
        self._come: queue.Queue[tuple[Line, Any]] = queue.Queue()
        self._strangers = threading.BoundedSemaphore(_STRANGERS)

    def wait(self) -> Met:
        """Returns the others as soon as all are there.

        Raises:
          EmoError: some did not come, which are named, or the port cannot be had.
          UsageError: there are two of one index, or one is of another number of processes.
          PreemptedError: stopped.
        """
        try:
            listener = Listener(self._bound, self._accept)
        except OSError as e:
            raise EmoError(
                f"process 0 cannot listen at {self._place.coordinator}: {e.strerror or e}; give"
                " another --coordinator, of the machine that process 0 is on"
            ) from e
        try:
            return self._wait()
        except EmoError as error:
            refuse(error, self._met.lines.values())
            raise
        finally:
            listener.close()  # JAX takes the port next

    def _wait(self) -> Met:
        deadline = time.monotonic() + self._join_timeout
        say_at, next_sign = time.monotonic() + _SAY_WAITING / 3, 0.0
        while True:
            now = time.monotonic()
            self._forget_lost(now)
            if not (
                missing := [i for i in range(1, self._place.count) if i not in self._met.lines]
            ):
                return self._met
            self._stopped.check()
            if now >= next_sign:  # those that have joined may have to wait for long
                next_sign = now + self._silence / 4
                for line in self._met.lines.values():
                    line.send(alive={})
            if now >= deadline:
                raise EmoError(self._did_not_come(missing))
            if now >= say_at:
                say_at = now + _SAY_WAITING
                say(f"waiting for {some(missing)}; gives up in {deadline - now:.0f} s")
            try:
                line, hello = self._come.get(timeout=0.2)
            except queue.Empty:
                continue
            self._admit(line, hello)

    def _accept(self, connection: socket.socket) -> None:
        self._strangers.acquire()
        threading.Thread(target=self._meet, args=(connection,), name="meet", daemon=True).start()

    def _meet(self, connection: socket.socket) -> None:
        try:
            known = handshake.admit(connection, self._secret)
        finally:
            self._strangers.release()
        if known:
            line = Line(connection)
            line.read(partial(self._first, line))
        else:
            connection.close()

    def _first(self, line: Line, message: Any) -> None:
        """Thread of a line: the first message identifies the sender."""
        if line.index is not None:
            _keep(self._inbox, line.index, line, message)
            return
        index, facts = (message or {}).get("hello"), (message or {}).get("facts")
        if isinstance(index, int) and isinstance(facts, dict):
            line.index = index
            self._come.put((line, message))
        else:
            line.close()  # not one of our processes

    def _admit(self, line: Line, hello: dict[str, Any]) -> None:
        index, count = hello["hello"], hello.get("count")
        name, (lines, names, facts) = name_of(index, hello.get("host"), hello.get("pid")), self._met
        error = None
        if count != self._place.count:
            text = f"{name} is of {count} processes, {self._mine} of {self._place.count}"
            error = UsageError(f"{text}; give all the same --processes")
        elif index in names or index == self._place.index:
            text = f"{name} and {names.get(index, self._mine)} have the same index"
            error = UsageError(f"{text}; give each its own --process-index")
        if error is not None:
            refuse(error, [line])
            raise error
        lines[index], names[index], facts[index] = line, name, hello["facts"]

    def _forget_lost(self, now: float) -> None:
        """Drops processes lost while others are still missing: a scheduler may restart them."""
        lines, names, facts = self._met
        for index, line in list(lines.items()):
            if line.ended or now - line.heard > self._silence:
                lines.pop(index).close()
                del names[index], facts[index]

    def _did_not_come(self, missing: list[int]) -> str:
        at = place_lib.hosts(self._place)
        named = [f"process {i} ({at[i]})" if i in at else f"process {i}" for i in missing[:16]]
        more = f" and {len(missing) - 16} more" if len(missing) > 16 else ""
        return (
            f"{', '.join(named)}{more} of {self._place.count} did not join at"
            f" {self._place.coordinator} within {self._join_timeout:.0f} s; see their logs, or give"
            " more time with --join-timeout"
        )


def call(
    place: Place,
    facts: Facts,
    *,
    secret: Secret,
    inbox: Inbox,
    join_timeout: float,
    stopped: Stopped,
) -> Met:
    """The others: connects to process 0, however late it starts; see `Host` for the arguments.

    Raises:
      EmoError: process 0 does not answer in time.
      PreemptedError: stopped.
    """
    hello = {
        "hello": place.index,
        "count": place.count,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "facts": facts,
    }
    reason, deadline = "nobody answers", time.monotonic() + join_timeout
    while (left := deadline - time.monotonic()) > 0:
        stopped.check()
        known = secret()
        try:
            if known is None:
                raise OSError(_NO_SECRET)
            connection = connect(place.address, min(left, 10))
        except OSError as e:
            reason = e.strerror or str(e)
            time.sleep(min(left, 0.2))
            continue
        if not handshake.introduce(connection, known):
            connection.close()
            reason = "what listens there has another token: that of another run?"
            time.sleep(min(left, 0.2))
            continue
        line = Line(connection)
        line.send(**hello)
        line.index = 0
        line.read(partial(_keep, inbox, 0, line))
        return Met({0: line}, {0: f"process 0 ({place.coordinator})"}, {})
    raise EmoError(
        f"process {place.index} does not reach process 0 at {place.coordinator}"
        f" within {join_timeout:.0f} s ({reason}); see its log, or give more time with"
        " --join-timeout"
    )


def _keep(inbox: Inbox, index: int, line: Line, message: Any) -> None:
    inbox.put((index, line, message))
