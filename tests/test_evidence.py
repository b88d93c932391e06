"""pytest tests/test_evidence.py"""

import numpy as np
import pytest

from cnnlab.evidence import calibration, mean_interval, paired, wilson_interval


def predictions(right, wrong, labels=None):
    """Probabilities for a two-class problem whose labels are all 0: right first, then wrong."""
    first = np.concatenate([np.full(right, 0.9), np.full(wrong, 0.2)])
    return np.stack([first, 1 - first], axis=1)


def test_wilson_interval_of_a_textbook_case():
    # Newcombe (1998), Statistics in Medicine 17, table I: 81 of 263 gives 0.2553 to 0.3662.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20)[0] == 0


def test_mean_interval_uses_students_t():
    mean, low, high = mean_interval([0.6, 0.62, 0.64])
    # t(0.975, 2) = 4.3027, standard error 0.02 / sqrt(3)
    assert (mean, high - mean, mean - low) == pytest.approx((0.62, 0.049683, 0.049683), abs=1e-5)
    assert mean_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)


def test_paired_difference_and_exact_mcnemar():
    labels = np.zeros(100, int)
    first, second = predictions(80, 20), predictions(70, 30)
    result = paired(first, second, labels)
    assert (result.only_first, result.only_second) == (10, 0)
    assert result.difference == pytest.approx(0.1)
    assert result.p_value == pytest.approx(2 * 0.5**10)  # the exact two-sided binomial
    assert 0.04 <= result.low <= 0.06
    assert 0.15 <= result.high <= 0.17
    assert "a is better than b by 10.0 points" in result.in_words("a", "b")
    reverse = paired(second, first, labels)
    assert reverse.difference == -result.difference
    assert "a is better than b by 10.0 points" in reverse.in_words("b", "a")


def test_a_difference_within_noise_is_called_so():
    rng = np.random.default_rng(0)
    labels = np.zeros(200, int)
    first, second = (np.stack([p, 1 - p], axis=1) for p in rng.uniform(0, 1, (2, 200)))
    assert "within noise" in paired(first, second, labels).in_words("a", "b")
    same = paired(first, first, labels)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_calibration_of_a_known_case():
    labels = np.zeros(10, int)
    # Always 90 % sure, right in 6 of 10.
    sure = np.full(10, 0.9)
    sure[6:] = 0.1
    _, accuracy, count, error = calibration(np.stack([sure, 1 - sure], axis=1), labels)
    assert count.sum() == 10
    assert count[13] == 10
    assert accuracy[13] == pytest.approx(0.6)
    assert np.isnan(accuracy[0])
    assert error == pytest.approx(0.3)
