"""What is written leaves no half a file, and goes where it is said to go."""

import os

import pytest
from etils import epath

from emo_jax.files.atomic import write_atomic


@pytest.mark.parametrize("kind", ["link", "link to nothing", "pipe", "file"])
def test_what_lies_in_the_way_is_not_written_to(tmp_path, kind):
    """A folder of somebody else may hold a link by the name of the unfinished file."""
    folder, mine = tmp_path / "theirs", tmp_path / "mine"
    folder.mkdir()
    mine.write_text("mine")
    unfinished = folder / ".config.json.tmp"
    if kind == "pipe":
        os.mkfifo(unfinished)
    elif kind == "file":  # of a killed run
        unfinished.write_text("half of a much longer conf")
    else:
        unfinished.symlink_to(mine if kind == "link" else tmp_path / "new")
    write_atomic(epath.Path(folder / "config.json"), "{}")
    assert (folder / "config.json").read_text() == "{}"
    assert mine.read_text() == "mine" and not (tmp_path / "new").exists()
    assert os.listdir(folder) == ["config.json"]
    assert not (folder / "config.json").is_symlink()
