"""What is written leaves no half a file, and goes where it is said to go."""

import os
import threading
import time

import pytest
from etils import epath

from emo_jax.files.atomic import finished_name, unfinished, whole_file, write_atomic


@pytest.mark.parametrize("kind", ["link", "link to nothing", "pipe", "file"])
def test_what_lies_in_the_way_is_not_written_to(tmp_path, monkeypatch, kind):
    """A folder of somebody else may hold a link by the name of the unfinished file."""
    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * 2 * size)
    folder, mine = tmp_path / "theirs", tmp_path / "mine"
    folder.mkdir()
    mine.write_text("mine")
    in_the_way = unfinished(folder / "config.json")
    if kind == "pipe":
        os.mkfifo(in_the_way)
    elif kind == "file":
        in_the_way.write_text("half of a much longer conf")
    else:
        in_the_way.symlink_to(mine if kind == "link" else tmp_path / "new")
    with pytest.raises(FileExistsError):
        write_atomic(epath.Path(folder / "config.json"), "{}")
    with pytest.raises(FileExistsError), whole_file(folder / "config.json") as stream:
        stream.write("{}")
    assert mine.read_text() == "mine" and not (tmp_path / "new").exists()
    monkeypatch.undo()
    write_atomic(epath.Path(folder / "config.json"), "{}")
    assert (folder / "config.json").read_text() == "{}"
    assert not (folder / "config.json").is_symlink()


def test_several_write_the_same_file(tmp_path):
    """As processes do that start together: each file is whole, and none fails."""
    path, failed = epath.Path(tmp_path / "a.json"), []
    texts = [f"{n}" * 50_000 for n in range(4)]

    def write(text):
        try:
            for _ in range(20):
                write_atomic(path, text)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert not path.exists() or path.read_text() in texts
    for thread in threads:
        thread.join()
    assert not failed and os.listdir(tmp_path) == ["a.json"]


def test_what_killed_processes_left_is_removed(tmp_path):
    path = tmp_path / "a.json"
    old, new, other, shared = (
        tmp_path / name
        for name in (
            ".a.json.00000000.tmp",
            ".a.json.11111111.tmp",
            ".b.00000000.tmp",
            ".a.json.tmp",
        )
    )
    for file in (old, new, other, shared):
        file.write_text("hal")
    for file in (old, other, shared):
        os.utime(file, (time.time() - 7200,) * 2)
    write_atomic(epath.Path(path), "whole")
    assert sorted(os.listdir(tmp_path)) == sorted([new.name, other.name, path.name])
    assert [finished_name(f.name) for f in (new, shared, path)] == ["a.json"] * 3


def test_a_write_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "a").mkdir()  # a file cannot take its place
    with pytest.raises(OSError):
        write_atomic(epath.Path(tmp_path / "a"), "text")
    assert os.listdir(tmp_path) == ["a"]
