"""Test confidence intervals, paired tests and calibration: pytest tests/evaluation/test_statistics.py"""

import numpy as np
import pytest

from cnnlab.evaluation.statistics import calibration, mean_interval, paired, seeds_difference, wilson_interval


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
    first, second = np.arange(100) < 80, np.arange(100) < 70
    result = paired(first, second)
    assert (result.only_first, result.only_second) == (10, 0)
    assert result.difference == pytest.approx(0.1)
    assert result.p_value == pytest.approx(2 * 0.5**10)  # the exact two-sided binomial
    assert 0.04 <= result.low <= 0.06
    assert 0.15 <= result.high <= 0.17
    assert "a is better than b by 10.0 points" in result.in_words("a", "b")
    reverse = paired(second, first)
    assert reverse.difference == -result.difference
    assert "a is better than b by 10.0 points" in reverse.in_words("b", "a")


def test_a_difference_within_noise_is_called_so():
    first, second = np.random.default_rng(0).uniform(0, 1, (2, 200)) > 0.5
    assert "within noise" in paired(first, second).in_words("a", "b")
    same = paired(first, first)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_more_comparisons_take_a_wider_interval():
    first, second = np.random.default_rng(0).uniform(0, 1, (2, 500)) > [[0.4], [0.6]]
    narrow, wide = paired(first, second), paired(first, second, confidence=0.99)
    assert wide.low < narrow.low
    assert wide.high > narrow.high


def test_difference_over_seeds_is_welchs():
    # Unequal spreads: standard error sqrt(0.0001 + 0.0009) / sqrt(3), 2.4402 degrees of freedom, t = 3.6361.
    difference, low, high = seeds_difference([0.70, 0.71, 0.72], [0.60, 0.63, 0.66])
    assert difference == pytest.approx(0.08)
    assert (difference - low, high - difference) == pytest.approx((0.0664, 0.0664), abs=5e-4)
    assert seeds_difference([0.5, 0.5], [0.4, 0.4])[1] == pytest.approx(0.1)


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
