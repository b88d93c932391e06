"""Test the public functions and classes: pytest tests/test_public_api.py"""

import ast
from pathlib import Path

import cnnlab

SOURCE = Path(cnnlab.__file__).read_text(encoding="utf-8")


def test_editors_see_every_public_name():
    tree = ast.parse(SOURCE)
    [seen] = [node for node in tree.body if isinstance(node, ast.If)]
    modules = {alias.name: node.module for node in seen.body for alias in node.names}
    assert sorted(modules) == cnnlab.__all__ == sorted(cnnlab._MODULES)
    assert modules == {name: f"cnnlab.{module}" for name, module in cnnlab._MODULES.items()}


def test_every_public_name_can_be_had_and_says_what_it_is():
    for name in cnnlab.__all__:
        assert getattr(cnnlab, name).__doc__, name
        assert not (Path(cnnlab.__file__).parent / f"{name}.py").exists(), "a module of the same name would hide it"
