"""Draw figures from plain arrays: curves, confusion matrices, images in a grid, and the trials of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps, ticker
from matplotlib.figure import Figure as Figure  # noqa: PLC0414  for annotations of modules that do not import matplotlib

from cnnlab.evaluation.fonts import NAME, literal_texts, shorten_name
from cnnlab.evaluation.statistics import Calibration

# Without pyplot: no global state, no display, and nothing to close.
DPI = 110
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")
LEGEND = 36  # characters of a name in a legend
MARKERS = "osD^v"  # once the colours are used up
CAPTION = 24  # characters over an image of a grid
NOTHING: Mapping[str, Any] = MappingProxyType({})

Values: TypeAlias = Mapping[str, Sequence[Any]]  # of hyperparameters in the trials, `None` where a trial has none
Floats: TypeAlias = npt.NDArray[np.floating[Any]]


def _figure(width: float, height: float, *shape: int, **options: Any) -> tuple[Figure, Any]:
    """Make a figure with one axis, or with several in rows and columns."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots(*shape, **options)


@literal_texts()
def curves(
    histories: Mapping[str, Mapping[str, Sequence[float]]],
    borders: Mapping[str, Sequence[int]] = NOTHING,
    kept: Mapping[str, int | None] = NOTHING,
) -> Figure:
    """Draw accuracy and loss by epoch, training dashed and validation solid; for one run its learning rate too.

    Args:
        histories: label to a Keras history, `{"accuracy": [...], "val_accuracy": [...], "loss": ..., "val_loss": ...}`,
            and "learning_rate" at each epoch's end.
        borders: label to the numbers of epochs after which another stage of its training begins.
        kept: label to the number of the epoch, from 1, whose weights were kept; one before the last is marked.
    """
    rates = next(iter(histories.values())).get("learning_rate") if len(histories) == 1 else None
    figure, axes = _figure(14 if rates else 10, 4, 1, 3 if rates else 2)
    for axis, metric in zip(axes, ("accuracy", "loss"), strict=False):
        for i, (label, history) in enumerate(histories.items()):
            colour = COLOURS[i % len(COLOURS)]
            for key, style, split in ((metric, "--", "training"), (f"val_{metric}", "-", "validation")):
                values = history.get(key, [])
                epochs = range(1, len(values) + 1)
                name = f"{shorten_name(label)} {split}"
                if split == "validation" and (epoch := kept.get(label) or len(values)) < len(values):
                    name += f", epoch {epoch} kept"
                    axis.plot(epoch, values[epoch - 1], "o", markersize=9, fillstyle="none", color=colour)
                axis.plot(epochs, values, style, marker="o", markersize=3, color=colour, label=name)
        axis.set(title=metric.capitalize())
    axes[0].yaxis.set_major_formatter(ticker.PercentFormatter(1))
    axes[0].legend(**_all_of([line for line in axes[0].lines if line.get_fillstyle() == "full"]), fontsize=8)
    if rates:
        axes[2].plot(range(1, len(rates) + 1), rates, marker="o", markersize=3, color="grey")
        axes[2].set(title="Learning rate at the epoch's end")
    for axis in axes:
        axis.set(xlabel="epoch")
        axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        for i, label in enumerate(histories):
            for border in borders.get(label, ()):
                colour = COLOURS[i % len(COLOURS)] if len(histories) > 1 else "black"
                axis.axvline(border + 0.5, color=colour, lw=1, linestyle=":")
    return figure


def _all_of(drawn: Sequence[Any]) -> dict[str, Any]:
    """Name all that was drawn for a legend, as matplotlib leaves out labels with an underscore in front."""
    return {"handles": drawn, "labels": [each.get_label() for each in drawn]}


