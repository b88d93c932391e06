"""Which room may import which, imports inside functions included: pytest tests/test_arrows.py"""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GROUND = (
    "errors",
    "names",
    "signals",
    "downloads",
    "ports",
    "job",
    "fields",
    "cached",
    "files",
    "temporary",
    "spread",
    "processes",
    "on_ray",
)
GROUND = {f"cnnlab.{name}" for name in GROUND}
VERBS = ("prepare", "runner", "compare", "reproduce", "predict", "serve", "export", "audit", "features", "doctor")
VERBS += ("interrupted",)
VERBS = {f"cnnlab.{verb}" for verb in VERBS}
# Each may import itself and what stands before it; what stands in one line is side by side.
FLOORS = [GROUND, {"cnnlab.data", "cnnlab.models"}, {"cnnlab.recipe"}, {"cnnlab.results"}]
FLOORS += [{"cnnlab.training", "cnnlab.tracking"}, {"cnnlab.serving"}, VERBS, {"tuning"}, {"cnnlab.cli"}]
# What only some rooms know.
KNOWN_IN = {
    "mlflow": ("cnnlab.tracking.",),
    "ray": ("cnnlab.on_ray",),
    "keras_tuner": ("tuning.kerastuner",),
    "tensorflow": (
        "cnnlab.training.compute",
        "cnnlab.training.devices",
        "cnnlab.job",
        "cnnlab.results.gradcam",
        "cnnlab.models.formats",
    ),
    "tf2onnx": ("cnnlab.models.formats",),
    "matplotlib": ("cnnlab.results.plots", "cnnlab.results.lettering"),
    "keras_hub": ("cnnlab.models.hub",),
    "fastapi": ("cnnlab.serving.", "cnnlab.tracking.guard"),
    "cleanlab": ("cnnlab.results.suspects",),
    "rich": ("cnnlab.cli.", "cnnlab.data.shards", "cnnlab.training.cache"),
}
INSIDE = {  # private parts
    "mlflow.protos": "cnnlab.tracking.inside_mlflow",
    "mlflow.pyfunc.scoring_server": "cnnlab.tracking.inside_mlflow",
    "keras.src": "cnnlab.models.files",
    "tensorflow.python": "cnnlab.training.compute",
}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for room in ("cnnlab", "tuning") for path in (ROOT / room).rglob("*.py")}


def imports_of(path):
    """Full names of everything that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(name):
    """The module of ours that an imported name is or is in, or `None`."""
    return name if name in FILES else ours(name.rpartition(".")[0]) if "." in name else None


def room_of(module):
    named = {room for floor in FLOORS for room in floor}
    return module if module in named else room_of(module.rpartition(".")[0]) if "." in module else None


GRAPH = {
    module: {found for name in imports_of(path) if (found := ours(name)) and found != module}
    for module, path in FILES.items()
}


def test_arrows_go_down():
    floor_of = {room: i for i, floor in enumerate(FLOORS) for room in floor}
    wrong = [
        f"{module} imports {target}"
        for module, targets in GRAPH.items()
        for target in targets
        if room_of(module)
        and room_of(target) != room_of(module)
        # Files of the ground, and verbs, may use each other, without circles.
        and not any({room_of(module), room_of(target)} <= files for files in (GROUND, VERBS))
        and not floor_of[room_of(target)] < floor_of[room_of(module)]
    ]
    assert not wrong
    assert {module for module in GRAPH if room_of(module) is None} == {"cnnlab", "cnnlab.__main__"}


def test_there_are_no_circles():
    graphlib.TopologicalSorter(GRAPH).prepare()


@pytest.mark.parametrize("package", KNOWN_IN)
def test_packages_are_known_in_their_rooms_only(package):
    knowing = {module for module, path in FILES.items() if any(n.split(".")[0] == package for n in imports_of(path))}
    assert knowing
    assert all(f"{module}.".startswith(KNOWN_IN[package]) for module in knowing), knowing


@pytest.mark.parametrize("part", INSIDE)
def test_private_parts_are_reached_in_one_file(part):
    assert {m for m, path in FILES.items() if any(n.startswith(part) for n in imports_of(path))} == {INSIDE[part]}


def test_packages_that_are_imported_are_declared():
    import importlib.metadata
    import re
    import sys
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    declared = {re.match(r"[\w-]+", text)[0].lower() for text in texts}
    distributions = {
        **importlib.metadata.packages_distributions(),
        "keras_hub": ["keras-hub"],
        "pillow_heif": ["pillow-heif"],
        **{name: [name.replace("_", "-")] for name in ("onnx", "onnxruntime", "tf2onnx", "ai_edge_litert")},
        "ray": ["ray"],
    }
    imported = {name.split(".")[0] for path in FILES.values() for name in imports_of(path)}
    for package in imported - {"cnnlab", "tuning"} - set(sys.stdlib_module_names):
        assert declared & {name.lower().replace("_", "-") for name in distributions[package]}, package
