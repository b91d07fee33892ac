"""The examples of the documents for the library: each uses public names alone, and a type checker takes it.

`make types` checks the types; the suite leaves it out, because mypy takes seconds.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import client

ROOT = Path(__file__).parents[2]
EXAMPLES = {
    f"{path.stem}_{number}": text
    for path in (ROOT / "README.md", ROOT / "docs/client.md")
    for number, text in enumerate(
        re.findall(r"^```python\n(.*?)^```", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    )
}


def test_there_are_examples():
    assert {"README_0", "client_0", "client_1"} <= set(EXAMPLES)


@pytest.mark.parametrize("text", EXAMPLES.values(), ids=EXAMPLES)
def test_an_example_uses_public_names_alone(text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module == "client":
            assert {alias.name for alias in node.names} <= set(client.__all__)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("client."):
            assert node.module == "client.examples"


@pytest.mark.long
def test_a_type_checker_takes_the_examples(tmp_path):
    for name, text in EXAMPLES.items():
        (tmp_path / f"{name}.py").write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", *sorted(tmp_path.iterdir())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.long
def test_a_type_checker_finds_a_name_that_is_not_public(tmp_path):
    (tmp_path / "wrong.py").write_text("from client import Token\n")
    command = [sys.executable, "-m", "mypy", "--strict", tmp_path / "wrong.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert 'Module "client" has no attribute "Token"' in done.stdout
