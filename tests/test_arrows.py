"""Test which package may import which, imports inside functions included: pytest tests/test_arrows.py"""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each may import itself and what stands before it; what stands in one line is side by side.
VERBS = ("train", "resume", "resolve", "compare", "reproduction", "classify", "serve", "export", "data_audit")
VERBS += ("features", "doctor")
GROUND = {"cnnlab.errors", "cnnlab.recipe_checks", "cnnlab.utils"}
VERBS = {f"cnnlab.{verb}" for verb in VERBS}
FLOORS = [GROUND, {"cnnlab.data", "cnnlab.models"}, {"cnnlab.recipe"}, {"cnnlab.evaluation"}]
FLOORS += [{"cnnlab.training", "cnnlab.tracking"}, {"cnnlab.serving"}, VERBS, {"cnnlab.tuning"}, {"cnnlab.cli"}]
# What only some rooms know.
KNOWN_IN = {
    "mlflow": ("cnnlab.tracking.",),
    "ray": ("cnnlab.utils.ray_workers",),
    "keras_tuner": ("cnnlab.tuning.oracles",),
    "tensorflow": (
        "cnnlab.training.runtime",
        "cnnlab.training.multi_device",
        "cnnlab.utils.startup",
        "cnnlab.evaluation.gradcam",
        "cnnlab.models.export_formats",
    ),
    "tf2onnx": ("cnnlab.models.export_formats",),
    "matplotlib": ("cnnlab.evaluation.plots", "cnnlab.evaluation.fonts"),
    "keras_hub": ("cnnlab.models.keras_hub_presets",),
    "fastapi": ("cnnlab.tracking.ui_middleware",),
    "starlette": ("cnnlab.serving.", "cnnlab.tracking.ui_middleware"),
    "jinja2": ("cnnlab.evaluation.html_pages", "cnnlab.evaluation.model_card"),
    "cleanlab": ("cnnlab.evaluation.label_issues",),
    "rich": ("cnnlab.cli.", "cnnlab.utils.screen"),
}
# What serves outages, copies and repairs is imported by its commands, and by the one place that chooses a recorder.
SPECIAL_ROOMS = {
    "cnnlab.tracking.offline.": {
        *("cnnlab.tracking.session", "cnnlab.tracking.maintenance.orphans"),
        *("cnnlab.cli.store_commands", "cnnlab.cli.model_commands"),  # sync, import; export --format runs
    },
    "cnnlab.tracking.maintenance.": {
        *("cnnlab.doctor", "cnnlab.tuning.search_states", "cnnlab.cli.store_commands"),  # doctor, gc
        *(
            "cnnlab.tracking.offline.model_copy",
            "cnnlab.tracking.offline.run_copy",
            "cnnlab.tracking.offline.store_copy",
        ),
    },
}
INSIDE = {  # private parts
    "mlflow.protos": "cnnlab.tracking.mlflow_internals",
    "mlflow.pyfunc.scoring_server": "cnnlab.tracking.mlflow_internals",
    "keras.src": "cnnlab.models.safe_loading",
    "tensorflow.python": "cnnlab.training.runtime",
}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("cnnlab", *parts) if parts[0] == "tuning" else parts
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


def test_imports_go_down_only():
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


def test_each_file_has_one_name_in_the_whole_tree():
    names = [path.name for path in FILES.values() if path.name != "__init__.py"]
    assert sorted(set(names)) == sorted(names)


def test_no_imports_are_circular():
    graphlib.TopologicalSorter(GRAPH).prepare()


@pytest.mark.parametrize("package", KNOWN_IN)
def test_packages_are_imported_in_their_rooms_only(package):
    knowing = {module for module, path in FILES.items() if any(n.split(".")[0] == package for n in imports_of(path))}
    assert knowing
    assert all(f"{module}.".startswith(KNOWN_IN[package]) for module in knowing), knowing


@pytest.mark.parametrize("room", SPECIAL_ROOMS)
def test_special_rooms_are_imported_by_their_commands_only(room):
    importing = {
        module for module, targets in GRAPH.items() if any(f"{target}.".startswith(room) for target in targets)
    }
    assert {module for module in importing if not module.startswith(room)} == SPECIAL_ROOMS[room]


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
    for package in imported - {"cnnlab"} - set(sys.stdlib_module_names):
        assert declared & {name.lower().replace("_", "-") for name in distributions[package]}, package
