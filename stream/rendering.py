"""Numbers, times, ids and names as text, many at once.

What ``stream.canvas`` lays side by side: fragments that stand right-aligned in blocks of one width.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from msgspec.json import encode
from numpy.typing import NDArray

from stream.canvas import CHUNK, blocks, blocks_ending

__all__ = [
    "DECIMAL_WIDTH",
    "MAX_NAME_BYTES",
    "NUMBER_WIDTH",
    "JsonTexts",
    "NameTable",
    "micro_text",
    "number_texts",
    "rfc3339",
]

DECIMAL_WIDTH = 8  # bytes of 0.123456
NUMBER_WIDTH = 32  # bytes kept for a number: sign, 20 digits of an i64, point and 6 decimals, rounded up
#: Of a category's name as JSON: a longer one is left out, or 20 of them would outgrow a record.
MAX_NAME_BYTES = 256

_POWERS_OF_TEN = 10 ** np.arange(1, 19)
_FOUR_DIGITS = np.frombuffer(b"".join(b"%04d" % i for i in range(10_000)), "<u4")
_POINT_AND_3_DIGITS = np.frombuffer(b"".join(b".%03d" % i for i in range(1_000)), "<u4")
# "0.123456" is one 8-byte word, the bitwise or of a high and a low part with zero bytes where the other one writes.
_HIGH_MILLI = np.frombuffer(b"".join(b"%d.%03d\0\0\0" % divmod(i, 1_000) for i in range(1_001)), "<u8")
_LOW_MICRO = np.frombuffer(b"".join(b"\0\0\0\0\0%03d" % i for i in range(1_000)), "<u8")

#: Blocks, and how many of their last bytes are text.
Fragments = tuple[NDArray[np.void], NDArray[np.int64]]

_MS_PER_DAY = 86_400_000
_EPOCH_DAY = datetime.date(1970, 1, 1).toordinal()
_FIRST_MS = (datetime.date.min.toordinal() - _EPOCH_DAY) * _MS_PER_DAY
_LAST_MS = (datetime.date.max.toordinal() - _EPOCH_DAY + 1) * _MS_PER_DAY - 1
_HOUR_AND_MINUTE = np.frombuffer(
    b"".join(b"T%02d:%02d:" % divmod(i, 60) for i in range(1_440)), "u1"
).reshape(-1, 7)
_TWO_DIGITS = np.frombuffer(b"".join(b"%02d" % i for i in range(100)), "u1").reshape(-1, 2)


def micro_text(micro: NDArray[np.signedinteger[Any]]) -> NDArray[np.uint64]:
    """The texts ``0.000000`` to ``1.000000`` as 8-byte words, for integers 0 to 1,000,000 (millionths)."""
    milli = micro // 1_000
    words: NDArray[np.uint64] = _HIGH_MILLI.take(milli)
    milli *= 1_000
    words |= _LOW_MICRO.take(micro - milli)
    return words


class JsonTexts:
    """M texts as JSON strings without their quotes, end to end in one buffer.

    Attributes:
        source: ``blocks_ending`` of the buffer, CHUNK wide.
        ends: i8[M], where each text ends in it.
        lengths: i8[M], bytes of each; 0 for those over MAX_LENGTH, which are not worth copying in blocks.
        long: those, by index.
    """

    MAX_LENGTH = 128

    def __init__(self, texts: Sequence[str]) -> None:
        encoded = encode(texts)
        cells = np.frombuffer(bytes(CHUNK) + encoded, "u1")
        self.source = blocks_ending(cells, CHUNK, CHUNK)
        if b"\\" in encoded:
            # Inside a JSON string every quote follows a backslash, so that the sequence quote, comma, quote
            # stands between two strings and nowhere else.
            self.lengths = np.array([len(text) for text in encoded[2:-2].split(b'","')])
            self.ends = (self.lengths + len(b'","')).cumsum() - 1
        else:
            quotes = (cells[CHUNK:] == ord('"')).nonzero()[0]
            self.ends = quotes[1::2]
            self.lengths = self.ends - quotes[::2] - 1
        self.long: dict[int, bytes] = {}
        if self.lengths.max(initial=0) > self.MAX_LENGTH:
            for i in (self.lengths > self.MAX_LENGTH).nonzero()[0].tolist():
                end = int(self.ends[i])
                self.long[i] = encoded[end - int(self.lengths[i]) : end]
                self.lengths[i] = 0


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
        integers: (I, n), above -2**63. It is quickest when the largest come first.
        micros: (J, n), above -2**63; their texts always have 6 decimals.
    """
    first, point = len(integers), NUMBER_WIDTH - 7
    values = np.concatenate([integers, micros])
    cells = np.empty((*values.shape, NUMBER_WIDTH), "u1")
    whole = np.abs(values)
    magnitude = whole[first:].copy()
    whole[first:] //= 1_000_000
    # The leading 0 of these words gives way to the last digit of the whole part.
    words = micro_text(magnitude - whole[first:] * 1_000_000)
    cells[first:, :, point - 1 :].view("<u8")[..., 0] = words
    lengths = _POWERS_OF_TEN.searchsorted(whole, side="right")
    lengths += 1
    most_digits = lengths.max(axis=1, initial=0).tolist()
    for stop in range(point, 3, -4):
        unfinished = [i for i, digits in enumerate(most_digits) if digits > point - stop]
        if not unfinished:
            break
        rest = whole[: unfinished[-1] + 1]
        whole = rest // 10_000
        cells[: len(rest), :, stop - 4 : stop].view("<u4")[..., 0] = _FOUR_DIGITS.take(rest - whole * 10_000)
    if values.min(initial=0) < 0:
        negative = values < 0
        lengths += negative
        cells[(*np.nonzero(negative), point - lengths[negative])] = ord("-")
    lengths[first:] += NUMBER_WIDTH - point
    return (blocks(cells[:first, :, :point]), lengths[:first]), (blocks(cells[first:]), lengths[first:])


