"""Rows that do not fit in memory, read from the disk when they are indexed."""

import contextlib
import mmap

import numpy as np

IN_MEMORY = 2**28  # bytes of all pictures of a data set; larger ones are read batch by batch


class MappedRows:
    """Rows of memory-mapped arrays, in an order of their own; with `stacked`, the arrays side by side on axis 1.

    Args:
        sources: `(stored, rows)` pairs: an array `(M, ...)`, and `(N,)` integers that choose and order its rows.
        stacked: for several sources.
        digests: `(M,)` sha256 of the rows of the first source, where they are known.
    """

    def __init__(self, sources, stacked=False, digests=None):
        self.sources, self.stacked = sources, stacked
        self.stored_digests = digests
        stored, rows = sources[0]
        self.shape = (len(rows), *((len(sources),) if stacked else ()), *stored.shape[1:])
        self.dtype = stored.dtype
        self.nbytes = len(sources) * len(rows) * stored[:1].nbytes

    @property
    def digests(self):
        """`(N,)` sha256 of the rows, `None` where they are not known."""
        return None if self.stored_digests is None else self.stored_digests[self.sources[0][1]]

    def only(self, index):
        """Some of the rows, not read."""
        return MappedRows(
            [(stored, rows[index]) for stored, rows in self.sources], self.stacked, digests=self.stored_digests
        )

    def __len__(self):
        return len(self.sources[0][1])

    def __getitem__(self, index):
        arrays = [np.asarray(stored[rows[index]]) for stored, rows in self.sources]
        for stored, _ in self.sources:
            forget(stored)
        return np.stack(arrays, axis=1) if self.stacked else arrays[0]


def forget(stored) -> None:
    """Take a mapping's pages out of the process, which is done with them: they would count as its memory."""
    mapping = getattr(stored, "_mmap", None)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        with contextlib.suppress(OSError, ValueError):
            mapping.madvise(mmap.MADV_DONTNEED)
