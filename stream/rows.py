"""The state row: all that is known of one user, in a fixed binary layout.

Every row starts with its own sizes, so that rows of another model lie side by side in one store and are
read on their user's next event:

    header        version, number of actions, window, bytes of a window entry, length of the state vector
    position      offset of the last applied event, and the epoch of its topic: its id's first 8 bytes
    session       first and last event time, counters; per action: count in session and life, last time
    duplicates    ring of the last 16 hashes of event ids
    model         fingerprint of the weights, and the state vector in float16
    window        the last events, newest last: the truth from which a state vector is rebuilt
    alerts        how long the silence after the last event may last, whether that is the deadline itself or only less
                  than it, and whether the silence was said

All numbers are little-endian and nothing is padded. A change of the layout is a new `VERSION` with a
golden file of its own in tests/golden; the versions before it stay readable. Version 1 reserved a deadline in
milliseconds where version 2 has a silence and the chance of its end; no build ever wrote one.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stream.errors import DamagedRow

__all__ = [
    "ENTRY_BYTES",
    "LEAST",
    "RING",
    "SAID",
    "VERSION",
    "RowLayout",
    "Waits",
    "fingerprint_of",
    "looked_at_ms",
    "positions_of",
    "read",
    "waits_of",
]

VERSION: Final = 2
#: Of ``said``: the silence that lasts now was said. Builds that had no moment in the source's mark (``stream.stage``)
#: wrote it; it is still understood.
SAID: Final = 1
#: Of ``said``: ``silence_s`` is less than the silence that would be an alert; how long that is was not asked yet.
LEAST: Final = 2
#: How many event ids of a user are remembered to drop repeats.
RING: Final = 16
#: One window entry: action u1, category u4, item u4, log gap f2, log price f2.
ENTRY_BYTES: Final = 13

_HEADER = np.dtype(
    [("version", "u1"), ("n_actions", "u1"), ("window", "u1"), ("entry_width", "u1"), ("state_width", "<u2")]
)
_WINDOW_FIELDS = ("w_action", "w_category", "w_item", "w_log_gap", "w_log_price")
_MODEL_FIELDS = ("fingerprint", "state")
#: Fields that mean the same in every layout of this version.
_COPIED = (
    *("position", "epoch", "first_ms", "last_ms", "session_start_ms", "session_index", "session_events"),
    *("life_events", "ring", "ring_next", "silence_s", "return_millionths", "said"),
)
#: The last part of a row, by version.
_ALERTS: Final = {
    1: (("deadline_ms", "<i8"), ("said_v1", "u1")),
    2: (
        ("silence_s", "<u4"),  # after the last event, until it is an alert, or with LEAST may be; 0: never
        ("return_millionths", "<u4"),  # the chance of coming back after it
        ("said", "u1"),  # SAID, LEAST or 0
    ),
}
_SILENCE = np.dtype(list(_ALERTS[2]))
_POSITION_AT = 6
_LAST_MS_AT = 30


@dataclass(frozen=True)
class RowLayout:
    """The layout of rows for one model.

    Args:
        n_actions: actions of the model's vocabulary, ``other`` (the last) included; 1 to 65.
        state_width: numbers in the state vector; 0 to 65,535.
        window: events that are kept; 1 to 255.
        version: of the layout.
    """

    n_actions: int
    state_width: int
    window: int = 32
    version: int = VERSION

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        """One row, packed and little-endian."""
        actions, window = (self.n_actions,), (self.window,)
        return np.dtype(
            [
                *((name, _HEADER[name].str) for name in _HEADER.names or ()),
                ("position", "<i8"),  # -1: nothing applied yet
                ("epoch", "V8"),
                ("first_ms", "<i8"),
                ("last_ms", "<i8"),
                ("session_start_ms", "<i8"),
                ("session_index", "<u4"),  # 1 for the first session; 0: no event yet
                ("session_events", "<u4"),
                ("life_events", "<u4"),
                ("action_session", "<u2", actions),  # stays at 65,535
                ("action_life", "<u4", actions),
                ("action_last_s", "<u4", actions),  # seconds since 1970; means nothing while action_life is 0
                ("ring", "<u8", (RING,)),  # 0: empty
                ("ring_next", "u1"),  # the slot that the next event takes
                ("window_count", "u1"),
                ("fingerprint", "<u8"),  # 0: no state vector
                ("state", "<f2", (self.state_width,)),
                ("w_action", "u1", window),
                ("w_category", "<u4", window),
                ("w_item", "<u4", window),
                ("w_log_gap", "<f2", window),  # log(1 + seconds since the event before)
                ("w_log_price", "<f2", window),  # log(1 + price); NaN: no price
                *_ALERTS[self.version],
            ]
        )

    @property
    def size(self) -> int:
        """Bytes of a row."""
        return self.dtype.itemsize

    @cached_property
    def _header(self) -> bytes:
        header = (self.version, self.n_actions, self.window, ENTRY_BYTES, self.state_width)
        return np.array([header], dtype=_HEADER).tobytes()

    @cached_property
    def _blank(self) -> bytes:
        return (self._header + np.array(-1, "<i8").tobytes()).ljust(self.size, b"\0")

    def blank(self, count: int) -> np.ndarray:
        """Rows (count,) of users without events: zeros, but for the header and position -1."""
        return np.frombuffer(bytearray(self._blank * count), dtype=self.dtype)

    def unpack(self, raws: Sequence[bytes | None]) -> np.ndarray:
        """Read rows into a writable array (B,) of `dtype`; None becomes a blank row.

        Rows of another layout are upgraded: what both know is copied, a state vector of another width is
        emptied (fingerprint 0), actions beyond ``n_actions`` are added to the last, ``other``.

        Raises:
            DamagedRow: a row's version is unknown or its length is not what its header says.
        """
        blank = self._blank
        filled = [blank if raw is None else raw for raw in raws]
        if not set(map(len, filled)) <= {self.size}:
            odd = [index for index, raw in enumerate(filled) if len(raw) != self.size]
            upgraded = self.pack(self.upgraded([filled[index] for index in odd]))
            for index, raw in zip(odd, upgraded, strict=True):
                filled[index] = raw
        rows = np.frombuffer(bytearray().join(filled), dtype=self.dtype)
        foreign = (_as_bytes(rows)[:, : len(self._header)] != np.frombuffer(self._header, np.uint8)).any(
            axis=1
        )
        if foreign.any():
            rows[foreign] = self.upgraded([filled[index] for index in np.flatnonzero(foreign).tolist()])
        return rows

    def pack(self, rows: np.ndarray) -> list[bytes]:
        """The bytes of each row, in order: what the changelog and the store hold."""
        # The items of a raw (void) array are bytes, made in one pass without a copy of the whole.
        return np.ascontiguousarray(rows).view(f"V{self.size}").tolist()

    def upgraded(
        self, raws: Sequence[bytes], code_of: NDArray[np.uint8] | None = None
    ) -> np.ndarray[Any, np.dtype[np.void]]:
        """Read rows of any layouts into this one, as ``unpack`` does for those that need it.

        Args:
            raws: rows as they are stored.
            code_of: the code here of each action code of the old rows, which are then all of one vocabulary. None:
                the vocabularies begin alike; what only one of them has, and the old ``other``, is ``other``.
        """
        by_layout: dict[RowLayout, list[int]] = {}
        for index, raw in enumerate(raws):
            by_layout.setdefault(_layout_of(raw), []).append(index)
        rows = self.blank(len(raws))
        for layout, indices in by_layout.items():
            old = np.frombuffer(b"".join([raws[index] for index in indices]), dtype=layout.dtype)
            rows[indices] = self._from(layout, old, code_of)
        return rows

    def _from(self, layout: RowLayout, old: np.ndarray, code_of: NDArray[np.uint8] | None) -> np.ndarray:
        new = self.blank(len(old))
        new["window_count"] = np.minimum(self.window, old["window_count"])
        shared = min(self.window, layout.window)
        held = np.arange(-shared, 0) >= -new["window_count"].astype(np.int64)[:, None]
        for name in new.dtype.names or ():
            if name in _WINDOW_FIELDS:
                new[name][:, -shared:] = np.where(held, old[name][:, -shared:], 0)
            elif name not in (old.dtype.names or ()):
                continue
            elif name in _COPIED or (name in _MODEL_FIELDS and layout.state_width == self.state_width):
                new[name] = old[name]
        if code_of is None:
            code_of = np.full(layout.n_actions, self.n_actions - 1, np.uint8)
            alike = min(layout.n_actions, self.n_actions) - 1
            code_of[:alike] = np.arange(alike)
        _move_actions(old, new, code_of)
        new["w_action"][:, -shared:] = np.where(
            held, code_of.take(old["w_action"][:, -shared:], mode="clip"), 0
        )
        return new


def _as_bytes(rows: np.ndarray) -> np.ndarray:
    """The same memory as uint8 (B, size)."""
    return rows.view(np.uint8).reshape(len(rows), rows.dtype.itemsize)


def _move_actions(old: np.ndarray, new: np.ndarray, code_of: NDArray[np.uint8]) -> None:
    """Counts and times of each old action to its code in the new rows; several that meet are added up."""
    counts = {name: np.zeros(new[name].shape, np.int64) for name in ("action_session", "action_life")}
    for before, code in enumerate(code_of.tolist()):
        for name, sums in counts.items():
            sums[:, code] += old[name][:, before]
        # A time means something only beside a count.
        known = np.where(old["action_life"][:, before] > 0, old["action_last_s"][:, before], 0)
        new["action_last_s"][:, code] = np.maximum(new["action_last_s"][:, code], known)
    for name, sums in counts.items():
        new[name] = np.minimum(sums, np.iinfo(new[name].dtype).max)


def fingerprint_of(raw: bytes) -> int:
    """The weights that made a stored row's state vector, whatever its layout.

    Raises:
        DamagedRow: as ``RowLayout.unpack``.
    """
    return int(np.frombuffer(raw, dtype=_layout_of(raw).dtype)["fingerprint"][0])


def looked_at_ms(last_ms: NDArray[np.int64], silence_s: NDArray[np.int64]) -> NDArray[np.int64]:
    """When the deadline of a row with ``LEAST`` is asked for, by last time and ``silence_s`` (more than 0).

    Before that silence is over, by up to a quarter of it: times that are multiples of a power of two seconds. A user
    who comes by now and then so keeps the same one from event to event, and so does the index of timers.
    """
    _, bits = np.frexp(silence_s.astype(np.float64))
    quantum_ms = 1000 << np.maximum(bits - 3, 0).astype(np.int64)
    over_ms = last_ms + silence_s * 1000
    return np.asarray(over_ms - over_ms % quantum_ms, np.int64)


@dataclass(frozen=True, slots=True)
class Waits:
    """What stored rows (B,) say of the silences that last now.

    Attributes:
        until_ms: when each row is looked at: the moment at which the silence becomes an alert, or with ``LEAST`` that
            of ``looked_at_ms``; 0 where nobody is waited for.
        known: bool, whether that moment is the alert's.
        silence_s, return_millionths: as in the row.
    """

    until_ms: NDArray[np.int64]
    known: NDArray[np.bool_]
    silence_s: NDArray[np.int64]
    return_millionths: NDArray[np.int64]


def waits_of(raws: Sequence[bytes | None]) -> Waits:
    """Read the silences of stored rows, whatever their layouts; None is nobody."""
    # Of every row that is written, and of the one before it: three slices of each are all that is done one by one.
    blank = bytes(_SILENCE.itemsize + _LAST_MS_AT + 8)
    rows = [blank if raw is None else raw for raw in raws]
    version = np.frombuffer(b"".join([row[:1] for row in rows]), np.uint8)
    last_ms = np.frombuffer(b"".join([row[_LAST_MS_AT : _LAST_MS_AT + 8] for row in rows]), "<i8")
    silence = np.frombuffer(b"".join([row[-_SILENCE.itemsize :] for row in rows]), _SILENCE)
    silence_s, said = silence["silence_s"].astype(np.int64), silence["said"]
    waited_for = (version == VERSION) & (silence_s > 0) & ((said & SAID) == 0)
    least = (said & LEAST) > 0
    at_ms = np.where(least, looked_at_ms(last_ms, silence_s), last_ms + silence_s * 1000)
    return Waits(
        np.where(waited_for, at_ms, 0),
        waited_for & ~least,
        silence_s,
        silence["return_millionths"].astype(np.int64),
    )


def positions_of(raws: Sequence[bytes]) -> NDArray[np.int64]:
    """The offset of the last applied event of each stored row."""
    return np.frombuffer(b"".join([row[_POSITION_AT : _POSITION_AT + 8] for row in raws]), "<i8")


@lru_cache(maxsize=64)
def _layout(n_actions: int, state_width: int, window: int, version: int) -> RowLayout:
    return RowLayout(n_actions, state_width, window, version)


def _layout_of(raw: bytes) -> RowLayout:
    """The layout that a row itself declares.

    Raises:
        DamagedRow: the header is of another version, or does not fit the row's length.
    """
    mend = "Remove the partition's data directory; the worker restores it from the changelog."
    if len(raw) < _HEADER.itemsize:
        raise DamagedRow(
            f"A state row has {len(raw)} bytes, fewer than its header's {_HEADER.itemsize}. {mend}"
        )
    header = np.frombuffer(raw, dtype=_HEADER, count=1)[0]
    version, n_actions, window, entry_bytes, state_width = (int(number) for number in header)
    if version not in _ALERTS:
        raise DamagedRow(
            f"A state row has layout version {version}; this build reads 1 to {VERSION}. "
            "Run the build that wrote it, or a newer one."
        )
    if entry_bytes != ENTRY_BYTES or not n_actions or not window:
        raise DamagedRow(
            f"A state row's header says {n_actions} actions, a window of {window} events and {entry_bytes} "
            f"bytes an entry; expected at least 1, 1 and exactly {ENTRY_BYTES}. {mend}"
        )
    layout = _layout(n_actions, state_width, window, version)
    if len(raw) != layout.size:
        raise DamagedRow(f"A state row has {len(raw)} bytes where its header says {layout.size}. {mend}")
    return layout


def read(raw: bytes, said_until_ms: int = 0) -> dict[str, Any]:
    """One row of any layout for a person's eyes, in plain Python values.

    Args:
        said_until_ms: all of this user's timers before it were said, see ``stream.stage.SourceMark``.

    Raises:
        DamagedRow: as `RowLayout.unpack`.
    """
    layout = _layout_of(raw)
    row = np.frombuffer(raw, dtype=layout.dtype)[0]
    events = int(row["life_events"])
    held = min(layout.window, int(row["window_count"]))
    silence_s, said = (int(row["silence_s"]), int(row["said"])) if layout.version > 1 else (0, 0)
    over_ms = int(row["last_ms"]) + silence_s * 1000
    seen = [code for code in range(layout.n_actions) if row["action_life"][code]]
    log_gaps, log_prices = row["w_log_gap"].astype(float), row["w_log_price"].astype(float)
    return {
        "version": int(row["version"]),
        "bytes": len(raw),
        "position": {"offset": int(row["position"]), "epoch": row["epoch"].tobytes().hex()},
        "first_event": _iso(int(row["first_ms"])) if events else None,
        "last_event": _iso(int(row["last_ms"])) if events else None,
        "events": events,
        "session": {
            "index": int(row["session_index"]),
            "events": int(row["session_events"]),
            "start": _iso(int(row["session_start_ms"])) if events else None,
        },
        "actions": [
            {
                "code": code,
                "in_session": int(row["action_session"][code]),
                "in_life": int(row["action_life"][code]),
                "last": _iso(int(row["action_last_s"][code]) * 1000),
            }
            for code in seen
        ],
        "remembered_event_ids": int(np.count_nonzero(row["ring"])),
        "model": {"fingerprint": f"{int(row['fingerprint']):016x}", "state_width": layout.state_width},
        "window": [
            {
                "action": int(row["w_action"][slot]),
                "category": int(row["w_category"][slot]),
                "item": int(row["w_item"][slot]),
                "gap_s": round(float(np.expm1(log_gaps[slot])), 3),
                "price": None if np.isnan(log_prices[slot]) else round(float(np.expm1(log_prices[slot])), 2),
            }
            for slot in range(layout.window - held, layout.window)
        ],
        "alerts": {
            "said": bool(said & SAID) or bool(silence_s and not said & LEAST and over_ms < said_until_ms),
            "deadline": _iso(over_ms) if silence_s and not said & LEAST else None,
            "not_before": _iso(over_ms) if silence_s and said & LEAST else None,
        },
    }


def _iso(time_ms: int) -> str:
    try:
        time = datetime.datetime.fromtimestamp(time_ms / 1000, datetime.UTC)
    except (OverflowError, ValueError):  # beyond the year 9999
        return f"{time_ms} ms"
    return time.isoformat(timespec="milliseconds")
