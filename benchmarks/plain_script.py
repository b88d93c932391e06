"""The job as an ordinary Keras script does it: no tracking, no cache, VGG16's frozen base run again in every epoch.

    python benchmarks/plain_script.py DATASET [--model cnn|vgg16|both] [--limit N] [--weights FILE] [--seed N]

Both models train for 5 epochs at batch size 32 with the test set as validation. The last line is JSON: test accuracy
and seconds of each model, the seconds without start-up and data loading.
"""

import json
import time
from pathlib import Path

import click
import keras
import numpy as np
from keras import layers


def load(dataset, limit):
    """`(train_images, train_labels), (test_images, test_labels)`, images uint8, of a folder or a Keras data set."""
    if not Path(dataset).is_dir():
        (train_x, train_y), (test_x, test_y) = getattr(keras.datasets, dataset).load_data()
    else:
        train_x, train_y = read_folder(Path(dataset, "train"))
        test_x, test_y = read_folder(Path(dataset, "test"))
    if limit:
        order = np.random.default_rng(0).permutation(len(train_x))[:limit]
        train_x, train_y = train_x[order], train_y[order]
        order = np.random.default_rng(0).permutation(len(test_x))[: limit // 5]
        test_x, test_y = test_x[order], test_y[order]
    return (train_x, train_y), (test_x, test_y)


def read_folder(folder):
    images = keras.utils.image_dataset_from_directory(
        folder, image_size=(32, 32), batch_size=1000, shuffle=False, verbose=False
    )
    parts = [(x.numpy().astype(np.uint8), y.numpy()) for x, y in images]
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def cnn(train_x, test_x):
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(128, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    return model, 1e-3, train_x / 255.0, test_x / 255.0


def vgg16(train_x, test_x, weights):
    base = keras.applications.VGG16(include_top=False, weights=weights, input_shape=(32, 32, 3))
    base.trainable = False
    model = keras.Sequential(
        [
            base,
            layers.Flatten(),
            layers.Dense(256, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    preprocess = keras.applications.vgg16.preprocess_input
    return model, 1e-4, preprocess(train_x.astype("float32")), preprocess(test_x.astype("float32"))


@click.command()
@click.argument("dataset")
@click.option("--model", "which", type=click.Choice(["cnn", "vgg16", "both"]), default="both", show_default=True)
@click.option("--limit", type=int, help="Training images; a fifth as many test images.")
@click.option("--weights", default="imagenet", show_default=True, help="imagenet, random or a weights file.")
@click.option("--epochs", default=5, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(dataset, which, limit, weights, epochs, seed):
    (train_x, train_y), (test_x, test_y) = load(dataset, limit)
    results = {}
    for name in ("cnn", "vgg16") if which == "both" else (which,):
        started = time.perf_counter()
        keras.utils.set_random_seed(seed)
        if name == "cnn":
            model, learning_rate, train, test = cnn(train_x, test_x)
        else:
            model, learning_rate, train, test = vgg16(train_x, test_x, None if weights == "random" else weights)
        model.compile(
            optimizer=keras.optimizers.Adam(learning_rate),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        model.fit(train, train_y, batch_size=32, epochs=epochs, validation_data=(test, test_y), verbose=2)
        accuracy = model.evaluate(test, test_y, verbose=0)[1]
        results[name] = {"accuracy": accuracy, "seconds": time.perf_counter() - started}
    print(json.dumps(results))


main()
