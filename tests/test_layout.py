"""The shape of the source: names of files, and lengths of files and functions."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for package in ("schemas", "pipeline", "serve") for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
REFUSED = {"utils", "util", "common", "helpers", "helper", "manager", "managers", "misc", "wrapper", "base_utils"}
FILE_LINES = 400
FUNCTION_LINES = 60
CLASSES_REFUSED = ("Manager", "Wrapper", "Helper", "Util", "Utils")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_is_something_to_look_at() -> None:
    assert len(SOURCES) > 50
    assert len(TESTS) > 20


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=name)
def test_files_are_named_after_nouns_of_the_domain(path: Path) -> None:
    assert not {path.stem, *path.relative_to(ROOT).parts[:-1]} & REFUSED


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_long_file_says_why(path: Path) -> None:
    """The module's docstring names the reason: `Over 400 lines, since ...`."""
    text = path.read_text()
    if len(text.splitlines()) > FILE_LINES:
        assert "Over 400 lines" in (ast.get_docstring(ast.parse(text)) or ""), f"{len(text.splitlines())} lines"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_functions_are_short_and_classes_are_named_after_what_they_are(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= FUNCTION_LINES, f"{node.name} has {length} lines"
        elif isinstance(node, ast.ClassDef):
            assert not node.name.endswith(CLASSES_REFUSED), node.name


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), "a docstring of one line or more"


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_every_file_of_tests_says_what_it_tests(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))
