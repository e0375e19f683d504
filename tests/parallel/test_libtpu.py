"""libtpu says nothing on a machine without TPUs, and everything on one with them."""

import os
import shutil
import subprocess
import sys
import tempfile

import pytest
import runs

from emo_jax.parallel import libtpu


def device(root, name, vendor, kind):
    folder = root / "sys/bus/pci/devices" / name
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "class").write_text(f"{kind}\n")


@pytest.mark.parametrize("node", ["accel0", "vfio/3"])
def test_device_nodes(tmp_path, node):
    assert not libtpu.may_have_tpus(tmp_path)
    (tmp_path / "dev/vfio").mkdir(parents=True)
    (tmp_path / "dev/vfio/vfio").touch()  # there without a device, too
    (tmp_path / "dev/accel").mkdir()  # of other accelerators
    assert not libtpu.may_have_tpus(tmp_path)
    (tmp_path / "dev" / node).touch()
    assert libtpu.may_have_tpus(tmp_path)


def test_accelerators_of_google(tmp_path):
    device(tmp_path, "0000:00:01.0", "0x1ae0", "0x020000")  # a network card of Google's
    device(tmp_path, "0000:00:02.0", "0x8086", "0x120000")  # another's accelerator
    assert not libtpu.may_have_tpus(tmp_path)
    device(tmp_path, "0000:00:03.0", "0x1ae0", "0x120000")
    assert libtpu.may_have_tpus(tmp_path)


@pytest.mark.parametrize(
    ("tpus", "asked", "silent"),
    [
        (False, {}, True),
        (True, {}, False),
        (False, {"JAX_PLATFORMS": "tpu,cpu"}, False),
        (False, {"JAX_FORCE_TPU_INIT": "1"}, False),
    ],
)
def test_errors_are_hidden_only_where_there_is_nothing(monkeypatch, tpus, asked, silent):
    for name in (*libtpu.WITHOUT_TPUS, "JAX_PLATFORMS", "JAX_FORCE_TPU_INIT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(libtpu, "may_have_tpus", lambda: tpus)
    libtpu.silence_without_tpus()
    assert {name in os.environ for name in libtpu.WITHOUT_TPUS} == {silent}
    for name in libtpu.WITHOUT_TPUS:
        monkeypatch.delenv(name, raising=False)


# libtpu's lock is in /tmp, and another process that has it would keep this one quiet. This Python
# and this code may be there too.
_IN_A_TMP_OF_ITS_OWN = """
mount -t tmpfs none "$KEPT"
for folder in "$PREFIX" "$REPO"; do
  mkdir -p "$KEPT$folder"
  mount --bind "$folder" "$KEPT$folder"
done
mount -t tmpfs none /tmp
for folder in "$PREFIX" "$REPO"; do
  mkdir -p "$folder"
  mount --bind "$KEPT$folder" "$folder"
done
exec "$@"
"""
_ALONE = ["unshare", "--mount", "bash", "-ec", _IN_A_TMP_OF_ITS_OWN, "alone"]
_DEVICES = "import jax; print(jax.devices())"
_EMO = """
import click
from emo_jax.cli.app import cli, main

@cli.command()
def devices():
    import jax
    print(jax.devices())

main(["devices"])
"""


@pytest.mark.system
@pytest.mark.skipif(libtpu.may_have_tpus(), reason="this machine has TPUs")
@pytest.mark.skipif(
    shutil.which("unshare") is None or os.geteuid() != 0, reason="wants a /tmp of its own: root"
)
def test_commands_say_nothing_of_tpus(request):
    kept = tempfile.mkdtemp(dir="/var/tmp")  # what is mounted there goes with its process
    request.addfinalizer(lambda: os.rmdir(kept))
    names = ("JAX_PLATFORMS", "XLA_FLAGS", *libtpu.WITHOUT_TPUS)
    env = {name: value for name, value in os.environ.items() if name not in names}
    env |= {"PYTHONPATH": str(runs.REPO), "EMO_COMPILE_CACHE": "off"}
    env |= {"PREFIX": sys.prefix, "REPO": str(runs.REPO), "KEPT": kept}

    def said(code: str) -> tuple[str, str]:
        command = [*_ALONE, sys.executable, "-c", code]
        done = subprocess.run(
            command, env=env, cwd="/", capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    assert "TPU" in said(_DEVICES)[1]  # JAX alone, with libtpu of the extra test
    assert said(_EMO) == ("[CpuDevice(id=0)]\n", "")
