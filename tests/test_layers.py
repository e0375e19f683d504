"""Imports go one way: a room may import rooms of the floors below it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "emo_jax"

# From the top. Rooms of one floor do not import each other.
ORDER: list[set[str]] = [
    {"cli"},
    {"bench", "quickstart"},
    {"aot", "checks", "explorer", "modules"},
    {"analysis", "api", "training"},
    {"evals", "saved", "tasks"},
    {"generation", "hf", "selection"},
    {"checkpoint", "model", "preparation", "report"},
    {"data", "moe", "run"},
    {"config", "documents", "tokenizer"},
    {"files", "parallel"},
    {"batch", "errors"},
]
RANK = {name: i for i, group in enumerate(ORDER) for name in group}


def _part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("emo_jax"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("emo_jax.")}
        assert "experiments" not in ast.dump(node) or not isinstance(
            node, ast.Import | ast.ImportFrom
        )
    return found - {"__version__"}


FILES = sorted(p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.name != "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    part = _part(path)
    for imported in _imports(path) - {part}:
        assert RANK[part] < RANK[imported], f"{path.name}: {part} imports {imported}"


def test_data_and_model_meet_in_the_batch_only():
    for path in FILES:
        if _part(path) in ("data", "model"):
            assert not _imports(path) & ({"data", "model"} - {_part(path)}), path


def test_the_house_is_low():
    """A newcomer can hold it in mind: few rooms, few floors, no long file."""
    assert len(RANK) <= 30 and len(ORDER) <= 11
    assert {path.name: n for path in FILES if (n := len(path.read_text().splitlines())) > 420} == {}


def test_unpublished_modules_of_libraries_are_imported_in_one_place():
    for path in FILES:
        unpublished = [n for n in ast.walk(ast.parse(path.read_text())) if "._src" in _module(n)]
        assert not unpublished, path
    assert "._src" in (ROOT / "parallel/private.py").read_text()


def _module(node: ast.AST) -> str:
    if isinstance(node, ast.Import):
        return " ".join(alias.name for alias in node.names)
    return (node.module or "") if isinstance(node, ast.ImportFrom) else ""


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/design.md"])
def test_the_tree_that_is_shown_is_the_house(page):
    text = (ROOT.parent / page).read_text()
    (tree,) = re.findall(r"^```\nemo_jax/.*?\n\n(.*?)```$", text, re.MULTILINE | re.DOTALL)
    floors = [
        set(re.findall(r"^  (\w+)(?:/|\.py) ", floor, re.MULTILINE)) for floor in tree.split("\n\n")
    ]
    assert floors == ORDER


def test_modules_of_tests_have_names_of_their_own():
    """pytest imports them all by their bare names."""
    names = [path.name for path in (ROOT.parent / "tests").rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_tests_have_the_rooms_of_the_package():
    rooms = {
        path.name for path in ROOT.iterdir() if path.is_dir() and (path / "__init__.py").exists()
    }
    tested = {path.parent.name for path in (ROOT.parent / "tests").glob("*/test_*.py")}
    assert tested - rooms == {"processes", "fuzz", "launch", "soak"}
    assert rooms - tested <= {"parallel"}
