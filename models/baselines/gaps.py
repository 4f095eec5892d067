"""The time to a user's next event: medians of training users, and of the user's own gaps so far."""

from __future__ import annotations

from bisect import insort

import numpy as np
from numpy.typing import NDArray

from models.columns import Columns
from models.split import Split, next_gap_s

# How many own gaps a user needs before their median counts; never, if the tuning users say so.
_ENOUGH = (1, 2, 3, 5, 8, 12, 20, 40, 1 << 30)
_ENOUGH_UNTUNED = 5


def global_median(split: Split) -> NDArray[np.float64]:
    """The median gap of the training users, seconds, for every test event (N,); 0 if they have none."""
    gap_s = next_gap_s(split.fit)
    return np.full(len(split.test["row"]), _median(gap_s[~np.isnan(gap_s)], 0.0))


def type_median(split: Split) -> NDArray[np.float64]:
    """The median gap of the training users after each event's action, (N,)."""
    return _type_medians(split)[split.test["action"]]


def user_median(split: Split) -> NDArray[np.float64]:
    """The median of the user's own gaps so far where there are enough, else that after the event's action, (N,)."""
    by_type = _type_medians(split)
    own, count = running_median_s(split.tune)
    gap_s = next_gap_s(split.tune)
    scored = ~np.isnan(gap_s)
    enough = _ENOUGH_UNTUNED
    if scored.any():
        other = by_type[split.tune["action"]]
        errors = [np.abs(np.where(count >= least, own, other) - gap_s)[scored].mean() for least in _ENOUGH]
        enough = _ENOUGH[int(np.argmin(errors))]
    own, count = running_median_s(split.test)
    return np.where(count >= enough, own, by_type[split.test["action"]])


def running_median_s(columns: Columns) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Median of the user's gaps up to and including the one before each event, seconds (0 without), and how many."""
    median_s = np.zeros(len(columns["row"]))
    count = np.zeros(len(columns["row"]), np.int64)
    seen: list[float] = []
    for event, (wave, gap_ms) in enumerate(
        zip(columns["wave"].tolist(), columns["gap_ms"].tolist(), strict=True)
    ):
        if wave == 0:
            seen = []
        else:
            insort(seen, max(gap_ms, 0) * 1e-3)
            half = len(seen) // 2
            median_s[event] = seen[half] if len(seen) % 2 else (seen[half - 1] + seen[half]) / 2
        count[event] = len(seen)
    return median_s, count


def _type_medians(split: Split) -> NDArray[np.float64]:
    """Of each action (A,); the global one where training users had none."""
    gap_s = next_gap_s(split.fit)
    known = ~np.isnan(gap_s)
    overall = _median(gap_s[known], 0.0)
    action = split.fit["action"]
    return np.array([_median(gap_s[known & (action == code)], overall) for code in range(split.n_actions)])


def _median(values: NDArray[np.float64], otherwise: float) -> float:
    return float(np.median(values)) if len(values) else otherwise
