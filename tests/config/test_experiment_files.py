"""Experiment files as people write them: run as scripts are, or refused in a line."""

import sys

import pytest

from emo_jax.config.file import load_config
from emo_jax.errors import ConfigError

USAGE = 2
TINY = "from emo_jax.config import presets\n"
CHANGED = f"""{TINY}import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict, config_dict

def get_config(arg=""):
    config = presets.emo_tiny().to_dict()
    """


@pytest.fixture
def file(tmp_path):
    """Writes an experiment file; returns its path."""

    def write(text: str | bytes, name: str = "exp.py") -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def get_config(arg=''):\n    pass\n", "get_config() returns is None"),
        ("def get_config():\n    return [1]\n", "is of type list, must be an ml_collections"),
        ("x = 1\n", "has no get_config()"),
        ("get_config = 3\n", "get_config is of type int, must be a function"),
        ("def get_config(a):\n    pass\n", "get_config(a) of "),
        ("def get_config(a, b):\n    pass\n", "get_config(a, b) of "),
        ("import sys\n\nsys.exit(0)\n", "calls sys.exit(0) (FILE:3)"),
        ("import sys\ndef get_config():\n    sys.exit('x')\n", "calls sys.exit('x') (FILE:3)"),
        ("quit()\n", "calls sys.exit() (FILE:1)"),
        ("def get_config():\n    raise ValueError('a\\nb')\n", "ValueError: a b (FILE:2)"),
        ("raise GeneratorExit\n", "GeneratorExit (FILE:1)"),
        ("def get_config():\n    return get_config()\n", "RecursionError"),
        ("def get_config(:\n", "SyntaxError: invalid syntax (FILE:1)"),
        ("import no_such_module\n", "No module named 'no_such_module' (FILE:1)"),
        (f"{TINY}def get_config():\n    return presets.none\n", "AttributeError"),
        ("import beside_it\n", "ZeroDivisionError: division by zero (FOLDER/beside_it.py:2)"),
        ("x\0", "null bytes"),
        (b"x = '\xe9'\n", "encoding"),
        ("x = 1\n".encode("utf-16"), "encoding"),
        (
            f"{TINY}from emo_jax.errors import DataError\n"
            "def get_config():\n    raise DataError('gone')\n",
            "DataError: gone (FILE:4)",
        ),
    ],
)
def test_refused_with_its_place(refused, file, tmp_path, text, said):
    file("\n1 / 0\n", "beside_it.py")
    path = file(text)
    line = refused(USAGE, "train", "--config", path, "--workdir", tmp_path / "run")
    assert f"--config {path}: " in line
    assert said.replace("FILE", path).replace("FOLDER", str(tmp_path)) in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("config['train'] = None", "config.train = None: must be a section"),
        ("config['train'] = [1]", "config.train = [1]: must be a section"),
        ("config['name'] = {'a': 1}", "config.name = {'a': 1}: must be str, not dict"),
        ("config['name'] = 'a\\0b'", "config.name = 'a\\x00b': must be text without NULs"),
        ("config['data']['store'] = '\\ud800'", "config.data.store = '\\ud800': must be text"),
        ("config['data']['store'] = ['a']", "config.data.store = ['a']: must be str, not list"),
        ("config['seed'] = float('nan')", "config.seed = nan: must be int"),
        ("config['optimizer']['eps'] = float('nan')", "config.optimizer.eps = nan: must be finite"),
        ("config['optimizer']['eps'] = 10**400", "must be finite"),
        ("config['optimizer']['eps'] = None", "config.optimizer.eps = None: must be float"),
        ("config['model']['attention'] = np.zeros(3)", "config.model.attention = array([0., 0., 0"),
        ("config['train']['steps'] = (x for x in ())", "config.train.steps = <generator"),
        ("config[5] = 1", "config: the name of every field must be a text"),
        ("config = {5: 1}", "config: the name of every field must be a text"),
        ("config['me'] = config", "config.me: its sections lie too deep, or hold themselves"),
        (
            "config['seed'] = config_dict.required_placeholder(int)",
            "config.seed: is a required_placeholder",
        ),
    ],
)
def test_refused_with_the_field(refused, file, tmp_path, change, said):
    path = file(f"{CHANGED}{change}\n    return ConfigDict(config)\n")
    line = refused(USAGE, "train", "--config", path, "--workdir", tmp_path / "run")
    assert said in line


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.eval_keep={}", "must be values with commas between"),
        ("moe.experts_per_layer=[", "must be whole numbers"),
        ("train.steps=[1]", "must be int, like"),
        ("optimizer.frozen=[1]", "must be names"),
        ("train.steps=99999999999", "must be below 2**31"),
        ("name=", "must be one line of text"),
        ("name=a\nb", "must be one line of text"),
        ("data.store=a\0b", "must be text without NULs"),
        ("data.store=a\udcff", "must be text without NULs and halves"),
    ],
)
def test_values_of_another_kind_on_the_command_line(file, override, said):
    path = file(f"{TINY}def get_config():\n    return presets.emo_tiny()\n")
    with pytest.raises(ConfigError) as error:
        load_config(path, [f"--config.{override}"])
    assert said in str(error.value) and "\n" not in str(error.value)


