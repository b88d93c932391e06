"""Train recipes from standard input on logical CPUs of this process: python tests/helpers/train_on_devices.py CPUS

Standard input: JSON, a list of `{"devices": N, "recipe": {...}}`; with `"float64": true` in place of the recipe, a
small network with BatchNormalization in that precision. The last line of standard output: JSON, a list of results.
"""

import json
import sys

import keras
import numpy as np
import tensorflow as tf

import cnnlab
from cnnlab.resolve import build_model, prepare
from cnnlab.training import multi_device, runtime
from cnnlab.training.trainer import train

[cpu] = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(sys.argv[1]))


def build_in_float64(devices):
    """Return a recipe, data whose last batch has fewer images than four devices, and a network in float64."""
    recipe = cnnlab.Recipe(epochs=2, class_weights="balanced").with_defaults()
    dataset = cnnlab.load_dataset("digits", limit=146)  # 131 to train on: four batches of 32 and one of 3
    keras.utils.set_random_seed(0)
    with multi_device.scope_for(recipe.batch_size, devices), runtime.dtype_policy("float64"):
        x = images = keras.Input((32, 32, 3), dtype="uint8")
        x = keras.layers.Rescaling(1 / 255)(x)
        x = keras.layers.MaxPooling2D(2)(x)
        x = keras.layers.Conv2D(4, 3, use_bias=False)(x)
        x = keras.layers.BatchNormalization(momentum=0.6)(x)
        x = keras.layers.Flatten()(keras.layers.ReLU()(x))
        model = keras.Model(images, keras.layers.Dense(10, activation="softmax")(x))
        loss = keras.losses.SparseCategoricalCrossentropy(dtype="float64")
        model.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
    return recipe, dataset, model


done = []
for asked in json.load(sys.stdin):
    options = cnnlab.RunOptions(devices=asked["devices"])
    if asked.get("float64"):
        recipe, dataset, model = build_in_float64(asked["devices"])
    else:
        [(dataset, prepared)] = prepare([cnnlab.Recipe(**asked["recipe"])], quiet=True, options=options)
        recipe, model = prepared.recipe, build_model(prepared.recipe, dataset, options)
    trained = train(model, dataset, recipe, quiet=True)
    test = trained.predictions["test"]
    weights = np.concatenate([w.ravel().astype("float64") for w in model.get_weights()])
    done.append(
        {
            **{"history": trained.history, "test_loss": test.loss, "devices": multi_device.device_count(model)},
            "weights": weights.tolist(),
        }
    )
print(json.dumps(done))
