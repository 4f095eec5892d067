"""The next action given the last k: counts of each context, backing off to the shorter one.

P_k(a | context) = (count(context, a) + m P_{k-1}(a | shorter context)) / (count(context) + m)

Source: interpolated additive smoothing (MacKay & Peto, 1995), with one m an order, tuned on the tuning users.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.baselines import unigram
from models.columns import Columns

_MASSES = (0.5, 2.0, 8.0, 32.0, 128.0)


@dataclass(frozen=True)
class Markov:
    """A fitted chain: ``tables[k]`` holds the probabilities after each context of k actions, row = context."""

    n_actions: int
    tables: tuple[NDArray[np.float64], ...]

    @classmethod
    def fit(cls, columns: Columns, tune: Columns, n_actions: int, order: int = 2) -> Markov:
        """Count on the training users; choose each order's smoothing on the tuning users."""
        model = cls(n_actions, (unigram.probabilities(columns, n_actions)[None],))
        for k in range(1, order + 1):
            context = contexts(columns, n_actions, k)
            count = np.zeros(((n_actions + 1) ** k, n_actions))
            np.add.at(count, (context, columns["action"]), 1.0)
            # The oldest action is the highest digit: dropping it is the number modulo the smaller power.
            shorter = np.tile(model.tables[-1], (n_actions + 1, 1))
            candidates = []
            for mass in _MASSES:
                table = (count + mass * shorter) / (count.sum(axis=1, keepdims=True) + mass)
                candidates.append(cls(n_actions, (*model.tables, table)))
            model = min(candidates, key=lambda m: float(m.losses(tune)[tune["wave"] > 0].mean()))
        return model

    def losses(self, columns: Columns) -> NDArray[np.float64]:
        """Nats of each event's action given the actions before it."""
        order = len(self.tables) - 1
        table = self.tables[-1]
        return -np.log(table[contexts(columns, self.n_actions, order), columns["action"]])


def contexts(columns: Columns, n_actions: int, order: int) -> NDArray[np.int64]:
    """The last ``order`` actions before each event as one number, newest in the lowest digit.

    Base n_actions + 1; the digit n_actions stands for "before the first event".
    """
    context = np.zeros(len(columns["action"]), np.int64)
    for lag in range(1, order + 1):
        before = np.full(len(context), n_actions, np.int64)
        before[lag:] = columns["action"][:-lag]
        before[columns["wave"] < lag] = n_actions
        context += before * (n_actions + 1) ** (lag - 1)
    return context
