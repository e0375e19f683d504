"""A real S3 server (moto's, a process of its own) behind a proxy that makes it fail."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import s3_proxy

KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "no_proxy": "127.0.0.1",
}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def s3_port(tmp_path_factory) -> Iterator[int]:
    """Port of a server that does not fail."""
    port, log = _free_port(), tmp_path_factory.mktemp("s3") / "moto.log"
    code = "import sys; from moto.server import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "-H", "127.0.0.1", "-p", str(port)]
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env={**os.environ, **KEYS}
        )
    try:
        give_up = time.monotonic() + 60
        while not _answers(port):
            assert process.poll() is None and time.monotonic() < give_up, log.read_text()
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=20)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5):
            return True
    except OSError:
        return False


@dataclass
class Bucket:
    """An empty bucket, read through a proxy that fails as told.

    Attributes:
      name: of the bucket.
      proxy: what the environment's AWS_ENDPOINT_URL names.
    """

    name: str
    proxy: s3_proxy.Proxy
    upstream: int

    def _client(self):
        import boto3

        return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self.upstream}")

    def create(self) -> None:
        self._client().create_bucket(Bucket=self.name)

    def upload(self, folder: Path, prefix: str) -> str:
        """Copies a folder into the bucket; returns its URL."""
        client = self._client()
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            key = f"{prefix}/{file.relative_to(folder).as_posix()}"
            client.put_object(Bucket=self.name, Key=key, Body=file.read_bytes())
        return f"s3://{self.name}/{prefix}"

    def get(self, key: str) -> bytes:
        return self._client().get_object(Bucket=self.name, Key=key)["Body"].read()

    def put(self, key: str, content: bytes) -> None:
        self._client().put_object(Bucket=self.name, Key=key, Body=content)

    def delete(self, key: str) -> None:
        self._client().delete_object(Bucket=self.name, Key=key)

    @property
    def env(self) -> dict[str, str]:
        """What a process needs to read it."""
        return {**KEYS, "AWS_ENDPOINT_URL": self.proxy.url}


@pytest.fixture
def bucket(s3_port, monkeypatch, tmp_path) -> Iterator[Bucket]:
    """A bucket of the test's own; this process is set to read it."""
    with s3_proxy.running(s3_port) as proxy:
        number = os.urandom(6).hex()
        found = Bucket(f"bucket-{number}", proxy, s3_port)
        for name, value in found.env.items():
            monkeypatch.setenv(name, value)
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        found.create()
        yield found
