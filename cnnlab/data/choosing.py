"""Choose the pictures of a folder to use, and split off a validation or test set where the folder has none."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cnnlab.data.class_folders import SPLIT_WORDS, SPLITS
from cnnlab.data.folder_layout import FolderLayout
from cnnlab.data.pictures import Positions
from cnnlab.data.splitting import TEST_SHARE, HeldOut, Shares, hold_out, stratified_subset
from cnnlab.errors import ArgumentError
from cnnlab.utils.text import list_first

MOST_EXPLAINED = 3  # classes without a picture in a split, of which each has a sentence


@dataclass(frozen=True)
class Choice:
    """Say which pictures of a layout are used, and in which split."""

    positions: Positions  # `(N,)` in the layout, in the order of the splits, classes and paths
    splits: npt.NDArray[np.str_]  # `(N,)` of "train", "val" and "test"
    notes: list[str]  # sentences on how they were chosen
    left_out: dict[str, list[str]]  # the relative paths that are not used, by reason
    apportioned: bool = False  # as in `HeldOut`, of either split


def choose_pictures(
    layout: FolderLayout, shares: Shares, limit: int | None, seed: int, bad: Collection[int] = ()
) -> Choice:
    """Choose the pictures of each split, holding out a test and a validation set where the folder has none.

    Args:
        layout: of the folder.
        shares: that are held out.
        limit: of training pictures, and of the others in proportion; `None` for all.
        seed: of the splits.
        bad: positions in the layout that are not to be used.

    Raises:
        ArgumentError: there are too few pictures for the splits or the limit.
    """
    names, notes = layout.class_names, list(layout.notes)
    left_out: dict[str, list[str]] = {}
    given: dict[str, Positions] = {split: layout.positions(split) for split in SPLITS}
    chosen = {split: positions[~np.isin(positions, list(bad))] for split, positions in given.items()}
    _expect_pictures(layout, given, chosen)
    in_folder = {split for split, positions in given.items() if len(positions)}
    fractions = {} if "test" in in_folder else {"test": TEST_SHARE if shares.test is None else shares.test}
    fractions |= {} if "val" in in_folder else {"val": shares.val}
    taken: dict[str, HeldOut] = {}

    def take(split: str) -> None:
        train = layout.labels[chosen["train"]]
        away = np.bincount(layout.labels[chosen["test"]], minlength=len(names)) if "test" in taken else 0
        whole_share = 1 - np.prod([1 - share for share in fractions.values()])
        how = {"every_class": shares.every_class, "away": away, "whole_share": whole_share}
        held = hold_out(train, fractions[split], names, seed, f"{SPLIT_WORDS[split]} split", **how)
        chosen[split], chosen["train"] = chosen["train"][held.positions], chosen["train"][held.rest]
        taken[split] = held

    if "test" in fractions:
        take("test")
        notes.append(taken["test"].describe("are held out as the test set, as it has none", "test_fraction"))
    elif shares.test is not None:
        notes.append("test_fraction is not used, as there is a test set")
    if "val" in in_folder and not shares.val:
        left_out["validation pictures, as val_fraction is 0"] = list(layout.files[chosen["val"]])
        chosen["val"] = chosen["val"][:0]
    if limit is not None:
        labels = {split: layout.labels[positions] for split, positions in chosen.items()}
        for split, index in stratified_subset(labels, names, limit, seed).items():
            if len(beyond := np.delete(chosen[split], index)):
                left_out.setdefault("pictures beyond the limit", []).extend(layout.files[beyond])
            chosen[split] = chosen[split][index]
    if fractions.get("val"):
        take("val")
        if not taken["val"].is_kept:
            notes.append(taken["val"].describe("are held out for validation", "val_fraction"))
    labels = {split: layout.labels[positions] for split, positions in chosen.items()}
    missing = list(_missing_classes(names, labels, in_folder))
    if apportioned := any(held.apportioned for held in taken.values()):
        missing += ["hold_out_every_class would hold out one picture of each class of two or more"] if missing else []
    return Choice(*_concatenate(chosen), [*notes, *missing], left_out, apportioned)


def _expect_pictures(layout: FolderLayout, given: Mapping[str, Positions], chosen: Mapping[str, Positions]) -> None:
    """Raise `ArgumentError` where none of the pictures of a split, or of a class for training, decodes."""
    for split, positions in chosen.items():
        if len(given[split]) and not len(positions):
            raise ArgumentError(f"Expected {split} pictures. Received none that decode. Add some.")
    trained = set(layout.labels[chosen["train"]].tolist())
    if empty := [name for label, name in enumerate(layout.class_names) if label not in trained]:
        raise ArgumentError(
            f"Expected training pictures of every class. Received none that decode of: {', '.join(empty)}. Add some, "
            "or move the class away."
        )


def choose_all_pictures(layout: FolderLayout, limit: int | None, seed: int) -> Choice:
    """Choose every picture, in the split where it lies; of a limit, each split has its share, drawn at random."""
    positions = {split: layout.positions(split) for split in SPLITS}
    share = min(1, limit / max(1, len(positions["train"]))) if limit else 1
    for split, given in positions.items():
        order = np.random.default_rng(seed).permutation(len(given))
        positions[split] = given[np.sort(order[: int(np.ceil(share * len(order)))])]
    return Choice(*_concatenate(positions), list(layout.notes), {})


def _concatenate(by_split: Mapping[str, Positions]) -> tuple[Positions, npt.NDArray[np.str_]]:
    """Return the positions of all splits as one array, and the split of each as another."""
    lengths = [len(positions) for positions in by_split.values()]
    return np.concatenate(list(by_split.values())), np.repeat(list(by_split), lengths)


def _missing_classes(
    names: Sequence[str], labels: Mapping[str, npt.NDArray[np.int64]], in_folder: Collection[str]
) -> Iterator[str]:
    """Yield sentences on the classes that a split has no picture of.

    Args:
        labels: of the pictures of each split.
        in_folder: the splits that the folder has itself; the others were held out.
    """
    without: dict[int, list[str]] = {}
    for split in SPLITS[1:]:
        missing = sorted(set(range(len(names))) - set(labels[split].tolist())) if len(labels[split]) else []
        if split in in_folder and missing:
            yield f"no {SPLIT_WORDS[split]} pictures of {list_first([names[label] for label in missing])}"
        elif len(missing) > MOST_EXPLAINED:
            first = list_first([names[label] for label in missing])
            yield f"{len(missing):,} of {len(names):,} classes have no {SPLIT_WORDS[split]} picture: {first}"
        else:
            for label in missing:
                without.setdefault(label, []).append(SPLIT_WORDS[split])
    for label, splits in without.items():
        count = sum(int((given == label).sum()) for given in labels.values())
        pictures = "one picture, which is" if count == 1 else f"{count} pictures, none of which is"
        yield f"'{names[label]}' has {pictures} for {'training' if count == 1 else ' or '.join(splits)}"
