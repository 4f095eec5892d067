"""The state row: its golden file, round trips, upgrades, and bytes that are no row.

``FORECLICK_WRITE_GOLDEN=1 pytest tests/stream/test_rows.py`` writes the golden file of a new layout version;
it never overwrites one, because a version that is in the field does not change.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.errors import DamagedRow
from stream.rows import ENTRY_BYTES, RING, VERSION, RowLayout, read, waits_of

GOLDEN = Path(__file__).parents[1] / "golden" / f"row_v{VERSION}.bin"
DEFAULT = RowLayout(n_actions=11, state_width=128)
#: Where each field of version 2 begins, and what the golden row holds.
GOLDEN_OFFSETS = {
    "version": 0,
    "n_actions": 1,
    "window": 2,
    "entry_width": 3,
    "state_width": 4,
    "position": 6,
    "epoch": 14,
    "first_ms": 22,
    "last_ms": 30,
    "session_start_ms": 38,
    "session_index": 46,
    "session_events": 50,
    "life_events": 54,
    "action_session": 58,
    "action_life": 80,
    "action_last_s": 124,
    "ring": 168,
    "ring_next": 296,
    "window_count": 297,
    "fingerprint": 298,
    "state": 306,
    "w_action": 562,
    "w_category": 594,
    "w_item": 722,
    "w_log_gap": 850,
    "w_log_price": 914,
    "silence_s": 978,
    "return_millionths": 982,
    "said": 986,
}
GOLDEN_VALUES = {
    "position": 2937467307694268567,
    "first_ms": 188957027462249005,
    "life_events": 1081530686,
    "ring_next": 3,
    "fingerprint": 5271432258981221095,
    "silence_s": 529894209,
    "return_millionths": 1854966827,
    "said": 1,
}
#: The last number of some arrays.
GOLDEN_LAST = {
    "action_session": 89,
    "action_life": 47463574,
    "action_last_s": 1440154963,
    "ring": 8615030846276391752,
    "state": 6.58984375,
    "w_action": 5,
    "w_item": 1644794485,
    "w_log_gap": -1.5283203125,
}


def filled(layout: RowLayout, count: int, seed: int = 0, window_count: int | None = None) -> np.ndarray:
    """Rows whose every field holds some value that the field can hold."""
    draw = np.random.default_rng(seed)
    rows = layout.blank(count)
    for name in layout.dtype.names[5:]:
        field = rows[name]
        if name == "epoch":
            rows[name] = np.frombuffer(draw.bytes(8 * count), "V8")
        elif field.dtype.kind == "f":
            rows[name] = draw.normal(0, 4, field.shape).astype(np.float16)
        else:
            rows[name] = draw.integers(0, np.iinfo(field.dtype).max // 2, field.shape)
    rows["ring_next"] %= RING
    rows["w_action"] %= layout.n_actions
    rows["said"] &= 1
    rows["window_count"] = layout.window if window_count is None else window_count
    return rows


def test_a_row_of_the_default_model_fits_its_budget() -> None:
    """11 actions, a state of 128 numbers and 32 events take at most 1,010 bytes, without padding."""
    assert DEFAULT.size == 987
    entry = sum(DEFAULT.dtype[name].base.itemsize for name in DEFAULT.dtype.names if name.startswith("w_"))
    assert entry == ENTRY_BYTES
    assert all(DEFAULT.dtype[name].base.byteorder in "<|=" for name in DEFAULT.dtype.names)


def test_rows_are_read_as_the_golden_file_says() -> None:
    """Bytes that older builds wrote keep their meaning, field by field, and are written as they were read."""
    if os.environ.get("FORECLICK_WRITE_GOLDEN") == "1" and not GOLDEN.exists():
        GOLDEN.write_bytes(filled(DEFAULT, 1).tobytes())
    raw = GOLDEN.read_bytes()
    rows = DEFAULT.unpack([raw])
    assert DEFAULT.pack(rows) == [raw]
    assert raw[:6] == bytes([VERSION, 11, 32, 13, 128, 0])
    assert {name: DEFAULT.dtype.fields[name][1] for name in DEFAULT.dtype.names} == GOLDEN_OFFSETS
    assert {name: rows[name][0].item() for name in GOLDEN_VALUES} == GOLDEN_VALUES
    assert {name: rows[name][0, -1].item() for name in GOLDEN_LAST} == GOLDEN_LAST


def test_rows_of_version_1_are_upgraded() -> None:
    """All that both know is copied; a deadline was only reserved then, so nobody is waited for."""
    raw = (GOLDEN.parent / "row_v1.bin").read_bytes()
    upgraded = DEFAULT.unpack([raw, None])
    now = DEFAULT.unpack([GOLDEN.read_bytes()])
    told = ("silence_s", "return_millionths", "said")
    for name in set(DEFAULT.dtype.names) - {*told, "version"}:
        assert upgraded[name][0].tobytes() == now[name][0].tobytes(), name
    assert not any(upgraded[name].any() for name in told)
    assert DEFAULT.pack(upgraded)[0][:6] == bytes([VERSION, 11, 32, 13, 128, 0])
    assert waits_of([raw]).until_ms.tolist() == [0]
    assert read(raw)["alerts"] == {"said": False, "deadline": None, "not_before": None}


def test_blank_rows_are_zeros_but_for_header_and_position() -> None:
    """A user without a row starts from nothing applied."""
    (raw,) = DEFAULT.pack(DEFAULT.unpack([None]))
    assert raw[:14] == bytes([VERSION, 11, 32, 13, 128, 0]) + b"\xff" * 8
    assert not any(raw[14:])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 65), st.integers(0, 300), st.integers(1, 255), st.integers(0, 5), st.integers(0, 99))
def test_rows_round_trip(n_actions: int, state_width: int, window: int, count: int, seed: int) -> None:
    """Pack and unpack are inverse for any layout and any content; unpacked rows can be written to."""
    layout = RowLayout(n_actions, state_width, window)
    rows = filled(layout, count, seed)
    raws = layout.pack(rows)
    assert [type(raw) for raw in raws] == [bytes] * count
    again = layout.unpack(raws)
    assert again.dtype == layout.dtype
    assert again.tobytes() == rows.tobytes()
    again["life_events"] += 1
    assert layout.pack(rows) == raws


def test_chosen_rows_are_packed_in_their_order() -> None:
    """Rows picked by index or by stride pack like any others."""
    rows = filled(DEFAULT, 6)
    raws = DEFAULT.pack(rows)
    assert DEFAULT.pack(rows[[4, 1]]) == [raws[4], raws[1]]
    assert DEFAULT.pack(rows[::2]) == raws[::2]


def test_missing_and_stored_rows_mix() -> None:
    """None becomes a blank row in its place; the others are read as they are."""
    raws = DEFAULT.pack(filled(DEFAULT, 2))
    rows = DEFAULT.unpack([None, raws[0], None, raws[1]])
    blank = DEFAULT.blank(1).tobytes()
    assert DEFAULT.pack(rows) == [blank, raws[0], blank, raws[1]]


def test_a_state_vector_of_another_width_is_emptied() -> None:
    """All else is kept, and fingerprint 0 asks for a rebuild; a state of the same width stays."""
    old = RowLayout(n_actions=11, state_width=64)
    rows = filled(old, 3)
    upgraded = DEFAULT.unpack(old.pack(rows))
    assert not upgraded["state"].any()
    assert not upgraded["fingerprint"].any()
    for name in set(DEFAULT.dtype.names) - {"state", "fingerprint", "state_width"}:
        assert upgraded[name].tobytes() == rows[name].tobytes(), name
    other_actions = RowLayout(n_actions=12, state_width=64)
    kept = other_actions.unpack(old.pack(rows))
    assert kept["state"].tobytes() == rows["state"].tobytes()
    assert kept["fingerprint"].tolist() == rows["fingerprint"].tolist()


def test_actions_beyond_a_smaller_vocabulary_join_other() -> None:
    """Counts are added up (and stop at their largest), times take the latest, the window's codes follow."""
    old, new = RowLayout(6, 0, window=6), RowLayout(4, 0, window=6)
    rows = old.blank(1)
    rows["action_session"] = [[1, 2, 3, 60_000, 5_000, 6_000]]
    rows["action_life"] = [[10, 20, 30, 40, 50, 60]]
    rows["action_last_s"] = [[1, 2, 3, 9, 8, 7]]
    rows["w_action"] = [[0, 1, 2, 3, 4, 5]]
    rows["window_count"] = 6
    upgraded = new.unpack(old.pack(rows))
    assert upgraded["action_session"].tolist() == [[1, 2, 3, 65_535]]
    assert upgraded["action_life"].tolist() == [[10, 20, 30, 150]]
    assert upgraded["action_last_s"].tolist() == [[1, 2, 3, 9]]
    assert upgraded["w_action"].tolist() == [[0, 1, 2, 3, 3, 3]]


