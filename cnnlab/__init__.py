"""cnnlab: an experiment-tracked Keras lab for image classification.

    import cnnlab

    recipe = cnnlab.Recipe(model="cnn", dataset="cifar10", epochs=5)
    result = cnnlab.train_model(recipe)
    print(result.test_accuracy, result.run_id)

Everything public is listed below; each function says in its docstring how it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnlab.classify import load_classifier, predict
    from cnnlab.compare import Comparison, compare_models, compare_runs
    from cnnlab.data.dataset import load_dataset
    from cnnlab.data.image_dataset import ImageDataset
    from cnnlab.data_audit import Audit, audit
    from cnnlab.errors import ArgumentError, LabError
    from cnnlab.evaluation.classifier import Classifier
    from cnnlab.evaluation.predictions import Predictions
    from cnnlab.evaluation.run_result import RunResult
    from cnnlab.export import Exported, export_model
    from cnnlab.models.model_table import Range
    from cnnlab.recipe import Recipe, ResolvedRecipe, RunOptions
    from cnnlab.reproduction import Reproduction, reproduce
    from cnnlab.resolve import build_model
    from cnnlab.tracking.model_registry import Version, register_run
    from cnnlab.tracking.promotion import Decision, promote
    from cnnlab.train import fit_and_evaluate, resume_run, train_model
    from cnnlab.training.build import build_cnn, build_vgg16
    from cnnlab.tuning.search import SearchResult, run_search
    from cnnlab.tuning.search_settings import Search

_NAMES = {
    "classify": "load_classifier predict",
    "compare": "Comparison compare_models compare_runs",
    "data.dataset": "load_dataset",
    "data.image_dataset": "ImageDataset",
    "data_audit": "Audit audit",
    "errors": "ArgumentError LabError",
    "evaluation.classifier": "Classifier",
    "evaluation.predictions": "Predictions",
    "evaluation.run_result": "RunResult",
    "export": "Exported export_model",
    "models.model_table": "Range",
    "recipe": "Recipe ResolvedRecipe RunOptions",
    "reproduction": "Reproduction reproduce",
    "resolve": "build_model",
    "tracking.model_registry": "Version register_run",
    "tracking.promotion": "Decision promote",
    "train": "fit_and_evaluate resume_run train_model",
    "training.build": "build_cnn build_vgg16",
    "tuning.search": "SearchResult run_search",
    "tuning.search_settings": "Search",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = ["ArgumentError", "Audit", "Classifier", "Comparison", "Decision", "Exported", "ImageDataset", "LabError"]
__all__ += ["Predictions", "Range", "Recipe", "Reproduction", "ResolvedRecipe", "RunOptions", "RunResult", "Search"]
__all__ += ["SearchResult", "Version", "audit", "build_cnn", "build_model", "build_vgg16", "compare_models"]
__all__ += ["compare_runs", "export_model", "fit_and_evaluate", "load_classifier", "load_dataset", "predict", "promote"]
__all__ += ["register_run", "reproduce", "resume_run", "run_search", "train_model"]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that the command line answers without loading TensorFlow.
    if name not in _MODULES:
        raise AttributeError(f"module 'cnnlab' has no attribute '{name}'")
    return getattr(import_module(f"cnnlab.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
