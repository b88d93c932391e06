"""Test that damaged files are read or give a one-sentence error: pytest tests/test_damaged_files.py"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "stress"))
import mutated_files

COUNTS = {"keras": 6, "weights": 30, "predictions": 60, "features": 20, "shards": 30, "recipe": 60, "search": 30}


@pytest.mark.parametrize("kind", COUNTS)
def test_mutated_files_are_read_or_give_a_sentence(kind, workplace):
    good, outcomes = list(mutated_files.MADE[kind]()), []
    for i, files in enumerate(mutated_files.attempts(good, COUNTS[kind])):
        mutated_files._lay(workplace / str(i), files)
        outcomes.append(mutated_files.outcome(kind, workplace / str(i)))
    assert set(outcomes) <= {"read", "sentence"}
    # What can be made again is.
    assert ("sentence" in outcomes) == (kind not in ("features", "shards"))