class NameTable:
    """Names as JSON strings, by their 32-bit code.

    Args:
        names: names by code that are known beforehand; others are taken up when ``rows`` meets them.
    """

    _PROBES = 4

    def __init__(self, names: Mapping[int, str]) -> None:
        self._count = 1  # row 0 is no name
        self._cells = np.zeros((1, CHUNK), "u1")
        self._lengths = np.zeros(1, np.int64)
        # An open hash table, each slot a row and its code. Codes are hashes already, so that their low bits are their
        # slot; when it is taken, one of the next serves, else the dict. Code 0, which means missing, has slot 0.
        self._slots = self._empty(1024)
        self._crowded_out: dict[int, int] = {}
        for code, name in names.items():
            self._add(code, name)

    @property
    def width(self) -> int:
        """Bytes of a name's cells: grows with the longest name."""
        return self._cells.shape[1]

    def rows(self, codes: NDArray[np.uint32], names: Mapping[int, str]) -> NDArray[np.int64]:
        """The rows of codes u4[n]; 0 where neither ``names`` nor an earlier call had a name to show."""
        places = (codes & self._mask()).astype(np.int64)
        slots = self._slots.take(places).view("u4")
        rows = slots[::2].astype(np.int64)
        missed = (slots[1::2] != codes).nonzero()[0]
        for probe in range(1, self._PROBES):
            if not len(missed):
                return rows
            slots = self._slots.take(places[missed] + probe).view("u4")
            rows[missed] = slots[::2]
            missed = missed[slots[1::2] != codes[missed]]
        if len(missed):
            rare, which = np.unique(codes[missed], return_inverse=True)
            rows[missed] = np.array([self._row(code, names) for code in rare.tolist()])[which]
        return rows

    def texts(self, rows: NDArray[np.int64]) -> Fragments:
        """Right-aligned names of rows of any shape; length 0 for row 0."""
        return blocks(self._cells).take(rows), self._lengths.take(rows)

    def _row(self, code: int, names: Mapping[int, str]) -> int:
        row = self._crowded_out.get(code)
        if row is None:
            row = self._add(code, names[code]) if code in names else 0
        return row

    def _add(self, code: int, name: str) -> int:
        text = encode(name)
        row = 0
        if len(text) <= MAX_NAME_BYTES:
            row, self._count = self._count, self._count + 1
            self._make_room(len(text))
            self._cells[row, self.width - len(text) :] = np.frombuffer(text, "u1")
            self._lengths[row] = len(text)
        size = len(self._slots) - self._PROBES
        if self._count * 8 > size:
            old, self._slots = self._slots, self._empty(2 * size)
            for slot in old[old > 0].tolist():
                self._place(slot >> 32, slot & 0xFFFFFFFF)
        self._place(code, row)
        return row

    def _make_room(self, length: int) -> None:
        capacity, width = self._cells.shape
        wider = max(width, -(-length // CHUNK) * CHUNK)
        if self._count > capacity or wider > width:
            cells = np.zeros((max(capacity, 2 * self._count), wider), "u1")
            cells[:capacity, wider - width :] = self._cells
            self._cells = cells
            self._lengths = np.pad(self._lengths, (0, len(cells) - len(self._lengths)))

    def _empty(self, size: int) -> NDArray[np.uint64]:
        return np.zeros(size + self._PROBES, np.uint64)

    def _mask(self) -> np.uint32:
        return np.uint32(len(self._slots) - self._PROBES - 1)

    def _place(self, code: int, row: int) -> None:
        first = code & int(self._mask())
        for place in range(max(first, 1), first + self._PROBES):
            if int(self._slots[place]) >> 32 in {0, code}:
                self._slots[place] = code << 32 | row
                return
        self._crowded_out[code] = row