def test_other_stays_the_last_code_of_a_larger_vocabulary() -> None:
    """What was ``other`` is ``other``, not the first of the new actions."""
    old, new = RowLayout(3, 0, window=3), RowLayout(5, 0, window=3)
    rows = old.blank(1)
    rows["action_life"] = [[7, 8, 9]]
    rows["w_action"] = [[0, 1, 2]]
    rows["window_count"] = 3
    upgraded = new.unpack(old.pack(rows))
    assert upgraded["action_life"].tolist() == [[7, 8, 0, 0, 9]]
    assert upgraded["w_action"].tolist() == [[0, 1, 4]]


@pytest.mark.parametrize(
    ("before", "held", "after", "kept"), [(8, 8, 5, 5), (8, 3, 5, 3), (5, 5, 8, 5), (5, 0, 8, 0)]
)
def test_a_window_of_another_length_keeps_the_newest(before: int, held: int, after: int, kept: int) -> None:
    """The newest events stay, newest last, and the count says how many there are."""
    old, new = RowLayout(11, 0, window=before), RowLayout(11, 0, window=after)
    rows = filled(old, 1, window_count=held)
    upgraded = new.unpack(old.pack(rows))
    assert upgraded["window_count"].tolist() == [kept]
    for name in ("w_item", "w_category", "w_log_gap", "w_log_price"):
        wanted = np.concatenate([np.zeros(after - kept), rows[name][0, before - kept :]])
        assert upgraded[name][0].tolist() == wanted.tolist()


