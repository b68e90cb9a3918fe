"""The tests' own rules."""

import ast
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted(HERE.rglob('*.py'))


def imported(path):
    """Names of modules, relative ones from the root."""
    parents = path.relative_to(HERE.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = parents[:len(parents) + 1 - node.level] * (node.level > 0)
            module = '.'.join([*start, *filter(None, [node.module])])
            yield module
            yield from (f'{module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize(
    'path', FILES, ids=lambda p: str(p.relative_to(HERE)))
def test_no_test_file_imports_another(path):
    """What two of them need belongs to tests/helpers."""
    for name in imported(path):
        package, *parts = name.split('.')
        assert package != 'tests' or not any(
            part.startswith('test_') for part in parts), name
