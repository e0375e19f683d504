"""Passwords, keys, tokens and signatures stay out of all that is shown, written and sent."""

import http.server
import json
import subprocess
import threading
from pathlib import Path

import pytest
import runs
from s3_server import bucket, s3_port  # noqa: F401

from emo_jax.errors import (
    ConfigError,
    DataError,
    UsageError,
    clipped,
    escaped,
    has_secret,
    one_line,
    without_secrets,
)
from emo_jax.files.ranges import open_ranges
from emo_jax.files.remote import RemoteFolder
from emo_jax.files.waiting import Patience

PLANT = "planted5ecret"
WITH_SECRET = [
    f"s3://AKIA:{PLANT}@bucket/web/*.npy",
    f"s3://AKIA:{PLANT}/with+slashes/@bucket/web",
    f"https://me:p@ss{PLANT}@host:8443/a.jsonl",
    f"https://{PLANT}@host/a.jsonl",
    f"HTTPS://host/a.jsonl?X-Amz-Credential=AKIA&X-Amz-Signature={PLANT}&X-Amz-Date=2",
    f"https://host/a.jsonl?sv=2024&sig={PLANT}%3D&se=2026",
    f"https://host/a.jsonl?a=1&token={PLANT}",
    f"https://host/a.jsonl#access_token={PLANT}",
    f"gs://bucket/a?X-Goog-Signature={PLANT}",
    f"ftp://:{PLANT}@host/a.jsonl",
]
WITHOUT = [
    *("s3://bucket/a@2/b.npy", "abfs://container@account.dfs.core.windows.net/a", "hf://org/name"),
    *("http://localhost:8080/a@b", "http://[::1]:8080/a@b", "https://host/a.jsonl?download=1"),
    *("s3://bucket/l?w/[a-b].jsonl", "s3://bucket/key=1/token=2/a.npy", "/data/a:b@c/d?sig=x"),
]


@pytest.mark.parametrize("url", WITH_SECRET)
def test_a_secret_is_known_and_not_shown(url):
    shown = without_secrets(f"{url}: cannot be read; 'see {url}'")
    assert has_secret(url) and has_secret(f"/data/a,{url}") and PLANT not in shown
    assert shown.endswith("'") and "cannot be read" in shown and "…" in shown
    assert "bucket" in shown or "host" in shown
    assert PLANT not in without_secrets(str(Path(url).absolute()))
    for text in (escaped(url), clipped(url, 500), one_line(ValueError(url)), str(DataError(url))):
        assert PLANT not in text
    assert PLANT not in repr(DataError(url))


@pytest.mark.parametrize("location", WITHOUT)
def test_what_is_no_secret_is_shown_as_it_is(location):
    text = f"{location}: no such file, {location!r}; a@b:c"
    assert without_secrets(text) == text and not has_secret(location)


