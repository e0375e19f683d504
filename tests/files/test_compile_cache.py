"""Compiled programs are kept: a second start compiles nothing, and computes the same."""

import os

import pytest
import runs

from emo_jax.files import compile_cache


@pytest.mark.system
def test_a_second_start_finds_the_programs_and_computes_the_same(store, tmp_path):
    env = runs.environment(EMO_COMPILE_CACHE=str(tmp_path / "cache"))
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    logs, kept = [], []
    for name in ("first", "second"):
        result = runs.emo(runs.train_argv(store, tmp_path / name, train__steps=4), env)
        assert result.returncode == 0, result.stderr
        logs.append(runs.log_as_written(tmp_path / name))
        kept.append({p.name for p in (tmp_path / "cache").rglob("*-cache")})
    assert logs[0] == logs[1]
    assert any(name.startswith("jit_train_step") for name in kept[0])
    assert kept[0] == kept[1]


@pytest.fixture
def clean(monkeypatch, tmp_path):
    for name in ("EMO_COMPILE_CACHE", "JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


def test_where_they_are_kept(clean, tmp_path):
    compile_cache.enable()
    made = os.environ["JAX_COMPILATION_CACHE_DIR"]
    assert made.startswith(str(tmp_path / ".cache/emo_jax/compiled")) and os.path.isdir(made)


def test_the_users_setting_of_jax_rules(clean, tmp_path):
    clean.setenv("JAX_COMPILATION_CACHE_DIR", "/somewhere")
    compile_cache.enable()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "/somewhere"


def test_an_empty_setting_is_none(clean, tmp_path):
    clean.setenv("EMO_COMPILE_CACHE", "")
    clean.setenv("JAX_COMPILATION_CACHE_DIR", "/somewhere")
    compile_cache.enable()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "/somewhere"


def test_a_user_without_a_home_keeps_none(clean, tmp_path):
    """As in a container that runs under a user id of its own."""
    clean.delenv("HOME")
    clean.setattr("pwd.getpwuid", lambda uid: {}[uid])
    clean.chdir(tmp_path)
    compile_cache.enable()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("asked", ["off", "a file"])
def test_off_or_impossible_is_no_error(clean, tmp_path, asked):
    (tmp_path / "file").write_text("")
    clean.setenv("EMO_COMPILE_CACHE", "off" if asked == "off" else str(tmp_path / "file/below"))
    compile_cache.enable()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
