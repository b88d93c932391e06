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

_MODULES = {
    "ArgumentError": "errors",
    "Audit": "data_audit",
    "Classifier": "evaluation.classifier",
    "Comparison": "compare",
    "Decision": "tracking.promotion",
    "Exported": "export",
    "ImageDataset": "data.image_dataset",
    "LabError": "errors",
    "Predictions": "evaluation.predictions",
    "Range": "models.model_table",
    "Recipe": "recipe",
    "Reproduction": "reproduction",
    "ResolvedRecipe": "recipe",
    "RunOptions": "recipe",
    "RunResult": "evaluation.run_result",
    "Search": "tuning.search_settings",
    "SearchResult": "tuning.search",
    "Version": "tracking.model_registry",
    "audit": "data_audit",
    "build_cnn": "training.build",
    "build_model": "resolve",
    "build_vgg16": "training.build",
    "compare_models": "compare",
    "compare_runs": "compare",
    "export_model": "export",
    "fit_and_evaluate": "train",
    "load_classifier": "classify",
    "load_dataset": "data.dataset",
    "predict": "classify",
    "promote": "tracking.promotion",
    "register_run": "tracking.model_registry",
    "reproduce": "reproduction",
    "resume_run": "train",
    "run_search": "tuning.search",
    "train_model": "train",
}
__all__ = [
    "ArgumentError",
    "Audit",
    "Classifier",
    "Comparison",
    "Decision",
    "Exported",
    "ImageDataset",
    "LabError",
    "Predictions",
    "Range",
    "Recipe",
    "Reproduction",
    "ResolvedRecipe",
    "RunOptions",
    "RunResult",
    "Search",
    "SearchResult",
    "Version",
    "audit",
    "build_cnn",
    "build_model",
    "build_vgg16",
    "compare_models",
    "compare_runs",
    "export_model",
    "fit_and_evaluate",
    "load_classifier",
    "load_dataset",
    "predict",
    "promote",
    "register_run",
    "reproduce",
    "resume_run",
    "run_search",
    "train_model",
]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that the command line answers without loading TensorFlow.
    if name not in _MODULES:
        raise AttributeError(f"module 'cnnlab' has no attribute '{name}'")
    return getattr(import_module(f"cnnlab.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
