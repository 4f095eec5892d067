"""The next action given the last k: counts of each context, backing off to the shorter one.

P_k(a | context) = (count(context, a) + m P_{k-1}(a | shorter context)) / (count(context) + m)

Source: interpolated additive smoothing (MacKay & Peto, 1995), with one m an order, tuned on the tuning users.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.baselines import unigram
from models.columns import Columns
from models.split import Split, at_lag

# The first is taken when no tuning user can choose.
_MASSES = (8.0, 0.5, 2.0, 32.0, 128.0, 512.0)


@dataclass(frozen=True)
class _Order:
    """The contexts of k actions that training users had, sorted, and what came after each."""

    context_U: NDArray[np.int64]
    count_UA: NDArray[np.float64]
    mass: float

    def after(self, context: NDArray[np.int64]) -> NDArray[np.float64]:
        """Counts of the actions after each context, (N, A); zeros for one never seen."""
        if not len(self.context_U):
            return np.zeros((len(context), self.count_UA.shape[1]))
        place = np.minimum(np.searchsorted(self.context_U, context), len(self.context_U) - 1)
        known = self.context_U[place] == context
        return self.count_UA[place] * known[:, None]


@dataclass(frozen=True)
class Markov:
    """A fitted chain: the shares of all actions, and one table an order."""

    share_A: NDArray[np.float64]
    orders: tuple[_Order, ...] = ()

    @classmethod
    def fit(cls, columns: Columns, tune: Columns, n_actions: int, order: int = 2) -> Markov:
        """Count on the training users; choose each order's smoothing on the tuning users."""
        model = cls(unigram.probabilities(columns, n_actions))
        scored = np.flatnonzero(tune["wave"] > 0)
        actual = tune["action"][scored]
        shorter = model.probabilities(tune)[scored]
        for k in range(1, order + 1):
            context_U, at = np.unique(contexts(columns, n_actions, k), return_inverse=True)
            count = np.bincount(at * n_actions + columns["action"], minlength=len(context_U) * n_actions)
            found = _Order(context_U, count.reshape(-1, n_actions).astype(np.float64), 1.0)
            after = found.after(contexts(tune, n_actions, k)[scored])
            tried = [smoothed(after, shorter, mass) for mass in _MASSES]
            best = int(np.argmin([mean_loss(p, actual) for p in tried]))
            shorter = tried[best]
            model = cls(model.share_A, (*model.orders, replace(found, mass=_MASSES[best])))
        return model

    def probabilities(self, columns: Columns) -> NDArray[np.float64]:
        """The distribution of each event's action given the actions before it, (N, A)."""
        n_actions = len(self.share_A)
        p_NA = np.tile(self.share_A, (len(columns["row"]), 1))
        for k, table in enumerate(self.orders, 1):
            p_NA = smoothed(table.after(contexts(columns, n_actions, k)), p_NA, table.mass)
        return p_NA

    def losses(self, columns: Columns) -> NDArray[np.float64]:
        """Nats of each event's action given the actions before it."""
        p_NA = self.probabilities(columns)
        return -np.log(p_NA[np.arange(len(p_NA)), columns["action"]])


def next_action(order: int) -> Callable[[Split], NDArray[np.float64]]:
    """The chain of an order, fitted and tuned on a split's training users, as a function of the split."""

    def predict(split: Split) -> NDArray[np.float64]:
        return Markov.fit(split.fit, split.tune, split.n_actions, order).probabilities(split.test)

    return predict


def smoothed(count_NA: NDArray, prior_NA: NDArray, mass: float) -> NDArray[np.float64]:
    """Shares of counts to which ``mass`` events distributed like the prior are added."""
    return (count_NA + mass * prior_NA) / (count_NA.sum(axis=1, keepdims=True) + mass)


def mean_loss(p_NA: NDArray, action_N: NDArray) -> float:
    """Nats an event; 0 without events, so that the first of several candidates is taken."""
    return float(-np.log(p_NA[np.arange(len(p_NA)), action_N]).mean()) if len(p_NA) else 0.0


def contexts(columns: Columns, n_actions: int, order: int) -> NDArray[np.int64]:
    """The last ``order`` actions before each event as one number, newest in the lowest digit.

    Base n_actions + 1; the digit n_actions stands for "before the first event".
    """
    action = columns["action"].astype(np.int64)
    return sum(
        (
            at_lag(action, columns, lag, n_actions) * (n_actions + 1) ** (lag - 1)
            for lag in range(1, order + 1)
        ),
        np.zeros(len(action), np.int64),
    )
