"""Read rows of arrays that stay on disk when they are indexed, for data sets larger than memory."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

IN_MEMORY = 2**28  # bytes of all pictures of a data set; larger ones are read batch by batch

Source: TypeAlias = "tuple[npt.NDArray[Any], npt.NDArray[np.int64]]"


class MappedRows:
    """Select rows of memory-mapped arrays without reading them; indexing reads the rows that are asked for.

    Args:
        sources: `(stored, rows)` pairs: an array `(M, ...)`, and `(N,)` integers that choose and order its rows.
        stacked: whether the rows of several sources are stacked along a new axis 1.
        digests: `(M,) S32`, sha256 of the rows of the first source, where they are known.
    """

    def __init__(
        self, sources: Sequence[Source], stacked: bool = False, digests: npt.NDArray[np.bytes_] | None = None
    ) -> None:
        self.sources, self.stacked, self.stored_digests = sources, stacked, digests
        stored, rows = sources[0]
        self.shape: tuple[int, ...] = (len(rows), *((len(sources),) if stacked else ()), *stored.shape[1:])
        self.dtype: np.dtype[Any] = stored.dtype
        self.nbytes: int = len(sources) * len(rows) * stored[:1].nbytes

    @property
    def digests(self) -> npt.NDArray[np.bytes_] | None:
        """Return `(N,) S32`, the sha256 of each row, or `None` where they are not known."""
        return None if self.stored_digests is None else self.stored_digests[self.sources[0][1]]

    def select(self, index: npt.NDArray[Any]) -> MappedRows:
        """Return some of the rows, without reading them."""
        sources = [(stored, rows[index]) for stored, rows in self.sources]
        return MappedRows(sources, self.stacked, self.stored_digests)

    def __len__(self) -> int:
        return len(self.sources[0][1])

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        arrays = [np.asarray(stored[rows[index]]) for stored, rows in self.sources]
        for stored, _ in self.sources:
            release_pages(stored)
        return np.stack(arrays, axis=1) if self.stacked else arrays[0]


def row_digests(rows: Any) -> npt.NDArray[np.bytes_]:
    """Return `(N,) S32`, the sha256 of each row."""
    return np.array([hashlib.sha256(np.ascontiguousarray(row).data).digest() for row in rows], "S32")


def release_pages(stored: npt.NDArray[Any]) -> None:
    """Release the pages of a memory-mapped array that were read, which would count as memory of this process."""
    mapping = getattr(stored, "_mmap", None)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        with contextlib.suppress(OSError, ValueError):
            mapping.madvise(mmap.MADV_DONTNEED)
