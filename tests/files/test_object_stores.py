"""Folders of object stores; with a server that fails, see tests/data/test_store_s3.py."""

import time

import pytest
import tensorstore as ts

from emo_jax.files import remote
from emo_jax.files.remote import RemoteFiles, RemoteFolder, is_remote, kvstore
from emo_jax.files.waiting import AwayError, RefusedError, SpoiltError, wait_unless


@pytest.fixture
def folder(tmp_path):
    """What tensorstore and fsspec both call by a URL, here without a server."""
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/one").write_bytes(b"0123456789")
    (tmp_path / "a/b/two").write_bytes(b"")
    return RemoteFolder(f"file://{tmp_path}/a")


def test_what_is_in_it(folder):
    assert folder.sizes() == {"one": 10, "b/two": 0}
    assert folder.read("one").value == b"0123456789" and folder.read("three") is None
    assert folder.read_range("one", 3, 7) == b"3456" and folder.read_range("three", 0, 1) is None
    with pytest.raises(SpoiltError, match=r"a/one: cannot be read \(OUT_OF_RANGE"):
        folder.read_range("one", 5, 11)


def test_what_changes(folder, tmp_path, monkeypatch):
    content = folder.read("one")
    files = RemoteFiles(folder, "one", content)
    (tmp_path / "a/one").write_bytes(b"another")
    files.check()  # was looked at a moment ago
    monkeypatch.setattr(remote, "_RECHECK_SECONDS", 0)
    for _ in range(2):
        with pytest.raises(SpoiltError, match="a/one: was replaced or changed while it was in"):
            files.check()
    (tmp_path / "a/one").unlink()
    with pytest.raises(AwayError, match="a/one: is not there any more"):
        files.check()
    (tmp_path / "a/one").write_bytes(b"0123456789")
    files.check()
    assert not folder.changed("one", folder.read("one").generation)


def test_waiting_for_an_answer_ends():
    _, future = ts.Promise.new()
    begin = time.monotonic()
    with (
        wait_unless(lambda: time.monotonic() > begin + 0.2),
        pytest.raises(AwayError, match=r"^there: no answer$"),
    ):
        remote.answer(future, "there")
    assert 0.2 <= time.monotonic() - begin < 5


def test_the_environment_says_where_s3_is(monkeypatch):
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    plain = {"driver": "s3", "bucket": "bucket", "path": "a/b/"}
    assert kvstore("s3://bucket/a/b") == kvstore("s3://bucket/a/b/") == plain
    assert kvstore("gs://bucket/a%b") == {"driver": "gcs", "bucket": "bucket", "path": "a%b/"}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000/")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    here = {"endpoint": "http://127.0.0.1:9000", "aws_region": "eu-west-1"}
    assert kvstore("s3://bucket/a/b") == plain | here
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3.test")
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    assert kvstore("s3://bucket/a/b") == plain | {
        "endpoint": "http://s3.test",
        "aws_region": "us-west-2",
    }


def test_what_is_remote():
    assert is_remote("s3://a/b") and is_remote("gs://a")
    assert not is_remote("/data/s3") and not is_remote("file:///data")


@pytest.mark.parametrize("url", ["s3://a b/c", "nix://b/c"])
def test_what_is_no_url_is_refused_in_one_line(url):
    with pytest.raises(RefusedError, match=rf"^{url}: cannot be opened .*; give s3://BUCKET/PATH"):
        RemoteFolder(url).read("a")
