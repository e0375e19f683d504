"""experiments/bench_loader.py on a small corpus: what it times are windows of that corpus."""

import json
import subprocess
import sys

import pytest
import runs

SCRIPT = runs.REPO / "experiments/bench_loader.py"
pytestmark = pytest.mark.system


def bench(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=runs.REPO)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("bench")
    assert bench("corpus", made, "--tokens", 300_000).returncode == 0
    done = bench("ours", made, "--prepare")
    assert done.returncode == 0, done.stderr
    return made


def measured(folder, way):
    how = ["--seq-len", 256, "--batch", 8, "--passes", 1, "--seconds", 0.1]
    return bench("ours", folder, "--way", way, *how)


@pytest.mark.parametrize("way", ["store, filter", "raw, plain"])
def test_it_reports_what_a_batch_holds_and_a_table_of_it(folder, tmp_path, way):
    done = measured(folder, way)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tokens_per_second"] > 0 and found["peak_rss_MB"] > found["without_files_MB"] > 0
    assert found["fields"]["segment_ids"] == "int32 (8, 256)"
    assert ("filter" in found["does"]) == ("filter" in way)
    (tmp_path / "found.jsonl").write_text(done.stdout * 2)
    shown = bench("table", tmp_path / "found.jsonl")
    assert f"| emo_jax | {found['does']} | {way} |" in shown.stdout, shown.stderr


def test_batches_of_other_tokens_are_not_timed(folder):
    tokens = folder / "corpus/tokens.npy"
    right = tokens.read_bytes()
    tokens.write_bytes(bytes(4) + right[:-4])
    try:
        done = measured(folder, "store, plain")
    finally:
        tokens.write_bytes(right)
    assert done.returncode == 1 and "0 of 8 rows are windows of the corpus" in done.stderr
