"""cnnlab: an experiment-tracked Keras lab for image classification.

import cnnlab

dataset = cnnlab.load_dataset("cifar10")
recipe = cnnlab.Recipe(model="cnn", epochs=5)
result = cnnlab.fit_and_evaluate(cnnlab.build_model(recipe, dataset), dataset, recipe)
print(result.test_accuracy)
"""

from importlib import import_module

_EXPORTS = {
    "ArgumentError": "errors",
    "ImageDataset": "data.dataset",
    "LabError": "errors",
    "Recipe": "recipe",
    "RunResult": "evaluation.run_result",
    "build_cnn": "training.build",
    "build_model": "resolve",
    "build_vgg16": "training.build",
    "compare_models": "compare",
    "fit_and_evaluate": "train",
    "load_dataset": "data.dataset",
    "train_model": "train",
}
__all__ = list(_EXPORTS)


def __getattr__(name):
    # Imported on first use, so that the command line answers without loading TensorFlow.
    if name not in _EXPORTS:
        raise AttributeError(f"module 'cnnlab' has no attribute '{name}'")
    return getattr(import_module(f"cnnlab.{_EXPORTS[name]}"), name)


def __dir__():
    return __all__
