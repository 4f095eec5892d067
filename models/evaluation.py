"""How good predictions are, with honest intervals: users are resampled, not events.

Events of one user resemble each other; an interval that resamples events would be far too narrow. What is served is
what is measured: the numbers come out of the step engine, state cast and all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.columns import WINDOW, Columns
from models.runtime import StepEngine, StepResult

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap interval, over n events."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        """For people: value and interval."""
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"

    def as_dict(self, name: str, metric: str) -> dict[str, object]:
        """For programs."""
        return {
            "name": name,
            "metric": metric,
            "value": round(self.value, 6),
            "low": round(self.low, 6),
            "high": round(self.high, 6),
            "n": self.n,
        }


def mean_interval(loss_N: NDArray, user_N: NDArray, seed: int = 0) -> Interval:
    """The mean over events with an interval by resampling users with replacement.

    Give the difference of two models' losses for a paired interval.
    """
    user, inverse = np.unique(user_N, return_inverse=True)
    total = np.bincount(inverse, loss_N)
    events = np.bincount(inverse)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(user), np.full(len(user), 1 / len(user)), RESAMPLES)
    means = (draws @ total) / (draws @ events)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(loss_N.mean()), float(low), float(high), len(loss_N))


def run(engine: StepEngine, columns: Columns) -> StepResult:
    """Every user from the zero state through all of its events, as the worker would serve them."""
    users = int(columns["row"].max()) + 1 if len(columns["row"]) else 0
    state = np.zeros((users, engine.artefact.state_width), np.float16)
    return engine.step(state, np.zeros((users, WINDOW), np.uint32), columns)


def scored(columns: Columns) -> NDArray[np.bool_]:
    """The events whose action counts: all but a user's first, which nobody can predict from the user."""
    return columns["wave"] > 0


def auc(label: NDArray[np.bool_], score: NDArray) -> float:
    """Area under the ROC curve: the chance that a positive ranks above a negative, ties half; NaN if one lacks."""
    positives = int(label.sum())
    negatives = len(label) - positives
    if not positives or not negatives:
        return float("nan")
    _, inverse, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[inverse]
    return float((rank[label].sum() - positives * (positives + 1) / 2) / (positives * negatives))