def test_rows_of_several_layouts_are_read_in_one_call() -> None:
    """A store holds rows of many models; each is read by its own header."""
    old = RowLayout(11, 64)
    raws = [DEFAULT.pack(filled(DEFAULT, 1))[0], None, old.pack(filled(old, 1))[0]]
    rows = DEFAULT.unpack(raws)
    assert rows["state_width"].tolist() == [128, 128, 128]
    assert rows["position"].tolist()[1] == -1
    assert DEFAULT.pack(rows)[0] == raws[0]


def damaged() -> list[tuple[str, bytes, str]]:
    raw = bytearray(DEFAULT.pack(DEFAULT.blank(1))[0])
    other_version, other_entry, no_actions = raw.copy(), raw.copy(), raw.copy()
    other_version[0], other_entry[3], no_actions[1] = 9, 14, 0
    return [
        ("empty", b"", "0 bytes, fewer than its header's 6"),
        ("truncated", bytes(raw[:-1]), "986 bytes where its header says 987"),
        ("too long", bytes(raw) + b"x", "988 bytes where its header says 987"),
        ("unknown version", bytes(other_version), "version 9; this build reads 1 to 2"),
        ("foreign entries", bytes(other_entry), "14 bytes an entry"),
        ("no actions", bytes(no_actions), "0 actions"),
    ]


@pytest.mark.parametrize(
    ("raw", "message"), [case[1:] for case in damaged()], ids=[case[0] for case in damaged()]
)
def test_a_damaged_row_is_named(raw: bytes, message: str) -> None:
    """Bytes that are no row raise with what was found, whether one user or all are read."""
    with pytest.raises(DamagedRow, match=message):
        DEFAULT.unpack([DEFAULT.pack(DEFAULT.blank(1))[0], raw])
    with pytest.raises(DamagedRow, match=message):
        read(raw)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=1200))
def test_random_bytes_are_a_damaged_row_or_a_row(raw: bytes) -> None:
    """Whatever a store returns, the only error is DamagedRow."""
    try:
        rows = DEFAULT.unpack([raw])
    except DamagedRow:
        return
    assert rows["n_actions"].tolist() == [11]


def test_a_row_is_shown_in_plain_words() -> None:
    """``read`` names position, sessions, counts, window and alerts, and shows only what there is."""
    rows = DEFAULT.blank(1)
    rows["position"], rows["epoch"] = 42, np.void(b"\1\2\3\4\5\6\7\x08")
    rows["first_ms"], rows["last_ms"], rows["session_start_ms"] = (
        1_511_550_516_000,
        1_511_550_517_000,
        1_511_550_516_000,
    )
    rows["session_index"], rows["session_events"], rows["life_events"], rows["window_count"] = 1, 2, 2, 2
    rows["action_session"][0, 4], rows["action_life"][0, 4], rows["action_last_s"][0, 4] = 2, 2, 1_511_550_517
    rows["ring"][0, :2] = [5, 6]
    rows["fingerprint"] = 255
    rows["w_action"][0, -2:] = 4
    rows["w_item"][0, -2:] = [7, 8]
    rows["w_log_gap"][0, -1] = np.log1p(1.0)
    rows["w_log_price"][0, -2:] = [np.nan, np.log1p(9.99)]
    shown = read(DEFAULT.pack(rows)[0])
    assert shown["position"] == {"offset": 42, "epoch": "0102030405060708"}
    assert shown["last_event"] == "2017-11-24T19:08:37.000+00:00"
    assert shown["session"] == {"index": 1, "events": 2, "start": "2017-11-24T19:08:36.000+00:00"}
    assert shown["actions"] == [
        {"code": 4, "in_session": 2, "in_life": 2, "last": "2017-11-24T19:08:37.000+00:00"}
    ]
    assert shown["model"] == {"fingerprint": "00000000000000ff", "state_width": 128}
    assert [entry["item"] for entry in shown["window"]] == [7, 8]
    assert shown["window"][0]["price"] is None
    assert shown["window"][1]["gap_s"] == pytest.approx(1.0, abs=1e-3)
    assert shown["window"][1]["price"] == pytest.approx(9.99, rel=2e-3)  # float16 keeps three digits
    assert shown["alerts"] == {"said": False, "deadline": None, "not_before": None}
    rows["silence_s"], rows["said"] = 86_400, 1
    shown = read(DEFAULT.pack(rows)[0])
    assert shown["alerts"] == {
        "said": True,
        "deadline": "2017-11-25T19:08:37.000+00:00",
        "not_before": None,
    }
    rows["said"] = 0
    over_ms = 1_511_636_917_000
    for until_ms, said in ((over_ms, False), (over_ms + 1, True)):
        assert read(DEFAULT.pack(rows)[0], until_ms)["alerts"]["said"] is said
    assert read(DEFAULT.pack(DEFAULT.blank(1))[0])["last_event"] is None
