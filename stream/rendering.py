"""Text of many rows at once: numbers become bytes in numpy, fragments are laid side by side without a loop over rows.

Theory of operation. Every row of a ``Canvas`` is a region of one buffer and is written from its end to its
beginning. A fragment stands right-aligned in a block of one width; the block is copied whole, so garbage may
precede the fragment, and the next fragment to its left is written over that garbage. One copy of a fixed width
per fragment replaces the joining of small objects, and widths never show: a row's text is the bytes between its
last start and the region's end, whatever else is in the buffer.

    region   [ . . . . . . . . . . . . . . . . . . . . . ]
    first                              garbage,"offset":18842}
    then                garbage"event_time_ms":155
    text                       "event_time_ms":155,"offset":18842}
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DECIMAL_WIDTH",
    "MAX_NAME_BYTES",
    "NUMBER_WIDTH",
    "Block",
    "Canvas",
    "CategoryFragments",
    "json_strings",
    "micro_text",
    "number_texts",
    "rfc3339",
]

DECIMAL_WIDTH = 8  # bytes of 0.123456
NUMBER_WIDTH = 32  # bytes kept for a number: sign, 20 digits of an i64, point and 6 decimals, rounded up
MAX_NAME_BYTES = (
    256  # of a category's name as JSON; a longer one is left out, else 20 of them outgrow a record
)

_POWERS_OF_TEN = 10 ** np.arange(1, 20, dtype=np.uint64)
_FOUR_DIGITS = np.frombuffer(b"".join(b"%04d" % i for i in range(10_000)), "<u4")
_POINT_AND_3_DIGITS = np.frombuffer(b"".join(b".%03d" % i for i in range(1_000)), "<u4")
# "0.123456" is one 8-byte word, the bitwise or of a high and a low part with zero bytes where the other one writes.
_HIGH_MILLI = np.frombuffer(b"".join(b"%d.%03d\0\0\0" % divmod(i, 1_000) for i in range(1_001)), "<u8")
_LOW_MICRO = np.frombuffer(b"".join(b"\0\0\0\0\0%03d" % i for i in range(1_000)), "<u8")

#: Texts that end their cells: uint8 (..., width), and how many of the last bytes are text.
Fragments = tuple[NDArray[np.uint8], NDArray[np.int64]]

_CODE_SHIFT = np.uint64(32)
_ROW_BITS = np.uint64(0xFFFFFFFF)

_MS_PER_DAY = 86_400_000
_EPOCH_DAY = datetime.date(1970, 1, 1).toordinal()
_FIRST_MS = (datetime.date.min.toordinal() - _EPOCH_DAY) * _MS_PER_DAY
_LAST_MS = (datetime.date.max.toordinal() - _EPOCH_DAY + 1) * _MS_PER_DAY - 1
_HOUR_AND_MINUTE = (
    np.array([b"T%02d:%02d:" % divmod(i, 60) for i in range(1_440)], "S7").view("u1").reshape(-1, 7)
)
_TWO_DIGITS = np.frombuffer(b"".join(b"%02d" % i for i in range(100)), "u1").reshape(-1, 2)


def micro_text(micro: NDArray[np.signedinteger[Any]]) -> NDArray[np.uint64]:
    """The texts ``0.000000`` to ``1.000000`` as 8-byte words, for integers 0 to 1,000,000 (millionths)."""
    milli = micro // 1_000
    words: NDArray[np.uint64] = _HIGH_MILLI.take(milli)
    milli *= 1_000
    words |= _LOW_MICRO.take(micro - milli)
    return words


def json_strings(texts: Sequence[str]) -> list[bytes]:
    """Each text as a JSON string, without its quotes."""
    if not texts:
        return []
    # One call encodes them all. Inside a JSON string every quote follows a backslash, so that the sequence
    # quote, comma, quote stands between two strings and nowhere else.
    return msgspec.json.encode(texts)[2:-2].split(b'","')


def rfc3339(times_ms: NDArray[np.int64]) -> list[bytes]:
    """UTC times as ``2017-11-24T19:08:36.000Z``; times outside the years 1 to 9999 become the nearest inside."""
    clipped = np.clip(times_ms, _FIRST_MS, _LAST_MS)
    day, ms = clipped // _MS_PER_DAY, clipped % _MS_PER_DAY
    days, which = np.unique(day, return_inverse=True)
    dates = [datetime.date.fromordinal(d + _EPOCH_DAY).isoformat().encode() for d in days.tolist()]
    text = np.empty((len(ms), 24), "u1")
    text[:, :10] = np.array(dates, "S10").view("u1").reshape(-1, 10).take(which, axis=0)
    minute, ms = ms // 60_000, ms % 60_000
    second, ms = ms // 1_000, ms % 1_000
    text[:, 10:17] = _HOUR_AND_MINUTE.take(minute, axis=0)
    text[:, 17:19] = _TWO_DIGITS.take(second, axis=0)
    text[:, 19:23].view("<u4")[:, 0] = _POINT_AND_3_DIGITS.take(ms)
    text[:, 23] = ord("Z")
    times: list[bytes] = text.view("S24")[:, 0].tolist()
    return times


def number_texts(integers: NDArray[np.int64], micros: NDArray[np.int64]) -> tuple[Fragments, Fragments]:
    """Numbers in plain decimal notation, right-aligned: fragments of the integers, and of the millionths.

    Args:
        integers: (I, n).
        micros: (J, n); their texts always have 6 decimals.
    """
    point = NUMBER_WIDTH - 7
    cells = np.empty((len(integers) + len(micros), integers.shape[1], NUMBER_WIDTH), "u1")
    values = np.concatenate([integers, micros])
    whole = np.abs(values).view("u8")  # the smallest i64 has no positive, but its bits are the magnitude
    decimal = whole[len(integers) :]
    decimal[:], micro = np.divmod(decimal, np.uint64(1_000_000))
    # The leading 0 of these words gives way to the last digit of the whole part.
    cells[len(integers) :, :, point - 1 :].view("<u8")[..., 0] = micro_text(micro.view("i8"))

    lengths = np.searchsorted(_POWERS_OF_TEN, whole, side="right")
    lengths += 1
    for stop in range(point, 3, -4):
        whole, four_digits = np.divmod(whole, np.uint64(10_000))
        cells[:, :, stop - 4 : stop].view("<u4")[..., 0] = _FOUR_DIGITS.take(four_digits.view("i8"))
        if not whole.any():
            break
    negative = values < 0
    if negative.any():
        lengths += negative
        cells[(*np.nonzero(negative), point - lengths[negative])] = ord("-")
    lengths[len(integers) :] += NUMBER_WIDTH - point
    return (cells[: len(integers), :, :point], lengths[: len(integers)]), (
        cells[len(integers) :],
        lengths[len(integers) :],
    )


class Block:
    """Text that is the same in each of up to ``rows`` rows but for its holes.

    Args:
        rows: how many rows it has room for.
        parts: bytes are constant; None is a hole for one text of ``micro_text``.

    Attributes:
        cells: uint8 (rows, width).
    """

    def __init__(self, rows: int, parts: Sequence[bytes | None]) -> None:
        template = b""
        holes = []
        for part in parts:
            if part is None:
                holes.append(len(template))
            template += b"0.000000" if part is None else part
        self.cells = np.empty((rows, len(template)), "u1")
        self.cells[:] = np.frombuffer(template, "u1")
        self._holes = [self.cells[:, hole : hole + DECIMAL_WIDTH].view("<u8")[:, 0] for hole in holes]

    def filled(self, words: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """The cells of the first n rows with ``words`` (holes, n) in the holes; they are valid until the next call."""
        n = words.shape[1]
        for hole, column in zip(self._holes, words, strict=True):
            hole[:n] = column
        return self.cells[:n]


class Canvas:
    """Regions of one buffer, a row each, written from right to left.

    Args:
        rows: how many rows are written at once.
        width: the sum of the widths of all blocks that a row will get, bytes.
    """

    def __init__(self, rows: int, width: int) -> None:
        self.width = width
        self._cells = np.zeros(rows * width, "u1")
        self._views: dict[int, tuple[np.dtype[np.void], NDArray[np.void]]] = {}
        self._starts = np.empty(0, np.int64)

    def begin(self, rows: int) -> None:
        """Empty the first ``rows`` rows."""
        self._starts = np.arange(1, rows + 1, dtype=np.int64) * self.width

    def prepend(self, cells: NDArray[np.uint8], lengths: NDArray[np.int64] | int | None = None) -> None:
        """Put a right-aligned fragment before the text of every row.

        Args:
            cells: uint8 (rows, width), or (width,) for the same text in every row; its last axis is contiguous.
            lengths: how many bytes at the right end belong to the fragment, all by default; 0 adds nothing to a row.
        """
        block, places = self._blocks(cells.shape[-1])
        places[self._starts - block.itemsize] = cells.view(block)[..., 0]
        self._starts -= block.itemsize if lengths is None else lengths

    def prepend_all(self, cells: NDArray[np.uint8], lengths: NDArray[np.int64]) -> None:
        """Put K fragments, the last first, before the text of every row: (K, rows, width) and (K, rows)."""
        block, places = self._blocks(cells.shape[-1])
        fragments = cells.view(block)[..., 0]
        starts = self._starts - block.itemsize  # of the last one's block; the others' follow from the lengths
        starts_before = starts - lengths[::-1].cumsum(axis=0)
        for fragment, start in zip(fragments[::-1], (starts, *starts_before), strict=False):
            places[start] = fragment
        if len(lengths):
            self._starts = starts_before[-1] + block.itemsize

    def _blocks(self, width: int) -> tuple[np.dtype[np.void], NDArray[np.void]]:
        if width not in self._views:
            # Element i is the bytes from i to i + width, so that one indexed assignment copies a block to any place.
            block = np.dtype((np.void, width))
            places = np.ndarray((self._cells.size - width + 1,), block, self._cells, strides=(1,))
            self._views[width] = block, places
        return self._views[width]

    def texts(self) -> list[memoryview]:
        """The text of every row, valid until the next ``begin``."""
        data = self._cells.data
        ends = range(self.width, (len(self._starts) + 1) * self.width, self.width)
        return [data[start:end] for start, end in zip(self._starts.tolist(), ends, strict=True)]


class CategoryFragments:
    """Fragments ``,{"category":"shoes","probability":0.210000}`` by the 32-bit code of the name.

    Args:
        names: names by code that are known beforehand; others are taken up when ``rows`` meets them.

    Attributes:
        width: bytes of a fragment's cells; grows with the longest name.
    """

    _PROBES = 8

    def __init__(self, names: Mapping[int, str]) -> None:
        self.width = DECIMAL_WIDTH + 1
        self._count = 1  # row 0 is the empty fragment
        self._cells = np.zeros((1, self.width), "u1")
        self._lengths = np.zeros(1, np.int64)
        # An open hash table, each slot a code and its row. Codes are hashes already, so that their low bits are their
        # slot; when it is taken, one of the next serves. Code 0, which means missing, has row 0 in slot 0.
        self._slots = self._empty(1024)
        for code, name in names.items():
            self._add(code, name)

    def rows(self, codes: NDArray[np.uint32], names: Mapping[int, str]) -> NDArray[np.int64]:
        """The rows of codes u4[n]; 0 where neither ``names`` nor an earlier call had a name to show."""
        places = (codes & self._mask()).astype(np.int64)
        slots = self._slots.take(places)
        rows: NDArray[np.int64] = (slots & _ROW_BITS).view(np.int64)
        missed = np.flatnonzero(slots >> _CODE_SHIFT != codes)
        for probe in range(1, self._PROBES):
            if not len(missed):
                return rows
            slots = self._slots.take(places[missed] + probe)
            rows[missed] = slots & _ROW_BITS
            missed = missed[slots >> _CODE_SHIFT != codes[missed]]
        new, which = np.unique(codes[missed], return_inverse=True)
        added = [self._add(code, names[code]) if code in names else 0 for code in new.tolist()]
        rows[missed] = np.array(added, np.int64)[which]
        return rows

    def fragments(self, rows: NDArray[np.int64], words: NDArray[np.uint64]) -> Fragments:
        """Right-aligned fragments with the probabilities ``words``: uint8 (*rows.shape, width), and their lengths."""
        cells = self._cells.view(f"V{self.width}")[:, 0].take(rows)[..., None].view("u1")
        cells[..., -1 - DECIMAL_WIDTH : -1].view("<u8")[..., 0] = words
        return cells, self._lengths.take(rows)

    def _add(self, code: int, name: str) -> int:
        text = msgspec.json.encode(name)
        row = 0
        if len(text) <= MAX_NAME_BYTES:
            fragment = b',{"category":%b,"probability":0.000000}' % text
            row, self._count = self._count, self._count + 1
            self._make_room(len(fragment))
            self._cells[row, self.width - len(fragment) :] = np.frombuffer(fragment, "u1")
            self._lengths[row] = len(fragment)
        size = len(self._slots) - self._PROBES
        while self._count * 8 > size or not self._place(code, row):
            size *= 2
            old, self._slots = self._slots, self._empty(size)
            if not all(self._place(slot >> 32, slot & 0xFFFFFFFF) for slot in old[old > 0].tolist()):
                self._slots = old
        return row

    def _make_room(self, fragment_length: int) -> None:
        capacity, width = self._cells.shape
        wider = max(width, fragment_length)
        if self._count > capacity or wider > width:
            cells = np.zeros((max(capacity, 2 * self._count), wider), "u1")
            cells[:capacity, wider - width :] = self._cells
            self._cells, self.width = cells, wider
            self._lengths = np.pad(self._lengths, (0, len(cells) - len(self._lengths)))

    def _empty(self, size: int) -> NDArray[np.uint64]:
        return np.zeros(size + self._PROBES, np.uint64)

    def _mask(self) -> np.uint32:
        return np.uint32(len(self._slots) - self._PROBES - 1)

    def _place(self, code: int, row: int) -> bool:
        first = code & int(self._mask())
        for place in range(first, first + self._PROBES):
            # Slot 0 belongs to code 0, which no name has.
            if place and self._slots[place] >> _CODE_SHIFT in {0, code}:
                self._slots[place] = code << 32 | row
                return True
        return False