def test_values_with_brackets_or_without(file, monkeypatch):
    path = file(f"{TINY}def get_config():\n    return presets.emo_tiny()\n")
    for text in ("32,16", "(32,16)", "[32, 16]"):
        assert load_config(path, [f"--config.train.eval_keep={text}"]).train.eval_keep == (32, 16)
    for text in ("", "()", "[]"):
        assert load_config(path, [f"--config.train.eval_keep={text}"]).train.eval_keep == ()
    monkeypatch.setenv("HOME", "/home/of/user")  # shells leave a ~ within a word as it is
    config = load_config(path, ["--config.data.store=~/store"])
    assert config.data.store == "/home/of/user/store"


@pytest.mark.parametrize("kind", ["ConfigDict", "FrozenConfigDict", "dict", "Config"])
def test_a_config_of_any_kind(file, kind):
    made = "from_config_dict" if kind == "Config" else kind
    path = file(
        f"from emo_jax.config import from_config_dict\n"
        f"{CHANGED}config['train']['steps'] = np.int64(77)\n"
        f"    return {made}(config)\n"
    )
    config = load_config(path, ["--config.seed=5", "--config.model.num_layers=3"])
    assert (config.train.steps, config.seed, config.model.num_layers) == (77, 5, 3)


def test_a_placeholder_is_filled_and_a_reference_follows(file):
    path = file(
        f"{CHANGED}config['train']['steps'] = config_dict.placeholder(int)\n"
        "    config = ConfigDict(config)\n"
        "    config.data.seed = config.get_ref('seed')\n"
        "    return config\n"
    )
    config = load_config(path, ["--config.train.steps=55", "--config.seed=9"])
    assert (config.train.steps, config.seed, config.data.seed) == (55, 9, 9)
    with pytest.raises(ConfigError, match=r"--config.train.steps=x: must be int$"):
        load_config(path, ["--config.train.steps=x"])
    with pytest.raises(ConfigError, match=r"config.train.steps = None: must be int"):
        load_config(path)


def test_modules_beside_the_file(file, tmp_path):
    """As beside a script; a second file has its own of the same name."""
    text = (
        f"{TINY}import common_of_test\nfrom pack_of_test import inner\n"
        "def get_config():\n    config = presets.emo_tiny()\n"
        "    config.train.steps = common_of_test.STEPS + inner.MORE\n    return config\n"
    )
    for folder, steps in (("a", 100), ("b", 200)):
        (tmp_path / folder / "pack_of_test").mkdir(parents=True)
        file("MORE = 7\n", f"{folder}/pack_of_test/inner.py")
        file(f"STEPS = {steps}\n", f"{folder}/common_of_test.py")
        assert load_config(file(text, f"{folder}/exp.py")).train.steps == steps + 7
    linked = tmp_path / "linked.py"
    linked.symlink_to(tmp_path / "a/exp.py")
    assert load_config(str(linked)).train.steps == 107
    assert not [name for name in sys.modules if name.endswith("_of_test")]
    assert not [path for path in sys.path if str(tmp_path) in path]


def test_a_file_named_like_a_module_of_python(file):
    text = (
        f"{TINY}import json\ndef get_config():\n    json.dumps(1)\n    return presets.emo_tiny()\n"
    )
    before = sys.modules["json"]
    assert load_config(file(text, "json.py")).name == "emo_tiny"
    assert sys.modules["json"] is before


def test_a_dataclass_in_the_file(file):
    text = (
        f"{TINY}import dataclasses\n@dataclasses.dataclass\nclass Size:\n    seed: 'int' = 77\n"
        "def get_config():\n    config = presets.emo_tiny()\n    config.seed = Size().seed\n"
        "    return config\n"
    )
    assert load_config(file(text)).seed == 77


def test_the_argument_comes_after_the_file_whatever_its_folder_is_called(refused, file, tmp_path):
    text = (
        f"{TINY}def get_config(arg='none'):\n    config = presets.emo_tiny()\n"
        "    config.name = f'<{arg}>'\n    return config\n"
    )
    path = file(text, "a:b/c:d.py")
    assert load_config(path).name == "<none>"
    assert load_config(f"{path}:x:y").name == "<x:y>"
    assert load_config(f"{path}:").name == "<>"
    for wrong in (tmp_path, tmp_path / "a:b"):
        line = refused(USAGE, "train", "--config", wrong, "--workdir", tmp_path / "run")
        assert f"--config {wrong}: is a folder" in line
    plain = file(f"{TINY}def get_config():\n    return presets.emo_tiny()\n")
    line = refused(USAGE, "compile", "--config", f"{plain}:x", "--topology", "v5e:2x2")
    assert f"its get_config() takes no argument; give --config {plain}" in line
    for none in ("a/none.py:x", "x" * 5000, "/dev/zero"):
        line = refused(USAGE, "bench", "train", "--config", none)
        assert "no such file" in line
