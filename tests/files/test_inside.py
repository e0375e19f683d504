"""A file of a folder is a regular one that no link brings in from outside, but the hub cache's."""

import os
import socket
from pathlib import Path

import pytest

from emo_jax.errors import DataError
from emo_jax.files.inside import check_own_file, check_own_files, check_tree
from emo_jax.files.json_files import NotReadableError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "secret").write_text("mine")
    made = tmp_path / "model"
    made.mkdir()
    (made / "real").write_text("theirs")
    return made


def refused(path: Path, *said: str):
    with pytest.raises(NotReadableError) as caught:
        check_own_file(path)
    for part in said:
        assert part in str(caught.value)


def test_files_and_links_that_stay_inside(folder, tmp_path, monkeypatch):
    check_own_file(folder / "real")
    (folder / "link").symlink_to("real")
    (folder / "whole").symlink_to(folder / "real")
    (tmp_path / "other name").symlink_to(folder)
    for name in ("link", "whole"):
        check_own_file(folder / name)
        check_own_file(tmp_path / "other name" / name)
    monkeypatch.chdir(folder)
    check_own_file("link")


@pytest.mark.parametrize(
    "target", ["../secret", "/etc/passwd", "../model2/real", "../model/../secret"]
)
def test_links_that_leave_it(folder, target):
    (folder.parent / "model2").mkdir()
    (folder.parent / "model2" / "real").write_text("of another folder whose name begins alike")
    (folder / "link").symlink_to(target)
    refused(folder / "link", "a link to ", "outside of its folder")
    (folder / "second").symlink_to("link")
    refused(folder / "second", "outside of its folder")


def test_the_hub_cache_may_link_to_its_blobs_alone(folder, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    for made in (snapshot, blobs):
        made.mkdir(parents=True)
    (blobs / "abc").write_text("theirs")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    check_own_file(snapshot / "config.json")
    (tmp_path / "link").symlink_to(snapshot)
    check_own_file(tmp_path / "link" / "config.json")
    (blobs / "def").symlink_to(tmp_path / "secret")
    for name, target in (("two", "../../blobs/def"), ("up", "../../../secret")):
        (snapshot / name).symlink_to(target)
        refused(snapshot / name, "outside of its folder")
    (folder.parent / "blobs").mkdir()
    (folder.parent / "blobs" / "abc").write_text("not of a cache")
    (folder / "blob").symlink_to("../blobs/abc")
    refused(folder / "blob", "outside of its folder")


def test_files_below_the_folder_of_somebody_else(folder, tmp_path):
    """A folder inside of it may be a link to one that is inside too, and to no other."""
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "0123" / "tokenizer"
    blobs = tmp_path / "datasets--a--b" / "blobs"
    for made in (snapshot, blobs, folder / "sub", tmp_path / "other"):
        made.mkdir(parents=True)
    for made in (folder / "sub", tmp_path / "other", blobs):
        (made / "file").write_text("")
    (snapshot / "file").symlink_to("../../../blobs/file")
    check_own_file(snapshot / "file")
    check_own_file(snapshot / "file", within=snapshot.parent)
    (folder / "up").symlink_to("sub")
    (folder / "out").symlink_to("../other")
    (folder / "sub" / "link").symlink_to("../real")
    for name in ("sub/file", "up/file", "sub/link"):
        check_own_file(folder / name, within=folder)
    refused(folder / "sub/link", "outside of its folder")
    check_own_file(folder / "out/file")
    with pytest.raises(NotReadableError, match=r"a link to .*other/file, outside of its folder"):
        check_own_file(folder / "out/file", within=folder)


def test_what_is_no_file(folder, monkeypatch):
    os.mkfifo(folder / "pipe")
    (folder / "sub").mkdir()
    with socket.socket(socket.AF_UNIX) as served:
        monkeypatch.chdir(folder)  # the path of a socket is short
        served.bind("socket")
        for name in ("pipe", "sub", "socket"):
            refused(folder / name, "not a regular file")
    (folder / "null").symlink_to("/dev/null")
    refused(folder / "null", "/dev/null")
    (folder / "round").symlink_to("round")
    with pytest.raises(OSError, match="symbolic links"):
        check_own_file(folder / "round")
    with pytest.raises(FileNotFoundError):
        check_own_file(folder / "nothing")


def test_files_by_name(folder):
    names = ("real", "nothing", "link", "round")
    check_own_files(folder, names, error=DataError)
    for name, target, said in (
        ("link", "../secret", "outside of its folder; put the file itself there"),
        ("link", "gone", "a link to nothing"),
        ("round", "round", "cannot be read"),
    ):
        (folder / name).symlink_to(target)
        with pytest.raises(DataError) as caught:
            check_own_files(folder, names, error=DataError)
        assert str(caught.value).startswith(f"{folder / name}: ") and said in str(caught.value)
        (folder / name).unlink()


def test_all_below_a_folder(folder, tmp_path):
    (folder / "sub").mkdir()
    for link, target in (("link", "real"), ("sub/up", "../real"), ("sub/round", ".")):
        (folder / link).symlink_to(target)
    check_tree(folder)
    (folder / "sub" / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "sub").mkdir()
    with pytest.raises(NotReadableError, match=r"^sub/out is a link to .*secret, outside"):
        check_tree(folder)
    check_tree(folder, {"sub/out"})
    (folder / "all").symlink_to(tmp_path / "sub")
    with pytest.raises(NotReadableError, match=r"^all is a link to .*sub, outside"):
        check_tree(folder, {"sub/out"})
    (folder / "all").unlink()
    os.mkfifo(folder / "sub" / "pipe")
    with pytest.raises(NotReadableError, match=r"^sub/pipe is not a regular file"):
        check_tree(folder, {"sub/out", "sub/pipe"})
