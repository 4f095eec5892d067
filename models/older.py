"""The categories that a user's window has forgotten: a few more, each once, for people who return after long.

A state ends with up to ``OLDER`` vocabulary indices, newest last, 0 for an empty place. Whole numbers up to 2,048 are
exact in float16, and the engine ranks fewer categories than that. A category enters when its last event leaves the
window, and goes when the user comes back to it or when newer ones need its place. Categories outside of the vocabulary
are not remembered: an index is half as wide as a code. A state rebuilt from a window has none.

Of 0, 4, 6, 8, 12 and 20 places, 6 found nine tenths of the events that more than the window could explain (recency
list, folds of Taobao users), and a row of the default sizes keeps below 1 KiB.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.columns import WINDOW, Columns
from models.vocabulary import CategoryVocabulary

OLDER = 6


def remember(
    older_NK: NDArray[np.int64], forgotten_N: NDArray[np.int64], entered_N: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The places after one event each of N users; vocabulary indices, 0 for none.

    Args:
        older_NK: before the event.
        forgotten_N: of the category that left the window and is not in it any more.
        entered_N: of the event's own category.
    """
    line = np.concatenate([older_NK, forgotten_N[:, None]], axis=1)
    line[line == entered_N[:, None]] = 0
    order = np.argsort(line != 0, axis=1, kind="stable")
    after: NDArray[np.int64] = np.take_along_axis(line, order, axis=1)[:, 1:]
    return after


def forgotten(
    columns: Columns, oldest_before_N: NDArray[np.uint32], categories: CategoryVocabulary
) -> NDArray[np.int64]:
    """The index of the category that each event pushed out of its user's window, 0 for none or one that stays in it.

    Args:
        oldest_before_N: category code in the first slot of the window before the event, 0 if that was not full.
    """
    stays = (columns["window_category"] == oldest_before_N[:, None]).any(axis=1)
    return np.where(stays, 0, categories.index_of(oldest_before_N)).astype(np.int64)


def older_before(columns: Columns, categories: CategoryVocabulary) -> NDArray[np.int64]:
    """The places before each event of whole histories, (N, OLDER); each user's events contiguous, from the first."""
    wave = columns["wave"]
    n = len(wave)
    before = np.zeros((n, OLDER), np.int64)
    if not n:
        return before
    oldest = np.zeros(n, np.uint32)
    oldest[1:] = columns["window_category"][:-1, 0]
    oldest[wave == 0] = 0
    left, entered = (
        forgotten(columns, oldest, categories),
        categories.index_of(columns["category"]).astype(np.int64),
    )
    # Nothing leaves a window that is not full; so few waves are left where histories are short.
    order = np.argsort(wave, kind="stable")
    ends = np.cumsum(np.bincount(wave))
    for number in range(WINDOW, len(ends) - 1):
        event = order[ends[number - 1] : ends[number]]
        event = event[event + 1 < n]
        event = event[wave[event + 1] == number + 1]
        before[event + 1] = remember(before[event], left[event], entered[event])
    return before