def test_secrets_of_the_environment_are_not_shown(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", PLANT)
    monkeypatch.setenv("SOME_TOKEN", "short")
    monkeypatch.setenv("SOME_TOKEN_FILE", "/run/secrets/token")
    said = f"the hub says: invalid token {PLANT} short /run/secrets/token"
    assert str(DataError(said)) == "the hub says: invalid token … short /run/secrets/token"


@pytest.mark.parametrize("url", WITH_SECRET)
def test_readers_refuse_it(url):
    patience = Patience(DataError, away="", spoilt="")
    for read in (lambda: open_ranges(url, patience), lambda: RemoteFolder(url).read("a")):
        with pytest.raises(UsageError) as refused:
            read()
        assert PLANT not in str(refused.value)


@pytest.mark.parametrize("field", ["data.store", "data.raw_base", "tracking.mlflow_uri", "name"])
def test_no_field_of_a_config_holds_one(field, tmp_path):
    from emo_jax.config.file import load_config

    for url in WITH_SECRET:
        with pytest.raises(ConfigError) as refused:
            load_config(str(runs.EXPERIMENT), [f"--config.{field}={url}"])
        assert PLANT not in str(refused.value) and field in str(refused.value)


@pytest.mark.parametrize("url", [WITH_SECRET[n] for n in (1, 2, 5)])
@pytest.mark.parametrize(
    "command",
    [
        ("prepare", "URL", "--output", "TMP/store", "--tokenizer", "bytes"),
        ("prepare", "TMP/a.jsonl", "--output", "TMP/store", "--tokenizer", "URL"),
        ("tokenizer", "train", "URL", "--output", "TMP/t", "--vocab-size", "300"),
        ("data", "stats", "URL"),
        ("data", "dedup", "URL"),
        (
            "train",
            "--config",
            str(runs.EXPERIMENT),
            "--workdir",
            "TMP/r",
            "--config.data.store=URL",
        ),
        ("train", "--config", "URL", "--workdir", "TMP/r"),
        ("eval", "TMP/run", "--data", "URL"),
        ("eval", "URL", "--data", "TMP/store"),
        ("export", "URL", "--output", "TMP/hf"),
        ("no-such-command", "URL"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_no_command_says_one(command, url, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("EMO_READ_WAIT", "0")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    argv = [part.replace("URL", url).replace("TMP", str(tmp_path)) for part in command]
    assert runs.emo_here(*argv) in (1, 2)
    said = "".join(capfd.readouterr())
    assert "emo: " in said and PLANT not in said
    assert PLANT not in "".join(str(p) for p in tmp_path.rglob("*"))


def test_a_traceback_shows_none(tmp_path, capfd):
    from emo_jax.cli.app import _run

    url = WITH_SECRET[0]
    assert (
        _run(["prepare", url, "--output", str(tmp_path / "s"), "--tokenizer", "bytes"], True) == 2
    )
    said = capfd.readouterr().err
    assert "Traceback" in said and "input_files.py" in said and PLANT not in said


class _Locked(http.server.BaseHTTPRequestHandler):
    """Gives a line of JSON to those who know the word."""

    content = b'{"text": "hello"}\n'

    def do_HEAD(self) -> None:
        known = self.headers.get("Authorization") == f"Bearer {PLANT}"
        self.send_response(200 if known else 401)
        if known:
            self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        if self.headers.get("Authorization"):
            self.wfile.write(self.content)

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.mark.system
def test_a_token_is_given_by_the_environment(tmp_path):
    """As SECURITY.md says."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Locked)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with server:
        url = f"http://127.0.0.1:{server.server_port}/a.jsonl"
        argv = ["prepare", url, "--output", tmp_path / "store", "--tokenizer", "bytes"]
        headers = {"client_kwargs": {"headers": {"Authorization": f"Bearer {PLANT}"}}}
        env = runs.environment(no_proxy="127.0.0.1", EMO_READ_WAIT="1")
        assert runs.emo(argv, env).returncode == 2
        done = runs.emo(argv, env | {"FSSPEC_HTTP": json.dumps(headers)})
        assert done.returncode == 0, done.stderr
        server.shutdown()
    for file in [p for p in tmp_path.rglob("*") if p.is_file()]:
        assert PLANT.encode() not in file.read_bytes()
    assert PLANT not in done.stdout + done.stderr


# --- all of it ------------------------------------------------------------------------------------

VARIABLES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN"),
    *("HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "GITHUB_TOKEN"),
)


@pytest.mark.system
def test_nothing_that_a_run_writes_or_says_holds_one(bucket, tmp_path):  # noqa: F811
    """Input in a bucket, keys in the environment, every tracker, a page, a folder."""
    env = runs.environment(tmp_path / "cache", **bucket.env)
    env |= {name: f"{PLANT}{n:027d}" for n, name in enumerate(VARIABLES)}
    env |= {"MLFLOW_TRACKING_USERNAME": "me", "EMO_READ_WAIT": "5", "HF_HUB_OFFLINE": "1"}
    work = tmp_path / "work"
    work.mkdir()
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b")
    (work / "code.py").write_text("x = 1\n")
    for rest in (
        ("init", "-q"),
        ("remote", "add", "origin", f"https://me:{PLANT}@host/repository"),
        ("add", "code.py"),
        ("commit", "-qm", "code"),
    ):
        subprocess.run([*git, *rest], cwd=work, check=True)
    corpus = runs.write_corpus(tmp_path / "corpus.jsonl")
    bucket.put("docs/a.jsonl", corpus.read_bytes())
    bucket.put("docs/b.jsonl", b'{"text": 5}\n{"no": "text"}\n')
    said = []

    def emo(code, *argv):
        done = runs.emo([str(a) for a in argv], env, cwd=work)
        said.append(done.stdout + done.stderr)
        assert done.returncode == code, said[-1]

    url, run = f"s3://{bucket.name}", work / "run"
    emo(0, "prepare", f"{url}/docs", "--output", work / "store", "--tokenizer", "bytes")
    store = bucket.upload(work / "store", "store")
    trackers = {
        "tracking__tensorboard": "True",
        "tracking__wandb_project": "p",
        "tracking__wandb_mode": "offline",
        "tracking__mlflow_uri": f"sqlite:///{work}/mlflow.db",
    }
    short = {"train__steps": 4, "train__eval_every": 2, "checkpoint__save_every": 2}
    emo(0, *runs.train_argv(store, run, **short, **trackers))
    emo(0, "report", run)
    emo(0, "eval", run, "--data", store, "--windows", 4, "--json", work / "eval.json")
    few = ("--tokens", 500, "--min-length", 8, "--ablate", 0, "--eval-windows", 2)
    emo(0, "explore", run, "--data", store, "--output", work / "explore.html", *few)
    emo(0, "export", run, "--output", work / "hf")
    emo(0, "data", "stats", store)
    emo(2, "prepare", f"{url}/no", "--output", work / "s", "--tokenizer", "bytes", "--debug")
    emo(2, "prepare", WITH_SECRET[0], "--output", work / "s", "--tokenizer", "bytes", "--debug")
    files = [p for p in work.rglob("*") if p.is_file() and ".git" not in p.parts]
    names = {p.name for p in files}
    assert {"config.json", "metrics.jsonl", "run_info.jsonl", "store.json", "README.md"} <= names
    assert {"report.html", "explore.html", "mlflow.db", "tracking.json", "sources.json"} <= names
    assert any(p.suffix == ".wandb" for p in files) and any("tfevents" in name for name in names)
    for text in said:
        assert PLANT not in text
    for file in files:
        assert PLANT.encode() not in file.read_bytes(), file
