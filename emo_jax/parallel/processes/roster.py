"""The roster of a run: one TCP connection from every process to process 0.

JAX's coordination service waits for processes that it cannot name, and if one is lost it aborts the
others with a C++ stack trace. So the processes meet here first, on the coordinator's port before
JAX uses it, state what they run, and keep the connection. The kernel closes it when a process ends,
however it ends; heartbeats cover the loss of a machine.

Messages are JSON, one per line. To process 0: `hello` (first), `round` (each process's value, in
rounds), `leaves`. From it: `verdict` (on a round), `end` (a line to exit with), `left`. Both ways:
`alive`.
"""

import contextlib
import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from emo_jax.errors import EXIT_FAILED, EmoError, PreemptedError, UsageError
from emo_jax.parallel.processes import place as place_lib
from emo_jax.parallel.processes.line import Line, Listener, connect
from emo_jax.parallel.processes.place import Place

GRACE = 5.0  # seconds within which processes that fail together all do so
_SAY_WAITING = 30.0  # seconds between messages of process 0 while it waits

_STOPPED = "stopped before the first step; run the same command again"

Facts = dict[str, Any]  # JSON values


class Roster:
    """The processes of a run, as seen by one of them.

    Args:
      place: this process's place.
      facts: what must be equal on all processes, such as versions.
      join_timeout: seconds to wait for the others, here and in `compare`.
      silence_timeout: seconds after which a silent process counts as lost.
      stopped: whether to give up waiting.

    Raises:
      EmoError: some processes did not join; they are named.
      UsageError: the facts differ; every difference is named.
      PreemptedError: stopped while waiting.
    """

    def __init__(
        self,
        place: Place,
        facts: Facts,
        *,
        join_timeout: float,
        silence_timeout: float,
        stopped: Callable[[], bool] = lambda: False,
    ):
        self.place, self._stopped, self._met = place, stopped, False
        self._join_timeout, self._silence = join_timeout, silence_timeout
        self._names = {place.index: _name(place.index, socket.gethostname(), os.getpid())}
        self._inbox: queue.Queue[tuple[int, Line | None, Any]] = queue.Queue()
        self._verdicts: queue.Queue[dict[str, Any]] = queue.Queue()
        self._lines: dict[int, Line] = {}  # to the others; on the others, to process 0
        self._round: dict[int, Any] = {}  # process 0: the others' values in this round
        self._said = threading.Condition()  # a value arrived
        self._left: dict[int, tuple[int, str]] = {}  # exit codes and reasons
        self._leaving: tuple[int, str] | None = None  # ours
        self._deadline: float | None = None  # process 0: when the remaining ones are told to end
        self._ending = threading.Lock()
        if place.index == 0:
            self._gather(time.monotonic() + join_timeout)
        else:
            self._call(time.monotonic() + join_timeout, facts)
        threading.Thread(target=self._watch, name="roster-watch", daemon=True).start()
        if place.index == 0:
            self._judge(facts)
        else:
            self._obey(time.monotonic() + 2 * join_timeout + GRACE)

    # --- meeting ---------------------------------------------------------------------------------

    def _gather(self, deadline: float) -> None:
        """Process 0: waits for all others."""
        come: queue.Queue[tuple[Line, Any]] = queue.Queue()

        def accepted(connection: socket.socket) -> None:
            line = Line(connection)
            line.read(partial(self._first, line, come))

        try:
            listener = Listener(self.place.address, accepted)
        except OSError as e:
            raise EmoError(
                f"process 0 cannot listen at {self.place.coordinator}: {e.strerror or e}; give"
                " another --coordinator, of the machine that process 0 is on"
            ) from e
        say, next_sign = time.monotonic() + _SAY_WAITING / 3, 0.0
        try:
            while True:
                now = time.monotonic()
                self._forget_lost(now)
                if not (missing := self._missing(self._lines)):
                    break
                if self._stopped():
                    raise self._refuse(PreemptedError(_STOPPED))
                if now >= next_sign:  # those that have joined may have to wait for long
                    next_sign = now + self._silence / 4
                    self._give_sign()
                if now >= deadline:
                    raise self._refuse(EmoError(self._did_not_come(missing)))
                if now >= say:
                    say = now + _SAY_WAITING
                    _say(f"waiting for {_some(missing)}; gives up in {deadline - now:.0f} s")
                try:
                    line, hello = come.get(timeout=0.2)
                except queue.Empty:
                    continue
                self._admit(line, hello)
        finally:
            listener.close()  # JAX takes the port next

    def _first(self, line: Line, come: queue.Queue, message: Any) -> None:
        """Process 0, thread of a line: the first message identifies the sender."""
        if line.index is not None:
            self._receive(line.index, line, message)
            return
        index, facts = (message or {}).get("hello"), (message or {}).get("facts")
        if isinstance(index, int) and isinstance(facts, dict):
            line.index = index
            come.put((line, message))
        else:
            line.close()  # not one of our processes

    def _receive(self, index: int, line: Line, message: Any) -> None:
        self._inbox.put((index, line, message))

    def _admit(self, line: Line, hello: dict[str, Any]) -> None:
        index, count = hello["hello"], hello.get("count")
        name = _name(index, hello.get("host"), hello.get("pid"))
        if count != self.place.count:
            text = f"{name} is of {count} processes, {self._names[0]} of {self.place.count}"
            raise self._refuse(UsageError(f"{text}; give all the same --processes"), line)
        if index in self._names:
            text = f"{name} and {self._names[index]} have the same index"
            raise self._refuse(UsageError(f"{text}; give each its own --process-index"), line)
        self._lines[index], self._names[index] = line, name
        self._round[index] = hello["facts"]

    def _forget_lost(self, now: float) -> None:
        """Drops processes lost while others are still missing: a scheduler may restart them."""
        for index, line in list(self._lines.items()):
            if line.ended or now - line.heard > self._silence:
                self._lines.pop(index).close()
                del self._names[index], self._round[index]

    def _refuse(self, error: EmoError, *more: Line) -> EmoError:
        """Process 0: ends all processes with this error."""
        self._leaving = (error.exit_code, str(error))
        self._left = dict.fromkeys(range(self.place.count), self._leaving)
        for line in [*self._others(), *more]:
            line.send(verdict=str(error), code=error.exit_code)
        return error

    def _did_not_come(self, missing: list[int]) -> str:
        at = place_lib.hosts(self.place)
        named = [f"process {i} ({at[i]})" if i in at else f"process {i}" for i in missing[:16]]
        more = f" and {len(missing) - 16} more" if len(missing) > 16 else ""
        return (
            f"{', '.join(named)}{more} of {self.place.count} did not join at"
            f" {self.place.coordinator} within {self._join_timeout:.0f} s; see their logs, or give"
            " more time with --join-timeout"
        )

    def _give_sign(self) -> None:
        for line in self._others():
            line.send(alive=1)

    def _others(self) -> list[Line]:
        """A copy of the current lines; the watching thread removes those that end."""
        return list(self._lines.values())

    def _missing(self, there: Any) -> list[int]:
        return [i for i in range(1, self.place.count) if i not in there]

    def _call(self, deadline: float, facts: Facts) -> None:
        """The others: connects to process 0, however late it starts."""
        hello = {
            "hello": self.place.index,
            "count": self.place.count,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "facts": facts,
        }
        reason = "nobody answers"
        while (left := deadline - time.monotonic()) > 0:
            if self._stopped():
                raise PreemptedError(_STOPPED)
            try:
                connection = connect(self.place.address, min(left, 10))
            except OSError as e:
                reason = e.strerror or str(e)
                time.sleep(min(left, 0.2))
                continue
            line = Line(connection)
            line.send(**hello)
            self._lines[0] = line
            line.read(partial(self._receive, 0, line))
            self._names[0] = f"process 0 ({self.place.coordinator})"
            return
        raise EmoError(
            f"process {self.place.index} does not reach process 0 at {self.place.coordinator}"
            f" within {self._join_timeout:.0f} s ({reason}); see its log, or give more time with"
            " --join-timeout"
        )

    # --- rounds: one value per process -----------------------------------------------------------

    def compare(self, facts: Facts) -> None:
        """Raises UsageError on all processes if the facts differ. All processes call it."""
        if self.place.index == 0:
            self._judge(facts)
        else:
            self._lines[0].send(round=facts)
            self._obey(time.monotonic() + 2 * self._join_timeout + GRACE)

    def gather(self, value: Any) -> list[Any]:
        """The JSON values of all processes, by index. All call it and wait for each other.

        No device takes part: nothing has to finish there, and nothing is queued.
        """
        if self.place.index:
            self._lines[0].send(round=value)
            return self._obey(None)["values"]
        theirs = self._collect(None)
        values = [value, *(theirs[i] for i in sorted(theirs))]
        for line in self._others():
            line.send(verdict="", values=values)
        return values

    def _judge(self, ours: Facts) -> None:
        ours = json.loads(json.dumps(ours))  # in the form the others' arrive in: tuples as lists
        theirs = self._collect(time.monotonic() + self._join_timeout)
        found = [text for i in sorted(theirs) if (text := _differences(i, ours, theirs[i]))]
        if found:
            more = f"; and {len(found) - 4} more processes" if len(found) > 4 else ""
            text = f"{'; '.join(found[:4])}{more}; start all processes with the same"
            raise self._refuse(UsageError(text))
        for line in self._others():
            line.send(verdict="")

    def _collect(self, deadline: float | None) -> dict[int, Any]:
        """Process 0: the others' values in this round. Losing one ends the wait and the run."""
        with self._said:
            while missing := self._missing(self._round):
                if deadline is not None and time.monotonic() >= deadline:
                    text = f"nothing was heard from {_some(missing)} for {self._join_timeout:.0f} s"
                    raise self._refuse(EmoError(f"{text} at the start; see its log"))
                self._said.wait(0.2)  # signals are handled in between
            values, self._round = self._round, {}
        return values

    def _obey(self, deadline: float | None) -> dict[str, Any]:
        """The verdict of process 0, which arrives before the deadline if it is still running."""
        while True:
            try:
                verdict = self._verdicts.get(timeout=0.2)
                break
            except queue.Empty:
                if self._stopped() and not self._met:
                    raise PreemptedError(_STOPPED) from None
                if deadline is not None and time.monotonic() > deadline:
                    raise EmoError(f"{self._names[0]} does not answer; see its log") from None
        self._met = True
        if verdict["verdict"]:
            kinds = {error.exit_code: error for error in (UsageError, PreemptedError)}
            raise kinds.get(verdict["code"], EmoError)(verdict["verdict"])
        return verdict

    # --- watching --------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Thread: sends heartbeats, and acts on missing ones."""
        pause = self._silence / 4
        next_sign = 0.0
        while True:
            now = time.monotonic()
            if now >= next_sign:
                next_sign = now + pause
                self._give_sign()
            for index, line in list(self._lines.items()):
                if now - line.heard > self._silence and index not in self._left:
                    what = f"has not been heard of for {self._silence:.0f} s"
                    self._lost(f"{self._names[index]} {what}")
            if self._deadline is not None and now >= self._deadline:
                index, (code, why) = next((i, x) for i, x in self._left.items() if x[0])
                self._lost(f"{self._names[index]} failed (exit code {code}): {why}")
            try:
                index, source, message = self._inbox.get(timeout=min(pause, 0.2))
            except queue.Empty:
                continue
            if self._lines.get(index) is source:  # not from a line that was replaced
                self._handle(index, message)

    def _handle(self, index: int, message: dict[str, Any] | None) -> None:
        if message is None:
            if index not in self._left:
                self._lost(f"{self._names[index]} is gone")
            self._lines.pop(index).close()
        elif "round" in message:
            with self._said:
                self._round[index] = message["round"]
                self._said.notify()
        elif "verdict" in message:
            if message["verdict"]:
                self._left[0] = (message["code"], message["verdict"])
            self._verdicts.put(message)
        elif "leaves" in message:
            self._note(index, message["leaves"], message["why"])
        elif "left" in message:
            self._left[0] = (message["left"], message["why"])
        elif "end" in message:
            self._end(message["end"])

    def _note(self, index: int, code: int, why: str) -> None:
        """Process 0: notes that one leaves; if it failed, the rest are soon told to end too."""
        self._left[index] = (code, why)
        if code and self._deadline is None:
            self._deadline = time.monotonic() + GRACE
        if len(self._left) == self.place.count:
            self._deadline = None

    def _lost(self, text: str) -> None:
        text += "; this run ends with it: run the same command again to go on"
        if self.place.index == 0:
            for index, line in self._lines.items():
                if index not in self._left:
                    line.send(end=text)
            time.sleep(0.5)  # the others must be gone before JAX's service is
        self._end(text)

    def _end(self, text: str) -> None:
        """Ends this process, which may be stuck in a collective."""
        self._deadline = None
        code, why = self._leaving or (0, "")
        if not code:
            self._exit(EXIT_FAILED, text)
        timer = threading.Timer(6 * GRACE, self._exit, (code, why))
        timer.daemon = True  # this process has an error of its own and is cleaning up
        timer.start()

    def _exit(self, code: int, text: str) -> NoReturn:
        with self._ending:
            # Not by `print`: another thread may hold the stream's lock forever.
            with contextlib.suppress(OSError):
                os.write(2, f"emo: {text}\n".encode())
            os._exit(code)

    # --- leaving ---------------------------------------------------------------------------------

    def leave(self, code: int, why: str, *, agreed: bool) -> None:
        """Announces that this process ends; call it once, as soon as that is known.

        Args:
          agreed: the error cannot be the result of a lost process. Otherwise this waits to see
            whether a process is lost, in which case this process ends with that error instead.
        """
        if self._leaving is not None:
            return
        if code and not agreed:
            time.sleep(GRACE + 1)  # `_watch` ends this process meanwhile
        self._leaving = (code, why)
        if self.place.index == 0:
            for line in self._others():
                line.send(left=code, why=why)
            self._inbox.put((0, None, {"leaves": code, "why": why}))
        else:
            self._left[self.place.index] = self._leaving
            for line in self._others():  # none if process 0 is done
                line.send(leaves=code, why=why)


def _differences(index: int, ours: Facts, theirs: Facts) -> str:
    names = sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
    lines = [f"{n}: {ours.get(n)!r} -> {theirs.get(n)!r}" for n in names[:8]]
    if len(names) > 8:
        lines.append(f"and {len(names) - 8} more")
    return f"process {index} differs from process 0: {'; '.join(lines)}" if lines else ""


def _name(index: Any, host: Any, pid: Any) -> str:
    return f"process {index} (pid {pid} on {host})"


def _some(indices: list[int]) -> str:
    more = f" and {len(indices) - 16} more" if len(indices) > 16 else ""
    word = "process" if len(indices) == 1 else "processes"
    return f"{word} {', '.join(map(str, indices[:16]))}{more}"


def _say(text: str) -> None:
    with contextlib.suppress(Exception):
        print(f"emo: {text}", file=sys.stderr, flush=True)
