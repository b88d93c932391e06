"""Find out from the columns of a table which pictures are for training, validation and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cnnlab.data.class_folders import SplitName, split_of_folder
from cnnlab.errors import ArgumentError

# Names of columns, in lower case without marks.
WORD_NAMES = ("split", "part", "set", "subset", "partition")
FLAG_NAMES: dict[str, SplitName] = {
    **dict.fromkeys(("istrain", "istraining", "istrainingimage", "train", "training"), "train"),
    **dict.fromkeys(("isvalid", "valid", "isval", "val", "isvalidation", "validation"), "val"),
    **dict.fromkeys(("istest", "test", "istesting"), "test"),
}
FOLD_NAMES = ("fold", "folds", "kfold", "foldid")
TRUE, FALSE = ("true", "1", "1.0", "yes", "t", "y"), ("false", "0", "0.0", "no", "f", "n")


@dataclass
class SplitColumns:
    """Say which columns tell the split of a row, and read it."""

    words: int | None = None  # the column of words for splits
    # Columns of true and false, with the split that true means.
    flags: dict[int, SplitName] = field(default_factory=dict)
    fold: tuple[int, str] | None = None  # the column of folds, and the fold that is the validation set

    @property
    def columns(self) -> list[int]:
        """Return the columns that are used."""
        words, fold = [] if self.words is None else [self.words], [self.fold[0]] if self.fold else []
        return [*words, *self.flags, *fold]

    def split_of(self, values: Sequence[str]) -> str:
        """Return the split that the values of the columns tell, or "" where they tell none."""
        told = dict(zip(self.columns, values, strict=True))
        split = "train"
        if self.words is not None:
            split = split_of_folder(told[self.words]) or ""
        elif self.flags:
            split = self._split_of_flags({meaning: told[column] for column, meaning in self.flags.items()})
        if self.fold and split == "train" and _same(told[self.fold[0]], self.fold[1]):
            return "val"
        return split

    def _split_of_flags(self, told: Mapping[SplitName, str]) -> str:
        if not all(is_flag(value) for value in told.values()):
            return ""
        true = [split for split, value in told.items() if _lower(value) in TRUE]
        # Where none is true it is the other split: not for validation means for training, not for training for test.
        other = next((split for split in ("train", "test", "val") if split not in told), "")
        return (true or [other])[0] if len(true) < 2 else ""

    def describe(self, names: Sequence[str]) -> list[str]:
        """Say in sentences how splits are told."""
        notes = [] if self.words is None else [f"splits are those of the column '{names[self.words]}'"]
        notes += [f"true in the column '{names[column]}' means {split}" for column, split in self.flags.items()]
        if self.fold:
            notes.append(f"fold {self.fold[1]} of the column '{names[self.fold[0]]}' is the validation set")
        return notes


def is_flag(value: str) -> bool:
    """Return whether a value is true or false, in words or as 0 and 1."""
    return _lower(value) in (*TRUE, *FALSE)


def choose_split_columns(
    rows: Sequence[Sequence[str]],
    names: Sequence[str],
    candidates: Mapping[int, str],
    by_hand: int | None,
    none: bool,
    fold: str | None,
    table: str,
    needs_label: bool,
) -> SplitColumns:
    """Find the columns that tell splits, by their names and what is in them.

    Args:
        rows: without the header.
        names: of all columns, for messages.
        candidates: the columns that may tell splits, with their names in lower case without marks.
        by_hand: the column that is said to tell them.
        none: whether it is said that none does.
        fold: the fold that is the validation set.
        table: the file, for messages.
        needs_label: whether one of the candidates must be left for the labels.

    Raises:
        ArgumentError: what a column means is not clear.
    """
    called = dict(candidates)
    if by_hand is not None:
        usual = FOLD_NAMES[0] if fold is not None else WORD_NAMES[0]
        known = (*WORD_NAMES, *FLAG_NAMES, *FOLD_NAMES)
        called = {by_hand: candidates[by_hand] if candidates.get(by_hand) in known else usual}
    elif none or (needs_label and len(candidates) < 2):
        called = {}
    told = {column: {row[column].strip() for row in rows} for column, name in called.items() if _may_tell(name)}
    chosen = SplitColumns()
    for column in sorted(
        told, key=lambda column: WORD_NAMES.index(called[column]) if called[column] in WORD_NAMES else 9
    ):
        understood = [split_of_folder(value) is not None for value in told[column]]
        if any(understood) if called[column] else all(understood):
            chosen.words = column
            break
        if called[column] in WORD_NAMES:
            _expect_other_words(names[column], told[column], table, column == by_hand or called[column] == "split")
    if chosen.words is None:
        chosen.flags = {
            column: FLAG_NAMES[name]
            for column, name in called.items()
            if name in FLAG_NAMES and _tells_flags(name, told[column] - {""})
        }
    folds = [column for column, name in called.items() if name in FOLD_NAMES and column != chosen.words]
    if fold is not None or (folds and not chosen.columns):
        chosen.fold = _fold(folds, told, names, fold, table)
    if by_hand is not None and not chosen.columns:
        _expect_other_words(names[by_hand], told[by_hand], table, True)
    return chosen


def _may_tell(name: str) -> bool:
    """Return whether a column of this name, "" where there is no header, may tell splits."""
    return name in ("", *WORD_NAMES, *FLAG_NAMES, *FOLD_NAMES)


def _tells_flags(name: str, values: set[str]) -> bool:
    """Return whether values are true and false; where the name says so, rows with others are left out."""
    flags = [is_flag(value) for value in values]
    return any(flags) and (all(flags) or name.startswith("is"))


def _expect_other_words(name: str, values: set[str], table: str, is_meant: bool) -> None:
    """Raise `ArgumentError` where a column is meant to tell splits in values that do not say which."""
    if is_meant or all(value.isdecimal() or is_flag(value) for value in values):
        raise ArgumentError(
            f"Expected train, val and test in the column '{name}' of '{table}'. Received: {_listed(values)}. Write "
            "them, call a column of true and false is_train, is_valid or is_test, or give split_column none."
        )


def _fold(
    columns: Sequence[int], told: Mapping[int, set[str]], names: Sequence[str], fold: str | None, table: str
) -> tuple[int, str]:
    """Return the column of folds and the fold that is the validation set."""
    if not columns:
        raise ArgumentError(
            f"Expected a column of folds in '{table}' with fold {fold}. Received none that is called fold. Name it "
            "with split_column, or leave fold out."
        )
    [column, *_] = columns
    found = next((value for value in told[column] if fold is not None and _same(value, fold)), None)
    if found is None:
        received = "none" if fold is None else f"{fold}"
        raise ArgumentError(
            f"Expected fold to be the validation set's of the folds {_listed(told[column])} in the column "
            f"'{names[column]}' of '{table}'. Received: {received}. Give one, or split_column none."
        )
    return column, found


def _same(value: str, other: str) -> bool:
    """Return whether two values are the same text or number."""
    if _lower(value) == _lower(other):
        return True
    return value.strip().removesuffix(".0") == other.strip().removesuffix(".0")


def _lower(value: str) -> str:
    return value.strip().casefold()


def _listed(values: set[str]) -> str:
    return ", ".join(f"'{value}'" for value in sorted(values)[:6]) + (" and others" if len(values) > 6 else "")
