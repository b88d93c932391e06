"""Test the scores that predictions give: pytest tests/evaluation/test_predictions.py"""

import numpy as np
import pytest
from sklearn import metrics

from cnnlab import ArgumentError
from cnnlab.evaluation import statistics
from cnnlab.evaluation.predictions import Predictions, compared


def some(seed, classes=10, images=400, skill=2.0, missing=None):
    rng = np.random.default_rng(0)
    labels = rng.choice([c for c in range(classes) if c != missing], images, p=None)
    labels[: images // 2] = 0  # far from balanced
    scores = np.random.default_rng(seed).normal(size=(images, classes))
    scores[np.arange(images), labels] += skill
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return Predictions(probabilities.astype("float32"), labels, "digest")


def test_scores_are_scikit_learns():
    p = some(1)
    assert p.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(p.labels, p.predicted))
    assert p.macro_f1 == pytest.approx(metrics.f1_score(p.labels, p.predicted, average="macro"))
    assert p.top5_accuracy == pytest.approx(metrics.top_k_accuracy_score(p.labels, p.probabilities, k=5))
    assert p.accuracy != pytest.approx(p.balanced_accuracy, abs=0.005)
    precision, recall, _, count = p.by_class
    assert precision[3] == pytest.approx((p.labels == 3)[p.predicted == 3].mean())
    assert (recall[0], count[0]) == (pytest.approx(p.right[p.labels == 0].mean()), (p.labels == 0).sum())


def test_a_class_without_images_counts_in_no_mean():
    p = some(1, missing=4)
    recalls = [p.right[p.labels == c].mean() for c in range(10) if c != 4]
    assert p.balanced_accuracy == pytest.approx(np.mean(recalls))
    assert np.isnan(p.by_class[1][4])


@pytest.mark.parametrize(
    ("digest", "identity", "label", "shared"),
    [
        ("at 64", "", 0, True),  # of an earlier version
        ("at 64", "other files", 0, True),  # whose pixels are the same
        ("at 224", "files", 0, True),
        ("at 224", "other files", 0, False),
        ("at 224", "", 0, None),
        ("at 224", "", 1, False),
    ],
)
def test_images_are_the_same_by_their_pixels_or_their_files(digest, identity, label, shared):
    probabilities = np.full((2, 2), 0.5, "float32")
    first = Predictions(probabilities, np.array([0, 1]), "at 64", "files")
    second = Predictions(probabilities, np.array([label, 1]), digest, identity)
    assert first.shares_images(second) is second.shares_images(first) is shared


def test_fewer_than_ten_classes_have_no_top_5():
    p = some(1, classes=6)
    assert "top5_accuracy" not in p.scores
    with pytest.raises(ArgumentError, match=r"at least 10 classes for top5_accuracy\. Received: 6"):
        compared(p, p, "top5_accuracy")


@pytest.mark.parametrize("by", ["balanced_accuracy", "macro_f1"])
def test_the_drawn_counts_are_a_bootstrap_over_images(by):
    first, second = some(1), some(2, skill=1.5)
    found = compared(first, second, by)
    assert found.difference == pytest.approx(getattr(first, by) - getattr(second, by))
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(300):
        i = rng.integers(400, size=400)
        a, b = (Predictions(p.probabilities[i], p.labels[i], "") for p in (first, second))
        drawn.append(getattr(a, by) - getattr(b, by))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.02)
    assert found.in_words("a", "b").startswith("a is better than b by")
    assert "McNemar" not in found.in_words("a", "b")


def test_accuracy_and_top_5_are_compared_by_hits():
    first, second = some(1), some(2)
    assert compared(first, second) == statistics.paired(first.right, second.right)
    assert compared(first, second, "top5_accuracy") == statistics.paired(first.in_top5, second.in_top5)
