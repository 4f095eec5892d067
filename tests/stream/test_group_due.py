"""Laws of the index of rows that are due."""

from __future__ import annotations

import random

import pytest

from stream.group_due import DueRows


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_found_in_the_order_of_time_however_they_moved(seed: int) -> None:
    """What is due by any moment is what a sorted list of all rows says, the earliest first."""
    rng = random.Random(seed)
    begin = {b"k%d" % number: rng.randrange(1, 10**9) for number in range(30)}
    index, due = DueRows(begin.items()), dict(begin)
    for _ in range(300):
        key, to = b"k%d" % rng.randrange(40), rng.choice([0, rng.randrange(1, 10**9), 2**22, 2**22 - 1])
        index.move(key, due.get(key, 0), to)
        due[key] = to
        horizon_ms, most = rng.choice([0, 2**22 - 1, 2**22, rng.randrange(10**9)]), rng.randrange(1, 50)
        ordered = sorted((at, key) for key, at in due.items() if 0 < at <= horizon_ms)
        assert index.until(horizon_ms, most) == [key for _, key in ordered][:most]
