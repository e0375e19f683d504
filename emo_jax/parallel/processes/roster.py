"""The roster of a run: one TCP connection from every process to process 0.

JAX's coordination service waits for processes that it cannot name, and if one is lost it aborts the
others with a C++ stack trace. So the processes meet here first, on the coordinator's port before
JAX uses it, state what they run, and keep the connection. The kernel closes it when a process ends,
however it ends; heartbeats cover the loss of a machine.

Messages are JSON, one per line. To process 0: `hello` (first), `round` (each process's value, in
rounds), `leaves`, `stalled` (no step for too long). From it: `verdict` (on a round), `end` (a line
to exit with), `left`. Both ways: `alive` (what the sender does), `stacks` (asks for the stacks of
the threads; they are written).
"""

import contextlib
import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from emo_jax.errors import (
    EXIT_FAILED,
    EXIT_RUN_AGAIN,
    EXIT_USAGE,
    EmoError,
    UsageError,
)
from emo_jax.parallel.processes.ending import KINDS, Ending
from emo_jax.parallel.processes.line import NOTABLE, Line, listening_address
from emo_jax.parallel.processes.meeting import Host, Inbox, Secret, Stopped, call, refuse
from emo_jax.parallel.processes.place import Place
from emo_jax.parallel.processes.pulse import Pulse
from emo_jax.parallel.processes.stall import Sign, Stall
from emo_jax.parallel.processes.words import Facts, differences, name_of, say, some

GRACE = 5.0  # seconds within which processes that fail together all do so
_BEAT = 1.0  # seconds between heartbeats, at most
_LOOK = 0.2  # seconds between looks at what came


