"""Codes of problems: each has a status, and each is told by something."""

import ast
from pathlib import Path

from serve.problems import RETRY_AFTER_S, STATUS

ROOT = Path(__file__).parents[2]
OWN = ROOT / "serve" / "problems.py"


def texts(path: Path) -> set[str]:
    """Every string in a file."""
    return {
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_every_code_is_told_somewhere() -> None:
    """`cancelled` was none: a client that has left is told nothing."""
    sources = [path for package in ("serve", "pipeline") for path in (ROOT / package).rglob("*.py") if path != OWN]
    written = set().union(*map(texts, sources))
    assert STATUS.keys() - written == set()
    assert RETRY_AFTER_S.keys() <= STATUS.keys()
