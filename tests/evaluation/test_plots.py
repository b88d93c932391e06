"""Test the figures: pytest tests/evaluation/test_plots.py"""

import pytest

from cnnlab.evaluation import plots

# Two blocks have no filters_3.
VALUES = {
    "padding": ["same"] * 4,
    "blocks": [2, 3, 3, 2],
    "filters_3": [None, 32, 64, None],
    "learning_rate": [1e-4, 1e-3, 2e-3, 1e-2],
    "augment": ["none", "flip", "none", "full"],
}
SCORES = [0.4, 0.6, 0.5, 0.1]
VARIED = ["blocks", "filters_3", "learning_rate", "augment"]


def test_scores_are_drawn_against_the_hyperparameters_that_varied():
    values = {**VALUES, "dropout": [0.0, 0.1, 0.2, 0.3]}  # a second row of plots
    axes = [axis for axis in plots.scores_by_hyperparameter(values, SCORES, "val_accuracy").axes if axis.axison]
    assert [axis.get_xlabel() for axis in axes] == [*VARIED, "dropout"]
    assert [axis.get_ylabel() for axis in axes] == ["val_accuracy", "", "", "", "val_accuracy"]
    assert [axis.get_xscale() for axis in axes] == ["linear", "linear", "log", "linear", "linear"]
    assert [list(axis.lines[0].get_ydata()) for axis in axes[:2]] == [SCORES, [0.6, 0.5]]


def test_a_curve_marks_the_epoch_whose_weights_were_kept():
    histories = {label: {"accuracy": SCORES, "val_accuracy": SCORES} for label in "abc"}
    figure = plots.curves(histories, kept={"a": 2, "b": 4})
    [ring] = [line for line in figure.axes[0].lines if line.get_fillstyle() == "none"]
    assert ([*ring.get_xdata()], [*ring.get_ydata()]) == ([2], [0.6])
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names[:4] == ["a training", "a validation, epoch 2 kept", "b training", "b validation"]


def test_every_trial_s_line_reaches_its_score():
    [axis] = plots.parallel_coordinates(VALUES, SCORES, "val_accuracy").axes
    assert [label.get_text() for label in axis.get_xticklabels()] == [*VARIED, "val_accuracy"]
    assert [list(line.get_xdata()) for line in axis.lines] == [
        [0, 2, 3, 4],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4],
        [0, 2, 3, 4],
    ]
    ends = [line.get_ydata()[-1] for line in axis.lines]
    assert ends == pytest.approx([(score - 0.1) / 0.5 for score in SCORES])
