"""Test the public functions and classes: pytest tests/test_public_api.py"""

import ast
import textwrap
from pathlib import Path

import keras
import pytest

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


def example(name):
    """The code below "Example:" in the docstring of a public function."""
    _, _, code = (getattr(cnnlab, name).__doc__ or "").partition("    Example:\n")
    return textwrap.dedent(code)


WITHOUT = ("build_cnn", "build_vgg16", "resume_run")
SHORT = ("build_model", "load_dataset", "predict")  # the others run with -m long
EXAMPLES = [
    name if name in SHORT else pytest.param(name, marks=pytest.mark.long)
    for name in cnnlab.__all__
    if name[0].islower() and name not in WITHOUT
]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_each_function_runs(name, store, capsys):
    assert f"cnnlab.{name}(" in example(name)
    exec(example(name), {"cnnlab": cnnlab, "keras": keras})
    assert capsys.readouterr().out.strip()
