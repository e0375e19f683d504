"""Archives that are long, or made to take memory."""

import gzip
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from emo_jax.documents.read import ReadReport, read_documents
from emo_jax.errors import DataError

ROOT = Path(__file__).parents[2]
READ = """
import sys
from emo_jax.documents.read import read_documents
def peak():
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024
before = peak()
print(sum(1 for _ in read_documents(sys.argv[1:])), peak() - before)
"""


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    made = tarfile.TarInfo(name)
    made.size, made.type = size, kind
    return made.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.system
def test_memory_does_not_grow_with_the_members(tmp_path):
    """60 000 headers are 30 MB of objects; a member of 300 MB is passed over."""
    text = b"a text".ljust(512, b"\0")
    with open(tmp_path / "a.tar", "wb") as file:
        for i in range(60_000):
            file.write(header(f"{i:06}.txt", 6) + text)
        file.write(header("video.mp4", 300 << 20))
        file.seek(300 << 20, io.SEEK_CUR)
        file.write(bytes(1024))
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "a.tar")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    number, grown = map(int, done.stdout.split())
    assert number == 60_000 and grown < 15, f"{grown} MB"


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_name_of_gigabytes_is_not_read(tmp_path, kind):
    start = header("a.txt", 1) + b"x".ljust(512, b"\0") + header("long", 1 << 33, kind)
    with gzip.open(tmp_path / "a.tar.gz", "wb", 1) as file:
        file.write(start + bytes(4 << 20))
    with pytest.raises(DataError, match=r"a\.tar\.gz: cannot be read .*a size that cannot be"):
        list(read_documents([tmp_path / "a.tar.gz"]))


def test_an_archive_that_unpacks_to_nothing_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("emo_jax.documents.archives.ALWAYS", 1 << 20)
    monkeypatch.setattr("emo_jax.documents.archives.GROWTH", 100)
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
        file.write(header("a.txt", 1) + b"x".ljust(512, b"\0") + header("b.jpg", 1 << 30))
        file.write(bytes(64 << 20))
    with pytest.raises(DataError, match=r"a\.tar\.gz: cannot be read .*grows to more than 100"):
        list(read_documents([tmp_path / "a.tar.gz"]))


def test_a_sparse_member_has_no_text(tmp_path):
    """One block on the disk, a terabyte when read."""
    block = bytearray(header("a.txt", 512, tarfile.GNUTYPE_SPARSE))
    block[386:410] = b"%011o\0%011o\0" % (0, 512)
    block[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    text = b"x" * 512
    (tmp_path / "a.tar").write_bytes(
        bytes(block) + text + header("b.txt", 512) + text + bytes(1024)
    )
    report = ReadReport()
    (found,) = read_documents([tmp_path / "a.tar"], report=report)
    assert found.id == "a.tar:b"
    assert "a link, device or sparse file in an archive" in report.left_out


@pytest.mark.parametrize("size", [1 << 40, (1 << 63) - 1])
def test_a_member_that_is_said_to_go_on(tmp_path, size):
    """tarfile would read on behind the end, block by block."""
    block = bytearray(header("a.jpg", 1))
    block[124:136] = b"\x80" + size.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "a.tar").write_bytes(bytes(block) + bytes(2048))
    with pytest.raises(DataError, match=r"a\.tar: cannot be read .*cut short"):
        list(read_documents([tmp_path / "a.tar"]))
