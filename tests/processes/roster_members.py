"""Processes of a roster, without JAX."""

import os
import socket
import subprocess
import sys

import runs

# index count port facts join silence, then Python to run once joined.
_MEMBER = """
import json, os, sys, time
from emo_jax.errors import EmoError, UsageError
from emo_jax.parallel.processes.place import Place
from emo_jax.parallel.processes.roster import Roster

index, count, port, facts, join, silence, then, stop_after, token = sys.argv[1:]
begun = time.monotonic()

def secret():
    # None:2:x is x after two seconds.
    late, _, rest = token.partition(":")
    if late != "None":
        return token
    seconds, _, known = rest.partition(":")
    return known if time.monotonic() - begun > float(seconds) else None

place = Place(index=int(index), count=int(count), coordinator=f"127.0.0.1:{port}")
try:
    roster = Roster(
        place,
        json.loads(facts),
        join_timeout=float(join),
        silence_timeout=float(silence),
        stopped=lambda: 0 < float(stop_after) < time.monotonic() - begun,
        secret=secret,
    )
    print("joined", flush=True)
    exec(then)
except EmoError as e:
    print(f"emo: {e}", file=sys.stderr)
    os._exit(e.exit_code)
os._exit(0)
"""
STAY = "time.sleep(60)"
FINISH = "roster.leave(0, '', agreed=True); time.sleep(1)"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Member:
    """One of the processes of a roster; a program of its own."""

    def __init__(
        self,
        index,
        count,
        port,
        *,
        then=STAY,
        facts="{}",
        join=60,
        silence=60,
        stop=0,
        token="",
    ):
        argv = [index, count, port, facts, join, silence, then, stop, token]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _MEMBER, *map(str, argv)],
            env=os.environ | {"PYTHONPATH": str(runs.REPO)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def joined(self):
        assert self.process.stdout.readline() == "joined\n", self.process.stderr.read()

    def end(self, seconds=90) -> tuple[int, str]:
        """Its exit code and last line."""
        _, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, (err.splitlines() or [""])[-1]

    def stop(self):
        self.process.kill()
        self.process.communicate()
