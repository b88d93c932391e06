"""Scores, statistics, figures and reports from plain arrays."""
