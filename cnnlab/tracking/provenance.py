"""Make the tags by which a run can be judged and repeated later: its data, versions, code and machine."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from cnnlab.data.image_dataset import ImageDataset
from cnnlab.models import custom_model
from cnnlab.recipe import Recipe

PACKAGES = ("cnnlab", "keras", "tensorflow", "mlflow", "numpy")


def data_tags(dataset: ImageDataset) -> dict[str, str | None]:
    """Return a run's tags about its data."""
    return {
        "dataset": dataset.name,
        "dataset_digest": dataset.digest,
        "dataset_identity": dataset.identity or dataset.digest,
        "dataset_source": dataset.source,
        "dataset_stands_in_for": dataset.stands_in_for,
        "validation": "test set" if dataset.val_is_test else "held out from the training set",
    }


def environment_tags() -> dict[str, str | bool]:
    """Return tags about versions, the commit of a checkout, the machine, and what the code once did otherwise."""
    return {
        "python": platform.python_version(),
        **{f"version.{name}": version(name) for name in PACKAGES},
        **_code_tags(),
        "batches": "in a new order each epoch",  # in one order, before
        "machine": f"{platform.system()} {platform.machine()}, {_processor()}",
    }


def file_tags(recipe: Recipe) -> dict[str, str]:
    """Return the sha256 of the files of weights, backbone and model, which their paths alone do not pin down."""
    files = {"weights": recipe.weights, "backbone": recipe.backbone}
    tags = {}
    for name, path in files.items():
        if path and Path(path).is_file():
            about = os.stat(path)
            tags[f"{name}_sha256"] = _sha256(os.path.realpath(path), about.st_size, about.st_mtime_ns)
    if custom_model.is_custom(recipe.model):
        tags["model_sha256"] = hashlib.sha256(custom_model.read_source(recipe.model).encode()).hexdigest()
    return tags


@functools.lru_cache(maxsize=64)  # a training asks for it several times
def _sha256(path: str, size: int, changed: int) -> str:
    """Compute the sha256 of a file, once a process as long as its size and time are these."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache  # the code that runs is the code that was there at the start
def _code_tags() -> dict[str, str | bool]:
    """Return the commit and whether the code differs from it; nothing where cnnlab does not run from a checkout."""
    package = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", package, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # another repository may lie around a virtual environment
        changes = git("status", "--porcelain", "--", ".", "../tuning")
        return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return {}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"
