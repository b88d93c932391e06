"""`Pictures`: the decoded pictures of a data set with the file name, the label and the split of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cnnlab.data.class_folders import SplitName
from cnnlab.data.decoded_cache import DecodedImages
from cnnlab.data.disk_rows import IN_MEMORY, MappedRows

Positions = npt.NDArray[np.int64]


@dataclass
class Pictures:
    """Hold the decoded pictures of a data set, with the file name, the label and the split of each."""

    files: npt.NDArray[np.object_]  # `(N,)` relative paths, sorted; of a built-in set names such as "train/123"
    labels: npt.NDArray[np.int64]  # `(N,) int64`
    splits: npt.NDArray[np.str_]  # `(N,)` of "train", "val" and "test", or "" for pictures that are not used
    stored: DecodedImages  # the pixels, and what is known of each file

    def positions(self, *splits: SplitName) -> Positions:
        """Return the positions of the pictures of some splits, sorted."""
        return np.flatnonzero(np.isin(self.splits, splits))

    def leave_out(self, positions: Positions) -> None:
        """Remove some pictures from their splits."""
        self.splits = self.splits.copy()
        self.splits[positions] = ""

    def rows(self, positions: Positions) -> MappedRows:
        """Return pictures as `MappedRows`, with digests where all of them together are too large for memory."""
        large = self.stored.pixels.nbytes > IN_MEMORY
        return MappedRows([(self.stored.pixels, positions)], digests=self.stored.digests if large else None)

    def images(self, positions: Positions) -> npt.NDArray[np.uint8] | MappedRows:
        """Return `(n, side, side, 3) uint8`: an array, or `MappedRows` where all together are too large for memory."""
        rows = self.rows(positions)
        return rows[:] if rows.stored_digests is None else rows