class Roster:
    """The processes of a run, as seen by one of them.

    Args:
      place: this process's place.
      facts: what must be equal on all processes, such as versions.
      join_timeout: seconds to wait for the others, here and in `compare`.
      silence_timeout: seconds after which a silent process counts as lost.
      stopped: whether to give up waiting.
      secret: gives what all processes of the run know, and nobody else; None: not known yet.
      pulse: says what this process does.
      ending: ends this process if another one is lost.

    Attributes:
      bound: on process 0, the IP address and port to listen at; an empty address: all of them.
      stall: what happens if the run does not get on.

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
        secret: Secret = lambda: "",
        pulse: Pulse | None = None,
        ending: Ending | None = None,
    ):
        self.place, self._stopped, self._met = place, Stopped(stopped), False
        self._join_timeout, self._silence = join_timeout, silence_timeout
        self._inbox: Inbox = queue.Queue()
        self._verdicts: queue.Queue[dict[str, Any]] = queue.Queue()
        self._said = threading.Condition()  # a value arrived
        self._left: dict[int, tuple[int, str]] = {}  # exit codes and reasons
        self._leaving: tuple[int, str] | None = None  # ours
        self._deadline: float | None = None  # when those that have not failed end too
        self._ending = ending or Ending()
        self._slow: queue.SimpleQueue[tuple[int, float]] = queue.SimpleQueue()
        self._stood = (0.0, 0.0)  # when this process did not run, the last time
        self._pulse = pulse or Pulse()
        self.stall = Stall(self._pulse)
        waiting: dict[str, Any] = {
            "secret": secret,
            "inbox": self._inbox,
            "join_timeout": join_timeout,
            "stopped": self._stopped,
        }
        if place.index == 0:
            self.bound = self._choose_address()
            met = Host(place, self.bound, silence=silence_timeout, **waiting).wait()
        else:
            self.bound = place.address
            met = call(place, facts, **waiting)
        self._lines = met.lines  # to the others; on the others, to process 0
        self._names = met.names
        self._names[place.index] = name_of(place.index, socket.gethostname(), os.getpid())
        self._round: dict[int, Any] = met.facts  # process 0: the others' values in this round
        threading.Thread(target=self._watch, name="roster-watch", daemon=True).start()
        if place.index == 0:
            self._judge(facts)
        else:
            self._obey(time.monotonic() + 2 * join_timeout + GRACE)

    def _choose_address(self) -> tuple[str, int]:
        host, port = self.place.address
        try:
            bound = listening_address(host, port)
        except OSError as e:
            raise EmoError(
                f"process 0 cannot listen at {self.place.coordinator}: {e.strerror or e}; give"
                " another --coordinator, of the machine that process 0 is on"
            ) from e
        if not bound[0]:
            say(
                f"{host} is no address of this machine's own, so process 0 listens at all of its"
                f" addresses; JAX_COORDINATOR_BIND_ADDRESS=ADDRESS:{port} chooses one"
            )
        return bound

    def _give_sign(self) -> None:
        for line in self._others():
            line.send(alive=self._pulse.sign())

    def _others(self) -> list[Line]:
        """A copy of the current lines; the watching thread removes those that end."""
        return list(self._lines.values())

    def _missing(self, there: Any) -> list[int]:
        return [i for i in range(1, self.place.count) if i not in there]

    def _refuse(self, error: EmoError) -> EmoError:
        """Process 0: ends all processes with this error."""
        self._leaving = (error.exit_code, str(error))
        self._left = dict.fromkeys(range(self.place.count), self._leaving)
        return refuse(error, self._others())

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
        found = [text for i in sorted(theirs) if (text := differences(i, ours, theirs[i]))]
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
                    text = f"nothing was heard from {some(missing)} for {self._join_timeout:.0f} s"
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
                if not self._met:
                    self._stopped.check()
                if deadline is not None and time.monotonic() > deadline:
                    raise EmoError(f"{self._names[0]} does not answer; see its log") from None
        self._met = True
        if verdict["verdict"]:
            raise KINDS.get(verdict["code"], EmoError)(verdict["verdict"])
        return verdict

    # --- watching --------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Thread: sends heartbeats, and acts on missing ones."""
        pause = min(_BEAT, self._silence / 4)
        next_sign, looked = 0.0, time.monotonic()
        while True:
            now = time.monotonic()
            if now - looked >= NOTABLE:
                self._stood = (looked, now)
                self._slow.put((self.place.index, now - looked))
            looked = now
            if now >= next_sign:
                next_sign = now + pause
                self._give_sign()
            for index, line in list(self._lines.items()):
                if now - line.heard > self._silence and index not in self._left:
                    what = f"has not been heard of for {self._silence:.0f} s"
                    self._lost(f"{self._names[index]} {what}")
                self._note_silences(index, line)
            if self.place.index and self._leaving and self._leaving[0]:
                self._deadline = None  # process 0 knows, and decides
            if self._deadline is not None and now >= self._deadline:
                index, (code, why) = next((i, x) for i, x in self._left.items() if x[0])
                self._lost(f"{self._names[index]} failed (exit code {code}): {why}", code)
            if self.stall.has_begun:
                text = self.stall.verdict(now, self._names, self.signs())
                if text is not None:
                    self._lost(text, EXIT_RUN_AGAIN)
            try:
                index, source, message = self._inbox.get(timeout=min(pause, _LOOK))
            except queue.Empty:
                continue
            if self._lines.get(index) is source:  # not from a line that was replaced; ours is None
                self._handle(index, message)

    def _note_silences(self, index: int, line: Line) -> None:
        """Notes how long a process did not run, unless it was this one that did not."""
        for begin, end in line.silences():
            both = min(end, self._stood[1]) - max(begin, self._stood[0])
            if (seconds := end - begin - max(both, 0.0)) >= NOTABLE:
                self._slow.put((index, seconds))  # read on process 0

    def slow(self) -> list[tuple[str, int, float]]:
        """Process 0: which processes stood still, and for how many seconds; each time once.

        Returns:
          Name, index and seconds of each.
        """
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                index, seconds = self._slow.get_nowait()
                found.append((self._names[index], index, seconds))
        return found

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
            if message["verdict"]:  # the same error for all
                self._left[0] = (message["code"], message["verdict"])
            self._verdicts.put(message)
        elif "leaves" in message:
            self._note(index, message["leaves"], message["why"])
        elif "left" in message:
            self._note(0, message["left"], message["why"])
        elif "end" in message:
            self._end(message["end"], message["code"])
        elif "stalled" in message:
            self._ask_for_stacks(message["stalled"])
        elif "stacks" in message and self.place.index == 0:
            self.stall.wrote(index, message["stacks"])
        elif "stacks" in message:
            self._answer_stacks(message["stacks"])

    def _note(self, index: int, code: int, why: str) -> None:
        """Notes that one leaves; if it failed, the others end soon too.

        Process 0 tells the rest; that it fails itself, they know without it.
        """
        self._left[index] = (code, why)
        if code and self._deadline is None:
            self._deadline = time.monotonic() + GRACE
        if len(self._left) == self.place.count:
            self._deadline = None

    def _lost(self, text: str, code: int = EXIT_FAILED) -> None:
        if code != EXIT_USAGE:
            text += "; this run ends with it: run the same command again to go on"
        if self.place.index == 0:
            for index, line in self._lines.items():
                if index not in self._left:
                    line.send(end=text, code=code)
            time.sleep(0.5)  # the others must be gone before JAX's service is
        self._end(text, code)

    def _end(self, text: str, code: int) -> None:
        """Ends this process, which may be stuck in a collective."""
        self._deadline = None
        ours, why = self._leaving or (0, "")
        if not ours:
            self._ending.end(code, text)
        timer = threading.Timer(6 * GRACE, self._ending.end, (ours, why))
        timer.daemon = True  # this process has an error of its own and is cleaning up
        timer.start()

    # --- a run that does not get on --------------------------------------------------------------

    def signs(self) -> dict[int, dict[str, Any]]:
        """Process 0: what each process said last of what it does, by index."""
        found = {i: line.alive for i, line in list(self._lines.items()) if line.alive}
        return found | {self.place.index: self._pulse.sign()}

    def stalled(self, limit: float) -> None:
        """Says that this process has done no step for `limit` seconds; all end with it."""
        if self.place.index == 0:
            self._inbox.put((0, None, {"stalled": limit}))
        else:
            for line in self._others():  # none if process 0 is done
                line.send(stalled=limit)

    def _ask_for_stacks(self, limit: float) -> None:
        if (folder := self.stall.begin(limit)) is not None:
            for line in self._others():
                line.send(stacks=folder)
            self.stall.write_here(folder, lambda sign: self.stall.wrote(0, sign))

    def _answer_stacks(self, folder: str) -> None:
        def answer(sign: Sign) -> None:
            for line in self._others():
                line.send(stacks=sign)

        self.stall.write_here(folder, answer)

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
