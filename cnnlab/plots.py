"""Figures from plain arrays; the only room that imports matplotlib."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

# Without pyplot: no global state, no display, and nothing to close.
DPI = 110
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")


def curves(histories) -> Figure:
    """Accuracy and loss by epoch, training dashed and validation solid, one colour a run.

    Args:
        histories: label to a Keras history, `{"accuracy": [...], "val_accuracy": [...], "loss": ..., "val_loss": ...}`.
    """
    figure = Figure(figsize=(10, 4), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, metric in zip(axes, ("accuracy", "loss"), strict=True):
        for i, (label, history) in enumerate(histories.items()):
            colour = COLOURS[i % len(COLOURS)]
            for key, style, part in ((metric, "--", "training"), (f"val_{metric}", "-", "validation")):
                values = history.get(key, [])
                epochs = range(1, len(values) + 1)
                axis.plot(epochs, values, style, marker="o", markersize=3, color=colour, label=f"{label} {part}")
        axis.set(xlabel="epoch", title=metric.capitalize())
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    axes[0].yaxis.set_major_formatter(PercentFormatter(1))
    axes[0].legend(fontsize=8)
    return figure


def confusion_matrices(matrices, class_names) -> Figure:
    """Confusion matrices side by side: rows are the true classes, colour is the share of the row.

    Args:
        matrices: label to `(C, C)` counts, rows true and columns predicted.
        class_names: C names. The counts are written in the cells up to 20 classes, the names up to 50.
    """
    size = len(class_names)
    side = min(max(4.0, 1.5 + 0.5 * size), 14.0)
    figure = Figure(figsize=(side * len(matrices), side), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axis, (label, matrix) in zip(axes, matrices.items(), strict=True):
        matrix = np.asarray(matrix)
        share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        axis.set(title=label, xlabel="predicted", ylabel="true")
        if size <= 50:
            axis.set_xticks(range(size), class_names, rotation=90, fontsize=8 if size <= 20 else 5)
            axis.set_yticks(range(size), class_names, fontsize=8 if size <= 20 else 5)
        if size <= 20:
            for row, column in np.argwhere(matrix):
                colour = "white" if share[row, column] > 0.5 else "black"
                text = str(matrix[row, column])
                axis.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    return figure


def class_accuracy(accuracy, class_names) -> Figure:
    """Accuracy of each class as horizontal bars, worst at the bottom. `accuracy` is `(C,)`, NaN for an absent class."""
    order = np.argsort(accuracy)
    figure = Figure(figsize=(7, min(max(2.5, 0.28 * len(order) + 1), 30)), dpi=DPI, layout="constrained")
    axis = figure.subplots()
    bars = axis.barh([class_names[i] for i in order], np.asarray(accuracy)[order], color=COLOURS[0])
    axis.bar_label(bars, [f"{accuracy[i]:.1%}" for i in order], padding=3, fontsize=8)
    axis.set(xlim=(0, 1.1), title="Test accuracy by class")
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.margins(y=0.01)
    return figure


def image_grid(images, captions, title, columns=6) -> Figure:
    """Images `(N, H, W, 3) uint8` in a grid with a caption over each; a line of text where there are none."""
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(1.7 * columns, 2.1 * rows + 0.4), dpi=DPI, layout="constrained")
    # One axis for all: an axis an image takes ten times as long to lay out. Each gets a unit cell.
    axis = figure.subplots()
    axis.set_title(title if len(images) else f"{title}: none")
    axis.axis("off")
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = i % columns, i // columns * 1.3 + 0.3
        axis.imshow(image, extent=(left + 0.03, left + 0.97, top + 0.97, top + 0.03), aspect="equal")
        axis.text(left + 0.5, top, caption, ha="center", va="bottom", fontsize=7)
    axis.set(xlim=(0, columns), ylim=(rows * 1.3, 0))  # imshow moved them
    return figure
