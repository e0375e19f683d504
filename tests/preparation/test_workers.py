"""Real processes: workers of Beam, killed ones, no network, a full disk."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emo_jax.errors import DataError
from emo_jax.preparation.prepare import prepare

HERE = Path(__file__).parent
SECONDS = 120

pytestmark = [pytest.mark.system]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """2 MB in four files; each is many pieces of its own."""
    draw, folder = random.Random(0), tmp_path_factory.mktemp("inputs")
    words = [
        "".join(draw.choice("abcdefgh") for _ in range(draw.randint(1, 9))) for _ in range(500)
    ]
    for n in range(4):
        with (folder / f"{n}.jsonl").open("w") as file:
            for i in range(500):
                text = " ".join(draw.choices(words, k=draw.randint(5, 400)))
                record = {"text": text, "id": f"{n}/{i}", "domain": f"d{i % 3}"}
                file.write(json.dumps(record) + "\n")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    """The store that one process makes with tasks of the usual size."""
    return prepare(inputs, tmp_path_factory.mktemp("undisturbed") / "s", "bytes").store.path


def same(made, undisturbed):
    names = [sorted(p.relative_to(f) for p in Path(f).rglob("*")) for f in (made, undisturbed)]
    assert names[0] == names[1]
    for name in names[0]:
        a, b = Path(made) / name, Path(undisturbed) / name
        assert a.is_dir() or a.read_bytes() == b.read_bytes(), name
    assert not list(Path(made).parent.glob(".*"))


def start(output, workers, inputs, *before, **environment):
    return subprocess.Popen(
        [*before, sys.executable, HERE / "small_job.py", output, str(workers), *inputs],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(HERE.parents[1])} | environment,
    )


def finish(process):
    out, err = process.communicate(timeout=SECONDS)
    assert not process.returncode, err
    return json.loads(out)


def done(output, kind):
    return list(output.parent.glob(f".{output.name}.*.prepare/done/{kind}-*.json"))


def wait_for(what):
    end = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < end
        time.sleep(0.002)


def commands(word):
    """Pids of the processes with a word in their command."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            text = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if word.encode() in text.replace(b"\0", b" "):
            found.append(int(entry.name))
    return found


def below(pid, word):
    """Pids of processes with a word in their command that `pid` started, also by others."""

    def parent(of):
        try:
            return int(Path(f"/proc/{of}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return 0

    def is_below(of):
        while of > 1 and of != pid:
            of = parent(of)
        return of == pid

    return [found for found in commands(word) if is_below(found)]


def without_network():
    """What runs a program in a network namespace of its own; skips where that is not allowed."""
    command = ["unshare", "-rn"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"]).returncode:
        pytest.skip("needs unshare -rn: no user namespaces here")
    return command


@pytest.mark.parametrize("workers", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_without_a_network(inputs, undisturbed, tmp_path, workers):
    """N processes run the tasks, nothing is downloaded, and the bytes are those of one process."""
    shuffled = random.Random(workers).sample(inputs, len(inputs))
    command = without_network()
    made = finish(start(tmp_path / "s", workers, shuffled, *command, LOOPBACK="1"))
    assert made["processes"] == workers and made["documents_read"] == 2000
    same(tmp_path / "s", undisturbed)


def test_options_of_beam(inputs, undisturbed, tmp_path):
    """Any runner; this one has its workers in the process of the pipeline."""
    made = finish(start(tmp_path / "s", 1, inputs, BEAM="--runner=FnApiRunner"))
    assert made["documents_read"] == 2000
    same(tmp_path / "s", undisturbed)


def test_killed_twice(inputs, undisturbed, tmp_path):
    """kill -9 of the command while it reads, and while it sorts; its workers end too."""
    output = tmp_path / "s"
    process = start(output, 2, inputs)
    wait_for(lambda: len(done(output, "piece")) > 2)
    process.kill()
    process.wait()
    wait_for(lambda: not commands(str(output.parent)))
    read = len(done(output, "piece"))
    assert read and not done(output, "bucket")
    process = start(output, 2, inputs)
    wait_for(lambda: done(output, "bucket"))
    process.kill()
    process.wait()
    wait_for(lambda: not commands(str(output.parent)))
    assert not output.exists() and not done(output, "shard")
    made = finish(start(output, 2, inputs))
    assert made["documents_read"] == 0
    same(output, undisturbed)


def test_a_killed_worker(inputs, undisturbed, tmp_path):
    output = tmp_path / "s"
    process = start(output, 2, inputs)
    wait_for(lambda: len(done(output, "piece")) > 2)
    # The runner starts each through a shell, which has the same words in its command.
    workers = [
        pid
        for pid in below(process.pid, "sdk_worker_main")
        if not Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"/bin/sh")
    ]
    os.kill(workers[-1], signal.SIGKILL)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 1 and not out
    assert err.count("\n") == 1 and "Apache Beam stopped with" in err and "a worker was" in err
    made = finish(start(output, 2, inputs))
    assert 0 < made["documents_read"] < 2000
    same(output, undisturbed)


def test_an_error_in_a_worker_is_that_of_one_process(inputs, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(inputs[0].read_text() + '{"txet": 1}\n' + inputs[1].read_text())
    with pytest.raises(DataError) as here:
        prepare([bad], tmp_path / "s", "bytes", strict=True)
    process = start(tmp_path / "s", 2, [bad])
    assert process.communicate(timeout=SECONDS)[1] == f"{here.value}\n"
    assert process.returncode == 1


FULL = """
import subprocess, sys
disk, program, workers, *inputs = sys.argv[1:]
def job():
    command = [sys.executable, program, disk + "/s", workers, *inputs]
    return subprocess.run(command, capture_output=True, text=True)
mount = ["mount", "-t", "tmpfs", "tmpfs", disk, "-o"]
subprocess.run([*mount, "size=5m"], check=True)
full = job()
print(full.returncode, full.stderr.count(chr(10)), full.stderr, end="")
subprocess.run([*mount, "remount,size=80m"], check=True)
again = job()
print(again.stderr, again.stdout, end="")
subprocess.run(["cp", "-r", disk + "/s", disk + "/../made"], check=True)
"""


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_full_disk(inputs, undisturbed, tmp_path, workers):
    command = ["unshare", "-rm"]
    disk = tmp_path / "disk"
    disk.mkdir()
    tried = subprocess.run([*command, "mount", "-t", "tmpfs", "tmpfs", disk], capture_output=True)
    if tried.returncode:
        pytest.skip("needs unshare -rm: no file system can be mounted here")
    job = [sys.executable, "-c", FULL, disk, HERE / "small_job.py", str(workers), *inputs]
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    made = subprocess.run(
        [*command, *job], capture_output=True, text=True, env=environment, timeout=2 * SECONDS
    )
    first, report = made.stdout.splitlines()
    assert first.startswith("1 1 ") and "cannot be written" in first, made
    assert "No space left on device" in first and "same command goes on" in first
    assert json.loads(report)["documents_read"] < 2000
    same(tmp_path / "made", undisturbed)


def test_memory_does_not_grow_with_the_corpus(tmp_path, inputs):
    """Eight times the documents: hundreds of runs and buckets, one at a time."""
    peaks = []
    for times in (1, 8):
        folder = tmp_path / str(times)
        folder.mkdir()
        for n in range(times):
            for file in inputs:
                text = file.read_text().replace('"id": "', f'"id": "{n}/')
                (folder / f"{n}-{file.name}").write_text(text)
        peaks.append(finish(start(tmp_path / f"s{times}", 1, [folder]))["peak_kib"])
    assert peaks[1] - peaks[0] < 24 * 1024, peaks
