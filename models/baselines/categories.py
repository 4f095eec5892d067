"""The next category: what the user looked at last, and what everybody looks at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.columns import Columns
from models.split import Split

MOST = 20


def popularity(split: Split) -> NDArray[np.uint32]:
    """The training users' most frequent categories for every test event, (N, 20)."""
    return np.tile(_most_frequent(split.fit)[:MOST], (len(split.test["row"]), 1))


def recency(split: Split) -> NDArray[np.uint32]:
    """The user's categories before each event, newest first, filled up with the most frequent others, (N, 20)."""
    frequent = [code for code in _most_frequent(split.fit).tolist() if code]
    lists = np.zeros((len(split.test["row"]), MOST), np.uint32)
    recent: list[int] = []
    listed = frequent[:MOST]
    for event, (wave, code) in enumerate(
        zip(split.test["wave"].tolist(), split.test["category"].tolist(), strict=True)
    ):
        if wave == 0:
            recent, listed = [], frequent[:MOST]
        lists[event, : len(listed)] = listed
        if code and recent[:1] != [code]:
            recent = [code, *(other for other in recent if other != code)][:MOST]
            listed = (recent + [other for other in frequent if other not in recent])[:MOST]
    return lists


def _most_frequent(columns: Columns) -> NDArray[np.uint32]:
    """The 40 most frequent categories, ties by code, 0 = none: enough to fill up a list of 20 others."""
    code, count = np.unique(columns["category"][columns["category"] != 0], return_counts=True)
    ranked = code[np.lexsort((code, -count))][: 2 * MOST]
    return np.concatenate([ranked, np.zeros(2 * MOST - len(ranked), np.uint32)]).astype(np.uint32)
