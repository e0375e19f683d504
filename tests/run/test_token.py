"""The token of a run: who may read it, and when it is made anew."""

import os
import re

import pytest

from emo_jax.errors import UsageError
from emo_jax.run.token import run_token


def test_it_is_made_once_and_only_its_owner_reads_it(tmp_path):
    workdir = tmp_path / "runs/new"
    assert run_token(workdir, make=False) is None
    made = run_token(workdir, make=True)
    assert re.fullmatch("[0-9a-f]{64}", made)
    assert (workdir / ".token").stat().st_mode & 0o777 == 0o600
    assert [p.name for p in workdir.iterdir()] == [".token"]
    assert run_token(workdir, make=True) == run_token(workdir, make=False) == made


@pytest.mark.parametrize("fault", ["others read it", "a link", "no token"])
def test_one_that_is_no_secret_is_replaced(tmp_path, fault):
    old, path = run_token(tmp_path, make=True), tmp_path / ".token"
    if fault == "others read it":
        path.chmod(0o644)
    elif fault == "a link":
        path.rename(tmp_path / ".token.elsewhere")
        path.symlink_to(tmp_path / ".token.elsewhere")
        assert run_token(tmp_path, make=False) is None
    else:
        path.write_text("")
        assert run_token(tmp_path, make=False) is None
    made = run_token(tmp_path, make=True)
    assert made != old and not path.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o600
    assert run_token(tmp_path, make=False) == made


@pytest.mark.parametrize("make", [True, False])
def test_a_folder_of_something_else_is_left_alone(tmp_path, make):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match="not empty and not a workdir"):
        run_token(tmp_path, make=make)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"\.token: cannot be written: .* or the same EMO_TOKEN"):
        run_token(tmp_path / "file/run", make=True)
