"""Reads malformed files in a process of its own and says what became of each.

    python tests/fuzz/worker.py READER FIRST LAST SEEDS

One JSON line an input: `begin` with its seed, then its outcome. `SEEDS` is a folder of
`seeds.make_seeds`, or is made. By hand, for one input: first and last are the same seed.
"""

import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

SECONDS = 20  # of one input
GROWTH = 2 << 30  # bytes of memory beyond what was there before the inputs
LONGEST = 500  # characters of an error


class HangError(BaseException):
    """An input took too long; no `except Exception` may take it."""


def attempt(name: str, seed: int, seeds: Path, work: Path) -> dict[str, Any]:
    """What becomes of an input: `ok` with how, or `fault` with what is wrong."""
    from readers import READERS, make_input

    from emo_jax.errors import EmoError

    reader = READERS[name]
    file = make_input(reader, name, seed, seeds, work)
    found: dict[str, Any] = {"seed": seed, "file": str(file.relative_to(work / "in"))}
    try:
        reader.use(work / "in", work / "out")
    except EmoError as error:
        said = str(error)
        if "\n" in said or len(said) > LONGEST + len(str(work)) * 4:
            return found | {"fault": f"an error of {len(said)} characters: {said[:300]!r}"}
        return found | {"ok": type(error).__name__, "said": said}
    except HangError:
        return found | {"fault": f"hangs: {_where()}", "where": _where()}
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        text = " ".join(str(error).split())[:200]
        return found | {"fault": f"{type(error).__name__}: {text} at {_where()}", "where": _where()}
    return found | {"ok": "accepted"}


def _where() -> str:
    """The innermost line of emo_jax that the exception went through."""
    frames = traceback.extract_tb(sys.exc_info()[2])
    ours = [f for f in frames if "/emo_jax/" in f.filename] or frames
    return f"{ours[-1].filename.rpartition('emo_jax/')[2]}:{ours[-1].lineno}"


def main(argv: list[str]) -> None:
    """Reads inputs FIRST..LAST."""
    name, first, last, seeds = argv[0], int(argv[1]), int(argv[2]), Path(argv[3])
    here = Path(__file__).parent
    sys.path[:0] = [str(here), str(here.parent), str(here.parent / "data")]
    _warm_up()
    before = _limit_memory()

    def on_alarm(number: int, frame: Any) -> None:
        raise HangError

    signal.signal(signal.SIGALRM, on_alarm)
    for seed in range(first, last + 1):
        print(json.dumps({"begin": seed}), flush=True)
        with tempfile.TemporaryDirectory(dir=os.environ.get("EMO_FUZZ_WORK")) as work:
            signal.alarm(SECONDS)
            found = attempt(name, seed, seeds, Path(work))
            signal.alarm(0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        if peak - before > GROWTH and "fault" not in found:
            found["fault"] = f"takes {(peak - before) >> 20} MB of memory"
        before = max(before, peak - GROWTH) if "fault" in found else before
        print(json.dumps(found), flush=True)


def _warm_up() -> None:
    """Imports and caches what is the same for every input."""
    import jax

    import emo_jax.explorer.explore
    import emo_jax.modules.finetune  # noqa: F401
    from emo_jax.tokenizer.load import byte_tokenizer

    byte_tokenizer().encode_batch(["a"])
    jax.devices()


def _limit_memory() -> int:
    """Memory in use, after which the process gets so much more and no further."""
    status = Path("/proc/self/status").read_text()
    used = int(status.partition("VmData:")[2].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (used + GROWTH + (1 << 30), resource.RLIM_INFINITY))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


if __name__ == "__main__":
    main(sys.argv[1:])
