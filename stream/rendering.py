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
from functools import cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DECIMAL_WIDTH",
    "MAX_NAME_BYTES",
    "NAME_WIDTH",
    "NUMBER_WIDTH",
    "Block",
    "Canvas",
    "NameTable",
    "blocks",
    "json_strings",
    "micro_text",
    "number_texts",
    "rfc3339",
]

DECIMAL_WIDTH = 8  # bytes of 0.123456
NUMBER_WIDTH = 32  # bytes kept for a number: sign, 20 digits of an i64, point and 6 decimals, rounded up
NAME_WIDTH = 32  # bytes of a name that are copied at once
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


def blocks(cells: NDArray[np.uint8]) -> NDArray[np.void]:
    """uint8 (..., width) as blocks (...) of that many bytes, without a copy."""
    return cells.view(_block(cells.shape[-1]))[..., 0]


@cache
def _block(width: int) -> np.dtype[np.void]:
    return np.dtype((np.void, width))


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


class Block:
    """Text that is the same in each of up to ``rows`` rows but for its holes.

    Args:
        rows: how many rows it has room for.
        parts: bytes are constant; None is a hole for one text of ``micro_text``.

    Attributes:
        width: bytes of a row.
    """

    def __init__(self, rows: int, parts: Sequence[bytes | None]) -> None:
        template = b""
        holes = []
        for part in parts:
            if part is None:
                holes.append(len(template))
            template += b"0.000000" if part is None else part
        self.width = len(template)
        cells = np.empty((rows, self.width), "u1")
        cells[:] = np.frombuffer(template, "u1")
        self._blocks = blocks(cells)
        self._holes = [cells[:, hole : hole + DECIMAL_WIDTH].view("<u8")[:, 0] for hole in holes]

    def filled(self, *words: NDArray[np.uint64]) -> NDArray[np.void]:
        """The first n rows with words u8[n] in the holes, in their order; valid until the next call."""
        n = len(words[0])
        for hole, word in zip(self._holes, words, strict=True):
            hole[:n] = word
        return self._blocks[:n]


class Canvas:
    """Regions of one buffer, a row each, written from right to left.

    Args:
        rows: how many rows are written at once.
        width: the sum of the widths of all blocks that a row will get, bytes.
    """

    def __init__(self, rows: int, width: int) -> None:
        self.width = width
        self._cells = np.zeros(rows * width, "u1")
        self._views: dict[int, NDArray[np.void]] = {}
        self._starts = np.empty(0, np.int64)

    def begin(self, rows: int) -> None:
        """Empty the first ``rows`` rows."""
        self._starts = np.arange(1, rows + 1, dtype=np.int64) * self.width

    def prepend(self, fragment: NDArray[np.void], lengths: NDArray[np.int64] | int | None = None) -> None:
        """Put a right-aligned fragment before the text of every row.

        Args:
            fragment: a block for each row, or one for all.
            lengths: how many bytes at the right end belong to the fragment, all by default; 0 adds nothing to a row.
        """
        width = fragment.itemsize
        starts = self._starts - width
        self._places(width)[starts] = fragment
        self._starts = starts if lengths is None else self._starts - lengths

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
            names: (rows, K) right-aligned, a multiple of NAME_WIDTH wide.
            name_lengths: (rows, K); 0 for no name, and then there is none after it.
            leads: (rows, K) texts, at least NAME_WIDTH wide.
            first_lead_length: of the first lead only so many bytes at the right end are text.
        """
        lead_width = leads.itemsize
        ends = name_lengths + lead_width
        absent = name_lengths == 0
        some_absent = absent.any()
        if some_absent:
            ends[absent] = 0
        np.cumsum(ends, axis=1, out=ends)
        sections = self._starts - ends[:, -1]
        ends += sections[:, None]
        if some_absent:
            # What is not there is written to the left end of the region, which then has room to spare.
            bases = np.arange(len(ends)) * self.width
            ends[absent] = np.repeat(bases, absent.sum(axis=1)) + lead_width + NAME_WIDTH
        places = self._places(NAME_WIDTH)
        chunks = names[..., None].view(_block(NAME_WIDTH))
        places[ends - NAME_WIDTH] = chunks[..., -1]
        for chunk in range(1, chunks.shape[-1]):
            long = np.nonzero(name_lengths > chunk * NAME_WIDTH)
            places[ends[long] - (chunk + 1) * NAME_WIDTH] = chunks[..., -1 - chunk][long]
        ends -= name_lengths
        ends -= lead_width
        self._places(lead_width)[ends] = leads
        self._starts = sections + (lead_width - first_lead_length) * ~absent[:, 0]

    def _places(self, width: int) -> NDArray[np.void]:
        """Element i is the bytes from i to i + width, so that one indexed assignment copies blocks to any places."""
        places = self._views.get(width)
        if places is None:
            shape = (self._cells.size - width + 1,)
            places = np.ndarray(shape, _block(width), self._cells, strides=(1,))
            self._views[width] = places
        return places

    def texts(self) -> list[memoryview]:
        """The text of every row, valid until the next ``begin``."""
        data = self._cells.data
        ends = range(self.width, (len(self._starts) + 1) * self.width, self.width)
        return [data[start:end] for start, end in zip(self._starts.tolist(), ends, strict=True)]


class NameTable:
    """Names as JSON strings, by their 32-bit code.

    Args:
        names: names by code that are known beforehand; others are taken up when ``rows`` meets them.
    """

    _PROBES = 4

    def __init__(self, names: Mapping[int, str]) -> None:
        self._count = 1  # row 0 is no name
        self._cells = np.zeros((1, NAME_WIDTH), "u1")
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
        missed = np.flatnonzero(slots[1::2] != codes)
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
        text = msgspec.json.encode(name)
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
        wider = max(width, -(-length // NAME_WIDTH) * NAME_WIDTH)
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
