"""Files and functions of the package stay small enough to be read at once."""

import ast

from tests.conftest import ROOT

MAX_FILE, MAX_FUNCTION = 450, 80  # lines
FILES = sorted((ROOT / "keras_mixer").rglob("*.py"))


def test_no_file_is_long():
    lengths = {p: len(p.read_text().splitlines()) for p in FILES}
    assert [f"{p}: {n}" for p, n in lengths.items() if n > MAX_FILE] == []


def test_no_function_is_long():
    long = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION:
                    long.append(f"{path}: {node.name}, {length}")
    assert long == []