@literal_texts()
def accuracy_by_seconds(points: Mapping[str, tuple[float, float, float, float]]) -> Figure:
    """Draw accuracy against training seconds, one point a run, with its interval as a bar.

    The points are `(seconds, accuracy, low, high)` by their labels.
    """
    figure, axis = _figure(9, 4.5)
    best_first = dict(sorted(points.items(), key=lambda item: -item[1][1]))
    spread = [max(seconds, 1e-3) for seconds, *_ in points.values()]
    for i, (label, (seconds, accuracy, low, high)) in enumerate(best_first.items()):
        how = {"fmt": MARKERS[i // len(COLOURS) % len(MARKERS)], "color": COLOURS[i % len(COLOURS)], "capsize": 3}
        axis.errorbar(
            seconds, accuracy, [[accuracy - low], [high - accuracy]], label=shorten_name(label, LEGEND), **how
        )
    # Beside the points names would lie on each other where several runs come out alike.
    figure.legend(**_all_of(axis.containers), loc="outside right upper", fontsize=8)
    if max(spread) / min(spread) > 8:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_locator(ticker.NullLocator())
    axis.set(xlabel="training seconds", ylabel="test accuracy")
    axis.margins(x=0.15)
    axis.yaxis.set_major_formatter(ticker.PercentFormatter(1))
    axis.grid(alpha=0.3)
    return figure


@literal_texts()
def confusion_matrices(matrices: Mapping[str, npt.ArrayLike], class_names: Sequence[str]) -> Figure:
    """Draw confusion matrices side by side: rows are the true classes, colour is the share of the row.

    Args:
        matrices: label to `(C, C)` counts, rows true and columns predicted.
        class_names: C names. The counts are written in the cells up to 20 classes, the names up to 50.
    """
    size, class_names = len(class_names), [shorten_name(name) for name in class_names]
    side = min(max(4.0, 1.2 + 0.5 * size + 0.08 * max(map(len, class_names))), 14.0)
    figure = Figure(figsize=(side * len(matrices), side), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axis, (label, matrix) in zip(axes, matrices.items(), strict=True):
        matrix = np.asarray(matrix)
        share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        axis.set(title=shorten_name(label), xlabel="predicted", ylabel="true")
        if size <= 50:
            axis.set_xticks(range(size), class_names, rotation=90, fontsize=8 if size <= 20 else 5)
            axis.set_yticks(range(size), class_names, fontsize=8 if size <= 20 else 5)
        if size <= 20:
            for row, column in np.argwhere(matrix):
                colour = "white" if share[row, column] > 0.5 else "black"
                text = str(matrix[row, column])
                axis.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    return figure


@literal_texts()
def class_scores(precision: Floats, recall: Floats, class_names: Sequence[str]) -> Figure:
    """Draw recall and precision of each class, NaN for an absent one, as bars, the lowest recall at the bottom."""
    order = np.argsort(recall)
    figure, axis = _figure(7, min(max(2.5, 0.36 * len(order) + 1), 30))
    places = np.arange(len(order))
    for shift, values, name, colour in ((0.2, recall, "recall", COLOURS[0]), (-0.2, precision, "precision", "#aec7e8")):
        sorted_values = np.asarray(values, float)[order]
        bars = axis.barh(places + shift, sorted_values, 0.4, color=colour, label=name)
        axis.bar_label(bars, [f"{value:.1%}" for value in sorted_values], padding=3, fontsize=7)
    axis.set_yticks(places, [shorten_name(class_names[i]) for i in order])
    axis.set(xlim=(0, 1.15), title="Test images by class")
    axis.xaxis.set_major_formatter(ticker.PercentFormatter(1))
    axis.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    axis.margins(y=0.01)
    return figure


@literal_texts()
def image_grid(
    images: npt.NDArray[np.uint8],
    captions: Sequence[str],
    title: str,
    columns: int = 6,
    heat: npt.NDArray[np.float32] | None = None,
) -> Figure:
    """Draw images in a grid with a caption over each; a line of text where there are none.

    Args:
        images: `(N, H, W, 3)`.
        captions: N texts of one or two lines.
        columns: number of images in a row.
        heat: `(N, h, w)`, 0 to 1, laid over the images.
    """
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(1.7 * columns, 2.1 * rows + 0.4), dpi=DPI, layout="constrained")
    # One axis for all: an axis an image takes ten times as long to lay out. Each gets a unit cell.
    axis = figure.subplots()
    axis.set_title(shorten_name(title if len(images) else f"{title}: none", 3 * NAME))
    axis.axis("off")
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = i % columns, i // columns * 1.3 + 0.3
        place = {"extent": (left + 0.03, left + 0.97, top + 0.97, top + 0.03), "aspect": "equal"}
        axis.imshow(image, **place)
        if heat is not None:
            axis.imshow(heat[i], cmap="jet", vmin=0, vmax=1, alpha=0.45, interpolation="bicubic", **place)
        caption = "\n".join(shorten_name(line, CAPTION) for line in caption.split("\n"))
        axis.text(left + 0.5, top, caption, ha="center", va="bottom", fontsize=7)
    axis.set(xlim=(0, columns), ylim=(rows * 1.3, 0))  # imshow moved them
    return figure


@literal_texts()
def best_so_far(
    trials: Sequence[int], seconds: Sequence[float], scores: Sequence[float], objective: str, higher_is_better: bool
) -> Figure:
    """Draw scores of trials as dots and the best so far as steps, by the trial's number and by seconds spent.

    `trials`, `seconds` and `scores` have one entry a trial, in their order; `objective` is the name of the scores.
    """
    best = (np.maximum if higher_is_better else np.minimum).accumulate(np.asarray(scores, float))
    figure, axes = _figure(10, 4, 1, 2, sharey=True)
    for axis, x, label in zip(axes, (trials, seconds), ("trial", "seconds of trials"), strict=True):
        axis.plot(x, scores, "o", color=COLOURS[0], alpha=0.6, label="trial")
        axis.step(x, best, where="post", color=COLOURS[1], label="best so far")
        axis.set(xlabel=label)
        axis.grid(alpha=0.3)
    axes[0].set(ylabel=objective)
    axes[0].xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes[0].legend(fontsize=8)
    return figure


@literal_texts()
def scores_by_hyperparameter(values: Values, scores: Sequence[float], objective: str) -> Figure:
    """Draw the score of the trials, named `objective`, against each hyperparameter that varied, one small plot each."""
    values = _varied(values) or values
    columns = min(4, len(values))
    rows = -(-len(values) // columns)
    figure = Figure(figsize=(3 * columns, 2.6 * rows), dpi=DPI, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axis in axes[::columns]:
        axis.set(ylabel=objective)
    for axis, (name, column) in zip(axes, values.items(), strict=False):
        known = [(value, score) for value, score in zip(column, scores, strict=True) if value is not None]
        positions, ticks, log = _positions([value for value, _ in known])
        axis.plot(positions, [score for _, score in known], "o", color=COLOURS[0], alpha=0.6)
        axis.set(xlabel=name)
        if log:
            axis.set_xscale("log")
            # Those that are usual for such a scale write formulas.
            axis.xaxis.set_major_formatter(ticker.LogFormatter())
            axis.xaxis.set_minor_formatter(ticker.LogFormatter())
            axis.tick_params(axis="x", which="both", labelsize=7)
        if ticks:
            axis.set_xticks(range(len(ticks)), ticks, fontsize=8)
            axis.margins(x=0.15)
        axis.grid(alpha=0.3)
    for axis in axes[len(values) :]:
        axis.axis("off")
    return figure


@literal_texts()
def parallel_coordinates(values: Values, scores: Sequence[float], objective: str) -> Figure:
    """Draw a line for each trial through its values and its score, coloured by the score."""
    names = list(_varied(values))
    figure, axis = _figure(max(6, 1.1 * (len(names) + 1)), 5.5)
    scaled = []
    for i, name in enumerate([*names, objective]):
        column = scores if i == len(names) else values[name]
        positions, ticks, log = _positions([value for value in column if value is not None])
        positions = np.log(positions) if log and name != objective else np.asarray(positions, float)
        low, span = positions.min(), max(np.ptp(positions), 1e-12)
        places = iter((positions - low) / span)
        scaled.append([next(places) if value is not None else np.nan for value in column])
        numbers = [value for value in column if value is not None]
        texts = ticks or [f"{min(numbers):.3g}", f"{max(numbers):.3g}"]
        heights = (np.arange(len(texts)) - low) / span if ticks else (0, 1)
        for height, text in zip(heights, texts, strict=True):
            axis.text(i + 0.03, height, text, fontsize=8, va="center")
    colours = colormaps["viridis"]
    share = (np.asarray(scores) - min(scores)) / max(np.ptp(scores), 1e-12)
    for line, colour in zip(np.array(scaled).T, share, strict=True):
        known = ~np.isnan(line)  # the line skips hyperparameters that this trial does not have
        axis.plot(np.flatnonzero(known), line[known], color=colours(colour), alpha=0.8, lw=1.2)
    axis.set_xticks(range(len(names) + 1), [*names, objective], rotation=20, ha="right")
    axis.set(yticks=[], xlim=(-0.2, len(names) + 0.4), ylim=(-0.05, 1.05))  # one trial alone would leave no range
    axis.grid(axis="x")
    return figure


def _varied(values: Values) -> Values:
    """Keep the hyperparameters of which the trials had several values."""
    return {name: column for name, column in values.items() if len({v for v in column if v is not None}) > 1}


def _positions(values: Sequence[Any]) -> tuple[Sequence[Any], list[str] | None, bool]:
    """Place values on an axis: numbers as they are, texts and few distinct integers by rank.

    Returns positions, the labels of the ticks or `None`, and whether to draw them on a log scale.
    """
    distinct = sorted(set(values))
    if any(isinstance(value, str) for value in distinct) or (
        len(distinct) <= 6 and all(isinstance(value, int) for value in distinct)
    ):
        return [distinct.index(value) for value in values], [shorten_name(value, 20) for value in distinct], False
    return values, None, min(values) > 0 and max(values) / min(values) > 5


@literal_texts()
def reliability(calibrations: Mapping[str, Calibration]) -> Figure:
    """Draw accuracy against confidence, one diagram a model, with the share of the images in each bin below."""
    figure, axes = _figure(
        3.6 * len(calibrations), 4.4, 2, len(calibrations), squeeze=False, sharex=True, height_ratios=(3, 1)
    )
    for (top, bottom), (label, (confidence, accuracy, count, error)) in zip(axes.T, calibrations.items(), strict=True):
        edges = np.linspace(0, 1, len(count) + 1)
        filled = count > 0
        top.plot((0, 1), (0, 1), "--", color="grey", lw=1)
        top.plot(confidence[filled], accuracy[filled], marker="o", markersize=4, color=COLOURS[0])
        top.set(title=f"{shorten_name(label, 20)}: calibration error {error:.1%}", ylabel="accuracy")
        top.set(xlim=(0, 1), ylim=(0, 1))
        bottom.bar(edges[:-1], count / count.sum(), np.diff(edges), align="edge", color=COLOURS[0], alpha=0.6)
        bottom.set(xlabel="confidence", ylabel="images")
        for formatted in (top.yaxis, bottom.xaxis, bottom.yaxis):
            formatted.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
        top.title.set_fontsize(9)
        top.grid(alpha=0.3)
    return figure
