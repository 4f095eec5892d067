"""A log split by user or by time, and which of its events count: the same for every network and every simple method.

Nothing here looks at the test users but to hand them over: what is fitted reads ``fit``, what is tuned ``tune``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from models.columns import Columns, histories
from models.training_log import TrainingLog, targets_of

FOLDS = 5


@dataclass(frozen=True)
class Split:
    """Three parts; each user's events contiguous, in time order, from the first.

    By user, no two parts have a user in common and every history is whole. By time, ``fit`` and ``tune`` end at
    ``from_ms``; ``test`` holds every user's whole history, of which only the events from ``from_ms`` on count.
    """

    log: TrainingLog
    fit: Columns
    tune: Columns
    test: Columns
    from_ms: int | None = None

    @property
    def n_actions(self) -> int:
        """Codes of the vocabulary, ``other`` included."""
        return len(self.log.actions)

    @property
    def purchase_code(self) -> int:
        """The code of ``purchase``; -1, which no event has, where the vocabulary lacks it."""
        names = self.log.actions.names
        return names.index("purchase") if "purchase" in names else -1


@dataclass(frozen=True)
class Scored:
    """Masks (N,): the events that a head's measures count."""

    action: NDArray[np.bool_]
    category: NDArray[np.bool_]
    gap: NDArray[np.bool_]
    purchase: NDArray[np.bool_]


def split_of(log: TrainingLog, bounds: tuple[int, int], from_ms: int | None = None) -> Split:
    """Users with crc32(user id) % 100 in [first, second bound) tune.

    By user, those below are fitted on and those above test. By time, with ``from_ms``, all others are fitted on; both
    are cut at that moment, and what comes after it tests. A part may be empty; ``models.training_log.check_parts``
    refuses what cannot be learned from.
    """
    fit, tune = bounds
    tuning = log.of_users(fit, tune)
    if from_ms is None:
        return Split(log, log.of_users(0, fit), tuning, log.of_users(tune, 100))
    share = log.shares()
    fitted = log.part((share < fit) | (share >= tune))
    return Split(log, until(fitted, from_ms), until(tuning, from_ms), log.columns, from_ms)


def until(columns: Columns, end_ms: int) -> Columns:
    """Each user's events up to the first one at or after a moment; users without any left are gone."""
    over = np.append(0, np.cumsum(columns["event_time_ms"] >= end_ms))
    first = np.maximum.accumulate(np.where(columns["wave"] == 0, np.arange(len(over) - 1), 0))
    return histories(columns, np.flatnonzero(over[1:] == over[first]))


def scored_events(columns: Columns, purchase_code: int, from_ms: int | None = None) -> Scored:
    """Which events count, of those from a moment on if one is given.

    Action and category: all but a user's first, which nobody can predict from the user (category: if it has
    one). Gap: events with a follower. Purchase: events of sessions whose end the log knows; none without a purchase
    action.
    """
    target = targets_of(columns, purchase_code)
    counts = columns["event_time_ms"] >= (np.iinfo(np.int64).min if from_ms is None else from_ms)
    later = counts & (columns["wave"] > 0)
    return Scored(
        action=later,
        category=later & (columns["category"] != 0),
        gap=counts & target.follows,
        purchase=counts & target.purchase_known & (purchase_code >= 0),
    )


def next_gap_s(columns: Columns) -> NDArray[np.float64]:
    """Seconds from each event to the user's next one, 0 if that came late, NaN where there is none."""
    gap_s = np.full(len(columns["row"]), np.nan)
    if len(gap_s):
        follows = columns["row"][1:] == columns["row"][:-1]
        gap_s[:-1][follows] = np.maximum(columns["gap_ms"][1:][follows], 0) * 1e-3
    return gap_s


def at_lag(column: NDArray, columns: Columns, lag: int, missing: Any) -> NDArray:
    """The value of a column (N, ...) at the user's ``lag``-th event before each event, ``missing`` where none is."""
    before = np.full_like(column, missing)
    before[lag:] = column[: max(len(column) - lag, 0)]
    before[columns["wave"] < lag] = missing
    return before


def cross_splits(log: TrainingLog, folds: int = FOLDS) -> Iterator[tuple[Split, NDArray[np.int64]]]:
    """Each fold of users once as test part, the next fold tuning, the others fitting.

    Yields the split and the positions of its test events in the log. Users are dealt to the folds in the order of
    their hashes, so that folds are equally large and independent of the order of the log and of ``--bounds``.
    """
    hashes = [(crc32(user.encode()) // 100, user) for user in log.user_ids]
    rank = np.empty(len(hashes), np.int64)
    rank[sorted(range(len(hashes)), key=hashes.__getitem__)] = np.arange(len(hashes))
    fold = rank % folds
    for test in range(folds):
        tune = (test + 1) % folds
        split = Split(
            log,
            fit=log.part((fold != test) & (fold != tune)),
            tune=log.part(fold == tune),
            test=log.part(fold == test),
        )
        yield split, np.flatnonzero(fold[log.columns["row"]] == test)


def cross_fitted(log: TrainingLog, function: Callable[[Split], NDArray], folds: int = FOLDS) -> NDArray:
    """What a function of a split predicts for every event of the log, never fitted or tuned on its user."""
    parts = [(at, function(split)) for split, at in cross_splits(log, folds)]
    n = len(log.columns["row"])
    merged = np.zeros((n, *parts[0][1].shape[1:]), parts[0][1].dtype)
    for at, values in parts:
        merged[at] = values
    return merged
