"""Make the figures, texts and files that are stored with a training run: curves, samples, tables, recipe, summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from cnnlab.data.image_dataset import ImageDataset
from cnnlab.evaluation import plots
from cnnlab.evaluation.gradcam import gradcam_figures
from cnnlab.evaluation.predictions import PREDICTIONS_FILE, Predictions, describe, save_predictions
from cnnlab.evaluation.run_result import RunResult
from cnnlab.models.augmentation import augment_examples, parse_augment
from cnnlab.recipe import ResolvedRecipe
from cnnlab.utils.text import markdown


@dataclass(frozen=True)
class RunFiles:
    """What a run shows, by artifact path: `figures`, `texts`, and `files`, functions that write to a path."""

    figures: dict[str, plots.Figure]
    texts: dict[str, str]
    files: dict[str, Callable[[Path], Any]]


def run_files(
    model: keras.Model,
    dataset: ImageDataset,
    result: RunResult,
    predictions: Mapping[str, Predictions],
) -> RunFiles:
    """Make the figures, texts and files of a training.

    Args:
        result: gives recipe, history and stages.
        predictions: of the finished model by split, "val" and "test". Without "test", what shows test images is left
            out.
    """
    recipe, label = result.recipe, result.recipe.label
    curves = plots.curves({label: result.history}, {label: result.stage_borders}, {label: result.kept_epoch})
    figures = {"curves.png": curves}
    if parse_augment(recipe.augment):
        figures["augmented.png"] = _augmented(recipe, dataset)
    # The summary in place of autologging's, which is of the head alone where features were cached.
    texts = {"recipe.json": recipe.to_json(), "model_summary.txt": _summary(model)}
    if dataset.summary:
        texts |= {"data.txt": dataset.summary.text, **dataset.summary.tables}
    if "test" not in predictions:
        return RunFiles(figures, texts, {})
    test, images = predictions["test"], dataset.test.images
    test_figures, test_texts = describe(label, dataset.class_names, images, test)
    if dataset.summary and dataset.summary.duplicates:
        figures["duplicates.png"] = _duplicates(dataset)
    figures |= {**test_figures, **gradcam_figures(model, dataset.class_names, images, test)}
    files = {PREDICTIONS_FILE: lambda path: save_predictions(path, dataset.class_names, **predictions)}
    return RunFiles(figures, {**texts, **test_texts}, files)


def description(recipe: ResolvedRecipe, dataset: ImageDataset) -> str:
    """Describe a training in Markdown: the model, the data and what each split is for."""
    validation = "the test set itself" if dataset.val_is_test else f"{len(dataset.val):,} held-out images"
    text = (
        f"**{markdown(recipe.label)}** on **{markdown(dataset.name)}**: {len(dataset.train):,} training images, "
        f"validated on {validation}, tested on {len(dataset.test):,}."
    )
    if recipe.weights:
        text += f" Weights: {markdown(recipe.weights)}."
    if dataset.stands_in_for:
        text += f" {markdown(dataset.name)} stands in for {dataset.stands_in_for}, which could not be downloaded."
    return text


def _augmented(recipe: ResolvedRecipe, dataset: ImageDataset, count: int = 6, rows: int = 3) -> plots.Figure:
    """Draw a few training images as they are, and below them as the training sees them."""
    some = np.linspace(0, len(dataset.train) - 1, count).astype(int)  # of several classes, in whatever order they are
    images, labels, names = dataset.train.images[some], dataset.train.labels[some], dataset.class_names
    one_hot = np.eye(len(names), dtype="float32")[labels]
    drawn, captions = [images], [names[label] for label in labels]
    for row in range(rows):
        augmented, shares = augment_examples(images, one_hot, recipe.augment, recipe.seed + row)
        drawn.append(augmented)
        for share in np.asarray(shares):
            mixed = sorted(np.flatnonzero(share > 0.005), key=lambda label: -share[label])
            mixed_text = "\n".join(f"{share[label]:.0%} {names[label]}" for label in mixed)
            captions.append(mixed_text if len(mixed) > 1 else "")
    return plots.image_grid(np.concatenate(drawn), captions, f"Training images, and augmented by {recipe.augment}")


def _duplicates(dataset: ImageDataset, count: int = 12) -> plots.Figure:
    """Draw the first pairs of equal pictures, side by side."""
    pictures, summary = dataset.pictures, dataset.summary
    assert pictures
    assert summary
    positions = [i for pair in summary.duplicates[:count] for i in (pair.first, pair.second)]
    captions = [f"{pictures.splits[i]}\n{dataset.class_names[pictures.labels[i]]}" for i in positions]
    return plots.image_grid(pictures.images(np.array(positions))[:], captions, "Pictures that are there twice")


def _summary(model: keras.Model) -> str:
    lines = []
    model.summary(print_fn=lambda line, **_: lines.append(line), line_length=100)
    return "\n".join(lines)
