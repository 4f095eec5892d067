"""Text of many rows, laid side by side without a loop over rows.

Theory of operation. Every row has a region of one buffer and is written from its end to its beginning. A fragment
stands right-aligned in a block of one width; the block is copied whole, so garbage may precede the fragment, and the
next fragment to its left is written over that garbage. One copy of a fixed width a fragment replaces the joining of
small objects, and widths never show: a row's text is the bytes between its last start and the region's end, whatever
else is in the buffer.

    region   [ . . . . . . . . . . . . . . . . . . . . . ]
    first                              garbage,"offset":18842}
    then                garbage"event_time_ms":155
    text                       "event_time_ms":155,"offset":18842}
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHUNK", "Canvas", "Template", "blocks", "blocks_ending"]

CHUNK = 32  # bytes of a text of any length that are copied at once


@cache
def _block(width: int) -> np.dtype[np.void]:
    return np.dtype((np.void, width))


def blocks(cells: NDArray[np.uint8]) -> NDArray[np.void]:
    """uint8 (..., width) as blocks (...) of that many bytes, without a copy."""
    return cells.view(_block(cells.shape[-1]))[..., 0]


def blocks_ending(cells: NDArray[np.uint8], width: int, slack: int) -> NDArray[np.void]:
    """Element i is the ``width`` bytes before ``cells[slack + i]``; ``slack`` is at least ``width``."""
    # Elements overlap: one indexed assignment copies blocks to any places.
    shape = (len(cells) - slack + 1,)
    return np.ndarray(shape, _block(width), cells, offset=slack - width, strides=(1,))


class Template:
    """Text that is the same in each of up to ``rows`` rows but for its holes of 8 bytes.

    Args:
        rows: how many rows it has room for.
        parts: bytes are constant, None is a hole.

    Attributes:
        width: bytes of a row.
    """

    def __init__(self, rows: int, parts: Sequence[bytes | None]) -> None:
        text = b""
        holes = []
        for part in parts:
            if part is None:
                holes.append(len(text))
            text += bytes(8) if part is None else part
        self.width = len(text)
        cells = np.empty((rows, self.width), "u1")
        cells[:] = np.frombuffer(text, "u1")
        self._blocks = blocks(cells)
        self._holes = [cells[:, hole : hole + 8].view("<u8")[:, 0] for hole in holes]

    def filled(self, *words: NDArray[np.uint64]) -> NDArray[np.void]:
        """The first n rows with words u8[n] in the holes, in their order; valid until the next call."""
        n = len(words[0])
        for hole, word in zip(self._holes, words, strict=True):
            hole[:n] = word
        return self._blocks[:n]


class Canvas:
    """The regions of up to ``rows`` rows.

    Args:
        rows: how many rows are written at once.
        width: the sum of the widths of all blocks that a row will get, bytes.
    """

    def __init__(self, rows: int, width: int) -> None:
        self.rows, self.width = rows, width
        # A slice of anonymous memory is bytes at once. The first region is slack, for blocks may start before a row.
        self._memory = mmap.mmap(-1, max((rows + 1) * width, 1))
        self._cells = np.frombuffer(self._memory, "u1")
        self._places: dict[int, NDArray[np.void]] = {}
        self._at = np.empty(0, np.int64)  # where the text of each row begins, from the end of the slack

    def begin(self, rows: int) -> None:
        """Empty the first ``rows`` rows."""
        self._at = np.arange(1, rows + 1) * self.width

    def prepend(self, fragment: NDArray[np.void] | np.void, lengths: NDArray[np.int64] | None = None) -> None:
        """Put a right-aligned fragment before the text of every row.

        Args:
            fragment: a block for each row, or one for all.
            lengths: how many bytes at the right end are the fragment, all by default; 0 adds nothing to a row.
        """
        self._blocks_ending(fragment.itemsize)[self._at] = fragment
        self._at = self._at - (fragment.itemsize if lengths is None else lengths)

    def prepend_texts(
        self, source: NDArray[np.void], ends: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> None:
        """Put texts of any length, taken from another buffer, before the text of every row.

        Args:
            source: ``blocks_ending`` of that buffer, CHUNK wide.
            ends: (rows,) where the texts end in it.
            lengths: (rows,) of the texts.
        """
        places = self._blocks_ending(CHUNK)
        places[self._at] = source[ends]
        for done in range(CHUNK, int(lengths.max()), CHUNK):
            longer = (lengths > done).nonzero()[0]
            places[self._at[longer] - done] = source[ends[longer] - done]
        self._at = self._at - lengths

    def prepend_list(
        self,
        names: NDArray[np.void],
        name_lengths: NDArray[np.int64],
        leads: NDArray[np.void],
        first_lead_length: int,
    ) -> None:
        """Put up to K names, each after a lead, before the text of every row.

        A lead is longer than the garbage before a name, so all names, then all leads, are written at once.

        Args:
            names: (rows, K) right-aligned, a multiple of CHUNK wide.
            name_lengths: (rows, K); 0 for no name, and then there is none after it.
            leads: (rows, K) texts, at least CHUNK wide.
            first_lead_length: of the first lead only so many bytes at the right end are text.
        """
        absent = name_lengths == 0
        ends = name_lengths + leads.itemsize
        some_absent = absent.any()
        if some_absent:
            ends[absent] = 0
        np.cumsum(ends, axis=1, out=ends)
        sections = self._at - ends[:, -1]
        ends += sections[:, None]
        if some_absent:
            # What is not there is written to the left end of the region, which then has room to spare.
            left_ends = np.arange(len(ends)) * self.width + leads.itemsize + CHUNK
            ends[absent] = np.repeat(left_ends, absent.sum(axis=1))
        places = self._blocks_ending(CHUNK)
        chunks = names[..., None].view(_block(CHUNK))
        places[ends] = chunks[..., -1]
        for chunk in range(1, chunks.shape[-1]):
            longer = (name_lengths > chunk * CHUNK).nonzero()
            places[ends[longer] - chunk * CHUNK] = chunks[..., -1 - chunk][longer]
        ends -= name_lengths
        self._blocks_ending(leads.itemsize)[ends] = leads
        self._at = sections + (leads.itemsize - first_lead_length) * ~absent[:, 0]

    def _blocks_ending(self, width: int) -> NDArray[np.void]:
        if width not in self._places:
            self._places[width] = blocks_ending(self._cells, width, self.width)
        return self._places[width]

    def texts(self) -> list[bytes]:
        """The text of every row."""
        memory = self._memory
        starts = (self._at + self.width).tolist()
        ends = range(2 * self.width, (len(starts) + 2) * self.width, self.width)
        return [memory[start:end] for start, end in zip(starts, ends, strict=True)]
