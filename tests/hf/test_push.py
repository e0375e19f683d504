"""Pushing a folder with huggingface_hub's own client to a server on this machine."""

import pytest
import runs
from hub import TOKEN, Hub

from emo_jax.files.trees import flatten
from emo_jax.hf import export_model, import_model

pytestmark = pytest.mark.system

REPO = "someone/tiny"


@pytest.fixture
def folder(make_model, tmp_path):
    params, config = make_model()
    out = export_model(params, config, tmp_path / "hf", max_shard_bytes=60_000)
    (out / "notes.txt").write_text("mine")
    return out


@pytest.fixture
def hub():
    with Hub() as server:
        yield server


def push(hub, folder, *options, token=TOKEN, repo=REPO, **env):
    settings = {
        "HF_ENDPOINT": hub if isinstance(hub, str) else hub.url,
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HOME": str(folder.parent / "home"),
        "no_proxy": "127.0.0.1",
    }
    argv = ["export", folder, "--push", repo, *options]
    return runs.emo(argv, runs.environment(**settings | env))


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_the_repository_is_the_folder_and_private(hub, folder, tmp_path):
    done = push(hub, folder)
    assert done.returncode == 0, done.stderr
    assert f"{hub.url}/{REPO}" in done.stdout
    files = content(folder)
    del files["notes.txt"]
    assert hub.repos[REPO] == files
    assert hub.private == {REPO} and hub.commits == 1
    pulled = tmp_path / "pulled"
    pulled.mkdir()
    for name, data in hub.repos[REPO].items():
        (pulled / name).write_bytes(data)
    ours, theirs = flatten(import_model(folder)[0]), flatten(import_model(pulled)[0])
    assert all((ours[path] == theirs[path]).all() for path in ours)


def test_public_and_weights_of_an_earlier_push_go(hub, folder):
    kept = {
        name: b"theirs" for name in ("examples.md", "adapter.safetensors", "onnx/x.safetensors")
    }
    hub.repos[REPO] = kept | {
        "model.safetensors": b"old",
        "model-00009-of-00009.safetensors": b"old",
    }
    done = push(hub, folder, "--public", repo="someone/other")
    assert done.returncode == 0, done.stderr
    assert hub.private == set()
    done = push(hub, folder)
    assert done.returncode == 0, done.stderr
    assert b"old" not in hub.repos[REPO].values()
    assert kept.items() <= hub.repos[REPO].items()
    assert hub.repos[REPO]["config.json"] == (folder / "config.json").read_bytes()


@pytest.mark.parametrize("refuse", ["create", "batch", "upload/", "commit"])
def test_what_the_hub_refuses_is_one_line_and_the_folder_is_kept(hub, folder, refuse):
    before = content(folder)
    hub.refuse = refuse
    again = f"run emo export {folder} --push someone/tiny --public"
    failed(push(hub, folder, "--public"), folder, "not pushed to someone/tiny", again)
    assert content(folder) == before
    assert all(files == {} for files in hub.repos.values())


def failed(done, folder, *said, code=1):
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("emo: ")
    for part in (str(folder), *said):
        assert part in line, line


def test_no_token(hub, folder):
    failed(push(hub, folder, token=""), folder, "hf auth login")


def test_a_hub_that_cannot_be_reached(folder):
    failed(push("http://127.0.0.1:9", folder), folder, "the folder is kept")
    failed(push("http://127.0.0.1:9", folder, HF_HUB_OFFLINE="1"), folder, "the folder is kept")
    assert (folder / "config.json").exists()


def test_a_folder_that_is_not_whole_is_not_pushed(hub, folder):
    sorted(folder.glob("*.safetensors"))[1].unlink()
    failed(push(hub, folder), folder, "this file is missing")
    assert hub.repos == {}


@pytest.mark.parametrize("name", ["README.md", "chat_template.jinja"])
def test_what_a_link_brings_in_from_outside_is_not_pushed(hub, folder, name):
    (folder / name).unlink(missing_ok=True)
    (folder.parent / "secret").write_text("mine")
    (folder / name).symlink_to("../secret")
    failed(push(hub, folder), folder / name, "a link to", "outside of its folder")
    assert hub.repos == {}


@pytest.mark.parametrize("repo", ["tiny", "a/b/c", "some one/tiny", "someone/tiny.git"])
def test_a_name_that_is_none_is_refused_before_any_work(hub, folder, repo):
    failed(push(hub, folder, repo=repo), repo, "--push", code=2)
    assert hub.repos == {}


def test_options_of_an_export_are_refused_without_one(hub, folder):
    failed(push(hub, folder, "--layout", "emo"), folder, "leave out --layout", code=2)
