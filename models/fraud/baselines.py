"""Four simple detectors that the score is held against, each a number a user, larger for odder.

rate          the most events of the user within a minute
markov        mean surprise of the user's actions under a chain of order 1, fitted on other users
isolation     isolation forest on eight statistics of the user, fitted on other users
co_purchase   other buyers of what the user bought, summed over items
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.fraud.watch import Engagements

__all__ = ["BASELINES", "baseline_scores"]

BASELINES = ("rate", "markov", "isolation", "co_purchase")
_MINUTE_MS = 60_000


def baseline_scores(log: Engagements, fold_U: NDArray, folds: int = 5) -> dict[str, NDArray[np.float64]]:
    """Scores (U,) by name of BASELINES; what is fitted is fitted on the users of the other folds."""
    order = np.lexsort((np.arange(len(log.user)), log.user))
    user, time_ms = log.user[order], log.time_ms[order]
    action, item, ordered = log.action[order], log.item[order], log.ordered[order]
    rate = _rate(user, time_ms, log.n_users)
    return {
        "rate": rate,
        "markov": _markov(user, action, log.n_users, log.n_actions, fold_U, folds),
        "isolation": _isolation(user, time_ms, item, ordered, rate, log.n_users, fold_U, folds),
        "co_purchase": _co_purchase(user[ordered], item[ordered], log.n_users),
    }


def _rate(user: NDArray, time_ms: NDArray, n_users: int) -> NDArray[np.float64]:
    # Users one after the other on one axis of time, a day apart.
    gap = np.diff(time_ms, prepend=time_ms[:1])
    new = np.diff(user, prepend=-1) != 0
    axis = np.cumsum(np.where(new, 86_400_000, np.maximum(gap, 0)))
    within = np.arange(1, len(axis) + 1) - np.searchsorted(axis, axis - _MINUTE_MS)
    most = np.zeros(n_users)
    np.maximum.at(most, user, within.astype(np.float64))
    return most


def _markov(
    user: NDArray, action: NDArray, n_users: int, n_actions: int, fold_U: NDArray, folds: int
) -> NDArray[np.float64]:
    before = np.where(np.diff(user, prepend=-1) != 0, n_actions, np.concatenate([[0], action[:-1]]))
    surprise = np.zeros(len(user))
    for number in range(folds):
        others = fold_U[user] != number
        counts = np.full((n_actions + 1, n_actions), 0.5)
        np.add.at(counts, (before[others], action[others]), 1.0)
        chance = counts / counts.sum(axis=1, keepdims=True)
        surprise[~others] = -np.log(chance[before[~others], action[~others]])
    events = np.maximum(np.bincount(user, minlength=n_users), 1)
    return np.bincount(user, surprise, minlength=n_users) / events


def _isolation(
    user: NDArray,
    time_ms: NDArray,
    item: NDArray,
    ordered: NDArray,
    rate: NDArray,
    n_users: int,
    fold_U: NDArray,
    folds: int,
) -> NDArray[np.float64]:
    from sklearn.ensemble import IsolationForest

    events = np.maximum(np.bincount(user, minlength=n_users), 1).astype(np.float64)
    same = np.diff(user, prepend=-1) == 0
    pause = np.log1p(np.maximum(np.diff(time_ms, prepend=time_ms[:1]), 0) / 1000.0)
    pauses = np.maximum(np.bincount(user[same], minlength=n_users), 1)
    mean = np.bincount(user[same], pause[same], minlength=n_users) / pauses
    spread = np.sqrt(
        np.maximum(np.bincount(user[same], pause[same] ** 2, minlength=n_users) / pauses - mean**2, 0.0)
    )
    pairs = np.unique(user[item >= 0] * (int(item.max(initial=0)) + 1) + item[item >= 0])
    items = np.bincount(pairs // (int(item.max(initial=0)) + 1), minlength=n_users)
    orders = np.bincount(user[ordered], minlength=n_users)
    first, last = np.full(n_users, np.iinfo(np.int64).max), np.zeros(n_users, np.int64)
    np.minimum.at(first, user, time_ms)
    np.maximum.at(last, user, time_ms)
    span = np.log1p(np.maximum(last - first, 0) / 1000.0)
    features = np.stack(
        [np.log(events), mean, spread, items / events, orders / events, np.log1p(orders), span, rate], axis=1
    )
    odd = np.zeros(n_users)
    for number in range(folds):
        own = fold_U == number
        if own.any() and (~own).any():
            forest = IsolationForest(n_estimators=100, random_state=number).fit(features[~own])
            odd[own] = -forest.score_samples(features[own])
    return odd


def _co_purchase(user: NDArray, item: NDArray, n_users: int) -> NDArray[np.float64]:
    user, item = user[item >= 0], item[item >= 0]
    if not len(item):
        return np.zeros(n_users)
    pairs = np.unique(user * (int(item.max()) + 1) + item)
    buyer, bought = np.divmod(pairs, int(item.max()) + 1)
    buyers = np.bincount(bought)
    return np.bincount(buyer, buyers[bought] - 1.0, minlength=n_users).astype(np.float64)
